# SPDX-License-Identifier: BSD-3-Clause
"""Several QMP clients at once; none can harm another."""
import threading
import time

import pytest

from stillpoint_test.qmp import QmpClosed, backup
from stillpoint_test.target import slow_target

pytestmark = pytest.mark.needs("several-clients")


@pytest.mark.rows("protocol.several-clients")
def test_every_client_in_command_mode_gets_the_events(server, q, disks,
                                                      backup_node):
    others = [server.qmp(), server.qmp(tcp=True)]
    disks.add()
    backup_node()
    q.cmd("blockdev-backup", backup("disk0", "target0", "j"))
    q.jobs_succeed("j")
    for other in others:
        other.jobs_succeed("j")
        assert other.choreography("j") == q.choreography("j")


@pytest.mark.rows("protocol.disconnect")
def test_job_goes_on_when_its_client_leaves(server, q, disks, backup_node):
    watcher = server.qmp()
    disks.add()
    backup_node(**slow_target(8))
    q.cmd("blockdev-backup", backup("disk0", "target0", "j"))
    q.close()
    watcher.jobs_succeed("j")


def test_silent_client_harms_nobody(server, q):
    idle = [server.qmp(negotiate=False) for _ in range(20)]
    started = time.monotonic()
    for _ in range(50):
        q.cmd("query-version")
    assert time.monotonic() - started < 2
    assert len(idle) == 20


def test_client_that_never_reads_harms_nobody(server, q):
    deaf = server.qmp()
    deaf.socket.settimeout(0.5)
    try:
        for _ in range(20000):
            deaf.send_bytes(b'{"execute": "query-qmp-schema"}\n')
    except OSError:
        pass                    # paused or dropped, both are right
    before = server.memory_bytes()
    started = time.monotonic()
    for _ in range(50):
        q.cmd("query-version")
    assert time.monotonic() - started < 2
    assert server.memory_bytes() - before < 16 << 20
    assert server.memory_bytes() < 128 << 20


def test_client_that_floods_does_not_starve_another(server, q):
    stop = threading.Event()
    flooder = server.qmp()

    def flood():
        try:
            while not stop.is_set():
                flooder.send_bytes(b'{"execute": "query-version"}' * 100)
                flooder.socket.settimeout(1)
                flooder.socket.recv(1 << 20)
        except (OSError, QmpClosed):
            pass
    t = threading.Thread(target=flood, daemon=True)
    t.start()
    try:
        worst = 0.0
        for _ in range(50):
            started = time.monotonic()
            q.cmd("query-jobs")
            worst = max(worst, time.monotonic() - started)
        assert worst < 0.5, "an answer took %.3f s" % worst
    finally:
        stop.set()
        t.join(5)


def test_fifty_clients_work_at_the_same_time(server):
    clients = [server.qmp(tcp=i % 2 == 1) for i in range(50)]
    for c in clients:
        c.send({"execute": "query-commands", "id": 1})
    assert all(len(c.receive()["return"]) > 10 for c in clients)
