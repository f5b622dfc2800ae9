# SPDX-License-Identifier: BSD-3-Clause
"""blockdev-add, blockdev-del and what is said about nodes."""
import os
import re
import subprocess

import pytest

from stillpoint_test import guest
from stillpoint_test.qmp import QmpError, backup


def names(q):
    return [n["node-name"] for n in q.cmd("query-named-block-nodes")]


def test_added_node_is_listed_with_its_properties(q, disks):
    path = disks.node("disk0")
    (node,) = [n for n in q.cmd("query-named-block-nodes")
               if n["node-name"] == "disk0"]
    assert node["drv"] == "file" and node["file"] == path
    assert node["ro"] is False and node["encrypted"] is False
    assert node["image"]["virtual-size"] == disks.size
    assert node["image"]["filename"] == path
    assert node["image"]["format"] == "file"
    assert node["backing_file_depth"] == 0


@pytest.mark.rows("nodes.query-order")
def test_newest_node_is_listed_first(q, disks):
    for i in range(3):
        disks.node("disk%d" % i)
    assert names(q) == ["disk2", "disk1", "disk0"]


@pytest.mark.rows("nodes.query-order")
def test_filter_of_a_job_is_listed_by_its_age(q, disks, backup_node):
    disks.add("disk0")
    backup_node()
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", sync="none",
                                    filter_node_name="flt"))
    disks.node("later")
    assert names(q) == ["later", "flt", "target0", "disk0"]
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    assert names(q) == ["later", "target0", "disk0"]


@pytest.mark.rows("nodes.raw-window", "nodes.roles")
def test_raw_over_file_gives_the_window_that_was_asked_for(q, disks, connect):
    path = disks.node("base")
    q.cmd("blockdev-add", driver="raw", node_name="part", file="base",
          offset=1 << 20, size=2 << 20)
    disks.export("part", writable=False)
    h = connect(disks.uri("part"))
    assert h.get_size() == 2 << 20
    with open(path, "rb") as f:
        f.seek((1 << 20) + 4096)
        assert bytes(h.pread(4096, 4096)) == f.read(4096)


@pytest.mark.rows("nodes.raw-window")
def test_window_that_its_file_does_not_have(q, disks):
    disks.node("base", size=1 << 20)
    add = lambda **kw: q.error("blockdev-add", driver="raw", node_name="r",
                               file="base", **kw).desc
    for more in {}, {"size": 512}:
        assert add(offset=1 << 40, **more) == (
            "Offset (1099511627776) cannot be greater than size of the "
            "containing file (1048576)")
    for window in ({"offset": 1 << 20, "size": 512},
                   {"size": (1 << 20) + 512}):
        assert re.fullmatch(
            r"The sum of offset \(\d+\) and size \(\d+\) has to be smaller "
            r"or equal to the  actual size of the containing file "
            r"\(1048576\)", add(**window))
    assert add(size=1000) == "Specified size is not multiple of 512"
    assert names(q) == ["base"]


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("nodes.raw-window")
def test_window_has_a_size_or_begins_at_a_sector(q, disks):
    """QEMU gives its last sector zeroes for what the file does not have."""
    disks.node("base", size=1 << 20)
    raw = {"driver": "raw", "node-name": "r", "file": "base"}
    assert q.error("blockdev-add", raw, offset=100).desc == \
        "Specified offset is not multiple of 512 and size is not given"
    q.cmd("blockdev-add", raw, offset=100, size=1024)


@pytest.mark.rows("nodes.inline")
def test_inline_child_node_is_made_with_its_parent(q, dir):
    path = guest.make_image(os.path.join(dir, "a.img"), 1 << 20)
    q.cmd("blockdev-add", {
        "driver": "raw", "node-name": "top",
        "file": {"driver": "file", "filename": path, "node-name": "below"}})
    assert set(names(q)) >= {"top", "below"}
    q.cmd("blockdev-del", node_name="top")
    assert names(q) == []


