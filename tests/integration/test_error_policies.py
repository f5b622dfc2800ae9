# SPDX-License-Identifier: BSD-3-Clause
"""on-source-error and on-target-error: what a job does about a request that
failed, and what its clients hear of it.

Errors come from nbdkit's error filter while a file exists, on the target or
between the daemon and the source's image.
"""
import os

import pytest

from stillpoint_test import guest, procs
from stillpoint_test.qmp import backup
from stillpoint_test.target import slow_target

K = 65536
M = 1 << 20
START = ["created", "running", "paused", "running"]
END = ["waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"]
TEXT = {"EIO": "Input/output error", "ENOSPC": "No space left on device"}


class Switch:
    """Errors happen while it is on."""

    def __init__(self, path):
        self.path = path

    def on(self):
        with open(self.path, "w"):
            pass
        return self

    def off(self):
        os.unlink(self.path)


@pytest.fixture
def switch(dir):
    return Switch(os.path.join(dir, "broken"))


def failing(switch, what, errno, *more):
    return {"filters": ["error"], "parameters": [
        "error-%s=%s" % (what, errno), "error-%s-rate=100%%" % what,
        "error-%s-file=%s" % (what, switch.path), *more]}


@pytest.fixture
def target(disks, backup_node, switch):
    """make(errno): disk0 with data and target0, which is broken."""
    def make(errno="EIO"):
        disks.add(data=((0, 8 * M),))
        switch.on()
        return backup_node(**failing(switch, "pwrite", errno))
    return make


@pytest.fixture
def source(q, dir, make_target, switch, disks):
    """make(errno): disk0 on an image whose server fails to read; its path."""
    def make(errno="EIO"):
        path = guest.make_image(os.path.join(dir, "far.raw"), disks.size,
                                [(0, 8 * M)])
        t = make_target("far").file(path, **failing(switch, "pread", errno))
        q.cmd("blockdev-add", t.blockdev("disk0"))
        disks.export("disk0")
        switch.on()
        return path
    return make


def start(q, **kw):
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", **kw))


def block_job(q, job="j"):
    return next((b for b in q.cmd("query-block-jobs")
                 if b["device"] == job), None)


def errors(q, job="j"):
    return [e["data"] for e in q.events if e["event"] == "BLOCK_JOB_ERROR"
            and e["data"]["device"] == job]


def wait_paused(q, start=0):
    """Wait for the rest that comes after an error."""
    q.wait_event("BLOCK_JOB_ERROR", {"action": "stop"}, start)
    at = next(i for i, e in enumerate(q.events[start:], start)
              if e["event"] == "BLOCK_JOB_ERROR")
    q.wait_event("JOB_STATUS_CHANGE", {"id": "j", "status": "paused"}, at)


# --- report -----------------------------------------------------------------


@pytest.mark.rows("jobs.policy-report", "error.73")
@pytest.mark.parametrize("policy", [None, "report", "enospc", "auto"])
def test_report_ends_the_job_with_the_error(q, target, policy):
    target()
    start(q, **({"on_target_error": policy} if policy else {}))
    event = q.wait_job("j")
    assert event["data"]["error"] == TEXT["EIO"]
    assert errors(q) == [{"device": "j", "operation": "write",
                          "action": "report"}]
    assert q.choreography("j") == START + [
        "BLOCK_JOB_ERROR", "aborting", "BLOCK_JOB_COMPLETED", "concluded",
        "null"]


@pytest.mark.rows("jobs.policy-report")
def test_read_errors_are_reported_as_such(q, source, backup_node):
    source()
    backup_node()
    start(q, on_source_error="report", on_target_error="ignore")
    assert q.wait_job("j")["data"]["error"] == TEXT["EIO"]
    assert errors(q) == [{"device": "j", "operation": "read",
                          "action": "report"}]


# --- stop -------------------------------------------------------------------


@pytest.mark.rows("jobs.policy-stop", "jobs.io-status",
                  "jobs.stopped-and-resumed", "event.BLOCK_JOB_ERROR")
@pytest.mark.parametrize("errno, status", [("EIO", "failed"),
                                           ("ENOSPC", "nospace")])
