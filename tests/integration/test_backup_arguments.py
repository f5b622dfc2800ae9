# SPDX-License-Identifier: BSD-3-Clause
"""The arguments of blockdev-backup: which check comes first, and what x-perf
and the others do."""
import pytest

from stillpoint_test import guest
from stillpoint_test.qmp import backup

K = 65536
M = 1 << 20
SIZES = "Source and target image have different sizes"
NOT_POW2 = ("Could not create node: Cannot create block-copy-state: "
            "min-cluster-size needs to be a power of 2")
WORKERS = "max-workers must be between 1 and 2147483647"
CHUNK = "max-chunk must be zero (which means no limit) or positive"
SPEED = "Parameter 'speed' expects a non-negative value"


def perf(**kw):
    return {"x-perf": {k.replace("_", "-"): v for k, v in kw.items()}}


ERRORS = [
    ({"compress": True}, "Compression is not supported for this drive ",
     "error.32"),
    (perf(max_workers=0), WORKERS, "error.33"),
    (perf(max_workers=-1), WORKERS, "error.33"),
    (perf(max_workers=1 << 31), WORKERS, "error.33"),
    (perf(max_chunk=-1), CHUNK, "error.34"),
    (perf(max_chunk=K - 1),
     "Required max-chunk (65535) is less than backup cluster size (65536)",
     "error.35"),
    (perf(max_chunk=M, min_cluster_size=2 * M),
     "Required max-chunk (1048576) is less than backup cluster size "
     "(2097152)", "error.35"),
    (perf(min_cluster_size=3 * K), NOT_POW2, "error.36"),
    ({"filter-node-name": "1x"},
     "Could not create node: Invalid node-name: '1x'", None),
    ({"filter-node-name": "x" * 32},
     "Could not create node: Node name too long", None),
    ({"filter-node-name": "target0"},
     "Could not create node: Duplicate nodes with node-name='target0'", None),
]


@pytest.mark.needs("qemu-10")
@pytest.mark.rows("error.32", "error.33", "error.34", "error.35", "error.36")
@pytest.mark.parametrize("change, desc, row", ERRORS,
                         ids=[str(c) for c, _, _ in ERRORS])
def test_bad_value_is_refused(q, disks, backup_node, change, desc, row):
    disks.add()
    backup_node()
    e = q.error("blockdev-backup", dict(backup("disk0", "target0", "j"),
                                        **change))
    assert (e.cls, e.desc) == ("GenericError", desc)
    assert q.cmd("query-jobs") == []


# Each pair fails two checks; the first of QEMU's sequence is told.
ORDER = [
    ({"sync": "bitmap", "target": "disk0"},
     "must provide a valid bitmap name for 'bitmap' sync mode"),
    ({"sync": "incremental", "bitmap": "zz", "bitmap-mode": "always"},
     "Bitmap sync mode must be 'on-success' when using sync mode "
     "'incremental'"),
    ({"bitmap": "zz"}, "Bitmap 'zz' could not be found"),
    ({"bitmap": "b", "sync": "none"},
     "Bitmap sync mode must be given when providing a bitmap"),
    ({"bitmap": "b", "sync": "none", "bitmap-mode": "never"},
     "sync mode 'none' does not produce meaningful bitmap outputs"),
    ({"bitmap-mode": "never", "target": "disk0"},
     "Cannot specify bitmap sync mode without a bitmap"),
    ({"target": "disk0", "compress": True},
     "Source and target cannot be the same"),
    ({"compress": True, "x-perf": {"max-workers": 0}},
     "Compression is not supported for this drive "),
    ({"x-perf": {"max-workers": 0, "max-chunk": -1}}, WORKERS),
    ({"x-perf": {"max-chunk": -1}, "target": "small"}, CHUNK),
    ({"target": "small", "x-perf": {"min-cluster-size": 3}}, SIZES),
    ({"filter-node-name": "1x", "x-perf": {"min-cluster-size": 3}},
     "Could not create node: Invalid node-name: '1x'"),
    ({"x-perf": {"min-cluster-size": 3, "max-chunk": 5}}, NOT_POW2),
    ({"x-perf": {"max-chunk": 5}, "job-id": "1x"},
     "Required max-chunk (5) is less than backup cluster size (65536)"),
    ({"job-id": "1x", "speed": -1}, "Invalid job ID '1x'"),
]


@pytest.mark.needs("qemu-10")
@pytest.mark.rows("backup.check-order")
@pytest.mark.parametrize("change, desc", ORDER,
                         ids=[str(c) for c, _ in ORDER])
def test_first_check_that_fails_is_told(q, disks, backup_node, change, desc):
    disks.add()
    backup_node()
    backup_node("small", size=M)
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    e = q.error("blockdev-backup", dict(backup("disk0", "target0", "j"),
                                        **change))
    assert e.desc == desc
    assert q.cmd("query-jobs") == []
    assert q.bitmap("disk0", "b")["busy"] is False


