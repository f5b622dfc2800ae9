# SPDX-License-Identifier: BSD-3-Clause
"""The worked examples of QEMU's documentation of dirty bitmaps, push mode.

The same commands with the same names, over raw disks and NBD targets.  A raw
target has no backing file, so where the documentation makes an overlay of the
last backup, the last backup is copied, and the increment is written into the
copy.  Each example ends with a comparison by qemu-img.
"""
import os
import shutil
import subprocess

import pytest

from stillpoint_test import guest

K = 65536
SIZE = 8 << 20


def qemu_io(uri, *commands):
    argv = ["qemu-io", "-f", "raw"]
    for c in commands + ("flush",):
        argv += ["-c", c]
    r = subprocess.run(argv + [uri], capture_output=True, text=True,
                       timeout=60)
    assert r.returncode == 0, r.stdout + r.stderr


def compare(a, b):
    r = subprocess.run(["qemu-img", "compare", "-U", "-f", "raw", "-F", "raw",
                        a, b], capture_output=True, text=True, timeout=60)
    assert r.returncode == 0, "%s and %s: %s" % (a, b, r.stdout + r.stderr)


class World:
    """Two disks, drive0 and drive1, with guests; and backup servers."""

    def __init__(self, q, disks, make_target, directory, kind):
        self.q, self.disks, self.dir = q, disks, directory
        self.make_target, self.kind = make_target, kind
        self.images = {}
        for i in (0, 1):
            name = "drive%d" % i
            self.images[name] = disks.add(
                name, size=SIZE, data=((0, 2 << 20), (5 << 20, 1 << 20)))

    def write(self, drive, pattern, *offsets):
        qemu_io(self.disks.uri(drive),
                *("write -P %d %d %d" % (pattern, o, K) for o in offsets))

    def target(self, node, file, of=None, broken=None):
        """A server for @file, a copy of the backup @of or new, and a node.
        While the file @broken is there its writes fail."""
        path = os.path.join(self.dir, file)
        if of:
            shutil.copyfile(os.path.join(self.dir, of), path)
        else:
            guest.make_image(path, SIZE)
        t = self.make_target(node)
        if broken or self.kind == "nbdkit":
            more = {}
            if broken:
                open(broken, "w").close()
                more = {"filters": ["error"], "parameters": [
                    "error-pwrite=ENOSPC", "error-pwrite-rate=100%",
                    "error-pwrite-file=" + broken]}
            t.file(path, None, **more)
        else:
            t.qemu_nbd(path)
        self.q.cmd("blockdev-add", t.blockdev(
            node, "" if self.kind == "nbdkit" or broken else None))
        return path

    def drop(self, *nodes):
        for node in nodes:
            self.q.cmd("blockdev-del", {"node-name": node})

    def transaction(self, *actions, **more):
        assert self.q.cmd("transaction", actions=[
            {"type": t, "data": d} for t, d in actions], **more) == {}

    def completed(self, job, start=0):
        event = self.q.wait_job(job, start)
        assert event["event"] == "BLOCK_JOB_COMPLETED", event
        assert event["data"]["type"] == "backup"
        assert event["data"]["device"] == job
        return event["data"]

    def succeeded(self, *jobs, start=0):
        for job in jobs:
            data = self.completed(job, start)
            assert "error" not in data
            assert data["offset"] == data["len"]

    def count(self, drive):
        return self.q.bitmap(drive, "bitmap0")["count"]


@pytest.fixture(params=["nbdkit", "qemu-nbd"])
def w(request, q, disks, make_target, dir):
    return World(q, disks, make_target, dir, request.param)


def full(w, drive="drive0", file=None, job="job0", node="target0"):
    """A new bitmap and a full backup in one transaction; the guest waits, so
    the disk can be compared afterwards."""
    path = w.target(node, file or drive + ".full.img")
    start = len(w.q.events)
    w.transaction(
        ("block-dirty-bitmap-add", {"node": drive, "name": "bitmap0"}),
        ("blockdev-backup", {"device": drive, "target": node,
                             "sync": "full", "job-id": job}))
    w.succeeded(job, start=start)
    w.drop(node)
    return path


def incremental(w, file, of, drive="drive0", job="job0", node="target0"):
    path = w.target(node, file, of)
    start = len(w.q.events)
    assert w.q.cmd("blockdev-backup", {
        "device": drive, "bitmap": "bitmap0", "target": node,
        "sync": "incremental", "job-id": job}) == {}
    w.succeeded(job, start=start)
    w.drop(node)
    return path


def test_full_backup_with_a_new_bitmap(w):
    path = full(w)
    compare(w.images["drive0"], path)
    assert w.count("drive0") == 0
    w.write("drive0", 1, 0)
    assert w.count("drive0") == K


def test_reset_of_a_bitmap_with_a_new_full_backup(w):
    full(w)
    w.write("drive0", 1, 0, 4 << 20)
    path = w.target("target1", "drive0.new_full.img")
    w.transaction(
        ("block-dirty-bitmap-clear", {"node": "drive0", "name": "bitmap0"}),
        ("blockdev-backup", {"device": "drive0", "target": "target1",
                             "sync": "full", "job-id": "job1"}))
    w.succeeded("job1")
    compare(w.images["drive0"], path)
    assert w.count("drive0") == 0


