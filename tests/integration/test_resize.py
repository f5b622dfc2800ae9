# SPDX-License-Identifier: BSD-3-Clause
"""block_resize: what it changes, what it refuses, and what a crash leaves."""
import os
import re

import pytest

from stillpoint_test import guest, procs
from stillpoint_test.qmp import QmpClosed, backup

MIB = 1 << 20


def bitmap(q, node="disk0", name="b"):
    (n,) = [n for n in q.cmd("query-named-block-nodes")
            if n["node-name"] == node]
    (b,) = [b for b in n.get("dirty-bitmaps", []) if b.get("name") == name]
    return b


def size(q, node="disk0"):
    (n,) = [n for n in q.cmd("query-named-block-nodes")
            if n["node-name"] == node]
    return n["image"]["virtual-size"]


def test_node_without_guests_grows_and_shrinks(q, disks):
    path = disks.node("disk0", size=4 * MIB)
    q.cmd("block_resize", node_name="disk0", size=8 * MIB)
    assert os.path.getsize(path) == size(q) == 8 * MIB
    q.cmd("block_resize", node_name="disk0", size=2 * MIB)
    assert os.path.getsize(path) == size(q) == 2 * MIB
    q.cmd("block_resize", node_name="disk0", size=0)
    assert os.path.getsize(path) == size(q) == 0


@pytest.mark.rows("nodes.resize")
@pytest.mark.needs("stillpoint")
@pytest.mark.rows("exports.resize")
def test_guest_sees_the_new_size_when_it_connects_again(q, disks, connect):
    path = disks.add("disk0", size=4 * MIB, data=[(0, 4 * MIB)])
    old = connect(disks.uri("disk0"))
    q.cmd("block_resize", device="exp-disk0", size=8 * MIB)
    assert os.path.getsize(path) == 8 * MIB
    h = connect(disks.uri("disk0"))
    assert h.get_size() == 8 * MIB
    assert bytes(h.pread(MIB, 6 * MIB)) == bytes(MIB)
    h.pwrite(b"x" * 512, 8 * MIB - 512)
    assert old.get_size() == 4 * MIB
    old.pread(512, 0)


@pytest.mark.needs("stillpoint")
def test_old_connection_cannot_reach_behind_the_new_end(q, disks, connect):
    nbd = pytest.importorskip("nbd")
    disks.add("disk0", size=4 * MIB)
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    h = connect(disks.uri("disk0"))
    q.cmd("block_resize", node_name="disk0", size=2 * MIB)
    with pytest.raises(nbd.Error) as e:
        h.pwrite(b"x" * 512, 3 * MIB)
    assert e.value.errno == "ENOSPC"
    with pytest.raises(nbd.Error):
        h.pread(512, 3 * MIB)
    h.pwrite(b"x" * 512, 2 * MIB - 512)
    assert bitmap(q)["count"] == 65536


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("bitmaps.resize")
def test_bitmaps_follow_the_size(q, disks, connect):
    disks.add("disk0", size=4 * MIB)
    for name in "b", "off":
        q.cmd("block-dirty-bitmap-add", node="disk0", name=name)
    h = connect(disks.uri("disk0"))
    for at in 0, MIB, 3 * MIB:
        h.pwrite(b"x" * 512, at)
    q.cmd("block-dirty-bitmap-disable", node="disk0", name="off")
    h.pwrite(b"x" * 512, 2 * MIB)
    q.cmd("block_resize", node_name="disk0", size=16 * MIB)
    assert bitmap(q)["count"] == 4 * 65536      # what is new is clean
    assert bitmap(q, name="off")["count"] == 3 * 65536
    h = connect(disks.uri("disk0"))
    h.pwrite(b"x" * 512, 15 * MIB)
    assert bitmap(q)["count"] == 5 * 65536
    q.cmd("block_resize", node_name="disk0", size=2 * MIB)
    assert bitmap(q)["count"] == 2 * 65536      # what is gone is forgotten
    q.cmd("block_resize", node_name="disk0", size=16 * MIB)
    assert bitmap(q)["count"] == 2 * 65536
    assert bitmap(q, name="off")["count"] == 2 * 65536
    assert bitmap(q)["recording"] and not bitmap(q, name="off")["recording"]


@pytest.mark.needs("stillpoint")
def test_incremental_after_growing_is_complete(q, disks, connect,
                                               backup_node):
    path = disks.add("disk0", size=4 * MIB)
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    connect(disks.uri("disk0")).pwrite(b"x" * 65536, MIB)
    q.cmd("block_resize", node_name="disk0", size=8 * MIB)
    connect(disks.uri("disk0")).pwrite(b"y" * 65536, 7 * MIB)
    t = backup_node("target0", 8 * MIB)
    q.cmd("blockdev-backup", job_id="j", device="disk0", target="target0",
          sync="incremental", bitmap="b")
    done = q.wait_event("BLOCK_JOB_COMPLETED", {"device": "j"})
    assert done["data"]["len"] == 2 * 65536 and "error" not in done["data"]
    with open(t.path, "rb") as f, open(path, "rb") as g:
        for at in MIB, 7 * MIB:
            f.seek(at)
            g.seek(at)
            assert f.read(65536) == g.read(65536)


