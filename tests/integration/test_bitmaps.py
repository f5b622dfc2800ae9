# SPDX-License-Identifier: BSD-3-Clause
"""Bitmap commands: what they record and what they refuse."""
import hashlib
import os
import resource
import subprocess

import pytest

from stillpoint_test import guest
from stillpoint_test.qmp import action, backup

nbd = pytest.importorskip("nbd")

K = 65536


@pytest.fixture
def disk(disks, connect):
    disks.add()
    return connect(disks.uri())


def add(q, name="b", **kw):
    q.cmd("block-dirty-bitmap-add", node="disk0", name=name, **kw)


def count(q, name="b"):
    return q.bitmap("disk0", name)["count"]


@pytest.mark.rows("bitmaps.add", "bitmaps.granularity-default")
def test_new_bitmap_is_empty_recording_and_listed(q, disk):
    add(q)
    assert q.bitmap("disk0", "b") == {
        "name": "b", "count": 0, "granularity": K, "recording": True,
        "busy": False, "persistent": False}


@pytest.mark.parametrize("request_, size, what", [
    ("pwrite", 1, "a byte"), ("pwrite", K, "a granule"),
    ("zero", K, "zeroes")])
@pytest.mark.rows("bitmaps.set-by-writes", "bitmaps.whole-granules")
def test_every_kind_of_write_is_recorded(q, disk, request_, size, what):
    add(q)
    if request_ == "pwrite":
        disk.pwrite(b"x" * size, 3 * K)
    else:
        disk.zero(size, 3 * K)
    assert count(q) == K


@pytest.mark.rows("bitmaps.discard")
def test_discard_is_recorded_where_discards_are_passed_on(q, disks, connect):
    disks.add("disk0", discard="unmap")
    add(q)
    connect(disks.uri()).trim(K, 5 * K)
    assert count(q) == K


@pytest.mark.rows("bitmaps.discard")
def test_discard_that_is_not_passed_on_changes_and_records_nothing(q, disk):
    before = bytes(disk.pread(K, 2 * K))
    assert before != bytes(K)
    add(q)
    disk.trim(K, 2 * K)
    assert count(q) == 0
    assert bytes(disk.pread(K, 2 * K)) == before


@pytest.mark.rows("bitmaps.set-not-by-reads")
def test_reads_and_flushes_are_not_recorded(q, disk):
    add(q)
    disk.pread(K, 0)
    disk.flush()
    assert count(q) == 0


@pytest.mark.rows("bitmaps.whole-granules")
def test_write_across_a_border_dirties_both_granules(q, disk):
    add(q)
    disk.pwrite(b"xy", K - 1)
    assert count(q) == 2 * K


@pytest.mark.rows("bitmaps.count")
def test_overlapping_writes_count_once(q, disk):
    add(q)
    for _ in range(3):
        disk.pwrite(b"x" * 4096, 7 * K)
    assert count(q) == K


@pytest.mark.parametrize("granularity", [512, 4096, 1 << 20, 1 << 31])
@pytest.mark.rows("bitmaps.granularity-edges", "bitmaps.large-granule",
                  "bitmaps.count")
def test_granularity_rounds_outwards(q, disks, disk, granularity):
    add(q, granularity=granularity)
    disk.pwrite(b"x", 100)
    info = q.bitmap("disk0", "b")
    assert info["granularity"] == granularity
    assert info["count"] == granularity


@pytest.mark.rows("bitmaps.granularity-default-qcow2")
@pytest.mark.parametrize("cluster, granularity", [
    (512, 4096), (4096, 4096), (32768, 32768), (K, K), (2 << 20, K)])
def test_default_granularity_follows_the_clusters(q, dir, cluster,
                                                  granularity):
    path = os.path.join(dir, "a.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o",
                    "cluster_size=%d" % cluster, path, "8M"], check=True)
    q.cmd("blockdev-add", {
        "driver": "qcow2", "node-name": "disk0",
        "file": {"driver": "file", "filename": path}})
    add(q)
    assert q.bitmap("disk0", "b")["granularity"] == granularity


@pytest.mark.parametrize("granularity", [0, 1, 256, 513, 1000, 3 * K])
@pytest.mark.rows("bitmaps.granularity-bad", "error.16")
def test_granularity_that_is_no_power_of_two_from_512_is_refused(
        q, disk, granularity):
    e = q.error("block-dirty-bitmap-add", node="disk0", name="b",
                granularity=granularity)
    assert e.desc.lower().startswith("granularity must be power of 2")