@pytest.mark.rows("nodes.null-size")
def test_null_node_has_the_size_it_was_given(q):
    q.cmd("blockdev-add", driver="null-co", node_name="n", size=1 << 20,
          read_zeroes=True)
    assert q.cmd("query-named-block-nodes")[0]["image"][
        "virtual-size"] == 1 << 20


@pytest.mark.parametrize("arguments, desc", [
    ({"driver": "file", "filename": "/nonexistent"},
     "'node-name' must be specified for the root node"),
    ({"driver": "null-co", "node-name": "1abc"},
     "Invalid node-name: '1abc'"),
    ({"driver": "null-co", "node-name": "a" * 32}, "Node name too long"),
    ({"driver": "null-co", "node-name": "used"},
     "Duplicate nodes with node-name='used'"),
])
@pytest.mark.rows("error.58", "error.59.invalid", "error.59.long",
                  "error.59.duplicate")
def test_bad_node_name_is_refused(q, arguments, desc):
    q.cmd("blockdev-add", driver="null-co", node_name="used")
    e = q.error("blockdev-add", arguments)
    assert e.cls == "GenericError"
    assert e.desc.lower().startswith(desc.lower()), e.desc


@pytest.mark.rows("nodes.names")
def test_longest_allowed_name_works(q):
    name = "a" * 31
    q.cmd("blockdev-add", driver="null-co", node_name=name)
    assert names(q) == [name]


def test_missing_driver_and_unknown_driver_are_refused(q):
    assert q.error("blockdev-add", node_name="n").desc == \
        "Parameter 'driver' is missing"
    e = q.error("blockdev-add", driver="nonsense", node_name="n")
    assert e.desc.endswith("'driver' does not accept value 'nonsense'")


@pytest.mark.rows("error.56")
def test_missing_file_is_named_with_the_reason(q, dir):
    path = os.path.join(dir, "gone.img")
    e = q.error("blockdev-add", driver="file", node_name="n", filename=path)
    assert e.desc == "Could not open '%s': No such file or directory" % path
    assert names(q) == []


@pytest.mark.rows("error.10")
def test_deleting_an_unknown_node_is_refused(q):
    e = q.error("blockdev-del", node_name="zz")
    assert e.desc == "Failed to find node with node-name='zz'"


def test_exported_node_cannot_be_deleted(q, disks):
    disks.add("disk0")
    e = q.error("blockdev-del", node_name="disk0")
    assert e.desc.endswith(" in use"), e.desc
    assert names(q) == ["disk0"]


def test_node_below_another_cannot_be_deleted(q, disks):
    disks.node("base")
    q.cmd("blockdev-add", driver="raw", node_name="top", file="base")
    e = q.error("blockdev-del", node_name="base")
    assert e.desc.endswith(" in use"), e.desc


@pytest.mark.rows("nodes.read-only-shared")
def test_read_only_node_can_have_two_parents(q, disks):
    disks.node("base", read_only=True)
    for name in "a", "b":
        q.cmd("blockdev-add", driver="raw", node_name=name, file="base",
              read_only=True)
    q.cmd("blockdev-del", node_name="a")
    assert q.error("blockdev-del", node_name="base").desc == \
        "Block device base is in use"
    q.cmd("blockdev-del", node_name="b")
    q.cmd("blockdev-del", node_name="base")
    assert names(q) == []


@pytest.mark.needs("stillpoint")
def test_writable_node_has_one_parent(q, disks):
    disks.node("base")
    q.cmd("blockdev-add", driver="raw", node_name="a", file="base")
    e = q.error("blockdev-add", driver="raw", node_name="b", file="base")
    assert e.desc == (
        "Permission conflict on node 'base': permissions 'write' are both "
        "required by node 'b' (uses node 'base' as 'file' child) and unshared "
        "by node 'a' (uses node 'base' as 'file' child).")


