# SPDX-License-Identifier: BSD-3-Clause
"""blockdev-reopen: other children, throttle groups and formats' options."""
import os
import threading
import time

import pytest

from stillpoint_test import guest, qcow2
from stillpoint_test.qmp import QmpClosed, backup

M = 1 << 20
SIZE = 4 * M


@pytest.fixture
def path(dir):
    return lambda name: os.path.join(dir, name)


def reopen(q, *options):
    return q.cmd("blockdev-reopen", options=list(options))


def refused(q, *options):
    return q.error("blockdev-reopen", options=list(options)).desc


def node(q, name):
    return qcow2.node(q, name, flat=False)


@pytest.fixture
def raw_node(q, path):
    """raw_node(name, byte): a file node whose disk is that byte."""
    def make(name, byte, size=SIZE, **more):
        with open(path(name), "wb") as f:
            f.write(bytes([byte]) * size)
        q.cmd("blockdev-add", dict({"driver": "file", "node-name": name,
                                    "filename": path(name)}, **more))
        return name
    return make


@pytest.fixture
def top(q, path):
    """Options of an overlay with data at 1M and nothing below."""
    p = qcow2.create(path("top.qcow2"), SIZE)
    qcow2.io(p, "write -P 9 1M 64k")
    o = qcow2.blockdev(p, "top", backing=None)
    q.cmd("blockdev-add", dict(o, **{"file": dict(o["file"], **{
        "node-name": "top-file"})}))
    return dict(o, file="top-file")


def first_byte(q, connect, disks, name, at=0):
    disks.export(name, writable=False)
    h = connect(disks.uri(name))
    got = bytes(h.pread(512, at))
    h.shutdown()
    q.cmd("block-export-del", id="exp-" + name, mode="hard")
    q.wait_event("BLOCK_EXPORT_DELETED", {"id": "exp-" + name})
    q.events.clear()
    assert got == got[:1] * 512
    return got[0]


@pytest.mark.rows("nodes.reopen-children")
def test_backing_comes_changes_and_goes(q, disks, connect, raw_node, top):
    raw_node("a", 1)
    raw_node("b", 2)
    look = lambda at=0: first_byte(q, connect, disks, "top", at)
    assert look() == 0
    reopen(q, dict(top, backing="a"))
    assert look() == 1 and look(M) == 9
    assert node(q, "top")["backing_file_depth"] == 1
    assert q.error("blockdev-del", node_name="a").desc
    reopen(q, dict(top, backing="b"))
    assert look() == 2
    q.cmd("blockdev-del", node_name="a")
    assert refused(q, top | {"backing": "a"}) == \
        "Cannot find device='' nor node-name='a'"
    reopen(q, top)
    assert look() == 0
    assert node(q, "top")["backing_file_depth"] == 0
    q.cmd("blockdev-del", node_name="b")


@pytest.mark.rows("nodes.reopen-children")
def test_backing_has_to_be_said(q, raw_node, top):
    raw_node("a", 1)
    reopen(q, dict(top, backing="a"))
    silent = dict(top)
    del silent["backing"]
    assert refused(q, silent) == "backing is missing for 'top'"
    assert node(q, "top")["backing_file_depth"] == 1
    reopen(q, dict(top, backing="a"))


@pytest.mark.rows("nodes.reopen-children")
def test_options_for_a_child_that_is_not_there(q, path, top):
    guest.make_image(path("x"), SIZE)
    assert refused(q, dict(top, backing={
        "driver": "file", "filename": path("x")})) == \
        "Cannot change the option 'backing.driver'"