@pytest.mark.rows("bitmaps.disabled")
def test_disabled_bitmap_records_nothing_until_enabled(q, disk):
    add(q, disabled=True)
    disk.pwrite(b"x", 0)
    assert count(q) == 0
    q.cmd("block-dirty-bitmap-enable", node="disk0", name="b")
    disk.pwrite(b"x", K)
    q.cmd("block-dirty-bitmap-disable", node="disk0", name="b")
    disk.pwrite(b"x", 2 * K)
    assert count(q) == K
    assert q.bitmap("disk0", "b")["recording"] is False


@pytest.mark.rows("bitmaps.clear")
def test_clear_empties_and_goes_on(q, disk):
    add(q)
    disk.pwrite(b"x", 0)
    q.cmd("block-dirty-bitmap-clear", node="disk0", name="b")
    assert count(q) == 0
    disk.pwrite(b"x", K)
    assert count(q) == K


@pytest.mark.rows("bitmaps.remove")
def test_removed_bitmap_is_gone_and_its_name_free(q, disk):
    add(q)
    q.cmd("block-dirty-bitmap-remove", node="disk0", name="b")
    assert q.bitmap("disk0", "b") is None
    add(q)


def test_bitmaps_of_one_disk_record_independently(q, disk):
    for i in range(16):
        disk.pwrite(b"x", i * K)
        add(q, "b%d" % i)
    disk.pwrite(b"x", 100 * K)
    q.cmd("block-dirty-bitmap-clear", node="disk0", name="b3")
    disk.pwrite(b"x", 101 * K)
    assert [count(q, "b%d" % i) // K for i in range(16)] == [
        1 if i == 3 else 17 - i for i in range(16)]


@pytest.mark.rows("bitmaps.merge")
def test_merge_adds_the_sources_and_keeps_them(q, disk):
    add(q, "a")
    disk.pwrite(b"x", 0)
    q.cmd("block-dirty-bitmap-disable", node="disk0", name="a")
    add(q, "b")
    disk.pwrite(b"x", K)
    add(q, "c", disabled=True)
    q.cmd("block-dirty-bitmap-merge", node="disk0", target="c",
          bitmaps=["a", {"node": "disk0", "name": "b"}])
    assert (count(q, "a"), count(q, "b"), count(q, "c")) == (K, K, 2 * K)


@pytest.mark.rows("bitmaps.merge-granularity")
def test_merge_across_granularities_rounds_outwards(q, disk):
    add(q, "fine", granularity=4096)
    disk.pwrite(b"x", 5 * K + 4096)
    add(q, "coarse", granularity=1 << 20)
    q.cmd("block-dirty-bitmap-merge", node="disk0", target="coarse",
          bitmaps=["fine"])
    assert count(q, "coarse") == 1 << 20


@pytest.mark.rows("bitmaps.merge-node")
def test_merge_from_another_disk_of_equal_size(q, disks, disk, connect):
    disks.add("disk1")
    q.cmd("block-dirty-bitmap-add", node="disk1", name="other")
    connect(disks.uri("disk1")).pwrite(b"x", 9 * K)
    add(q)
    q.cmd("block-dirty-bitmap-merge", node="disk0", target="b",
          bitmaps=[{"node": "disk1", "name": "other"}])
    assert count(q) == K


@pytest.mark.rows("bitmaps.merge-sizes", "error.20")
def test_merge_of_different_sizes_is_refused_with_both(q, disks, disk):
    disks.add("disk1", size=8 << 20)
    q.cmd("block-dirty-bitmap-add", node="disk1", name="other")
    add(q)
    e = q.error("block-dirty-bitmap-merge", node="disk0", target="b",
                bitmaps=[{"node": "disk1", "name": "other"}])
    assert e.desc == (
        "Bitmaps are of different sizes (destination size is %d, source size "
        "is %d) and can't be merged" % (disks.size, 8 << 20))


@pytest.mark.rows("bitmaps.merge-self")
def test_merge_with_itself_changes_nothing(q, disk):
    add(q)
    disk.pwrite(b"x", 0)
    q.cmd("block-dirty-bitmap-merge", node="disk0", target="b",
          bitmaps=["b"])
    assert count(q) == K


