# SPDX-License-Identifier: BSD-3-Clause
"""nbd nodes: what a metadata context of the server is good for."""
import os

import pytest

from stillpoint_test import guest, qcow2
from stillpoint_test.qmp import backup

nbd = pytest.importorskip("nbd")
M = 1 << 20
SIZE = 16 * M
CONTEXT = "qemu:dirty-bitmap:b0"


@pytest.fixture
def served(dir, make_target):
    """A server whose export has 1M at 4M dirty in a bitmap."""
    p = qcow2.create(os.path.join(dir, "disk"), SIZE)
    qcow2.io(p, "write -P 1 0 8M")
    qcow2.run("qemu-img", "bitmap", "--add", p, "b0")
    qcow2.io(p, "write -P 2 4M 1M")
    t = make_target("bitmap")
    t.qemu_nbd(p, "qcow2", ["-r", "-B", "b0"])
    t.image = p
    return t


def extents(h, size):
    out = []

    def extent(context, offset, entries, error):
        if context == nbd.CONTEXT_BASE_ALLOCATION:
            out.extend(zip(entries[::2], entries[1::2]))
    at = 0
    while at < size:
        h.block_status(size - at, at, extent)
        at = sum(n for n, _ in out)
    merged = []
    for n, flags in out:
        if merged and merged[-1][1] == flags:
            merged[-1] = (merged[-1][0] + n, flags)
        else:
            merged.append((n, flags))
    return merged


def add(q, served, **more):
    q.cmd("blockdev-add", dict(served.blockdev("n", "", read_only=True),
                               **more))


@pytest.mark.rows("nodes.nbd-dirty-bitmap")
def test_dirty_parts_are_shown_as_holes(q, disks, served):
    add(q, served, **{"x-dirty-bitmap": CONTEXT})
    q.cmd("block-export-add", type="nbd", id="e", node_name="n", name="n")
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(disks.uri("n"))
    assert extents(h, SIZE) == [(4 * M, 0), (M, nbd.STATE_HOLE), (11 * M, 0)]
    h.shutdown()


@pytest.mark.rows("nodes.nbd-dirty-bitmap")
def test_what_is_read_does_not_depend_on_it(q, dir, served):
    add(q, served, **{"x-dirty-bitmap": CONTEXT})
    path = guest.make_image(os.path.join(dir, "t"), SIZE)
    q.cmd("blockdev-add", driver="file", node_name="t", filename=path)
    q.cmd("blockdev-backup", backup("n", "t", "j"))
    q.jobs_succeed("j")
    qcow2.compare(served.image, path, fmt_b="raw")


@pytest.mark.needs("qemu-10")
@pytest.mark.rows("error.71.bitmap")
def test_missing_context_is_named(q, served):
    for name in ("qemu:dirty-bitmap:zz", "zz"):
        e = q.error("blockdev-add", dict(
            served.blockdev("n", "", read_only=True), **{
                "x-dirty-bitmap": name}))
        assert e.desc == "requested x-dirty-bitmap %s not found" % name
    add(q, served)


def test_names_that_are_too_long(q, served):
    for option, desc in (
            ("export", "export name too long to send to server"),
            ("x-dirty-bitmap",
             "x-dirty-bitmap query too long to send to server")):
        o = served.blockdev("n", "", read_only=True)
        assert q.error("blockdev-add", dict(o, **{
            option: "x" * 4097})).desc == desc
        assert q.error("blockdev-add", dict(o, **{
            option: "x" * 4096})).desc != desc


@pytest.mark.needs("restart")
def test_context_outlives_a_restart(q, server, disks, served):
    add(q, served, **{"x-dirty-bitmap": CONTEXT})
    server.stop()
    server.start()
    q = server.qmp()
    q.cmd("block-export-add", type="nbd", id="e", node_name="n", name="n")
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(disks.uri("n"))
    assert extents(h, SIZE)[1] == (M, nbd.STATE_HOLE)
    h.shutdown()
