# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 of either process: guests, bitmaps and chains survive."""
import os
import signal
import time

import pytest

from stillpoint_test import guest, procs
from stillpoint_test.qmp import action, backup
from stillpoint_test.target import slow_target

pytestmark = pytest.mark.needs("restart")
K = 65536


@pytest.fixture
def loaded(q, disks, writers):
    """disk0 with bitmap b and a guest at work."""
    path = disks.add(size=64 << 20, data=((0, 8 << 20),))
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    load = writers(guest.Load(
        guest.area(0, 32 << 20, disks.uri()), "--depth", 8,
        "--reconnect", 20, "--zero", 5, "--interval", 50))
    time.sleep(0.3)
    return path, load


def restart(server):
    server.kill9()
    assert server.nbdkit_pid(), "nbdkit did not outlive the daemon"
    server.start()
    return server.qmp()


def test_guests_notice_nothing_when_the_daemon_is_killed(server, loaded):
    _, load = loaded
    pid = server.nbdkit_pid()
    server.kill9()
    time.sleep(0.5)
    before = load.acked()
    time.sleep(0.2)
    assert load.acked() > before
    server.start()
    assert server.nbdkit_pid() == pid
    end = load.quit()
    assert end["errors"] == 0 and end["reconnections"] == 0


def test_nodes_devices_and_bitmaps_are_back_after_a_restart(server, q,
                                                            disks, loaded):
    disks.node("other", read_only=True)
    q.cmd("block-dirty-bitmap-add", node="other", name="c", disabled=True,
          granularity=4096)
    nodes = {n["node-name"]: n["drv"]
             for n in q.cmd("query-named-block-nodes")}
    exports = q.cmd("query-block-exports")
    q = restart(server)
    assert {n["node-name"]: n["drv"]
            for n in q.cmd("query-named-block-nodes")} == nodes
    assert q.cmd("query-block-exports") == exports
    assert q.bitmap("disk0", "b")["recording"] is True
    c = q.bitmap("other", "c")
    assert c["recording"] is False and c["granularity"] == 4096


def test_tracking_goes_on_while_the_daemon_is_dead(server, q, disks,
                                                   connect):
    disks.add()
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    h = connect(disks.uri())
    h.pwrite(b"1", 0)
    server.kill9()
    h.pwrite(b"2", 5 * K)
    server.start()
    h.pwrite(b"3", 9 * K)
    assert server.qmp().bitmap("disk0", "b")["count"] == 3 * K


def test_running_job_is_failed_after_a_restart_and_its_bitmap_whole(
        server, q, disks, connect, backup_node):
    path = disks.add(data=((0, 16 << 20),))
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    h = connect(disks.uri())
    h.pwrite(b"x" * (8 << 20), 0)
    target = backup_node(**slow_target(2))
    q.cmd("blockdev-backup", backup("disk0", "target0", "j",
                                    sync="incremental", bitmap="b"))
    h.pwrite(b"y" * K, 10 << 20)
    q = restart(server)
    (job,) = q.cmd("query-jobs")
    assert (job["id"], job["status"]) == ("j", "concluded")
    assert "ended while the job ran" in job["error"]
    info = q.bitmap("disk0", "b")
    assert info["count"] == (8 << 20) + K and not info["busy"]
    assert not info.get("inconsistent")
    target.cleanup()
    assert os.path.exists(path)


def test_chain_continues_over_a_killed_daemon(server, q, disks, connect,
                                              backup_node):
    path = disks.add()
    target = backup_node()
    h = connect(disks.uri())
    q.cmd("transaction", actions=[
        action("block-dirty-bitmap-add", node="disk0", name="b"),
        action("blockdev-backup", backup("disk0", "target0", "full"))])
    q.jobs_succeed("full")
    h.pwrite(b"1" * K, K)
    server.kill9()
    h.pwrite(b"2" * K, 20 * K)
    server.start()
    q = server.qmp()
    h.pwrite(b"3" * K, 40 * K)
    if "target0" not in [n["node-name"]
                         for n in q.cmd("query-named-block-nodes")]:
        q.cmd("blockdev-add", target.blockdev("target0"))
    q.cmd("blockdev-backup", backup("disk0", "target0", "inc",
                                    sync="incremental", bitmap="b"))
    event = q.wait_job("inc")
    assert "error" not in event["data"] and event["data"]["len"] == 3 * K
    h.flush()
    guest.same(path, target.path)


def test_killed_nbdkit_is_started_again_on_the_same_sockets(server, q,
                                                            loaded):
    _, load = loaded
    old = server.kill9_nbdkit()
    server.wait_new_nbdkit(old)
    before = load.acked()
    procs.wait_until(lambda: load.acked() > before + 100,
                     "the guest goes on")
    assert q.cmd("query-block-exports")[0]["node-name"] == "disk0"
    end = load.quit()
    assert end["errors"] == 0 and end["reconnections"] >= 1