@pytest.mark.rows("error.38", "nodes.permission")
@pytest.mark.needs("stillpoint")
def test_file_of_another_node_is_no_target_and_no_disk(q, disks,
                                                       backup_node):
    disks.add("disk0", size=1 << 20)
    disks.node("base", size=1 << 20)
    q.cmd("blockdev-add", driver="raw", node_name="top", file="base")
    e = q.error("blockdev-backup", job_id="j", device="disk0", target="base",
                sync="full", filter_node_name="f")
    assert e.desc == (
        "Permission conflict on node 'base': permissions 'write' are both "
        "required by node 'f' (uses node 'base' as 'target' child) and "
        "unshared by node 'top' (uses node 'base' as 'file' child).")
    e = q.error("block-export-add", type="nbd", id="e", node_name="base",
                writable=True)
    assert e.desc == (
        "Permission conflict on node 'base': permissions 'write' are both "
        "required by an unnamed block device (uses node 'base' as 'root' "
        "child) and unshared by node 'top' (uses node 'base' as 'file' "
        "child).")


@pytest.mark.rows("nodes.bitmap-on-child")
@pytest.mark.needs("stillpoint")
def test_bitmap_and_backup_of_the_file_of_another_node(q, disks,
                                                       backup_node):
    disks.node("base", size=1 << 20)
    q.cmd("blockdev-add", driver="raw", node_name="top", file="base")
    backup_node("target0", 1 << 20)
    assert q.error("block-dirty-bitmap-add", node="base", name="b").desc == \
        "Node 'base' is part of another node: a bitmap belongs on that one"
    assert q.error("blockdev-backup", job_id="j", device="base",
                   target="target0", sync="full").desc == \
        "Node 'base' is busy: it is part of another node"


@pytest.mark.rows("nodes.del-order", "error.60.node", "error.60.device",
                  "error.60.monitor", "error.10")
@pytest.mark.needs("stillpoint")
def test_deletion_is_checked_in_qemus_order(q, disks, backup_node, dir):
    disks.add("disk0", size=1 << 20)
    q.cmd("blockdev-add", {
        "driver": "raw", "node-name": "top", "file": {
            "driver": "null-co", "node-name": "below", "size": 1 << 20}})
    backup_node("target0", 1 << 20)
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    q.cmd("blockdev-backup", job_id="j", device="disk0", target="target0",
          sync="full", speed=1)

    def refused(name):
        return q.error("blockdev-del", node_name=name).desc
    assert refused("zz") == "Failed to find node with node-name='zz'"
    assert refused("disk0") == "Node disk0 is in use"
    assert refused("target0") == \
        "Node 'target0' is busy: block device is in use by block job: backup"
    assert refused("below") == "Node below is not owned by the monitor"
    disks.node("base", size=1 << 20)
    q.cmd("blockdev-add", driver="raw", node_name="over", file="base")
    assert refused("base") == "Block device base is in use"
    q.cmd("job-cancel", id="j")


@pytest.mark.rows("nodes.device-conflict", "error.59.device")
@pytest.mark.needs("stillpoint")
def test_node_and_device_names_do_not_collide(q, disks):
    disks.node("disk0")
    disks.export("disk0", id="dev0")
    e = q.error("blockdev-add", driver="null-co", node_name="dev0")
    assert e.desc == "node-name=dev0 is conflicting with a device id"


@pytest.mark.rows("nodes.query-fields")
@pytest.mark.needs("stillpoint")
def test_every_member_of_a_node_is_there(q, disks):
    path = disks.add("disk0", size=1 << 20, discard="unmap")
    (n,) = q.cmd("query-named-block-nodes", flat=True)
    assert set(n) == {
        "file", "node-name", "ro", "drv", "backing_file_depth", "active",
        "encrypted", "detect_zeroes", "bps", "bps_rd", "bps_wr", "iops",
        "iops_rd", "iops_wr", "image", "cache", "write_threshold"}
    assert n["cache"] == {"writeback": True, "direct": False,
                          "no-flush": False}
    assert n["image"]["actual-size"] == os.stat(path).st_blocks * 512
    assert n["write_threshold"] == 0 and n["active"] is True


