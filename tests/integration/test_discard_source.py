# SPDX-License-Identifier: BSD-3-Clause
"""discard-source: the source's space is given back behind the copy."""
import os
import time

import pytest

from stillpoint_test import guest, procs
from stillpoint_test.qmp import backup

pytestmark = pytest.mark.needs("qemu-10")
M = 1 << 20


@pytest.fixture
def source(q, dir):
    """A temporary image that no guest uses."""
    def make(**more):
        path = guest.make_image(os.path.join(dir, "temp"), 16 * M,
                                [(0, 16 * M)])
        args = {"driver": "file", "node-name": "temp", "filename": path,
                "discard": "unmap"}
        args.update({k.replace("_", "-"): v for k, v in more.items()})
        q.cmd("blockdev-add", args)
        return path
    return make


def copy(q, **kw):
    q.cmd("blockdev-backup", backup("temp", "target0", "j", discard_source=True,
                                    **kw))
    q.jobs_succeed("j")


@pytest.mark.rows("backup.discard-source")
def test_source_is_empty_behind_the_copy(q, dir, source, backup_node):
    path = source()
    before = guest.sparse_copy(path, os.path.join(dir, "before"))
    target = backup_node()
    copy(q)
    guest.same(before, target.path)
    assert guest.allocated(path) == 0


@pytest.mark.rows("backup.discard-source")
def test_only_what_was_copied_is_discarded(q, dir, source, backup_node):
    path = source()
    target = backup_node()
    q.cmd("block-dirty-bitmap-add", node="temp", name="b")
    copy(q, bitmap="b", bitmap_mode="never", **{"sync": "bitmap"})
    assert guest.allocated(path) == 16 * M          # nothing was dirty
    assert guest.allocated(target.path) == 0


@pytest.mark.rows("backup.discard-source")
def test_without_discard_unmap_nothing_is_given_up(q, dir, source,
                                                   backup_node):
    path = source(discard="ignore")
    target = backup_node()
    copy(q)
    guest.same(path, target.path)
    assert guest.allocated(path) == 16 * M


@pytest.mark.needs("stillpoint")
def test_what_is_discarded_counts_as_changed(q, source, backup_node):
    source()
    backup_node()
    q.cmd("block-dirty-bitmap-add", node="temp", name="b")
    copy(q)
    assert q.bitmap("temp", "b")["count"] == 16 * M


@pytest.mark.needs("stillpoint")        # QEMU takes away what guests use
def test_disk_of_a_guest_is_not_discarded(q, disks, backup_node):
    disks.add()
    backup_node()
    e = q.error("blockdev-backup", backup("disk0", "target0", "j",
                                          discard_source=True))
    assert e.desc == ("Node 'disk0' is busy: it is exported, and "
                      "discard-source would discard what is in use")


@pytest.mark.rows("backup.discard-source")
def test_read_only_source_is_refused(q, source, backup_node):
    source(read_only=True, discard="ignore")
    backup_node()
    e = q.error("blockdev-backup", backup("temp", "target0", "j",
                                          discard_source=True))
    assert e.desc == "Could not create node: Block node is read-only"


@pytest.mark.needs("stillpoint")
def test_source_is_busy_for_others_meanwhile(q, source, backup_node):
    source()
    backup_node()
    backup_node("t1")
    q.cmd("blockdev-backup", backup("temp", "target0", "j", speed=M,
                                    discard_source=True))
    busy = "Node 'temp' is busy: block device is in use by block job: backup"
    assert q.error("blockdev-backup",
                   backup("temp", "t1", "k")).desc == busy
    assert q.error("block-export-add", type="nbd", id="x", node_name="temp",
                   writable=True).desc == busy
    assert q.error("blockdev-del", node_name="temp").desc == busy
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    q.cmd("blockdev-backup", backup("temp", "t1", "k", speed=M))
    assert q.error("blockdev-backup", backup(
        "temp", "target0", "j", discard_source=True)).desc == busy
    q.cmd("job-cancel", id="k")
    q.wait_job("k")
    q.cmd("blockdev-del", node_name="temp")


@pytest.mark.needs("stillpoint")
def test_cancelled_copy_keeps_what_is_not_at_the_target(q, dir, source,
                                                        backup_node):
    path = source()
    before = guest.sparse_copy(path, os.path.join(dir, "before"))
    target = backup_node()
    q.cmd("blockdev-backup", backup("temp", "target0", "j", speed=4 * M,
                                    discard_source=True))
    procs.wait_until(lambda: guest.allocated(path) < 16 * M, "it discards")
    time.sleep(0.3)
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    with open(path, "rb") as s, open(target.path, "rb") as t, \
            open(before, "rb") as b:
        for _ in range(16 * M // 4096):
            s_, t_, want = s.read(4096), t.read(4096), b.read(4096)
            assert want in (s_, t_)
