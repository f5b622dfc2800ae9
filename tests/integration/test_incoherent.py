# SPDX-License-Identifier: BSD-3-Clause
"""Disks on NBD servers that do not offer multi-conn: what the data plane has
written there, others may not see before it is flushed.
"""
import os

import pytest

from stillpoint_test import procs
from stillpoint_test.daemon import tool
from stillpoint_test.qmp import backup

M = 1 << 20
K = 1 << 16


@pytest.fixture
def far(dir, make_target, monkeypatch):
    """A server whose connections each have a cache."""
    path = os.path.join(dir, "far.img")
    with open(path, "wb") as f:
        f.truncate(M)
    monkeypatch.setenv("IMAGE", path)
    t = make_target("far")
    t.path = path
    return t.nbdkit("sh", tool("nbdkit-caches"))


@pytest.mark.needs("stillpoint")
def test_a_backup_has_what_was_acknowledged_before_it(q, far, dir, server,
                                                      connect, backup_node):
    q.cmd("blockdev-add", far.blockdev("disk0"))
    q.cmd("block-export-add", type="nbd", id="e0", node_name="disk0",
          name="disk0", writable=True)
    h = connect(server.uri("disk0"))
    h.pwrite(b"1" * K, 2 * K)
    t = backup_node("t0", size=M)
    q.cmd("blockdev-backup", backup("disk0", "t0", "full"))
    q.jobs_succeed("full")
    with open(t.path, "rb") as f:
        content = f.read()
    assert content[2 * K:3 * K] == b"1" * K
    assert content.count(0) == M - K


@pytest.mark.needs("stillpoint")
def test_a_backup_fails_when_nobody_knows_what_was_flushed(
        make_server, far, dir, connect, make_target):
    server, park = make_server(), os.path.join(dir, "park")
    server.start(STILLPOINT_PARK_AT="node.flushing:" + park)
    q = server.qmp()
    q.cmd("blockdev-add", far.blockdev("disk0"))
    q.cmd("block-export-add", type="nbd", id="e0", node_name="disk0",
          name="disk0", writable=True)
    t = make_target("t0")
    t.file(os.path.join(dir, "t0.raw"), M)
    q.cmd("blockdev-add", t.blockdev("t0"))
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    h = connect(server.uri("disk0"))
    h.pwrite(b"1" * K, 2 * K)
    with open(park, "w"):
        pass
    q.send({"execute": "blockdev-backup", "arguments": backup(
        "disk0", "t0", "full", sync="incremental", bitmap="b")})
    procs.wait_until(lambda: os.path.exists(park + ".parked"),
                     "the image is about to be flushed")
    far.kill9()
    os.unlink(park)
    assert "return" in q.receive()
    event = q.wait_job("full")
    assert "error" in event["data"], event
    assert q.bitmap("disk0", "b")["count"] == K
