# SPDX-License-Identifier: BSD-3-Clause
"""blockdev-reopen: what can be changed, and what guests notice: nothing."""
import os

import pytest

from stillpoint_test import guest
from stillpoint_test.qmp import QmpClosed

MIB = 1 << 20


def node(q, name="disk0"):
    (n,) = [n for n in q.cmd("query-named-block-nodes")
            if n["node-name"] == name]
    return n


def reopen(q, *options):
    return q.cmd("blockdev-reopen", options=list(options))


def refused(q, *options):
    return q.error("blockdev-reopen", options=list(options)).desc


def options(path, **more):
    return dict({"driver": "file", "node-name": "disk0", "filename": path},
                **{k.replace("_", "-"): v for k, v in more.items()})


def blocks(path):
    return os.stat(path).st_blocks * 512


@pytest.mark.rows("nodes.reopen-options")
@pytest.mark.needs("stillpoint")
def test_discard_takes_effect_for_a_connected_guest(q, disks, connect):
    path = disks.add("disk0", size=4 * MIB, data=[(0, 4 * MIB)])
    h = connect(disks.uri("disk0"))
    before = blocks(path)
    h.trim(MIB, 0)
    assert blocks(path) == before
    reopen(q, options(path, discard="unmap"))
    h.trim(MIB, 0)
    assert blocks(path) <= before - MIB
    reopen(q, options(path))
    h.trim(MIB, 2 * MIB)
    assert blocks(path) > before - 2 * MIB


@pytest.mark.needs("stillpoint")
def test_detect_zeroes_and_cache_can_be_changed(q, disks, connect):
    path = disks.add("disk0", size=4 * MIB, data=[(0, 4 * MIB)])
    h = connect(disks.uri("disk0"))
    before = blocks(path)
    reopen(q, options(path, discard="unmap", detect_zeroes="unmap",
                      cache={"no-flush": True}))
    h.pwrite(bytes(MIB), 0)
    assert blocks(path) <= before - MIB
    n = node(q)
    assert n["detect_zeroes"] == "unmap"
    assert n["cache"] == {"writeback": True, "direct": False,
                          "no-flush": True}
    reopen(q, options(path))
    assert node(q)["detect_zeroes"] == "off"


@pytest.mark.rows("nodes.reopen-guests")
@pytest.mark.needs("stillpoint")
def test_writes_under_way_are_neither_lost_nor_failed(q, disks, writers,
                                                      connect):
    path = disks.add("disk0", size=4 * MIB)
    h = connect(disks.uri("disk0"))
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    for i in range(20):
        cookies = [h.aio_pwrite(__import__("nbd").Buffer.from_bytearray(
            bytearray([i + 1]) * 4096), k * 65536) for k in range(32)]
        reopen(q, options(path, discard="unmap" if i % 2 else "ignore"))
        while h.aio_in_flight():
            h.poll(-1)
        for c in cookies:
            assert h.aio_command_completed(c)
    assert node(q)["dirty-bitmaps"][0]["count"] == 32 * 65536
    assert bytes(h.pread(4096, 31 * 65536)) == bytes([20]) * 4096


def test_read_only_there_and_back(q, disks):
    path = disks.node("disk0")
    reopen(q, options(path, read_only=True))
    assert node(q)["ro"] is True
    assert "read-only" in q.error(
        "block-export-add", type="nbd", id="e", node_name="disk0",
        writable=True).desc
    reopen(q, options(path, read_only=False))
    assert node(q)["ro"] is False
    q.cmd("block-export-add", type="nbd", id="e", node_name="disk0",
          writable=True)


@pytest.mark.needs("stillpoint")
def test_disk_of_a_guest_stays_writable(q, disks):
    path = disks.add("disk0")
    assert refused(q, options(path, read_only=True)) == \
        "Block node is read-only"
    assert node(q)["ro"] is False


@pytest.mark.needs("stillpoint")
def test_window_of_a_raw_node_moves(q, disks, connect):
    path = disks.node("base", size=8 * MIB, data=[(0, 8 * MIB)])
    raw = {"driver": "raw", "node-name": "top", "file": "base",
           "offset": MIB, "size": MIB}
    q.cmd("blockdev-add", raw)
    disks.export("top", writable=False)
    reopen(q, dict(raw, offset=2 * MIB, size=3 * MIB))
    h = connect(disks.uri("top"))
    assert h.get_size() == 3 * MIB
    with open(path, "rb") as f:
        f.seek(2 * MIB)
        assert bytes(h.pread(4096, 0)) == f.read(4096)
    assert "has to be smaller" in refused(q, dict(raw, offset=8 * MIB))
    assert node(q, "top")["image"]["virtual-size"] == 3 * MIB