@pytest.mark.parametrize("family", ["job", "block-job"])
def test_stop_pauses_until_the_cause_is_mended(
        q, disks, target, switch, errno, status, family):
    t = target(errno)
    start(q, on_target_error="stop")
    wait_paused(q)
    job = block_job(q)
    assert job["io-status"] == status and job["paused"] is True
    assert job["status"] == "paused" and job["busy"] is False
    assert "error" not in job
    assert errors(q) == [{"device": "j", "operation": "write",
                          "action": "stop"}]
    switch.off()
    q.cmd(family + "-resume", **{"id" if family == "job" else "device": "j"})
    q.jobs_succeed("j")
    guest.same(disks.path("disk0"), t.path)
    assert q.choreography("j") == START + ["BLOCK_JOB_ERROR", "paused",
                                           "running"] + END
    done = q.wait_event("BLOCK_JOB_COMPLETED")["data"]
    assert done["offset"] == done["len"] == disks.size


@pytest.mark.rows("jobs.policy-stop", "jobs.io-status")
def test_resume_without_a_cure_stops_again(q, target, switch):
    target()
    start(q, on_target_error="stop")
    wait_paused(q)
    for n in range(3):
        position = len(q.events)
        q.cmd("job-resume", id="j")
        wait_paused(q, position)
        assert len(errors(q)) == n + 2
        assert block_job(q)["io-status"] == "failed"
    switch.off()
    q.cmd("job-resume", id="j")
    q.jobs_succeed("j")


@pytest.mark.rows("jobs.policy-stop")
def test_stop_on_a_source_that_fails(q, source, backup_node, switch, disks):
    path = source()
    t = backup_node()
    start(q, on_source_error="stop")
    wait_paused(q)
    assert errors(q) == [{"device": "j", "operation": "read",
                          "action": "stop"}]
    assert block_job(q)["io-status"] == "failed"
    switch.off()
    q.cmd("job-resume", id="j")
    q.jobs_succeed("j")
    guest.same(path, t.path)


@pytest.mark.needs("stillpoint")        # QEMU fails the guest's write
@pytest.mark.rows("jobs.policy-stop")
def test_stopped_incremental_keeps_its_bitmap_until_it_succeeds(
        q, disks, connect, target, switch):
    t = target()
    guest.sparse_copy(disks.path("disk0"), t.path)
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    h = connect(disks.uri())
    h.pwrite(b"x" * (2 * M), M)
    start(q, sync="incremental", bitmap="b", on_target_error="stop")
    wait_paused(q)
    h.pwrite(b"y" * K, M)           # after the cut, under what is not copied
    assert q.bitmap("disk0", "b")["busy"] is True
    switch.off()
    q.cmd("job-resume", id="j")
    q.jobs_succeed("j")
    assert q.bitmap("disk0", "b")["count"] == K
    with open(t.path, "rb") as f:
        f.seek(M)
        assert f.read(2 * M) == b"x" * (2 * M)


@pytest.mark.rows("jobs.cancel-stopped")
@pytest.mark.parametrize("how", ["job-cancel", "forced"])
def test_job_that_was_stopped_can_be_cancelled(q, target, how):
    target()
    start(q, on_target_error="stop")
    wait_paused(q)
    if how == "job-cancel":
        q.cmd("job-cancel", id="j")
    else:
        e = q.error("block-job-cancel", device="j")
        assert e.desc == "The block job for device 'j' is currently paused"
        q.cmd("block-job-cancel", device="j", force=True)
    q.wait_job("j")
    assert q.choreography("j") == START + [
        "BLOCK_JOB_ERROR", "paused", "running", "aborting",
        "BLOCK_JOB_CANCELLED", "concluded", "null"]


@pytest.mark.needs("stillpoint")        # QEMU 7.2 does not connect again
@pytest.mark.rows("jobs.policy-stop")
def test_lost_server_stops_the_job_and_resume_connects_again(
        q, disks, backup_node):
    disks.add(data=((0, 16 * M),))
    t = backup_node(**slow_target(8))
    start(q, on_target_error="stop")
    procs.wait_until(lambda: block_job(q)["offset"] > 2 * M, "some progress")
    t.kill9()
    wait_paused(q)
    position = len(q.events)
    q.cmd("job-resume", id="j")     # nobody is there yet
    wait_paused(q, position)
    t.restart()
    q.cmd("job-resume", id="j")
    q.jobs_succeed("j")
    guest.same(disks.path("disk0"), t.path)