@pytest.mark.needs("stillpoint")        # this ends QEMU 10.0 with a signal
@pytest.mark.rows("bitmaps.merge-empty")
def test_merge_of_nothing_succeeds(q, disk):
    add(q)
    q.cmd("block-dirty-bitmap-merge", node="disk0", target="b", bitmaps=[])
    assert count(q) == 0


@pytest.mark.rows("bitmaps.merge-failed")
def test_failed_merge_leaves_the_target_unchanged(q, disk):
    add(q, "a")
    disk.pwrite(b"x", 0)
    add(q, "b", disabled=True)
    e = q.error("block-dirty-bitmap-merge", node="disk0", target="b",
                bitmaps=["a", "zz"])
    assert e.desc == "Dirty bitmap 'zz' not found"
    assert count(q, "b") == 0


@pytest.mark.parametrize("command", ["remove", "clear", "enable", "disable"])
@pytest.mark.rows("error.9", "error.11", "protocol.class-generic")
def test_unknown_bitmap_and_node_are_named(q, disk, command):
    name = "block-dirty-bitmap-" + command
    e = q.error(name, node="disk0", name="zz")
    assert (e.cls, e.desc) == ("GenericError", "Dirty bitmap 'zz' not found")
    # The last half of QEMU 7.2's text differs.
    assert q.error(name, node="yy", name="b").desc in (
        "Node 'yy' not found",
        "Cannot find device='yy' nor node-name='yy'",
        "Cannot find device='' nor node-name='yy'")


@pytest.mark.rows("bitmaps.name-empty", "bitmaps.duplicate",
                  "bitmaps.add-unknown-node", "error.13", "error.14",
                  "error.15")
def test_bad_names_are_refused(q, disk):
    add(q)
    assert q.error("block-dirty-bitmap-add", node="none", name="").desc == \
        "Bitmap name cannot be empty"
    for name, desc in [("b", "Bitmap already exists: b"),
                       ("", "Bitmap name cannot be empty"),
                       ("n" * 1024, "Bitmap name too long: " + "n" * 1024)]:
        assert q.error("block-dirty-bitmap-add", node="disk0",
                       name=name).desc == desc
    e = q.error("block-dirty-bitmap-add", node="zz", name="b")
    assert "Cannot find device='" in e.desc and \
        "nor node-name='zz'" in e.desc


@pytest.mark.rows("bitmaps.name-1023")
def test_longest_name_is_accepted(q, disk):
    add(q, "n" * 1023)
    assert count(q, "n" * 1023) == 0


@pytest.mark.needs("stillpoint")        # QEMU has no place for it with raw
@pytest.mark.rows("bitmaps.persistent-raw")
def test_persistent_bitmap_of_a_raw_disk_is_kept_beside_it(q, disk):
    add(q, "p", persistent=True)
    disk.pwrite(b"x", 0)
    info = q.bitmap("disk0", "p")
    assert info["persistent"] is True and info["count"] == K


@pytest.fixture
def busy(q, disk, backup_node):
    """Bitmap b is in use by a job that takes its time."""
    add(q)
    disk.pwrite(b"x" * (8 << 20), 0)
    backup_node()
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", speed=1 << 20,
                                    sync="incremental", bitmap="b"))
    yield
    q.cmd("job-cancel", id="j")
    q.wait_job("j")


BUSY = "Bitmap 'b' is currently in use by another operation and cannot be used"


@pytest.mark.rows("bitmaps.successor", "bitmaps.busy",
                  "bitmaps.query-any-state")
def test_busy_bitmap_has_a_nameless_successor(q, busy, disk):
    disk.pwrite(b"y", 0)
    node, = [n for n in q.cmd("query-named-block-nodes")
             if n["node-name"] == "disk0"]
    new, old = [b for b in node["dirty-bitmaps"]
                if b.get("name", "b") == "b"]
    assert "name" not in new and not new["busy"] and new["recording"]
    assert new["count"] == K
    assert old["busy"] and old["count"] == 8 << 20


@pytest.mark.parametrize("command", ["remove", "clear", "enable", "disable"])
@pytest.mark.rows("bitmaps.busy-refuses", "error.17")
def test_busy_bitmap_refuses_changes(q, busy, command):
    e = q.error("block-dirty-bitmap-" + command, node="disk0", name="b")
    assert e.desc == BUSY