@pytest.mark.rows("nodes.reopen-fixed", "error.61.option")
def test_fixed_options_are_named(q, disks, dir):
    path = disks.node("disk0", locking="on")
    other = guest.make_image(os.path.join(dir, "b.img"), MIB)
    assert refused(q, options(other, locking="on")) == \
        "Cannot change the option 'filename'"
    assert refused(q, options(path, locking="on", aio="native")) == \
        "Cannot change the option 'aio'"
    assert refused(q, options(path)) == \
        "Option 'locking' cannot be reset to its default value"
    assert refused(q, {"driver": "null-co", "node-name": "disk0"}) == \
        "Cannot change the option 'driver'"


@pytest.mark.rows("error.61.missing")
def test_names_are_needed_and_looked_up(q, disks):
    path = disks.node("disk0")
    o = options(path)
    del o["node-name"]
    assert refused(q, o) == "node-name not specified"
    assert refused(q, dict(o, **{"node-name": "zz"})) == \
        "Failed to find node with node-name='zz'"


@pytest.mark.rows("nodes.reopen-atomic")
@pytest.mark.needs("stillpoint")
def test_whole_list_or_nothing(q, disks):
    paths = [disks.node(n) for n in ("a", "b")]
    o = [dict(options(p, discard="unmap", detect_zeroes="on"),
              **{"node-name": n}) for p, n in zip(paths, "ab")]
    assert "Cannot change" in refused(q, o[0], dict(o[1], filename="/x"))
    assert node(q, "a")["detect_zeroes"] == "off"
    reopen(q, *o)
    assert {node(q, n)["detect_zeroes"] for n in "ab"} == {"on"}
    reopen(q)


@pytest.mark.needs("stillpoint")
def test_options_outlive_both_processes(server, q, disks, connect):
    path = disks.add("disk0", size=4 * MIB, data=[(0, 4 * MIB)])
    reopen(q, options(path, discard="unmap"))
    server.kill9()
    old = server.kill9_nbdkit()
    server.start()
    q = server.qmp()
    before = blocks(path)
    connect(disks.uri("disk0")).trim(MIB, 0)
    assert blocks(path) <= before - MIB


@pytest.mark.needs("stillpoint")
def test_image_stays_locked(q, disks):
    import subprocess
    path = disks.node("disk0")
    for ro in True, False:
        reopen(q, options(path, read_only=ro))
        r = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512",
                            path], capture_output=True, text=True)
        assert r.returncode != 0 and "lock" in r.stderr


@pytest.mark.needs("stillpoint")
@pytest.mark.parametrize("place", ["reopen.registered", "reopen.done"])
def test_killed_after_it_was_written_down(make_server, dir, connect, place):
    from conftest import Disks
    server = make_server()
    server.extra = ["--keep-nbdkit"]
    server.start()
    q = server.qmp()
    disks = Disks(server, q, dir)
    path = disks.node("base", size=4 * MIB, data=[(0, 4 * MIB)])
    raw = {"driver": "raw", "node-name": "disk0", "discard": "unmap",
           "file": {"driver": "file", "filename": path + ".inner"}}
    os.link(path, path + ".inner")
    q.cmd("blockdev-del", node_name="base")
    q.cmd("blockdev-add", raw)
    disks.export("disk0")
    server.stop()
    server.start(STILLPOINT_KILL_AT=place)
    q = server.qmp()
    with pytest.raises(QmpClosed):
        reopen(q, dict(raw, discard="ignore"))
    server.child.wait(10)
    server.close_clients()
    server.start()
    q = server.qmp()
    before = blocks(path)
    connect(disks.uri("disk0")).trim(MIB, 0)    # as the registry says
    assert blocks(path) > before - MIB
    reopen(q, raw)
    connect(disks.uri("disk0")).trim(MIB, 2 * MIB)
    assert blocks(path) <= before - MIB
