# SPDX-License-Identifier: BSD-3-Clause
"""What is told of guests' requests: figures, thresholds, failures."""
import os
import time

import pytest

from stillpoint_test import qcow2

nbd = pytest.importorskip("nbd")

MIB = 1 << 20


def stats(q, device="exp-disk0"):
    (s,) = [s for s in q.cmd("query-blockstats")
            if s.get("device") == device]
    return s


@pytest.mark.rows("nodes.blockstats")
@pytest.mark.needs("stillpoint")
def test_every_request_is_counted_once(q, disks, connect):
    disks.add("disk0", size=4 * MIB, discard="unmap")
    before = stats(q)["stats"]
    h = connect(disks.uri("disk0"))
    for i in range(5):
        h.pread(4096, i * 4096)
    for i in range(3):
        h.pwrite(b"x" * 512, i * 512)
    h.zero(65536, MIB)
    h.trim(65536, 2 * MIB)
    h.flush()
    now = stats(q)["stats"]
    assert now.pop("timed_stats") == before.pop("timed_stats") == []
    diff = {k: now[k] - before[k] for k in now}
    assert diff["rd_operations"] == 5 and diff["rd_bytes"] == 5 * 4096
    assert diff["wr_operations"] == 4
    assert diff["wr_bytes"] == 3 * 512 + 65536
    assert diff["unmap_operations"] == 1 and diff["unmap_bytes"] == 65536
    assert diff["flush_operations"] == 1
    assert diff["rd_total_time_ns"] > 0 and diff["wr_total_time_ns"] > 0
    assert now["wr_highest_offset"] == MIB + 65536
    assert now["failed_rd_operations"] == now["failed_wr_operations"] == 0


@pytest.mark.needs("stillpoint")
def test_figures_of_nodes_and_of_what_they_stand_on(q, disks, connect):
    disks.node("base", size=4 * MIB)
    q.cmd("blockdev-add", driver="raw", node_name="disk0", file="base",
          offset=MIB)
    disks.export("disk0")
    h = connect(disks.uri("disk0"))
    h.pwrite(b"x" * 512, 512)
    s = stats(q)
    assert s["node-name"] == "disk0"
    assert s["stats"]["wr_highest_offset"] == 1024
    assert s["parent"]["node-name"] == "base"
    assert s["parent"]["stats"]["wr_highest_offset"] == MIB + 1024
    nodes = q.cmd("query-blockstats", query_nodes=True)
    assert nodes[1]["stats"]["wr_operations"] == 1


@pytest.mark.rows("nodes.blockstats")
def test_nodes_are_listed_as_they_came(q, disks, dir):
    """With what they have as their file, and without what backs them."""
    disks.node("base", size=4 * MIB)
    p = qcow2.create(os.path.join(dir, "q"), 4 * MIB)
    q.cmd("blockdev-add", qcow2.blockdev(p, "q", backing="base", file={
        "driver": "file", "filename": p, "node-name": "f"}))
    nodes = q.cmd("query-blockstats", query_nodes=True)
    assert [n["node-name"] for n in nodes] == ["base", "f", "q"]
    assert "parent" not in nodes[0] and "parent" not in nodes[1]
    assert nodes[2]["parent"]["node-name"] == "f"
    assert "backing" not in nodes[2]


def test_nothing_is_known_of_an_empty_server(q):
    assert q.cmd("query-blockstats") == []
    assert q.cmd("query-blockstats", query_nodes=True) == []


@pytest.mark.rows("nodes.threshold", "event.BLOCK_WRITE_THRESHOLD")
@pytest.mark.needs("stillpoint")
def test_threshold_is_told_once(q, disks, connect):
    disks.node("base", size=4 * MIB)
    q.cmd("blockdev-add", driver="raw", node_name="disk0", file="base",
          offset=4096)
    disks.export("disk0")
    h = connect(disks.uri("disk0"))
    q.cmd("block-set-write-threshold", node_name="base",
          write_threshold=MIB)
    h.pwrite(b"x" * 512, MIB - 4096 - 512)      # ends at it
    h.pwrite(b"x" * 512, MIB - 4096)
    e = q.wait_event("BLOCK_WRITE_THRESHOLD")
    assert e["data"] == {"node-name": "base", "amount-exceeded": 512,
                         "write-threshold": MIB}
    h.pwrite(b"x" * 512, 2 * MIB)
    q.cmd("block-set-write-threshold", node_name="disk0",
          write_threshold=3 * MIB)
    nodes = {n["node-name"]: n["write_threshold"]
             for n in q.cmd("query-named-block-nodes")}
    assert nodes == {"disk0": 3 * MIB, "base": 0}
    h.zero(MIB, 2 * MIB + 4096)
    e = q.wait_event("BLOCK_WRITE_THRESHOLD", {"node-name": "disk0"})
    assert e["data"]["amount-exceeded"] == 4096
    assert [e["event"] for e in q.events].count("BLOCK_WRITE_THRESHOLD") == 2