@pytest.mark.rows("bitmaps.busy-refuses")
def test_busy_bitmap_is_neither_source_nor_target_of_a_merge(q, busy):
    add(q, "c")
    for target, source in (("b", "c"), ("c", "b")):
        e = q.error("block-dirty-bitmap-merge", node="disk0", target=target,
                    bitmaps=[source])
        assert e.desc == BUSY
    # the target is looked at when there is something to merge
    assert q.error("block-dirty-bitmap-merge", node="disk0", target="b",
                   bitmaps=["zz", "c"]).desc == "Dirty bitmap 'zz' not found"


@pytest.mark.rows("bitmaps.busy-refuses")
def test_busy_bitmap_serves_no_second_backup(q, busy, backup_node):
    backup_node("t1")
    e = q.error("blockdev-backup", backup(
        "disk0", "t1", "k", sync="bitmap", bitmap="b", bitmap_mode="never"))
    assert e.desc == BUSY


@pytest.mark.rows("bitmaps.newest-first")
def test_bitmap_without_commands_costs_nothing_at_query(q, disk):
    q.cmd("transaction", actions=[
        action("block-dirty-bitmap-add", node="disk0", name="b%d" % i)
        for i in range(200)])
    disk.pwrite(b"x", 0)
    (node,) = [n for n in q.cmd("query-named-block-nodes")
               if n["node-name"] == "disk0"]
    assert len(node["dirty-bitmaps"]) == 200
    assert all(b["count"] == K for b in node["dirty-bitmaps"])
    assert node["dirty-bitmaps"][0]["name"] == "b199"   # newest first


def listed(q):
    """Names in the order of the list.  QEMU 7.2 has a bitmap of the job there,
    which records nothing."""
    (node,) = [n for n in q.cmd("query-named-block-nodes")
               if n["node-name"] == "disk0"]
    return [b.get("name") for b in node["dirty-bitmaps"]
            if "name" in b or b["recording"]]


@pytest.mark.parametrize("mode,end,after", [
    ("on-success", "finalize", ["new", "a", "c", "b"]),
    ("always", "finalize", ["new", "a", "c", "b"]),
    ("never", "finalize", ["new", "c", "b", "a"]),
    ("on-success", "cancel", ["new", "c", "b", "a"]),
    ("always", "cancel", ["new", "a", "c", "b"])])
@pytest.mark.rows("bitmaps.newest-first", "bitmaps.successor")
def test_successor_has_its_place_in_the_list(q, disk, backup_node, mode, end,
                                             after):
    for name in "abc":
        add(q, name)
    backup_node()
    q.cmd("blockdev-backup", backup(
        "disk0", "target0", "j", sync="bitmap", bitmap="a", bitmap_mode=mode,
        auto_finalize=False))
    q.wait_event("JOB_STATUS_CHANGE", {"id": "j", "status": "pending"})
    add(q, "new")
    assert listed(q) == ["new", None, "c", "b", "a"]
    q.cmd("job-" + end, id="j")
    q.wait_job("j")
    assert listed(q) == after


@pytest.mark.rows("backup.bitmap", "bitmaps.cluster-rounding",
                  "backup.progress")
@pytest.mark.parametrize("coarse", [4 << 20, 1 << 31])
def test_whole_granules_are_copied_whatever_other_bitmaps_know(
        q, disks, disk, backup_node, coarse):
    add(q, "fine", granularity=4096)
    add(q, granularity=coarse)
    disk.pwrite(b"x", 5 << 20)
    target = backup_node()
    with open(target.path, "r+b") as f:
        f.write(b"\xee" * disks.size)
    whole = min(coarse, disks.size)
    start = (5 << 20) // coarse * coarse
    with open(disks.path("disk0"), "rb") as f:
        want = f.read()[start:start + whole]
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", sync="bitmap",
                                    bitmap="b", bitmap_mode="on-success",
                                    speed=1))
    # what guests write meanwhile is not in it, in no part of the granule
    disk.pwrite(b"later" * 100, start + whole - 70000)
    q.cmd("block-job-set-speed", device="j", speed=0)
    event = q.wait_job("j")["data"]
    assert event["len"] == event["offset"] == whole and "error" not in event
    with open(target.path, "rb") as f:
        got = f.read()
    assert got[start:start + whole] == want
    assert got[:start] == b"\xee" * start
    assert got[start + whole:] == b"\xee" * (disks.size - start - whole)