@pytest.mark.rows("nodes.reopen-children")
def test_file_of_a_raw_node(q, disks, connect, raw_node):
    raw_node("a", 1)
    raw_node("b", 2, 2 * SIZE)
    raw_node("ro", 3, **{"read-only": True})
    raw = {"driver": "raw", "node-name": "r", "file": "a"}
    q.cmd("blockdev-add", raw)
    assert first_byte(q, connect, disks, "r") == 1
    reopen(q, dict(raw, file="b"))
    assert first_byte(q, connect, disks, "r") == 2
    assert node(q, "r")["image"]["virtual-size"] == 2 * SIZE
    q.cmd("blockdev-del", node_name="a")
    assert refused(q, dict(raw, file="r")) == \
        "Making 'r' a file child of 'r' would create a cycle"
    reopen(q, dict(raw, file="ro", **{"read-only": True}))
    assert first_byte(q, connect, disks, "r") == 3


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("nodes.reopen-children")
def test_what_a_guest_uses_keeps_its_children(q, disks, raw_node, top):
    raw_node("a", 1)
    reopen(q, dict(top, backing="a"))
    disks.export("top")
    assert refused(q, top) == \
        "Node 'top' is busy: its backing child can be replaced only while " \
        "no guest uses it, or where no image is in qcow2 format"
    reopen(q, dict(top, backing="a", discard="unmap"))
    assert node(q, "top")["backing_file_depth"] == 1


RAW = {"driver": "raw", "node-name": "r", "file": "a"}


@pytest.fixture
def served(q, disks, connect, raw_node):
    """A guest of a raw node over a; b is another disk."""
    raw_node("a", 1)
    raw_node("b", 2)
    q.cmd("blockdev-add", RAW)
    disks.export("r")
    return connect(disks.uri("r"))


def content(path, at):
    with open(path, "rb") as f:
        f.seek(at)
        return f.read(512)


@pytest.mark.rows("nodes.reopen-children", "nodes.reopen-guests")
def test_file_is_replaced_under_a_guest(q, path, served):
    q.cmd("block-dirty-bitmap-add", node="r", name="b0")
    served.pwrite(b"\5" * 512, 0)
    reopen(q, dict(RAW, file="b"))
    assert bytes(served.pread(512, 0)) == b"\2" * 512
    served.pwrite(b"\6" * 512, M)
    served.flush()
    assert content(path("a"), 0) == b"\5" * 512
    assert content(path("a"), M) == b"\1" * 512
    assert content(path("b"), 0) == b"\2" * 512
    assert content(path("b"), M) == b"\6" * 512
    assert q.bitmap("r", "b0")["count"] == 2 * 65536
    q.cmd("blockdev-del", node_name="a")
    # nobody has it open or locked any more
    qcow2.io(path("a"), "write -P 7 0 512", fmt="raw")


@pytest.mark.rows("nodes.reopen-guests")
def test_requests_go_on_while_the_file_is_replaced(q, disks, connect, served):
    stop = threading.Event()
    failed = []

    def work(byte):
        h = connect(disks.uri("r"))
        try:
            while not stop.is_set():
                h.pwrite(bytes([byte]) * 4096, byte * 4096)
                if bytes(h.pread(4096, byte * 4096))[0] not in (1, 2, byte):
                    failed.append(byte)
        except Exception as e:
            failed.append(e)
    workers = [threading.Thread(target=work, args=(9 + i,)) for i in range(4)]
    for w in workers:
        w.start()
    for i in range(20):
        reopen(q, dict(RAW, file="ba"[i % 2]))
    stop.set()
    for w in workers:
        w.join()
    assert failed == []


