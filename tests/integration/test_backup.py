# SPDX-License-Identifier: BSD-3-Clause
"""Full backups: the target is the disk at the instant of the command."""
import os
import time

import pytest

from stillpoint_test import guest
from stillpoint_test.qmp import backup
from stillpoint_test.target import slow_target

SLOW = slow_target(10)


def full(q, target="target0", job="j", **kw):
    q.cmd("blockdev-backup", backup("disk0", target, job, **kw))
    q.jobs_succeed(job)


@pytest.mark.rows("backup.full")
def test_full_backup_makes_the_target_equal(q, disks, backup_node):
    path = disks.add()
    target = backup_node()
    full(q)
    guest.same(path, target.path)


def test_full_backup_overwrites_what_the_target_held(q, dir, disks,
                                                     make_target):
    path = disks.add(data=((1 << 20, 1 << 20),))
    t = make_target()
    old = guest.make_image(os.path.join(dir, "t.raw"), disks.size,
                           [(0, disks.size)], seed=9)
    t.file(old)
    q.cmd("blockdev-add", t.blockdev("target0"))
    full(q)
    guest.same(path, old)


@pytest.mark.needs("stillpoint")     # QEMU allocates unless told discard=unmap
def test_holes_of_the_disk_do_not_fill_the_target(q, disks, backup_node):
    disks.add(data=((0, 1 << 20),))
    target = backup_node()
    full(q)
    assert guest.allocated(target.path) <= 2 << 20


@pytest.mark.needs("stillpoint")
def test_blocks_of_written_zeroes_do_not_travel(q, disks, backup_node):
    path = disks.add(data=())
    with open(path, "r+b") as f:
        f.write(bytes(disks.size))          # allocated, all zero
    target = backup_node()
    full(q)
    guest.same(path, target.path)
    assert guest.allocated(target.path) <= 1 << 20


@pytest.mark.rows("backup.instant")
def test_writes_during_the_backup_are_not_in_it(q, dir, disks, connect,
                                                backup_node):
    path = disks.add(data=((0, 16 << 20),))
    before = guest.sparse_copy(path, os.path.join(dir, "before"))
    target = backup_node(**SLOW)
    h = connect(disks.uri())
    q.cmd("blockdev-backup", backup("disk0", "target0", "j"))
    for i in range(0, 16 << 20, 1 << 20):   # behind and ahead of the stream
        h.pwrite(b"\xee" * 4096, i + 4096)
        h.zero(4096, i + 65536)
        h.trim(65536, i + 131072)
    h.flush()
    q.jobs_succeed("j")
    guest.same(before, target.path)


@pytest.mark.parametrize("size", [
    512, 4096, 65536, 65536 + 512, (1 << 20) - 512, (5 << 20) + 1536])
def test_any_multiple_of_a_sector_can_be_backed_up(q, disks, backup_node,
                                                   size):
    path = disks.add(size=size, data=((0, size),))
    target = backup_node(size=size)
    full(q)
    guest.same(path, target.path)


def test_target_with_4096_byte_blocks_takes_an_odd_disk(q, disks,
                                                        backup_node):
    size = (3 << 20) + 4096
    path = disks.add(size=size, data=((0, size),))
    target = backup_node(
        size=size, filters=["blocksize-policy"],
        parameters=["blocksize-minimum=4096", "blocksize-preferred=4096",
                    "blocksize-maximum=32M", "blocksize-error-policy=error"])
    full(q)
    guest.same(path, target.path)


def test_target_over_a_unix_socket_works(q, dir, disks, make_target):
    path = disks.add()
    t = make_target(unix=True).file(os.path.join(dir, "t.raw"), disks.size)
    q.cmd("blockdev-add", t.blockdev("target0"))
    full(q)
    guest.same(path, t.path)