def test_first_and_second_incremental(w):
    full(w)
    w.write("drive0", 1, 3 * K, 90 * K)
    first = incremental(w, "drive0.inc0.img", "drive0.full.img")
    compare(w.images["drive0"], first)
    assert w.count("drive0") == 0
    w.write("drive0", 2, 3 * K, 100 * K)
    second = incremental(w, "drive0.inc1.img", "drive0.inc0.img")
    compare(w.images["drive0"], second)
    with pytest.raises(AssertionError, match="Content mismatch"):
        compare(first, second)


def full_of_both(w):
    for i in (0, 1):
        full(w, "drive%d" % i, job="job%d" % i)


def several(w, *targets, **more):
    """One incremental of both disks, in one transaction."""
    w.transaction(*(
        ("blockdev-backup", {
            "device": "drive%d" % i, "bitmap": "bitmap0",
            "sync": "incremental", "target": t, "job-id": "job%d" % i})
        for i, t in enumerate(targets)), **more)


def test_one_transaction_over_several_disks(w):
    w.transaction(*(("block-dirty-bitmap-add",
                     {"node": "drive%d" % i, "name": "bitmap0"})
                    for i in (0, 1)))
    for i in (0, 1):
        w.target("full%d" % i, "drive%d.full.img" % i)
    w.transaction(*(
        a for i in (0, 1) for a in (
            ("block-dirty-bitmap-clear",
             {"node": "drive%d" % i, "name": "bitmap0"}),
            ("blockdev-backup", {"device": "drive%d" % i, "sync": "full",
                                 "target": "full%d" % i,
                                 "job-id": "job%d" % i}))))
    w.succeeded("job0", "job1")
    for i in (0, 1):
        w.write("drive%d" % i, 7 + i, K * (i + 1), 80 * K)
    paths = [w.target("target%d" % i, "drive%d.inc0.img" % i,
                      "drive%d.full.img" % i) for i in (0, 1)]
    start = len(w.q.events)
    several(w, "target0", "target1")
    w.succeeded("job0", "job1", start=start)
    for i in (0, 1):
        compare(w.images["drive%d" % i], paths[i])
        assert w.count("drive%d" % i) == 0


def test_failed_job_and_its_retry(w):
    full(w)
    w.write("drive0", 1, 3 * K, 90 * K)
    broken = os.path.join(w.dir, "broken")
    path = w.target("target0", "drive0.inc0.img", "drive0.full.img", broken)
    start = len(w.q.events)
    several(w, "target0")
    data = w.completed("job0", start)
    assert data["error"] == "No space left on device"
    assert data["len"] == 2 * K and data["speed"] == 0
    error = w.q.wait_event("BLOCK_JOB_ERROR", {"device": "job0"}, start)
    assert error["data"] == {"device": "job0", "operation": "write",
                             "action": "report"}
    # Nothing is lost: what was dirty is, and what is written now as well.
    assert w.count("drive0") == 2 * K
    w.write("drive0", 2, 10 * K)
    w.drop("target0")
    os.unlink(path)
    retried = incremental(w, "drive0.inc0.img", "drive0.full.img",
                          node="target1")
    compare(w.images["drive0"], retried)
    assert w.count("drive0") == 0


def test_partial_failure_of_a_transaction(w):
    full_of_both(w)
    for i in (0, 1):
        w.write("drive%d" % i, 1 + i, 3 * K, 90 * K)
    good = w.target("target0", "drive0.inc0.img", "drive0.full.img")
    w.target("target1", "drive1.inc0.img", "drive1.full.img",
             os.path.join(w.dir, "broken"))
    start = len(w.q.events)
    several(w, "target0", "target1")
    w.succeeded("job0", start=start)
    assert w.completed("job1", start)["error"] == "No space left on device"
    # The bitmap of the one that succeeded begins anew, the other keeps all.
    assert (w.count("drive0"), w.count("drive1")) == (0, 2 * K)
    compare(w.images["drive0"], good)
    w.write("drive0", 5, 20 * K)
    w.drop("target0", "target1")
    paths = [w.target("again0", "drive0.inc1.img", "drive0.inc0.img"),
             w.target("again1", "drive1.inc1.img", "drive1.full.img")]
    start = len(w.q.events)
    several(w, "again0", "again1")
    w.succeeded("job0", "job1", start=start)
    for i in (0, 1):
        compare(w.images["drive%d" % i], paths[i])


GROUPED = {"properties": {"completion-mode": "grouped"}}


def test_grouped_completion_fails_as_one(w):
    full_of_both(w)
    for i in (0, 1):
        w.write("drive%d" % i, 1 + i, 3 * K, 90 * K)
    w.target("target0", "drive0.inc0.img", "drive0.full.img")
    w.target("target1", "drive1.inc0.img", "drive1.full.img",
             os.path.join(w.dir, "broken"))
    start = len(w.q.events)
    several(w, "target0", "target1", **GROUPED)
    assert w.completed("job1", start)["error"] == "No space left on device"
    cancelled = w.q.wait_job("job0", start)
    assert cancelled["event"] == "BLOCK_JOB_CANCELLED"
    assert cancelled["data"]["type"] == "backup"
    assert (w.count("drive0"), w.count("drive1")) == (2 * K, 2 * K)
    w.drop("target0", "target1")
    paths = [w.target("again%d" % i, "drive%d.inc1.img" % i,
                      "drive%d.full.img" % i) for i in (0, 1)]
    start = len(w.q.events)
    several(w, "again0", "again1", **GROUPED)
    w.succeeded("job0", "job1", start=start)
    for i in (0, 1):
        compare(w.images["drive%d" % i], paths[i])
        assert w.count("drive%d" % i) == 0