@pytest.mark.rows("backup.negative-speed")
def test_negative_speed_is_found_last_when_the_job_is_there(q, disks,
                                                            backup_node):
    disks.add()
    backup_node()
    e = q.error("blockdev-backup", backup("disk0", "target0", "j", speed=-1))
    assert e.desc == SPEED
    q.drain_events()
    assert q.choreography("j") == ["created", "null"]
    assert q.cmd("query-jobs") == []


@pytest.mark.rows("backup.job-id")
def test_job_needs_a_name_when_the_node_has_no_device(q, disks, backup_node):
    disks.node()
    backup_node()
    e = q.error("blockdev-backup", device="disk0", target="target0",
                sync="full")
    assert e.desc == "Invalid job ID ''"


@pytest.mark.rows("backup.cluster", "backup.progress")
def test_progress_counts_whole_clusters(q, disks, connect, backup_node):
    """100000 bytes are 100352 in sectors and two clusters."""
    path = disks.add(size=100000, data=((0, 100000),))
    target = backup_node(size=100352)
    q.cmd("blockdev-backup", backup("disk0", "target0", "j"))
    event = q.wait_job("j")
    assert event["data"]["len"] == event["data"]["offset"] == 131072
    guest.same(path, target.path, 100000)


@pytest.mark.rows("backup.progress")
def test_empty_bitmap_is_a_job_of_length_zero(q, disks, backup_node):
    disks.add()
    backup_node()
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", "bitmap",
                                    bitmap="b", bitmap_mode="never"))
    event = q.wait_job("j")
    assert event["event"] == "BLOCK_JOB_COMPLETED"
    assert (event["data"]["len"], event["data"]["offset"]) == (0, 0)


@pytest.mark.needs("qemu-10")
@pytest.mark.rows("backup.min-cluster-size", "backup.cluster")
def test_min_cluster_size_makes_clusters_larger(q, disks, connect,
                                                backup_node):
    path = disks.add()
    target = backup_node()
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    connect(disks.uri()).pwrite(b"x", 5 * M + 7)
    q.cmd("blockdev-backup", dict(
        backup("disk0", "target0", "j", "incremental", bitmap="b"),
        **perf(min_cluster_size=2 * M)))
    event = q.wait_job("j")
    assert event["data"]["len"] == event["data"]["offset"] == 2 * M
    assert guest.digest(target.path, 4 * M, 2 * M) == \
        guest.digest(path, 4 * M, 2 * M)
    assert guest.allocated(target.path) <= 2 * M


@pytest.mark.needs("qemu-10")
@pytest.mark.rows("backup.max-workers", "backup.max-chunk",
                  "backup.use-copy-range")
@pytest.mark.parametrize("change", [
    perf(max_workers=1), perf(max_workers=2147483647), perf(max_chunk=0),
    perf(max_chunk=K), perf(max_chunk=(1 << 63) - 1),
    perf(use_copy_range=True), perf(use_copy_range=False, max_workers=3,
                                    max_chunk=3 * K, min_cluster_size=K)],
    ids=str)
def test_backup_with_x_perf_is_equal(q, disks, backup_node, change):
    path = disks.add(data=((0, 16 * M),))
    target = backup_node()
    q.cmd("blockdev-backup", dict(backup("disk0", "target0", "j"), **change))
    q.jobs_succeed("j")
    guest.same(path, target.path)


@pytest.mark.needs("qemu-10")
@pytest.mark.rows("backup.max-chunk")
def test_no_request_is_larger_than_a_chunk(q, dir, disks, make_target):
    """The server's own log says so."""
    path = disks.add(data=((0, 4 * M),))
    log = dir + "/log"
    t = make_target()
    t.file(dir + "/t.raw", disks.size, ["log"], ["logfile=" + log])
    q.cmd("blockdev-add", t.blockdev("target0"))
    q.cmd("blockdev-backup", dict(backup("disk0", "target0", "j"),
                                  **perf(max_chunk=2 * K)))
    q.jobs_succeed("j")
    guest.same(path, t.path)
    with open(log) as f:
        counts = [int(w.split("=")[1], 16) for line in f
                  for w in line.split() if w.startswith("count=")]
    assert counts and max(counts) <= 2 * K


@pytest.mark.rows("backup.top")
def test_top_of_a_raw_disk_is_all_of_it(q, disks, backup_node):
    path = disks.add(data=((0, 4 * M), (9 * M, 512)))
    target = backup_node()
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", "top"))
    event = q.wait_job("j")
    assert "error" not in event["data"] and event["data"]["len"] == 16 * M
    guest.same(path, target.path)
