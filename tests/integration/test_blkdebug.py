# SPDX-License-Identifier: BSD-3-Clause
"""The blkdebug driver: errors where a client wants them."""
import os

import pytest

from stillpoint_test import guest

nbd = pytest.importorskip("nbd")


@pytest.fixture
def q(make_server):
    s = make_server()
    if "stillpoint" in s.features:
        s.extra = ["--allow-fault-injection"]
    s.start()
    client = s.qmp()
    client.server = s
    return client


def export(q, dir, connect, **more):
    path = guest.make_image(os.path.join(dir, "a.img"), 1 << 20, [(0, 65536)])
    q.cmd("blockdev-add", dict(
        {"driver": "raw", "node-name": "disk0", "file": dict({
            "driver": "blkdebug", "node-name": "debug0",
            "image": {"driver": "file", "filename": path}}, **more)}))
    q.cmd("block-export-add", type="nbd", id="e", node_name="disk0",
          name="disk0", writable=True)
    return connect(q.server.uri("disk0"))


def fails(f, *args):
    with pytest.raises(nbd.Error) as e:
        f(*args)
    return e.value.errno


def test_guest_gets_the_error_that_was_asked_for(q, dir, connect):
    h = export(q, dir, connect, **{"inject-error": [
        {"event": "read_aio", "errno": 28, "sector": 8}]})
    h.pread(4096, 0)
    assert fails(h.pread, 4096, 4096) == "ENOSPC"
    h.pread(4096, 8192)
    h.pwrite(b"x" * 4096, 0)


def test_error_once_and_by_kind(q, dir, connect):
    h = export(q, dir, connect, **{"inject-error": [
        {"event": "none", "iotype": "write", "once": True}]})
    h.pread(4096, 0)
    assert fails(h.pwrite, b"x" * 4096, 0) == "EIO"
    h.pwrite(b"x" * 4096, 0)


@pytest.mark.rows("nodes.blkdebug")
def test_states_lead_to_the_error(q, dir, connect):
    h = export(q, dir, connect, **{
        "set-state": [{"event": "flush_to_disk", "state": 1, "new_state": 2}],
        "inject-error": [{"event": "read_aio", "state": 2, "once": True,
                          "immediately": False}]})
    h.pread(4096, 0)
    h.flush()
    assert fails(h.pread, 4096, 0) == "EIO"
    h.pread(4096, 0)


@pytest.mark.needs("stillpoint")
def test_source_error_fails_a_backup(q, dir, connect, backup_node):
    h = export(q, dir, connect, **{"inject-error": [
        {"event": "read_aio", "sector": 64}]})
    backup_node("target0", 1 << 20)
    q.cmd("blockdev-backup", job_id="j", device="disk0", target="target0",
          sync="full")
    done = q.wait_event("BLOCK_JOB_COMPLETED", {"device": "j"})
    assert done["data"]["error"] == "Input/output error"
    assert fails(h.pread, 4096, 32768) == "EIO"


@pytest.mark.needs("stillpoint")
@pytest.mark.parametrize("more, desc", [
    ({"align": 3}, "Cannot meet constraints with align 3"),
    ({"max-transfer": 1000, "align": 512},
     "Cannot meet constraints with max-transfer 1000"),
    ({"inject-error": [{"event": "read_aio", "errno": 5000}]},
     "Parameter 'errno' expects a value from 0 to 4095"),
    ({"inject-error": [{"event": "none", "errno": 5}] * 257},
     "blkdebug takes at most 256 rules"),
])
def test_bad_rule_is_refused(q, more, desc):
    e = q.error("blockdev-add", dict(
        {"driver": "blkdebug", "node-name": "d",
         "image": {"driver": "null-co"}}, **more))
    assert e.desc == desc
    assert q.cmd("query-named-block-nodes") == []


@pytest.mark.needs("stillpoint")
def test_blkdebug_needs_an_option(make_server):
    s = make_server(name="strict")
    s.start()
    e = s.qmp().error("blockdev-add", {
        "driver": "blkdebug", "node-name": "d",
        "image": {"driver": "null-co"}})
    assert e.desc == "Driver 'blkdebug' needs a server that was started " \
                     "with --allow-fault-injection"