@pytest.mark.needs("stillpoint")
def test_threshold_can_be_taken_away_and_outlives_the_data_plane(
        server, q, disks, connect):
    disks.add("disk0", size=4 * MIB)
    q.cmd("block-set-write-threshold", node_name="disk0", write_threshold=512)
    q.cmd("block-set-write-threshold", node_name="disk0", write_threshold=0)
    connect(disks.uri("disk0")).pwrite(b"x" * 512, MIB)
    q.cmd("block-set-write-threshold", node_name="disk0",
          write_threshold=2 * MIB)
    server.wait_new_nbdkit(server.kill9_nbdkit())
    connect(disks.uri("disk0")).pwrite(b"x" * 512, 3 * MIB)
    e = q.wait_event("BLOCK_WRITE_THRESHOLD")
    assert e["data"]["write-threshold"] == 2 * MIB


def test_threshold_of_an_unknown_node(q):
    assert q.error("block-set-write-threshold", node_name="zz",
                   write_threshold=1).desc == "Device 'zz' not found"


@pytest.fixture
def failing(make_server, dir, connect):
    s = make_server()
    s.extra = ["--allow-fault-injection"]
    s.start()
    q = s.qmp()
    q.cmd("blockdev-add", {
        "driver": "blkdebug", "node-name": "disk0",
        "image": {"driver": "null-co", "size": MIB},
        "inject-error": [
            {"event": "none", "iotype": "write", "errno": 28, "sector": 8},
            {"event": "none", "iotype": "read", "errno": 5, "sector": 8}]})
    q.cmd("block-export-add", type="nbd", id="dev0", node_name="disk0",
          writable=True)
    return q, connect(s.uri("disk0"))


def fail(f, *args):
    with pytest.raises(nbd.Error):
        f(*args)


@pytest.mark.rows("event.BLOCK_IO_ERROR")
@pytest.mark.needs("stillpoint")
def test_failed_request_is_told(failing):
    q, h = failing
    fail(h.pwrite, b"x" * 512, 4096)
    e = q.wait_event("BLOCK_IO_ERROR")
    assert e["data"] == {
        "qom-path": "dev0", "device": "dev0", "node-name": "disk0",
        "operation": "write", "action": "report", "nospace": True,
        "reason": "No space left on device"}
    fail(h.pread, 512, 4096)
    e = q.wait_event("BLOCK_IO_ERROR", {"operation": "read"})
    assert e["data"]["nospace"] is False
    assert e["data"]["reason"] == "Input/output error"
    (s,) = q.cmd("query-blockstats")
    assert s["stats"]["failed_rd_operations"] == 1
    assert s["stats"]["failed_wr_operations"] == 1
    assert s["stats"]["rd_operations"] == 0


@pytest.mark.rows("nodes.io-error-rate")
@pytest.mark.needs("stillpoint")
def test_failures_are_told_once_a_second_the_latest_last(failing):
    q, h = failing
    began = time.monotonic()
    for _ in range(50):
        fail(h.pwrite, b"x" * 512, 4096)
    fail(h.pread, 512, 4096)
    q.wait_event("BLOCK_IO_ERROR", {"operation": "read"})
    told = [e for e in q.events if e["event"] == "BLOCK_IO_ERROR"]
    assert told[0]["data"]["operation"] == "write"
    assert len(told) <= 2 + (time.monotonic() - began)
    (s,) = q.cmd("query-blockstats")
    assert s["stats"]["failed_wr_operations"] == 50