@pytest.mark.rows("jobs.reconnect-first")
def test_reconnecting_comes_before_the_policy(q, disks, backup_node):
    disks.add(data=((0, 16 * M),))
    t = backup_node(**slow_target(8), reconnect_delay=20)
    start(q, on_target_error="report")
    procs.wait_until(lambda: block_job(q)["offset"] > 2 * M, "some progress")
    t.kill9()
    t.restart()
    q.jobs_succeed("j")
    assert not errors(q)
    guest.same(disks.path("disk0"), t.path)


# --- enospc and auto ------------------------------------------------------------


@pytest.mark.rows("jobs.policy-enospc", "jobs.policy-auto")
@pytest.mark.parametrize("policy", ["enospc", "auto"])
def test_full_target_pauses_and_goes_on_when_there_is_room(
        q, disks, target, switch, policy):
    t = target("ENOSPC")
    start(q, on_target_error=policy)
    wait_paused(q)
    assert block_job(q)["io-status"] == "nospace"
    switch.off()
    q.cmd("block-job-resume", device="j")
    q.jobs_succeed("j")
    guest.same(disks.path("disk0"), t.path)


# --- ignore ---------------------------------------------------------------------


@pytest.mark.rows("jobs.policy-ignore")
def test_ignore_tries_again_until_it_works(q, disks, target, switch):
    t = target()
    start(q, on_target_error="ignore")
    for _ in range(2):
        position = len(q.events)
        q.wait_event("BLOCK_JOB_ERROR", start=position)
    job = block_job(q)
    assert job["status"] == "running" and job["io-status"] == "ok"
    assert job["paused"] is False
    switch.off()
    q.jobs_succeed("j")
    assert all(e == {"device": "j", "operation": "write", "action": "ignore"}
               for e in errors(q))
    guest.same(disks.path("disk0"), t.path)


@pytest.mark.needs("stillpoint")        # QEMU tries again without a pause
@pytest.mark.rows("jobs.policy-ignore")
def test_ignore_does_not_flood(q, target):
    target()
    start(q, on_target_error="ignore")
    q.wait_event("BLOCK_JOB_ERROR")
    position = len(q.events)
    q.drain_events(quiet=1.5)
    assert len(q.events) - position < 12    # 50 ms, then twice as long each
    q.cmd("job-cancel", id="j")
    q.wait_job("j")


@pytest.mark.rows("jobs.policy-ignore")
@pytest.mark.parametrize("errno", ["EIO", "ENOSPC"])
def test_rate_of_errors_on_both_sides_is_survived(q, dir, disks, make_target,
                                                  backup_node, errno):
    path = guest.make_image(os.path.join(dir, "far.raw"), disks.size,
                            [(0, 8 * M), (12 * M, M)])
    far = make_target("far").file(path, filters=["error"], parameters=[
        "error-pread=" + errno, "error-pread-rate=10%"])
    q.cmd("blockdev-add", far.blockdev("disk0"))
    t = backup_node(filters=["error"], parameters=[
        "error-pwrite=" + errno, "error-pwrite-rate=20%",
        "error-zero=" + errno, "error-zero-rate=20%"])
    start(q, on_source_error="ignore", on_target_error="ignore")
    q.jobs_succeed("j", timeout=60)
    guest.same(path, t.path)
    done = q.wait_event("BLOCK_JOB_COMPLETED")["data"]
    assert done["offset"] == done["len"] == disks.size
    assert {e["action"] for e in errors(q)} == {"ignore"}


# --- what becomes of the bitmap -----------------------------------------------------


@pytest.mark.rows("jobs.bitmap-fate", "backup.mode-failure")
@pytest.mark.parametrize("mode, kept", [
    ("on-success", 6 * M), ("never", 6 * M), ("always", 4 * M)])
