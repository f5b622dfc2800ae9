# SPDX-License-Identifier: BSD-3-Clause
"""Backups to images that the server itself opens: any driver is a target."""
import os
import subprocess
import time

import pytest

from stillpoint_test import guest
from stillpoint_test.qmp import backup

M = 1 << 20


def compare(a, b):
    """An oracle of QEMU's own."""
    r = subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", a,
                        b], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr


@pytest.fixture
def file_node(q, dir):
    """file_node(name): a target node on a fresh file; the file's path."""
    def make(node="target0", size=16 * M, old=(), **more):
        path = guest.make_image(os.path.join(dir, node + ".raw"), size, old,
                                seed=9)
        args = {"driver": "file", "node-name": node, "filename": path}
        args.update({k.replace("_", "-"): v for k, v in more.items()})
        q.cmd("blockdev-add", args)
        return path
    return make


def full(q, job="j", **kw):
    q.cmd("blockdev-backup", backup("disk0", "target0", job, **kw))
    q.jobs_succeed(job)


@pytest.mark.rows("backup.full", "backup.target-driver")
def test_file_is_a_target(q, disks, file_node):
    path = disks.add(data=((0, 4 * M), (9 * M, 512)))
    out = file_node(old=[(0, 16 * M)])
    full(q)
    compare(path, out)


@pytest.mark.needs("stillpoint")        # QEMU writes zeroes all the same
def test_zeroes_give_space_back_where_discard_says_so(q, disks, file_node):
    path = disks.add(data=((0, M),))
    out = file_node(old=[(0, 16 * M)], discard="unmap")
    full(q)
    compare(path, out)
    assert guest.allocated(out) <= 2 * M


def test_zeroes_keep_their_space_where_discard_says_nothing(q, disks,
                                                            file_node):
    path = disks.add(data=((0, M),))
    out = file_node(old=[(0, 16 * M)])
    full(q)
    compare(path, out)
    assert guest.allocated(out) >= 16 * M


@pytest.mark.rows("backup.target-driver")
def test_raw_window_of_a_file_is_a_target(q, dir, disks):
    path = disks.add(data=((0, 4 * M),))
    out = guest.make_image(os.path.join(dir, "t"), 20 * M, [(0, 20 * M)],
                           seed=9)
    before = guest.sparse_copy(out, os.path.join(dir, "before"))
    q.cmd("blockdev-add", {
        "driver": "raw", "node-name": "target0", "offset": M,
        "size": 16 * M, "file": {"driver": "file", "filename": out}})
    full(q)
    assert guest.digest(out, M, 16 * M) == guest.digest(path)
    assert guest.digest(out, 0, M) == guest.digest(before, 0, M)
    assert guest.digest(out, 17 * M) == guest.digest(before, 17 * M)


def test_raw_window_of_an_export_is_a_target(q, dir, disks, make_target):
    path = disks.add(data=((0, 4 * M),))
    t = make_target()
    out = guest.make_image(os.path.join(dir, "t"), 20 * M, [(0, 20 * M)],
                           seed=9)
    before = guest.sparse_copy(out, os.path.join(dir, "before"))
    t.file(out)
    q.cmd("blockdev-add", {
        "driver": "raw", "node-name": "target0", "offset": M,
        "size": 16 * M, "file": dict(t.blockdev("x"), **{
            "node-name": "below"})})
    full(q)
    assert guest.digest(out, M, 16 * M) == guest.digest(path)
    assert guest.digest(out, 0, M) == guest.digest(before, 0, M)
    assert guest.digest(out, 17 * M) == guest.digest(before, 17 * M)


@pytest.mark.rows("backup.target-driver")
def test_null_is_a_target(q, disks):
    disks.add(data=((0, 16 * M),))
    q.cmd("blockdev-add", driver="null-co", node_name="target0",
          size=16 * M)
    full(q)
    assert q.wait_job("j")["data"]["offset"] == 16 * M


