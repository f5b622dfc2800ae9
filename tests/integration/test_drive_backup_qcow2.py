# SPDX-License-Identifier: BSD-3-Clause
"""drive-backup to qcow2 images that the job makes."""
import os
import subprocess

import pytest

from stillpoint_test import guest, qcow2
from stillpoint_test.qmp import action

pytestmark = pytest.mark.needs("drive-backup")
M = 1 << 20
K = 65536


def info(path):
    return qcow2.info(path)


def compare(a, fmt_a, b):
    r = subprocess.run(["qemu-img", "compare", "-U", "-f", fmt_a, "-F",
                        "qcow2", a, b], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr


def check(path):
    r = subprocess.run(["qemu-img", "check", "-U", "-f", "qcow2", path],
                       capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr


def drive(target, job="j", sync="full", **kw):
    args = {"job-id": job, "device": "disk0", "target": target,
            "sync": sync, "format": "qcow2"}
    args.update({k.replace("_", "-"): v for k, v in kw.items()})
    return args


def run(q, target, job="j", **kw):
    q.cmd("drive-backup", drive(target, job, **kw))
    q.jobs_succeed(job)


@pytest.fixture
def out(dir):
    return os.path.join(dir, "out")


@pytest.mark.rows("drive.create")
@pytest.mark.parametrize("compress", [False, True])
def test_image_is_made_and_equal(q, disks, out, compress):
    path = disks.add(data=((0, 4 * M), (9 * M, 512)))
    with open(path, "r+b") as f:
        f.seek(5 * M)
        f.write(b"compressible" * 100000)
    run(q, out, compress=compress)
    check(out)
    compare(path, "raw", out)
    i = info(out)
    assert i["format"] == "qcow2" and i["virtual-size"] == 16 * M
    assert "backing-filename" not in i


@pytest.mark.rows("drive.existing")
def test_existing_image_takes_an_incremental(q, disks, connect, out):
    path = disks.add(data=((0, 4 * M),))
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    run(q, out)
    h = connect(disks.uri())
    h.pwrite(b"x" * 70000, 5 * M)
    h.zero(K, M)
    h.flush()
    run(q, out, "k", mode="existing", sync="incremental", bitmap="b")
    check(out)
    compare(path, "raw", out)


@pytest.mark.rows("drive.top")
def test_top_stands_on_the_backing_file_of_the_source(q, dir, out):
    base = guest.make_image(os.path.join(dir, "base"), 16 * M, [(0, 8 * M)])
    over = os.path.join(dir, "over")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base,
                    "-F", "raw", over], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 7 1M 64k", "-c",
                    "write -z 2M 64k", "-c", "write -P 9 12M 4k", over],
                   check=True, stdout=subprocess.DEVNULL)
    q.cmd("blockdev-add", {
        "driver": "qcow2", "node-name": "disk0",
        "file": {"driver": "file", "filename": over}})
    q.cmd("drive-backup", drive(out, sync="top"))
    event = q.wait_job("j")
    assert "error" not in event["data"] and event["data"]["len"] == 3 * K
    check(out)
    i = info(out)
    assert i["backing-filename"] == base
    assert i["backing-filename-format"] in ("raw", "file")
    compare(over, "qcow2", out)


@pytest.mark.rows("drive.none", "backup.none")
def test_none_stands_on_the_source_and_reads_as_it_was(q, dir, disks,
                                                       connect, out):
    """Zeroes that were overwritten are the hard part: the image must not take
    what it does not have for zeroes."""
    path = disks.add(data=((0, 4 * M),))
    before = guest.sparse_copy(path, os.path.join(dir, "before"))
    q.cmd("drive-backup", drive(out, sync="none"))
    h = connect(disks.uri())
    h.pwrite(b"n" * 4096, 0)
    h.pwrite(b"n" * 4096, 9 * M)            # was a hole
    h.zero(3 * K, M)
    h.flush()
    q.cmd("job-cancel", id="j")
    assert q.wait_job("j")["event"] == "BLOCK_JOB_CANCELLED"
    check(out)
    i = info(out)
    assert i["backing-filename"] == os.path.realpath(path)
    compare(before, "raw", out)


def test_rolled_back_transaction_removes_the_image(q, disks, dir, out):
    disks.add()
    before = set(os.listdir(dir))
    held = guest.make_image(os.path.join(dir, "held"), 16 * M)
    lock = guest.lock_like_a_machine(held)
    e = q.error("transaction", actions=[
        action("drive-backup", drive(out)),
        action("drive-backup", drive(held, "k"))])
    assert 'Failed to get "write" lock' in e.desc
    assert set(os.listdir(dir)) == before | {"held"}
    lock.close()


def test_image_is_not_made_on_a_server(q, disks, make_target, dir):
    disks.add()
    t = make_target()
    t.file(os.path.join(dir, "t"), 20 * M)
    e = q.error("drive-backup", drive(t.uri()))
    assert e.desc == "The target of format 'qcow2' must be a file"


def test_bitmaps_of_an_existing_image_are_given_back(q, disks, out):
    """They record that all of it may have changed, and QEMU can use them."""
    path = disks.add(data=((0, 4 * M),))
    qcow2.create(out, 16 * M)
    subprocess.run(["qemu-img", "bitmap", "--add", out, "there"], check=True)
    run(q, out, mode="existing")
    assert [b["flags"] for b in
            info(out)["format-specific"]["data"]["bitmaps"]] == [["auto"]]
    check(out)
    compare(path, "raw", out)
    subprocess.run(["qemu-img", "bitmap", "--merge", "there", out, "there"],
                   check=True)