def test_bitmap_after_a_failure_in_the_middle(q, dir, disks, connect,
                                              make_target, mode, kept):
    """2 MiB are copied, then the target's disk is bad; a guest has written
    one granule below that and one beyond."""
    disks.add()
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    h = connect(disks.uri())
    h.pwrite(b"x" * (6 * M), 2 * M)
    image = guest.make_image(os.path.join(dir, "part.raw"), disks.size)
    t = make_target().nbdkit(
        "eval", "get_size=echo %d" % disks.size, "can_flush=exit 0",
        "thread_model=echo serialize_requests", "can_write=exit 0",
        "flush=exit 0",
        "pread=dd if=%s iflag=skip_bytes,count_bytes skip=$4 count=$3 "
        "status=none" % image,
        "pwrite=[ $4 -ge %d ] && { echo EIO bad >&2; exit 1; }; "
        "dd of=%s conv=notrunc oflag=seek_bytes seek=$4 status=none"
        % (4 * M, image))
    q.cmd("blockdev-add", t.blockdev("target0"))
    start(q, sync="bitmap", bitmap="b", bitmap_mode=mode,
          on_target_error="stop")
    wait_paused(q)
    # what is copied is known to be safe after a flush
    procs.wait_until(lambda: block_job(q)["offset"] == 2 * M, "2 MiB")
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    info = q.bitmap("disk0", "b")
    if mode == "always":
        # a flush may not have come: never less than what is missing
        assert kept <= info["count"] <= 6 * M
    else:
        assert info["count"] == kept
    assert not info["busy"] and info["recording"]


@pytest.mark.rows("jobs.bitmap-fate")
def test_bitmap_mode_always_keeps_what_is_missing_and_new_writes(
        q, disks, connect, target, switch):
    t = target()
    guest.sparse_copy(disks.path("disk0"), t.path)
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    h = connect(disks.uri())
    h.pwrite(b"x" * (2 * M), M)
    start(q, sync="bitmap", bitmap="b", bitmap_mode="always",
          on_target_error="stop")
    wait_paused(q)
    h.pwrite(b"y" * K, 10 * M)
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    assert q.bitmap("disk0", "b")["count"] == 2 * M + K
    switch.off()
    position = len(q.events)
    q.cmd("blockdev-backup", backup("disk0", "target0", "k", sync="bitmap",
                                    bitmap="b", bitmap_mode="always"))
    q.jobs_succeed("k", start=position)
    h.flush()
    guest.same(disks.path("disk0"), t.path)
    assert q.bitmap("disk0", "b")["count"] == 0


# --- sync none: what guests overwrite ------------------------------------------------


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("jobs.policy-stop", "jobs.cancel-stopped")
@pytest.mark.parametrize("mended", [True, False])
def test_following_job_that_was_stopped(q, disks, connect, target, switch,
                                        mended):
    t = target()
    before = guest.digest(disks.path("disk0"), M, K)
    h = connect(disks.uri())
    start(q, sync="none", on_target_error="stop")
    h.pwrite(b"x" * K, M)
    wait_paused(q)
    h.pwrite(b"y" * K, 2 * M)       # a guest does not wait for that
    if mended:
        switch.off()
        q.cmd("job-resume", id="j")
    q.cmd("job-cancel", id="j")     # the first one drains
    event = q.wait_job("j")
    assert event["event"] == "BLOCK_JOB_CANCELLED"
    assert (guest.digest(t.path, M, K) == before) is mended


# --- errors that this daemon makes itself: blkdebug ---------------------------------


@pytest.fixture
def rehearsal(make_server):
    """A client of a server on which faults may be injected."""
    s = make_server()
    s.extra = ["--allow-fault-injection"]
    s.start()
    return s.qmp()


def debug(q, dir, node, data, **rule):
    path = guest.make_image(os.path.join(dir, node + ".img"), 4 * M, data)
    q.cmd("blockdev-add", driver="raw", node_name=node, file={
        "driver": "blkdebug", "node-name": "debug-" + node,
        "image": {"driver": "file", "filename": path},
        "inject-error": [dict({"once": True}, **rule)]})
    return path


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("jobs.policy-stop", "jobs.policy-auto")
@pytest.mark.parametrize("policy", ["stop", "auto", "ignore"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_policies_can_be_rehearsed(rehearsal, dir, side, policy):
    q = rehearsal
    rule = {"event": "read_aio" if side == "source" else "write_aio",
            "errno": 28}
    never = {"event": "flush_to_os", "errno": 5}
    source = debug(q, dir, "disk0", [(0, 2 * M)],
                   **(rule if side == "source" else never))
    target = debug(q, dir, "target0", [],
                   **(rule if side == "target" else never))
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", **{
        "on-%s-error" % side: policy}))
    if policy != "ignore":
        wait_paused(q)
        assert block_job(q)["io-status"] == "nospace"
        q.cmd("job-resume", id="j")
    q.jobs_succeed("j")
    assert errors(q) == [{
        "device": "j", "operation": "read" if side == "source" else "write",
        "action": "ignore" if policy == "ignore" else "stop"}]
    guest.same(source, target)