@pytest.mark.rows("backup.target-driver")
def test_block_device_is_a_target(q, dir, disks, make_server):
    path = disks.add(data=((0, 4 * M),))
    out = guest.make_image(os.path.join(dir, "t"), 16 * M, [(0, 16 * M)],
                           seed=9)
    r = subprocess.run(["losetup", "--find", "--show", out],
                       capture_output=True, text=True)
    if r.returncode:
        pytest.skip("no loop device: " + r.stderr.strip())
    device = r.stdout.strip()
    link = os.path.join(dir, "dev")
    try:
        # an allowed directory of its own for one device
        os.mknod(link, 0o600 | 0o060000, os.stat(device).st_rdev)
        try:
            q.cmd("blockdev-add", driver="host_device", node_name="target0",
                  filename=link)
        except Exception as e:
            pytest.skip("device nodes do not open here: %s" % e)
        full(q)
        q.cmd("blockdev-del", node_name="target0")
        subprocess.run(["blockdev", "--flushbufs", device], check=False)
        compare(path, device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=False)


@pytest.mark.rows("backup.incremental")
def test_incremental_goes_to_a_file(q, disks, connect, file_node):
    path = disks.add(data=((0, 4 * M),))
    out = file_node()
    h = connect(disks.uri())
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    full(q)
    h.pwrite(b"x" * 70000, 5 * M)
    h.flush()
    q.cmd("blockdev-backup", backup("disk0", "target0", "k",
                                    sync="incremental", bitmap="b"))
    q.jobs_succeed("k")
    assert q.wait_job("k")["data"]["len"] == 2 * 65536
    compare(path, out)


def test_writes_during_the_backup_are_not_in_the_file(q, dir, disks, connect,
                                                      file_node):
    path = disks.add(data=((0, 16 * M),))
    before = guest.sparse_copy(path, os.path.join(dir, "before"))
    out = file_node()
    h = connect(disks.uri())
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", speed=8 * M))
    for i in range(0, 16 * M, M):
        h.pwrite(b"\xee" * 4096, i + 4096)
        h.zero(4096, i + 65536)
    q.jobs_succeed("j")
    compare(before, out)


def test_target_that_is_full_fails_the_job(q, disks, dir):
    """/dev/shm is as large as we make it: a file system of our own."""
    disks.add(data=((0, 8 * M),))
    small = os.path.join(dir, "small")
    os.mkdir(small)
    r = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "none",
                        small], capture_output=True, text=True)
    if r.returncode:
        pytest.skip("cannot mount: " + r.stderr.strip())
    try:
        out = guest.make_image(os.path.join(small, "t"), 16 * M)
        q.cmd("blockdev-add", driver="file", node_name="target0",
              filename=out)
        q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
        q.cmd("blockdev-backup", backup("disk0", "target0", "j"))
        event = q.wait_job("j")
        assert event["data"]["error"] == "No space left on device"
        q.cmd("blockdev-del", node_name="target0")
    finally:
        subprocess.run(["umount", "--lazy", small], check=False)


def test_full_target_can_be_given_room_and_resumed(q, disks, dir):
    path = disks.add(data=((0, 8 * M),))
    small = os.path.join(dir, "small")
    os.mkdir(small)
    r = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "none",
                        small], capture_output=True, text=True)
    if r.returncode:
        pytest.skip("cannot mount: " + r.stderr.strip())
    try:
        out = guest.make_image(os.path.join(small, "t"), 16 * M)
        q.cmd("blockdev-add", driver="file", node_name="target0",
              filename=out, discard="unmap")
        q.cmd("blockdev-backup", backup("disk0", "target0", "j",
                                        on_target_error="enospc"))
        q.wait_event("BLOCK_JOB_ERROR", {"device": "j", "action": "stop",
                                         "operation": "write"})
        # every job is "paused" once when it begins
        q.wait_event("JOB_STATUS_CHANGE", {"id": "j", "status": "paused"},
                     start=3)
        (job,) = q.cmd("query-block-jobs")
        assert job["io-status"] == "nospace"
        subprocess.run(["mount", "-o", "remount,size=32M", small],
                       check=True)
        q.cmd("job-resume", id="j")
        q.jobs_succeed("j")
        compare(path, out)
        q.cmd("blockdev-del", node_name="target0")
    finally:
        subprocess.run(["umount", "--lazy", small], check=False)