@pytest.mark.rows("error.71.connect")
def test_server_that_is_not_there_is_named(q):
    e = q.error("blockdev-add", {
        "driver": "nbd", "node-name": "n", "server": {
            "type": "inet", "host": "127.0.0.1", "port": "1"}})
    assert e.desc.startswith("Failed to connect to '127.0.0.1:1'")


def test_inline_children_may_not_share_a_name(q, disks):
    e = q.error("blockdev-add", {
        "driver": "raw", "node-name": "a",
        "file": {"driver": "null-co", "node-name": "a"}})
    assert e.desc == "Duplicate nodes with node-name='a'"
    assert names(q) == []


@pytest.mark.needs("stillpoint")
def test_inline_child_of_a_read_only_node_is_read_only(q, dir):
    path = guest.make_image(os.path.join(dir, "a.img"), 1 << 20)
    q.cmd("blockdev-add", {
        "driver": "raw", "node-name": "top", "read-only": True,
        "file": {"driver": "file", "filename": path, "node-name": "below"}})
    assert all(n["ro"] for n in q.cmd("query-named-block-nodes"))


def raw_over(n):
    o = {"driver": "null-co", "size": 1 << 20}
    for _ in range(n):
        o = {"driver": "raw", "file": o}
    return dict(o, **{"node-name": "top"})


@pytest.mark.needs("stillpoint")
def test_chain_may_have_128_layers_and_no_more(q):
    q.cmd("blockdev-add", raw_over(127))
    assert len(names(q)) == 128
    q.cmd("block-export-add", type="nbd", id="e", node_name="top",
          writable=True)
    q.cmd("block-export-del", id="e")
    q.cmd("blockdev-del", node_name="top")
    e = q.error("blockdev-add", raw_over(128))
    assert "more than 127 nodes below it" in e.desc or "nested" in e.desc
    assert names(q) == []


def test_deleted_name_can_be_used_again(q, disks):
    for _ in range(3):
        disks.node("disk0")
        q.cmd("blockdev-del", node_name="disk0")
    assert names(q) == []


@pytest.mark.needs("stillpoint")     # QEMU's own NBD exports share writing
def test_image_in_use_is_locked_against_qemu(q, disks):
    path = disks.add("disk0")
    r = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512", path],
                       capture_output=True, text=True)
    assert r.returncode != 0
    assert "lock" in r.stderr


@pytest.mark.rows("nodes.file-lock")
def test_image_that_another_process_locks_is_refused(q, dir):
    path = guest.make_image(os.path.join(dir, "a.img"), 1 << 20)
    held = guest.lock_like_a_machine(path)
    with pytest.raises(QmpError) as e:      # QEMU locks at the first use
        q.cmd("blockdev-add", driver="file", node_name="n", filename=path)
        q.cmd("block-export-add", type="nbd", id="e", node_name="n",
              writable=True)
    assert "Failed to get" in e.value.desc and "lock" in e.value.desc
    assert q.cmd("query-block-exports") == []
    held.close()


@pytest.mark.rows("nodes.query-block")
@pytest.mark.needs("stillpoint")
@pytest.mark.rows("protocol.query-block")
def test_device_is_listed_by_query_block(q, disks):
    disks.add("disk0")
    (entry,) = q.cmd("query-block")
    assert entry["inserted"]["node-name"] == "disk0"
    assert entry["type"] == "unknown" and entry["removable"] is False


@pytest.mark.rows("nodes.read-only-export")
@pytest.mark.rows("error.69", "exports.add-readonly")
def test_read_only_node_cannot_be_exported_writable(q, disks):
    disks.node("disk0", read_only=True)
    e = q.error("block-export-add", type="nbd", id="e", node_name="disk0",
                name="x", writable=True)
    assert e.desc == "Cannot export read-only node as writable"


@pytest.mark.rows("nodes.host-size")
def test_size_is_rounded_up_to_sectors(q, dir):
    path = os.path.join(dir, "odd.img")
    with open(path, "wb") as f:
        f.truncate(100000)
    q.cmd("blockdev-add", driver="file", node_name="n", filename=path)
    assert q.cmd("query-named-block-nodes")[0]["image"][
        "virtual-size"] == 100352