@pytest.mark.rows("nodes.reopen-throttle")
def test_filter_with_limits_is_put_below_a_guest(q, disks, connect, served):
    q.cmd("object-add", {"qom-type": "throttle-group", "id": "slow",
                         "limits": {"iops-total": 100}})
    q.cmd("blockdev-add", {"driver": "throttle", "node-name": "t",
                           "file": "b", "throttle-group": "slow"})
    reopen(q, dict(RAW, file="t"))
    seconds(served, 20)
    assert seconds(served, 61) >= 0.4
    reopen(q, RAW)
    assert seconds(served, 61) < 0.4
    q.cmd("blockdev-del", node_name="t")


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("nodes.reopen-children")
def test_guest_keeps_the_size_that_it_was_told(server, q, disks, connect,
                                               raw_node, served):
    raw_node("big", 3, 2 * SIZE)
    raw_node("ro", 4, **{"read-only": True})
    assert refused(q, dict(RAW, file="big")) == \
        "Node 'r' is busy: its size can be changed only while no guest uses it"
    assert refused(q, dict(RAW, file="ro")) == "Block node is read-only"
    served.pwrite(b"\5" * 512, 0)
    assert bytes(served.pread(512, 512)) == b"\1" * 512
    q.cmd("blockdev-del", node_name="big")
    server.stop()
    server.start()      # and that is what was written down
    assert bytes(connect(disks.uri("r")).pread(512, 512)) == b"\1" * 512


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("nodes.reopen-guests")
@pytest.mark.parametrize("place", ["reopen.registered", "reopen.done"])
def test_daemon_dies_while_a_file_is_replaced(server, q, path, disks, connect,
                                              served, place):
    server.stop()
    server.extra = ["--keep-nbdkit"]
    server.start(STILLPOINT_KILL_AT=place)
    h = connect(disks.uri("r"))
    with pytest.raises(QmpClosed):
        reopen(server.qmp(), dict(RAW, file="b"))
    server.child.wait(10)
    server.close_clients()
    h.pwrite(b"\5" * 512, 0)        # to one of them
    server.start()
    q = server.qmp()
    assert bytes(connect(disks.uri("r")).pread(512, M)) == b"\2" * 512
    h.pwrite(b"\6" * 512, 2 * M)
    assert content(path("b"), 2 * M) == b"\6" * 512
    q.cmd("blockdev-del", node_name="a")


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("nodes.reopen-guests")
@pytest.mark.parametrize("place", ["reopen.opening", "change.closed",
                                   "change.applied"])
def test_data_plane_dies_while_a_file_is_replaced(server, q, path, disks,
                                                  connect, served, place):
    """Nobody knows whether it did it: it is done by the next one."""
    server.stop()
    server.start(STILLPOINT_KILL_AT=place)
    q = server.qmp()
    old = server.nbdkit_pid()
    reopen(q, dict(RAW, file="b"))
    server.wait_new_nbdkit(old)
    h = connect(disks.uri("r"))
    assert bytes(h.pread(512, 0)) == b"\2" * 512
    h.pwrite(b"\6" * 512, 0)
    assert content(path("b"), 0) == b"\6" * 512
    q.cmd("blockdev-del", node_name="a")


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("nodes.reopen-children")
def test_what_a_job_reads_keeps_its_children(q, raw_node, backup_node, top):
    raw_node("a", 1)
    reopen(q, dict(top, backing="a"))
    backup_node("t", SIZE)
    q.cmd("blockdev-backup", backup("top", "t", "j", sync="none"))
    assert refused(q, top) == "Cannot change 'backing' link from 'top' to 'a'"
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    reopen(q, top)


@pytest.mark.needs("stillpoint")
def test_tables_stay_in_their_file(q, raw_node, top):
    raw_node("a", 1)
    assert refused(q, dict(top, file="a")) == "Cannot change the option 'file'"


@pytest.mark.needs("restart")
def test_younger_child_comes_back_before_its_parent(server, q, disks, connect,
                                                    raw_node, top):
    raw_node("a", 1)
    raw_node("b", 2)
    reopen(q, dict(top, backing="b"))
    server.stop()
    server.start()
    q = server.qmp()
    disks.q = q
    assert first_byte(q, connect, disks, "top") == 2


@pytest.mark.needs("restart")
def test_inline_children_come_back_with_their_last_options(server, q, path):
    guest.make_image(path("x"), SIZE)
    below = {"driver": "file", "filename": path("x"), "node-name": "below"}
    q.cmd("blockdev-add", driver="raw", node_name="r", file=below)
    reopen(q, dict(below, **{"detect-zeroes": "on"}))
    reopen(q, {"driver": "raw", "node-name": "r", "file": "below"})
    server.stop()
    server.start()
    q = server.qmp()
    assert node(q, "below")["detect_zeroes"] == "on"
    assert node(q, "r")["drv"] == "raw"
    assert q.error("blockdev-del", node_name="below").desc == \
        "Node below is not owned by the monitor"