def test_target_is_free_when_the_job_is_over(q, disks, file_node):
    """Whoever hears BLOCK_JOB_COMPLETED may delete and use the file."""
    path = disks.add(data=((0, 4 * M),))
    out = file_node()
    full(q)
    q.cmd("blockdev-del", node_name="target0")
    r = subprocess.run(["qemu-io", "-f", "raw", "-c", "read 0 512", out],
                       capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    compare(path, out)


@pytest.mark.rows("backup.target-busy")
def test_target_of_a_running_backup_is_busy(q, disks, file_node):
    disks.add(data=((0, 16 * M),))
    file_node()
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", speed=M))
    for command, args in (
            ("blockdev-del", {"node-name": "target0"}),
            ("blockdev-backup", backup("disk0", "target0", "k"))):
        e = q.error(command, args)
        assert e.desc == ("Node 'target0' is busy: block device is in use "
                          "by block job: backup"), command
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    q.cmd("blockdev-del", node_name="target0")


@pytest.mark.needs("stillpoint")        # QEMU exports it for reading
def test_target_of_a_running_backup_is_not_exported(q, disks, file_node):
    disks.add(data=((0, 16 * M),))
    file_node()
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", speed=M))
    e = q.error("block-export-add", type="nbd", id="x", node_name="target0")
    assert e.desc == ("Node 'target0' is busy: block device is in use by "
                      "block job: backup")
    q.cmd("job-cancel", id="j")
    q.wait_job("j")


@pytest.mark.rows("backup.target-read-only")
def test_read_only_target_is_refused(q, disks, file_node):
    disks.add()
    file_node(read_only=True)
    e = q.error("blockdev-backup", backup("disk0", "target0", "j"))
    assert e.desc == "Could not create node: Block node is read-only"


def test_several_disks_go_to_files_at_once(q, disks, dir, file_node):
    before = {}
    outs = {}
    for i in range(4):
        path = disks.add("d%d" % i, data=((i * M, 6 * M),))
        before[i] = guest.sparse_copy(path, os.path.join(dir, "b%d" % i))
        outs[i] = file_node("t%d" % i)
    q.cmd("transaction", actions=[
        {"type": "blockdev-backup", "data": backup("d%d" % i, "t%d" % i)}
        for i in range(4)], properties={"completion-mode": "grouped"})
    q.jobs_succeed(*["job-d%d" % i for i in range(4)])
    for i in range(4):
        compare(before[i], outs[i])


def test_cancelled_backup_to_a_file_ends_at_once(q, disks, file_node):
    disks.add(data=((0, 16 * M),))
    file_node()
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", speed=M))
    time.sleep(0.2)
    started = time.monotonic()
    q.cmd("job-cancel", id="j")
    assert q.wait_job("j")["event"] == "BLOCK_JOB_CANCELLED"
    assert time.monotonic() - started < 1


@pytest.mark.needs("restart")
def test_daemon_killed_in_the_middle_keeps_the_bitmap(server, q, disks, dir,
                                                      connect, file_node):
    """As with a remote target: the job is lost and says so, the bitmap has
    everything, the target takes the next backup."""
    path = disks.add(data=((0, 16 * M),))
    out = file_node()
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    h = connect(disks.uri())
    full(q)
    for i in range(0, 16 * M, M):
        h.pwrite(b"y" * 65536, i)
    h.flush()
    count = q.bitmap("disk0", "b")["count"]
    q.cmd("blockdev-backup", backup("disk0", "target0", "lost", speed=65536,
                                    sync="incremental", bitmap="b"))
    time.sleep(0.3)
    server.kill9()
    server.start()
    q = server.qmp()
    (job,) = q.cmd("query-jobs")
    assert job["id"] == "lost" and job["status"] == "concluded"
    b = q.bitmap("disk0", "b")
    assert b["count"] >= count and not b["busy"]
    q.cmd("blockdev-backup", backup("disk0", "target0", "k",
                                    sync="incremental", bitmap="b"))
    q.jobs_succeed("k")
    compare(path, out)