@pytest.mark.needs("stillpoint")
def test_target_with_tls_and_a_shared_key_works(q, dir, disks, make_target):
    path = disks.add()
    t = make_target()
    t.file(os.path.join(dir, "t.raw"), disks.size, options=t.psk())
    psk, user = t.tls
    q.cmd("blockdev-add", dict(
        t.blockdev("target0"), **{"x-tls-psk-file": psk,
                                  "x-tls-username": user}))
    full(q)
    guest.same(path, t.path)


@pytest.mark.needs("stillpoint")
def test_target_with_tls_refuses_a_plain_client(q, dir, disks, make_target):
    disks.add()
    t = make_target()
    t.file(os.path.join(dir, "t.raw"), disks.size, options=t.psk())
    e = q.error("blockdev-add", t.blockdev("target0"))
    assert e.desc.startswith("Failed to connect to ")


def test_qemu_nbd_is_a_good_target(q, dir, disks, make_target):
    path = disks.add()
    raw = guest.make_image(os.path.join(dir, "t.raw"), disks.size)
    t = make_target().qemu_nbd(raw, options=["--discard=unmap"])
    q.cmd("blockdev-add", t.blockdev("target0"))
    full(q)
    q.cmd("blockdev-del", node_name="target0")
    t.cleanup()
    guest.same(path, raw)


@pytest.mark.rows("backup.speed")
def test_speed_limits_the_backup_and_can_be_lifted(q, disks, backup_node):
    path = disks.add(data=((0, 16 << 20),))
    target = backup_node()
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", speed=1 << 20))
    time.sleep(1.0)
    (job,) = q.cmd("query-block-jobs")
    assert job["speed"] == 1 << 20
    assert 0 < job["offset"] <= 4 << 20, job
    q.cmd("block-job-set-speed", device="j", speed=0)
    q.jobs_succeed("j", timeout=10)
    guest.same(path, target.path)


def test_progress_grows_to_the_length(q, disks, backup_node):
    disks.add(data=((0, 16 << 20),))
    backup_node(**SLOW)
    q.cmd("blockdev-backup", backup("disk0", "target0", "j"))
    seen = []
    while True:
        jobs = q.cmd("query-jobs")
        if not jobs:
            break
        seen.append(jobs[0]["current-progress"])
        assert jobs[0]["id"] == "j" and jobs[0]["type"] == "backup"
        time.sleep(0.02)
    event = q.wait_job("j")
    assert seen == sorted(seen) and len(set(seen)) > 2
    assert event["data"]["offset"] == event["data"]["len"] == disks.size


@pytest.mark.rows("backup.concurrent")
def test_two_backups_of_one_disk_run_together(q, disks, backup_node):
    path = disks.add()
    targets = [backup_node("t%d" % i) for i in range(2)]
    for i in range(2):
        q.cmd("blockdev-backup", backup("disk0", "t%d" % i, "j%d" % i))
    q.jobs_succeed("j0", "j1")
    for t in targets:
        guest.same(path, t.path)


def test_filter_node_name_is_accepted(q, disks, backup_node):
    path = disks.add()
    target = backup_node()
    full(q, filter_node_name="cbw0")
    guest.same(path, target.path)


@pytest.mark.needs("device-names")
@pytest.mark.rows("backup.job-id")
def test_device_name_is_accepted_and_names_the_job(q, disks, backup_node):
    path = disks.node("disk0")
    disks.export("disk0", id="virtio0")
    target = backup_node()
    q.cmd("blockdev-backup", device="virtio0", target="target0", sync="full")
    q.jobs_succeed("virtio0")
    guest.same(path, target.path)


