# SPDX-License-Identifier: BSD-3-Clause
"""sync none: what guests overwrite reaches the target, and nothing else."""
import os
import time

import pytest

from stillpoint_test import guest, procs
from stillpoint_test.qmp import backup

K = 65536
M = 1 << 20
OLD_TARGET = 9


@pytest.fixture
def none(q, dir, disks, make_target):
    """none(nbd): a disk, a target of other content, and a running job."""
    class Rig:
        pass

    def make(kind, **kw):
        r = Rig()
        r.path = disks.add(data=((0, 16 * M),))
        r.before = guest.sparse_copy(r.path, os.path.join(dir, "before"))
        r.out = guest.make_image(os.path.join(dir, "out"), 16 * M,
                                 [(0, 16 * M)], seed=OLD_TARGET)
        r.empty = guest.sparse_copy(r.out, os.path.join(dir, "empty"))
        if kind == "nbd":
            r.target = make_target()
            r.target.file(r.out)
            q.cmd("blockdev-add", r.target.blockdev("target0"))
        else:
            q.cmd("blockdev-add", driver="file", node_name="target0",
                  filename=r.out)
        q.cmd("blockdev-backup", backup("disk0", "target0", "j", "none",
                                        **kw))
        return r
    return make


def clusters_are(r, clusters):
    """The target has these clusters of the disk before, and nothing else of
    it."""
    with open(r.before, "rb") as b, open(r.empty, "rb") as e, \
            open(r.out, "rb") as o:
        for n in range(16 * M // K):
            want = (b if n in clusters else e)
            want.seek(n * K)
            o.seek(n * K)
            assert o.read(K) == want.read(K), "cluster %d" % n


KINDS = pytest.mark.parametrize("kind", ["nbd", "file"])


@KINDS
@pytest.mark.rows("backup.none", "backup.none-cancel",
                  "event.BLOCK_JOB_CANCELLED")
def test_what_was_overwritten_before_the_cancel_is_at_the_target(
        q, none, disks, connect, kind):
    r = none(kind)
    h = connect(disks.uri())
    for n in (0, 3, 4, 100, 255):
        h.pwrite(b"new" * 100, n * K + 1000)
    h.zero(2 * K, 50 * K)
    h.trim(K, 60 * K)
    q.cmd("job-cancel", id="j")
    event = q.wait_job("j")
    assert event["event"] == "BLOCK_JOB_CANCELLED"
    trimmed = {60} if event["data"]["offset"] == 8 * K else set()
    clusters_are(r, {0, 3, 4, 100, 255, 50, 51} | trimmed)
    assert event["data"]["len"] == 16 * M
    assert event["data"]["offset"] == (7 + len(trimmed)) * K


@KINDS
@pytest.mark.rows("backup.none")
def test_target_is_brought_up_to_date_while_guests_go_on(q, none, disks,
                                                         connect, kind):
    r = none(kind)
    h = connect(disks.uri())
    done = set()
    for n in (7, 200, 8):
        h.pwrite(b"new" * 100, n * K + 5000)
        h.pwrite(b"newer", n * K)
        done.add(n)
        procs.wait_until(lambda: q.cmd("query-jobs")[0]["current-progress"]
                         == len(done) * K, "it is sent")
    procs.wait_until(lambda: open(r.out, "rb").read()[8 * K:9 * K] ==
                     open(r.before, "rb").read()[8 * K:9 * K], "it is there")
    clusters_are(r, done)
    (job,) = q.cmd("query-jobs")
    assert job["status"] == "running"
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    clusters_are(r, done)


@pytest.mark.needs("stillpoint")
def test_store_s_space_is_given_back_while_it_follows(server, q, none, disks,
                                                      connect):
    none("nbd")
    h = connect(disks.uri())
    for n in range(256):
        h.pwrite(b"n" * K, n * K)

    def stored():
        total = 0
        for folder, _, names in os.walk(server.state):
            total += sum(guest.allocated(os.path.join(folder, n))
                         for n in names if n.startswith("view-"))
        return total
    procs.wait_until(lambda: q.cmd("query-jobs")[0]["current-progress"] ==
                     16 * M, "all is sent")
    procs.wait_until(lambda: stored() <= M, "the store is empty")
    q.cmd("job-cancel", id="j")
    q.wait_job("j")


@pytest.mark.rows("backup.none-speed")
def test_speed_does_not_hold_it_back(q, none, disks, connect):
    r = none("file", speed=1)
    h = connect(disks.uri())
    for n in range(32):
        h.pwrite(b"new", n * K)
    q.cmd("job-cancel", id="j")
    q.wait_job("j", timeout=10)
    clusters_are(r, set(range(32)))


@pytest.mark.rows("backup.none")
def test_it_never_ends_by_itself(q, none, disks, connect):
    none("file")
    h = connect(disks.uri())
    for n in range(256):
        h.pwrite(b"new", n * K)
    procs.wait_until(lambda: q.cmd("query-jobs")[0]["current-progress"] ==
                     16 * M, "all is sent")
    time.sleep(0.5)
    (job,) = q.cmd("query-jobs")
    assert job["status"] == "running"
    q.cmd("job-cancel", id="j")
    assert q.wait_job("j")["event"] == "BLOCK_JOB_CANCELLED"


@pytest.mark.rows("error.26")
def test_bitmap_makes_no_sense(q, disks, backup_node):
    disks.add()
    backup_node()
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    for mode in ("on-success", "always", "never"):
        e = q.error("blockdev-backup", backup(
            "disk0", "target0", "j", "none", bitmap="b", bitmap_mode=mode))
        assert e.desc == ("sync mode 'none' does not produce meaningful "
                          "bitmap outputs")


@pytest.mark.needs("stillpoint")
def test_target_that_fails_ends_it(q, disks, connect, dir, backup_node):
    disks.add()
    flag = os.path.join(dir, "fail")
    backup_node(filters=["error"], parameters=[
        "error-pwrite-rate=1", "error-pwrite=EIO", "error-file=" + flag])
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", "none"))
    open(flag, "w").close()
    connect(disks.uri()).pwrite(b"new", 0)
    event = q.wait_job("j")
    assert event["event"] == "BLOCK_JOB_COMPLETED"
    assert event["data"]["error"] == "Input/output error"


@pytest.mark.needs("stillpoint")
def test_second_cancel_does_not_wait_for_a_target_that_hangs(q, none, disks,
                                                             connect):
    r = none("nbd")
    r.target.freeze()
    connect(disks.uri()).pwrite(b"new", 0)
    time.sleep(0.3)
    q.cmd("job-cancel", id="j")
    q.drain_events(0.5)
    assert q.cmd("query-jobs")[0]["id"] == "j"
    started = time.monotonic()
    q.cmd("job-cancel", id="j")
    assert q.wait_job("j")["event"] == "BLOCK_JOB_CANCELLED"
    assert time.monotonic() - started < 1


@pytest.mark.needs("stillpoint")
def test_guests_do_not_wait_for_the_target(q, none, disks, connect):
    """QEMU's would: their writes wait for the copy."""
    r = none("nbd")
    r.target.freeze()
    h = connect(disks.uri())
    started = time.monotonic()
    for n in range(256):
        h.pwrite(b"n" * 4096, n * K)
    assert time.monotonic() - started < 5
    r.target.thaw()
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    clusters_are(r, set(range(256)))