def blocks(p):
    return os.stat(p).st_blocks * 512


@pytest.mark.needs("stillpoint")
def test_inline_child_goes_on_to_inherit(q, disks, connect, path):
    guest.make_image(path("x"), SIZE, [(0, SIZE)])
    o = {"driver": "raw", "node-name": "r", "discard": "unmap",
         "file": {"driver": "file", "filename": path("x")}}
    q.cmd("blockdev-add", o)
    disks.export("r")
    reopen(q, dict(o, **{"detect-zeroes": "on"}))
    before = blocks(path("x"))
    connect(disks.uri("r")).trim(M, 0)
    assert blocks(path("x")) <= before - M


# --- throttle groups ---------------------------------------------------------

def seconds(h, n):
    t = time.monotonic()
    for i in range(n):
        h.pread(4096, i * 4096)
    return time.monotonic() - t


@pytest.mark.rows("nodes.reopen-throttle")
def test_other_throttle_group_under_a_guest(q, disks, connect, raw_node):
    for name, limit in (("slow", 100), ("free", 0)):
        q.cmd("object-add", {"qom-type": "throttle-group", "id": name,
                             "limits": {"iops-total": limit}})
    raw_node("a", 1)
    o = {"driver": "throttle", "node-name": "disk0", "file": "a",
         "throttle-group": "free"}
    q.cmd("blockdev-add", o)
    disks.export("disk0")
    h = connect(disks.uri("disk0"))
    seconds(h, 61)
    reopen(q, dict(o, **{"throttle-group": "slow"}))
    assert seconds(h, 61) >= 0.4
    q.cmd("object-del", id="free")
    assert q.error("object-del", id="slow").desc == \
        "object 'slow' is in use, can not be deleted"
    assert refused(q, o) == "Throttle group 'free' does not exist"
    # and its limits are those of the new one
    q.cmd("qom-set", path="/objects/slow", property="limits",
          value={"iops-total": 50})
    assert seconds(h, 36) >= 0.4


# --- qcow2 ---------------------------------------------------------------------

@pytest.mark.rows("nodes.reopen-qcow2")
def test_options_of_a_qcow2_image_under_a_guest(q, disks, connect, top):
    disks.export("top")
    h = connect(disks.uri("top"))
    h.pwrite(b"\5" * M, 2 * M)
    for more in ({"cache-size": 1 << 20}, {"l2-cache-size": 1 << 16,
                                           "refcount-cache-size": 1 << 18},
                 {"cache-clean-interval": 1, "lazy-refcounts": False},
                 {"overlap-check": "none", "pass-discard-other": True},
                 {"overlap-check": {"template": "all"},
                  "pass-discard-request": True,
                  "pass-discard-snapshot": False}, {}):
        reopen(q, dict(top, **more))
        h.pwrite(b"\6" * 65536, 3 * M)
        assert bytes(h.pread(512, 2 * M)) == b"\5" * 512
    assert "may not exceed cache-size" in refused(q, dict(
        top, **{"cache-size": M, "l2-cache-size": 2 * M}))
    assert bytes(h.pread(512, 3 * M)) == b"\6" * 512


def test_child_that_two_parents_let_go_at_once(q, path):
    """It was opened along with one of them, and goes with the last."""
    below = guest.make_image(path("below.raw"), SIZE)
    backing = {"driver": "file", "node-name": "below", "filename": below,
               "read-only": True}
    options = []
    for name, b in (("one", backing), ("two", "below")):
        p = qcow2.create(path(name + ".qcow2"), SIZE)
        o = qcow2.blockdev(p, name)
        q.cmd("blockdev-add", dict(o, backing=b))
        options.append(dict(o, backing=None))
    reopen(q, *options)
    assert "below" not in [n["node-name"] for n in
                           q.cmd("query-named-block-nodes")]
    q.cmd("blockdev-del", node_name="one")
    q.cmd("blockdev-del", node_name="two")
