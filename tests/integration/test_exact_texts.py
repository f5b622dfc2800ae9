# SPDX-License-Identifier: BSD-3-Clause
"""Messages of QEMU 10 to the letter, where other tests allow for those of older
versions."""
import pytest

from stillpoint_test.qmp import backup

pytestmark = pytest.mark.needs("qemu-10")
BUSY = "Node '%s' is busy: block device is in use by block job: backup"


def desc(q, *args, **kw):
    e = q.error(*args, **kw)
    assert e.cls == "GenericError"
    return e.desc


@pytest.mark.rows("error.9")
def test_bitmap_commands_name_the_node_that_is_not_there(q, disks):
    for c in "remove", "clear", "enable", "disable":
        assert desc(q, "block-dirty-bitmap-" + c, node="zz", name="b") == \
            "Node 'zz' not found"
    assert desc(q, "block-dirty-bitmap-merge", node="zz", target="b",
                bitmaps=["c"]) == "Node 'zz' not found"
    assert desc(q, "x-debug-block-dirty-bitmap-sha256", node="zz",
                name="b") == "Node 'zz' not found"
    disks.node()
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    assert desc(q, "block-dirty-bitmap-merge", node="disk0", target="b",
                bitmaps=[{"node": "zz", "name": "c"}]) == \
        "Node 'zz' not found"


@pytest.mark.rows("error.8")
def test_commands_that_take_either_name_print_both(q, disks):
    both = "Cannot find device='zz' nor node-name='zz'"
    assert desc(q, "block-dirty-bitmap-add", node="zz", name="b") == both
    assert desc(q, "nbd-server-add", device="zz") == both
    disks.node()
    assert desc(q, "blockdev-backup", backup("zz", "disk0", "j")) == both
    assert desc(q, "blockdev-backup", backup("disk0", "zz", "j")) == both
    assert desc(q, "block_resize", node_name="zz", size=512) == \
        "Cannot find device='' nor node-name='zz'"
    assert desc(q, "block_resize", device="zz", size=512) == \
        "Cannot find device='zz' nor node-name=''"
    assert desc(q, "block_resize", size=512) == \
        "Cannot find device='' nor node-name=''"
    assert desc(q, "block-export-add", type="nbd", id="e",
                node_name="zz") == "Cannot find device='' nor node-name='zz'"


@pytest.mark.rows("error.42", "error.43")
def test_jobs_that_are_not_there(q):
    for c in "pause", "resume", "cancel", "complete", "finalize", "dismiss":
        assert desc(q, "job-" + c, id="zz") == "Job not found"
        e = q.error("block-job-" + c, {
            "id" if c in ("finalize", "dismiss") else "device": "zz"})
        assert (e.cls, e.desc) == ("DeviceNotActive",
                                   "Block job 'zz' not found")
    e = q.error("block-job-set-speed", device="zz", speed=1)
    assert (e.cls, e.desc) == ("DeviceNotActive", "Block job 'zz' not found")


@pytest.mark.rows("error.37", "error.60.device", "error.60.node",
                  "jobs.filter-busy")
def test_what_a_backup_uses_is_not_deleted(q, disks, backup_node):
    disks.node()
    backup_node("t")
    q.cmd("blockdev-backup", backup("disk0", "t", "j", sync="none",
                                    filter_node_name="flt"))
    assert desc(q, "blockdev-del", node_name="t") == BUSY % "t"
    assert desc(q, "blockdev-del", node_name="flt") == BUSY % "flt"
    assert desc(q, "blockdev-del", node_name="disk0") == \
        "Block device disk0 is in use"
    disks.export("disk0")
    assert desc(q, "blockdev-del", node_name="disk0") == \
        "Node disk0 is in use"
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    q.cmd("blockdev-del", node_name="t")