@pytest.mark.rows("error.64")
def test_unknown_node_and_negative_size_are_refused(q, disks):
    disks.node("disk0")
    assert q.error("block_resize", node_name="zz", size=1).desc == \
        "Cannot find device='' nor node-name='zz'"
    assert q.error("block_resize", size=1).desc == \
        "Cannot find device='' nor node-name=''"
    assert q.error("block_resize", node_name="disk0", size=-1).desc == \
        "Parameter 'size' expects a >0 size"


@pytest.mark.rows("nodes.resize-refused")
@pytest.mark.needs("stillpoint")
def test_what_is_in_the_way_is_named(q, disks, make_server):
    disks.node("base")
    q.cmd("blockdev-add", driver="raw", node_name="top", file="base",
          size=MIB)
    assert q.error("block_resize", node_name="top", size=512).desc == \
        "Cannot resize fixed-size raw disks"
    assert q.error("block_resize", node_name="base", size=512).desc == \
        "Permission conflict on node 'base': permissions 'resize' are both " \
        "required by an unnamed block device (uses node 'base' as 'root' " \
        "child) and unshared by node 'top' (uses node 'base' as 'file' " \
        "child)."
    disks.node("ro", read_only=True)
    assert q.error("block_resize", node_name="ro", size=512).desc == \
        "Image is read-only"


@pytest.mark.needs("stillpoint")
def test_running_backup_is_in_the_way(q, disks, backup_node):
    disks.add("disk0", size=8 * MIB)
    backup_node("target0", 8 * MIB)
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    for more, name in ({}, "#block[0-9]+"), ({"filter-node-name": "f"}, "f"):
        q.cmd("blockdev-backup", backup("disk0", "target0", "j", speed=65536,
                                        **more))
        assert re.fullmatch(
            "Permission conflict on node 'disk0': permissions 'resize' are "
            "both required by an unnamed block device \\(uses node 'disk0' as "
            "'root' child\\) and unshared by node '%s' \\(uses node 'disk0' "
            "as 'file' child\\)\\." % name,
            q.error("block_resize", node_name="disk0", size=512).desc)
        assert q.error("block_resize", node_name="target0", size=512).desc \
            == "Node 'target0' is busy: block device is in use by block " \
            "job: backup"
        q.cmd("job-cancel", id="j")
        q.wait_job("j")
        q.events.clear()


@pytest.mark.needs("stillpoint")
def test_raw_over_file_resizes_the_file(q, disks):
    path = disks.node("base", size=4 * MIB)
    q.cmd("blockdev-add", driver="raw", node_name="top", file="base",
          offset=MIB)
    disks.export("top")
    q.cmd("block_resize", node_name="top", size=5 * MIB)
    assert os.path.getsize(path) == 6 * MIB
    assert size(q, "top") == 5 * MIB and size(q, "base") == 6 * MIB


@pytest.mark.rows("nodes.resize-crash")
@pytest.mark.needs("stillpoint")
@pytest.mark.parametrize("who", ["daemon", "both"])
@pytest.mark.parametrize("grow", [True, False])
@pytest.mark.parametrize("place", ["resize.intent", "resize.resized",
                                   "resize.adopted"])
def test_killed_at_each_step(make_server, dir, connect, place, grow, who):
    from conftest import Disks
    server = make_server()
    server.start()
    q = server.qmp()
    disks = Disks(server, q, dir)
    disks.add("disk0", size=4 * MIB)
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    h = connect(disks.uri("disk0"))
    h.pwrite(b"x" * 512, MIB)
    h.pwrite(b"x" * 512, 3 * MIB)
    server.extra += ["--keep-nbdkit"]
    server.stop()
    server.start(STILLPOINT_KILL_AT=place)
    q = server.qmp()
    with pytest.raises(QmpClosed):
        q.cmd("block_resize", node_name="disk0",
              size=(8 if grow else 2) * MIB)
    server.child.wait(10)
    server.close_clients()
    if who == "both":
        server.kill9_nbdkit()
    server.start()
    q = server.qmp()
    b = bitmap(q)
    assert "inconsistent" not in b and b["recording"]
    now = size(q)
    assert now in ((4 * MIB, 8 * MIB) if grow else (4 * MIB, 2 * MIB))
    kept = 2 if now > 2 * MIB else 1
    assert b["count"] >= kept * 65536
    if who == "daemon":
        assert b["count"] == kept * 65536
    h = connect(disks.uri("disk0"))
    assert h.get_size() == now
    h.pwrite(b"x" * 512, 0)
    assert bitmap(q)["count"] >= (kept + 1) * 65536