# --- failed writes -------------------------------------------------------------


@pytest.mark.rows("bitmaps.set-by-failed-writes")
def test_write_that_fails_is_recorded(server, q, dir, make_target, connect):
    t = make_target().file(os.path.join(dir, "bad.raw"), 1 << 20,
                           filters=["error"], parameters=[
                               "error-pwrite=EIO", "error-pwrite-rate=100%"])
    q.cmd("blockdev-add", t.blockdev("bad"))
    q.cmd("block-export-add", type="nbd", id="e", name="bad", node_name="bad",
          writable=True)
    q.cmd("block-dirty-bitmap-add", node="bad", name="b")
    h = connect(server.uri("bad"))
    with pytest.raises(nbd.Error):
        h.pwrite(b"x" * 4096, 5 * K)
    assert q.bitmap("bad", "b")["count"] == K


# --- names of devices ------------------------------------------------------------


@pytest.mark.needs("device-names")
@pytest.mark.rows("bitmaps.device-name")
def test_every_command_takes_a_devices_name(q, disks, connect):
    disks.node("disk0")
    disks.export("disk0", id="virtio0")
    q.cmd("block-dirty-bitmap-add", node="virtio0", name="b")
    q.cmd("block-dirty-bitmap-add", node="virtio0", name="c")
    connect(disks.uri()).pwrite(b"x", 0)
    for command in ("disable", "enable", "clear"):
        q.cmd("block-dirty-bitmap-" + command, node="virtio0", name="b")
    assert count(q) == 0
    q.cmd("block-dirty-bitmap-merge", node="virtio0", target="b",
          bitmaps=["c", {"node": "virtio0", "name": "c"}])
    assert count(q) == K
    q.cmd("x-debug-block-dirty-bitmap-sha256", node="virtio0", name="b")
    q.cmd("block-dirty-bitmap-remove", node="virtio0", name="b")
    assert q.bitmap("disk0", "b") is None


# --- the hash -------------------------------------------------------------------


def hash_of(q, name="b", node="disk0"):
    return q.cmd("x-debug-block-dirty-bitmap-sha256", node=node,
                 name=name)["sha256"]


