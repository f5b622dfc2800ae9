# SPDX-License-Identifier: BSD-3-Clause
"""Cancelling jobs, and commands for jobs that are not there."""
import time

import pytest

from stillpoint_test.qmp import QmpClosed, backup
from stillpoint_test.target import slow_target


@pytest.fixture
def running(q, disks, backup_node):
    disks.add(data=((0, 16 << 20),))
    backup_node(**slow_target(5))
    q.cmd("blockdev-backup", backup("disk0", "target0", "j"))


@pytest.mark.parametrize("command, key", [
    ("job-cancel", "id"), ("block-job-cancel", "device")])
@pytest.mark.rows("event.BLOCK_JOB_CANCELLED")
def test_cancelled_job_is_gone_and_the_target_free(q, running, backup_node,
                                                   command, key):
    q.cmd(command, {key: "j"})
    event = q.wait_job("j")
    assert event["event"] == "BLOCK_JOB_CANCELLED"
    assert event["data"]["len"] >= event["data"]["offset"]
    assert q.cmd("query-jobs") == []
    q.cmd("blockdev-del", node_name="target0")


@pytest.mark.needs("stillpoint")
def test_cancel_does_not_wait_for_a_slow_target(q, running):
    time.sleep(0.3)
    started = time.monotonic()
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    assert time.monotonic() - started < 0.5


@pytest.mark.needs("stillpoint")
def test_cancel_does_not_wait_for_a_dead_target(q, disks, backup_node):
    disks.add(data=((0, 16 << 20),))
    target = backup_node()
    target.freeze()
    q.cmd("blockdev-backup", backup("disk0", "target0", "j"))
    time.sleep(0.2)
    started = time.monotonic()
    q.cmd("job-cancel", id="j")
    event = q.wait_job("j", timeout=5)
    assert event["event"] == "BLOCK_JOB_CANCELLED"
    assert time.monotonic() - started < 1


@pytest.mark.rows("bitmaps.cancel")
def test_cancelled_incremental_keeps_its_bitmap(q, disks, connect,
                                                backup_node):
    disks.add(data=((0, 16 << 20),))
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    h = connect(disks.uri())
    h.pwrite(b"x" * (4 << 20), 0)
    backup_node(**slow_target(2))
    q.cmd("blockdev-backup", backup("disk0", "target0", "j",
                                    sync="incremental", bitmap="b"))
    h.pwrite(b"y" * 65536, 8 << 20)
    assert q.bitmap("disk0", "b")["busy"] is True
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    info = q.bitmap("disk0", "b")
    assert info["busy"] is False and info["recording"] is True
    assert info["count"] == (4 << 20) + 65536


@pytest.mark.parametrize("command, key, cls, desc", [
    ("job-cancel", "id", "GenericError", "Job not found"),
    ("job-dismiss", "id", "GenericError", "Job not found"),
    ("block-job-cancel", "device", "DeviceNotActive",
     "Block job 'zz' not found"),
])
@pytest.mark.rows("protocol.class-device-not-active", "protocol.class-generic")
def test_unknown_job_is_refused(q, command, key, cls, desc):
    e = q.error(command, {key: "zz"})
    assert e.cls == cls
    # QEMU 7.2 words the first one otherwise.
    assert e.desc == desc or "not found" in e.desc


@pytest.mark.needs("qemu-10")
@pytest.mark.rows("error.42", "error.43")
def test_unknown_job_text_is_that_of_qemu_10(q):
    assert q.error("job-cancel", id="zz").desc == "Job not found"
    assert q.error("block-job-cancel", device="zz").desc == \
        "Block job 'zz' not found"
    assert q.error("block-job-set-speed", device="zz", speed=1).desc == \
        "Block job 'zz' not found"


def test_negative_speed_is_refused(q, running):
    e = q.error("block-job-set-speed", device="j", speed=-1)
    assert "speed" in e.desc
    q.cmd("job-cancel", id="j")
    q.wait_job("j")


@pytest.mark.rows("protocol.quit", "event.SHUTDOWN")
def test_quit_cancels_jobs_and_answers_first(server, q, running):
    assert q.cmd("quit") == {}
    assert server.child.wait(10) == 0
    assert q.choreography("j")[-4:] == [
        "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]
    with pytest.raises(QmpClosed):
        q.receive()
    assert "SHUTDOWN" not in [e["event"] for e in q.events]


@pytest.mark.needs("stillpoint")
def test_quit_takes_nbdkit_along(server, q, disks):
    disks.add()
    pid = server.nbdkit_pid()
    assert pid
    q.cmd("quit")
    assert server.child.wait(10) == 0
    assert server.pids() == []


@pytest.mark.needs("stillpoint")
def test_sigterm_ends_the_daemon_and_nbdkit(server, disks):
    disks.add()
    assert server.stop() == 0
    assert server.pids() == []


@pytest.mark.needs("stillpoint")
@pytest.mark.parametrize("turn", range(3))
def test_end_does_not_wait_for_guests_to_leave(server, q, disks, connect,
                                               turn):
    disks.add()
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    h = connect(disks.uri())
    h.pwrite(b"x" * 4096, 0)
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 3