BAD = [
    ({"device": "zz"}, "Cannot find device='zz' nor node-name='zz'"),
    ({"target": "zz"}, "Cannot find device='zz' nor node-name='zz'"),
    ({"target": "disk0"}, "Source and target cannot be the same"),
    ({"sync": "bitmap"},
     "must provide a valid bitmap name for 'bitmap' sync mode"),
    ({"sync": "incremental"},
     "must provide a valid bitmap name for 'incremental' sync mode"),
    ({"sync": "incremental", "bitmap": "b", "bitmap-mode": "always"},
     "Bitmap sync mode must be 'on-success' when using sync mode "
     "'incremental'"),
    ({"bitmap": "zz", "bitmap-mode": "on-success"},
     "Bitmap 'zz' could not be found"),
    ({"bitmap": "b"},
     "Bitmap sync mode must be given when providing a bitmap"),
    ({"bitmap": "b", "bitmap-mode": "never"},
     "Bitmap sync mode 'never' has no meaningful effect when combined with "
     "sync mode 'full'"),
    ({"bitmap-mode": "never"},
     "Cannot specify bitmap sync mode without a bitmap"),
    ({"job-id": "1x"}, "Invalid job ID '1x'"),
    ({"job-id": ""}, "Invalid job ID ''"),
    ({"speed": -1}, "Parameter 'speed' expects a non-negative value"),
]


@pytest.mark.parametrize("change, desc", BAD,
                         ids=[str(c) for c, _ in BAD])
@pytest.mark.rows("error.8", "error.12", "error.23", "error.24", "error.25",
                  "error.27", "error.28", "error.29", "error.39")
def test_bad_backup_argument_is_refused(q, disks, backup_node, change, desc):
    disks.add()
    backup_node()
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    e = q.error("blockdev-backup", dict(backup("disk0", "target0", "j"),
                                        **change))
    assert e.cls == "GenericError"
    # QEMU 7.2 prints only one half of the pair.
    assert e.desc == desc or e.desc.replace("device=''", "device='zz'") == \
        desc, e.desc
    assert q.cmd("query-jobs") == []
    assert q.bitmap("disk0", "b")["busy"] is False


@pytest.mark.rows("error.40")
def test_job_id_in_use_is_refused(q, disks, backup_node):
    disks.add(data=((0, 16 << 20),))
    backup_node("t0")
    backup_node("t1")
    q.cmd("blockdev-backup", backup("disk0", "t0", "j", speed=1 << 20))
    e = q.error("blockdev-backup", backup("disk0", "t1", "j"))
    assert e.desc == "Job ID 'j' already in use"
    q.cmd("job-cancel", id="j")
    q.wait_job("j")


@pytest.mark.rows("error.37")
def test_target_of_a_running_backup_is_busy(q, disks, backup_node):
    disks.add("disk0", data=((0, 16 << 20),))
    disks.add("disk1")
    backup_node("t0")
    q.cmd("blockdev-backup", backup("disk0", "t0", "j", speed=1 << 20))
    e = q.error("blockdev-backup", backup("disk1", "t0", "k"))
    assert e.desc == ("Node 't0' is busy: block device is in use by block "
                      "job: backup")
    e = q.error("blockdev-del", node_name="t0")
    assert "busy" in e.desc or e.desc.endswith("in use")
    q.cmd("job-cancel", id="j")
    q.wait_job("j")


@pytest.mark.rows("backup.source-busy")
def test_source_of_a_running_backup_cannot_be_deleted(q, disks, backup_node):
    disks.node("disk0", data=((0, 16 << 20),))
    backup_node("t0")
    q.cmd("blockdev-backup", backup("disk0", "t0", "j", speed=1 << 20))
    e = q.error("blockdev-del", node_name="disk0")
    assert e.desc == "Block device disk0 is in use"
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    q.cmd("blockdev-del", node_name="disk0")


@pytest.mark.parametrize("size", [SIZE for SIZE in (15 << 20, 17 << 20)])
@pytest.mark.rows("error.30")
def test_target_of_another_size_is_refused(q, disks, backup_node, size):
    disks.add()
    backup_node(size=size)
    e = q.error("blockdev-backup", backup("disk0", "target0", "j"))
    assert e.desc == "Source and target image have different sizes"
    assert q.cmd("query-jobs") == []