def expected(size, granularity, dirty):
    """SHA-256 of the bits of these granules, as QEMU lays them out."""
    granules = (size + granularity - 1) // granularity
    bits = bytearray(max(1, (granules + 63) // 64) * 8)
    for i in dirty:
        bits[i // 8] |= 1 << i % 8
    return hashlib.sha256(bits).hexdigest()


@pytest.mark.rows("bitmaps.sha256")
@pytest.mark.parametrize("size, granularity", [
    (16 << 20, K), (16 << 20, 512), (16 << 20, 1 << 31),
    ((1 << 20) + 512, 512), (100 * K, K), (65 * K, K), (64 * K, K)])
def test_hash_is_that_of_the_bits(q, disks, connect, size, granularity):
    disks.add(size=size)
    h = connect(disks.uri())
    add(q, granularity=granularity)
    assert hash_of(q) == expected(size, granularity, [])
    granules = (size + granularity - 1) // granularity
    dirty = {0, granules - 1, granules // 2} | set(
        range(granules // 3, min(granules // 3 + 70, granules)))
    for i in dirty:
        h.pwrite(b"x", i * granularity)
    assert hash_of(q) == expected(size, granularity, dirty)


def test_hash_knows_neither_name_nor_flags(q, disk):
    add(q, "a")
    disk.pwrite(b"x" * 3 * K, 10 * K)
    add(q, "copy", disabled=True)
    q.cmd("block-dirty-bitmap-merge", node="disk0", target="copy",
          bitmaps=["a"])
    assert hash_of(q, "a") == hash_of(q, "copy")
    q.cmd("block-dirty-bitmap-clear", node="disk0", name="copy")
    assert hash_of(q, "a") != hash_of(q, "copy")


def test_hash_of_what_is_not_there_is_refused(q, disk):
    name = "x-debug-block-dirty-bitmap-sha256"
    assert q.error(name, node="disk0", name="zz").desc == \
        "Dirty bitmap 'zz' not found"
    assert q.error(name, node="zz", name="b").desc in (
        "Node 'zz' not found", "Cannot find device='zz' nor node-name='zz'",
        "Cannot find device='' nor node-name='zz'")


@pytest.mark.rows("bitmaps.sha256-any-state")
def test_hash_of_a_busy_bitmap_is_what_its_job_took(q, busy, disks, disk):
    want = expected(disks.size, K, range(128))
    assert hash_of(q) == want
    disk.pwrite(b"x", 200 * K)
    assert hash_of(q) == want


# --- inconsistent and readonly bitmaps --------------------------------------------


REFUSED = "Bitmap 'b' is inconsistent and cannot be used"


@pytest.fixture
def torn(server, q, disks, connect):
    """Bitmap b is inconsistent: somebody wrote to the image meanwhile."""
    path = disks.add("disk0")
    add(q)
    connect(disks.uri()).pwrite(b"x", 0)
    assert server.stop() == 0
    with open(path, "r+b") as f:
        f.write(b"behind our back")
    server.start()
    disks.q = server.qmp()
    return disks.q


@pytest.mark.needs("restart")
@pytest.mark.rows("bitmaps.query-any-state", "bitmaps.sha256-any-state")
def test_inconsistent_bitmap_is_shown_with_the_reason(torn, disks):
    info = torn.bitmap("disk0", "b")
    assert info.pop("x-reason")
    assert info == {"name": "b", "count": 0, "granularity": K,
                    "recording": False, "busy": False, "persistent": False,
                    "inconsistent": True}
    assert hash_of(torn) == expected(disks.size, K, [])


@pytest.mark.needs("restart")
@pytest.mark.rows("bitmaps.clear-refuses", "bitmaps.enable-disable-refuse",
                  "bitmaps.merge-target-refuses", "error.19",
                  "bitmaps.merge-source-refuses", "transaction.clear-refuses",
                  "exports.add-bitmap-busy")
def test_inconsistent_bitmap_is_of_no_use(torn, backup_node):
    q = torn
    for command in ("clear", "enable", "disable"):
        assert q.error("block-dirty-bitmap-" + command, node="disk0",
                       name="b").desc == REFUSED
        assert q.error("transaction", actions=[
            action("block-dirty-bitmap-" + command, node="disk0",
                   name="b")]).desc == REFUSED
    add(q, "c")
    for target, source in (("b", "c"), ("c", "b")):
        assert q.error("block-dirty-bitmap-merge", node="disk0",
                       target=target, bitmaps=[source]).desc == REFUSED
    assert q.error("block-export-add", {
        "type": "nbd", "id": "e", "name": "e", "node-name": "disk0",
        "bitmaps": ["b"]}).desc == REFUSED
    assert q.error("blockdev-backup", backup(
        "disk0", "disk0", "j", sync="bitmap", bitmap="b",
        bitmap_mode="never")).desc == REFUSED


@pytest.mark.needs("restart")
@pytest.mark.rows("bitmaps.remove-inconsistent")
def test_inconsistent_bitmap_can_be_removed(torn):
    torn.cmd("block-dirty-bitmap-remove", node="disk0", name="b")
    assert torn.bitmap("disk0", "b") is None
    add(torn)


@pytest.fixture
def still(q, disks):
    """Bitmap b is persistent on a read-only node, bitmap c is not."""
    disks.node("disk0", read_only=True)
    add(q, persistent=True)
    add(q, "c")


READONLY = "Bitmap 'b' is readonly and cannot be modified"


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("bitmaps.readonly-disk", "bitmaps.remove-refuses",
                  "bitmaps.clear-refuses", "bitmaps.merge-target-refuses",
                  "transaction.clear-refuses", "error.18")
def test_readonly_bitmap_is_not_changed(q, still):
    for command in ("clear", "remove"):
        assert q.error("block-dirty-bitmap-" + command, node="disk0",
                       name="b").desc == READONLY
        assert q.error("transaction", actions=[
            action("block-dirty-bitmap-" + command, node="disk0",
                   name="b")]).desc == READONLY
    assert q.error("block-dirty-bitmap-merge", node="disk0", target="b",
                   bitmaps=["c"]).desc == READONLY
    q.cmd("block-dirty-bitmap-clear", node="disk0", name="c")
    q.cmd("block-dirty-bitmap-remove", node="disk0", name="c")


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("bitmaps.enable-disable-refuse",
                  "bitmaps.merge-source-refuses")
def test_readonly_bitmap_can_be_read_and_switched(q, still):
    q.cmd("block-dirty-bitmap-disable", node="disk0", name="b")
    q.cmd("block-dirty-bitmap-enable", node="disk0", name="b")
    q.cmd("block-dirty-bitmap-merge", node="disk0", target="c",
          bitmaps=["b"])


# --- clusters of jobs -------------------------------------------------------------


@pytest.mark.rows("bitmaps.cluster-rounding")
@pytest.mark.parametrize("granularity, length", [
    (512, K), (32768, K), (K, K), (1 << 20, 1 << 20)])
def test_job_copies_whole_clusters(q, disks, disk, backup_node, granularity,
                                   length):
    add(q, granularity=granularity)
    disk.pwrite(b"x", (4 << 20) + 512)
    backup_node()
    q.cmd("blockdev-backup", backup("disk0", "target0", "j",
                                    sync="incremental", bitmap="b"))
    event = q.wait_job("j")
    assert (event["data"]["offset"], event["data"]["len"]) == (length, length)


@pytest.mark.needs("qemu-10")
@pytest.mark.rows("bitmaps.busy", "bitmaps.disabled-backup")
def test_busy_bitmap_that_was_disabled_records_nothing_meanwhile(
        q, disk, backup_node):
    add(q)
    disk.pwrite(b"x" * (8 << 20), 0)
    q.cmd("block-dirty-bitmap-disable", node="disk0", name="b")
    backup_node()
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", speed=1 << 20,
                                    sync="bitmap", bitmap="b",
                                    bitmap_mode="on-success"))
    disk.pwrite(b"x", 12 << 20)
    (node,) = [n for n in q.cmd("query-named-block-nodes")
               if n["node-name"] == "disk0"]
    assert all(not b["recording"] for b in node["dirty-bitmaps"])
    assert q.bitmap("disk0", "b")["busy"]
    q.cmd("block-job-set-speed", device="j", speed=0)
    q.jobs_succeed("j")
    info = q.bitmap("disk0", "b")
    assert (info["count"], info["recording"]) == (0, False)


@pytest.mark.rows("bitmaps.cancel")
def test_job_that_is_cancelled_while_pending_has_failed(q, disk, backup_node):
    add(q)
    disk.pwrite(b"x", 3 * K)
    backup_node()
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", bitmap="b",
                                    sync="incremental", auto_finalize=False))
    q.wait_event("BLOCK_JOB_PENDING", {"id": "j"})
    disk.pwrite(b"x", 9 * K)
    q.cmd("job-cancel", id="j")
    assert q.wait_job("j")["event"] == "BLOCK_JOB_CANCELLED"
    info = q.bitmap("disk0", "b")
    assert info["count"] == 2 * K and not info["busy"]


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("bitmaps.resize", "bitmaps.sha256")
def test_hash_follows_the_size_of_the_disk(q, disks, connect):
    disks.add(size=4 << 20)
    add(q)
    h = connect(disks.uri())
    for i in (0, 20, 50):
        h.pwrite(b"x", i * K)
    q.cmd("block_resize", node_name="disk0", size=16 << 20)
    assert hash_of(q) == expected(16 << 20, K, [0, 20, 50])
    connect(disks.uri()).pwrite(b"x", 200 * K)
    assert hash_of(q) == expected(16 << 20, K, [0, 20, 50, 200])
    q.cmd("block_resize", node_name="disk0", size=40 * K)
    assert hash_of(q) == expected(40 * K, K, [0, 20])


@pytest.mark.needs("stillpoint")
def test_hundreds_of_bitmaps_that_were_made_one_by_one(make_server, dir):
    """Each has an epoch more than the one after it: they are looked through
    in no time, and a low limit of descriptors is raised."""
    server = make_server()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        server.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    q = server.qmp()
    q.cmd("blockdev-add", driver="file", node_name="n",
          filename=guest.make_image(os.path.join(dir, "n.img"), 8 << 20))
    for i in range(300):
        q.cmd("block-dirty-bitmap-add", node="n", name="b%d" % i)
    assert server.cpu_seconds() < 20        # was 400 for 200 of them
    (n,) = q.cmd("query-named-block-nodes")
    assert len(n["dirty-bitmaps"]) == 300