def test_no_acknowledged_write_is_missing_after_nbdkit_died(
        server, q, disks, backup_node, writers, loaded):
    path, load = loaded
    target = backup_node(size=64 << 20)
    q.cmd("transaction", actions=[
        action("block-dirty-bitmap-clear", node="disk0", name="b"),
        action("blockdev-backup", backup("disk0", "target0", "full"))])
    q.jobs_succeed("full")
    for i in range(3):
        time.sleep(0.2)
        server.wait_new_nbdkit(server.kill9_nbdkit())
    time.sleep(0.3)
    load.pause()
    start = len(q.events)
    q.cmd("blockdev-backup", backup("disk0", "target0", "inc",
                                    sync="incremental", bitmap="b"))
    q.jobs_succeed("inc", start=start)
    guest.same(path, target.path)
    load.quit()


def test_counter_over_two_disks_survives_a_killed_nbdkit(
        server, q, dir, disks, backup_node, writers):
    for i in range(2):
        disks.add("disk%d" % i, data=())
        q.cmd("block-dirty-bitmap-add", node="disk%d" % i, name="b")
    targets = [backup_node("t%d" % i) for i in range(2)]
    counter = writers(guest.Counter(
        [guest.area(1 << 20, 1 << 20, disks.uri("disk%d" % i))
         for i in range(2)], "--reconnect", 20))
    time.sleep(0.2)
    server.wait_new_nbdkit(server.kill9_nbdkit())
    time.sleep(0.3)
    acked = counter.acked()
    q.cmd("transaction", actions=[
        action("blockdev-backup", backup(
            "disk%d" % i, "t%d" % i, "j%d" % i, sync="incremental",
            bitmap="b")) for i in range(2)],
        properties={"completion-mode": "grouped"})
    q.jobs_succeed("j0", "j1")
    assert guest.counter_check(
        [guest.area(1 << 20, 1 << 20, t.path) for t in targets],
        at_least=acked) >= acked
    counter.quit()


def test_job_fails_clearly_when_nbdkit_dies_under_it(server, q, disks,
                                                     connect, backup_node):
    disks.add(data=((0, 16 << 20),))
    backup_node(**slow_target(4))
    q.cmd("blockdev-backup", backup("disk0", "target0", "j"))
    time.sleep(0.2)
    server.wait_new_nbdkit(server.kill9_nbdkit())
    event = q.wait_job("j")
    assert event["event"] == "BLOCK_JOB_COMPLETED"
    # It may go on with its view, which survived; it must not be stuck.
    assert q.cmd("query-jobs") == []


def test_both_killed_at_once_come_back(server, q, disks, connect):
    disks.add()
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    h = connect(disks.uri())
    h.pwrite(b"x", 3 * K)
    pid = server.nbdkit_pid()
    server.kill9()
    os.kill(pid, signal.SIGKILL)
    procs.wait_gone(pid)
    server.start()
    q = server.qmp()
    assert q.bitmap("disk0", "b")["count"] >= K
    h = connect(disks.uri())
    h.pwrite(b"y", 5 * K)
    assert q.bitmap("disk0", "b")["count"] >= 2 * K


def test_upgrade_leaves_nbdkit_and_its_guests_alone(make_server, connect,
                                                    dir):
    server = make_server()
    server.extra = ["--keep-nbdkit"]
    server.start()
    q = server.qmp()
    path = guest.make_image(os.path.join(dir, "disk0.img"), 16 << 20)
    q.cmd("blockdev-add", driver="file", node_name="disk0", filename=path)
    q.cmd("block-export-add", type="nbd", id="e", node_name="disk0",
          name="disk0", writable=True)
    h = connect(server.uri("disk0"))
    pid = server.nbdkit_pid()
    assert server.stop() == 0
    h.pwrite(b"x" * 4096, 0)                # nobody but nbdkit is there
    server.start()
    assert server.nbdkit_pid() == pid
    h.pwrite(b"y" * 4096, 0)
    assert server.qmp().cmd("query-block-exports")[0]["id"] == "e"


def test_clean_stop_and_start_keep_the_bitmap(server, q, disks, connect):
    disks.add()
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    connect(disks.uri()).pwrite(b"x", 3 * K)
    assert server.stop() == 0
    server.start()
    q = server.qmp()
    info = q.bitmap("disk0", "b")
    assert info["count"] == K and info["recording"] is True
    connect(disks.uri()).pwrite(b"x", 5 * K)
    assert q.bitmap("disk0", "b")["count"] == 2 * K


def test_image_changed_behind_our_back_makes_the_bitmap_inconsistent(
        server, q, disks, connect):
    path = disks.add()
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    connect(disks.uri()).pwrite(b"x", 3 * K)
    server.stop()
    guest.patch(path, 9 * K, b"somebody else")
    server.start()
    info = server.qmp().bitmap("disk0", "b")
    assert info["inconsistent"] is True
    assert info["x-reason"]


def test_killed_daemon_starts_again_under_load_many_times(server, q, disks,
                                                          loaded,
                                                          backup_node):
    path, load = loaded
    for _ in range(3):
        q = restart(server)
        assert not q.bitmap("disk0", "b").get("inconsistent")
    load.pause()
    end = load.quit()
    assert end["errors"] == 0 and end["reconnections"] == 0


def test_guest_that_reconnects_at_once_is_not_refused(server, disks, connect):
    disks.add()
    disks.add("disk1")
    for _ in range(5):
        old = server.kill9_nbdkit()
        for name in ("disk1", "disk0"):
            connect(disks.uri(name)).pwrite(b"x", 0)
        assert server.nbdkit_pid() != old
