# SPDX-License-Identifier: BSD-3-Clause
"""A short run from end to end for a slow machine: stillpointd under valgrind
(tests/sanitize valgrind).  Nothing here depends on time."""
import os

import pytest

from stillpoint_test import guest
from stillpoint_test.qmp import action, backup

pytestmark = pytest.mark.skipif(
    "STILLPOINT_DAEMON" not in os.environ, reason="see tests/sanitize")
K = 65536
M = 1 << 20
WAIT = 120


def set_up(server, dir, make_target):
    server.start(timeout=WAIT)
    q = server.qmp(timeout=WAIT)
    for d in "a", "b":
        q.cmd("blockdev-add", driver="file", node_name=d,
              filename=guest.make_image(os.path.join(dir, d + ".img"), 8 * M,
                                        [(0, 2 * M)]))
        q.cmd("block-export-add", type="nbd", id="e-" + d, node_name=d,
              name=d, writable=True)
        t = make_target("t-" + d)
        t.file(os.path.join(dir, d + ".target"), 8 * M)
        q.cmd("blockdev-add", t.blockdev("t-" + d))
    return q


def run(q, tag, sync, first=(), **kw):
    start = len(q.events)
    q.cmd("transaction", actions=list(first) + [
        action("blockdev-backup", backup(d, "t-" + d, tag + d, sync=sync,
                                         **kw)) for d in ("a", "b")])
    q.jobs_succeed(tag + "a", tag + "b", start=start, timeout=WAIT)


def same(dir):
    for d in "a", "b":
        guest.same(os.path.join(dir, d + ".img"),
                   os.path.join(dir, d + ".target"))


def errors(q):
    """Ways that fail."""
    q.error("blockdev-add", driver="file", node_name="x", filename="/nowhere")
    q.error("blockdev-backup", backup("a", "b"))
    q.error("transaction", actions=[
        action("block-dirty-bitmap-clear", node="a", name="bm"),
        action("block-dirty-bitmap-disable", node="b", name="bm"),
        action("abort", {})])
    q.error("no-such-command")
    q.send({"execute": 7})
    assert "error" in q.receive(WAIT)


def test_end_to_end(make_server, dir, make_target, connect):
    server = make_server()
    q = set_up(server, dir, make_target)
    run(q, "full", "full", [
        action("block-dirty-bitmap-add", node=d, name="bm")
        for d in ("a", "b")])
    for i in range(6):                      # and epochs are merged
        for d in "a", "b":
            h = connect(server.uri(d))
            h.pwrite(bytes([i + 1]) * K, i * 3 * K)
            h.zero(K, 6 * M)
            h.shutdown()
        run(q, "inc%d" % i, "incremental", bitmap="bm")
    same(dir)
    errors(q)
    q.cmd("blockdev-backup", backup("a", "t-a", "slow", speed=1))
    start = len(q.events)
    q.cmd("job-cancel", id="slow")
    q.wait_event("JOB_STATUS_CHANGE", {"id": "slow", "status": "null"},
                 start, WAIT)
    for name in ("query-block", "query-named-block-nodes", "query-jobs",
                 "query-block-jobs", "query-block-exports",
                 "query-qmp-schema"):
        q.cmd(name)
    assert server.stop(WAIT) == 0           # 99: an error was found
    server.start(timeout=WAIT)              # recovery from the registry
    q = server.qmp(timeout=WAIT)
    connect(server.uri("a")).pwrite(b"z" * K, 5 * M)
    old = server.kill9_nbdkit()             # and of the data plane
    server.wait_new_nbdkit(old, WAIT)
    connect(server.uri("a")).pwrite(b"y" * K, 4 * M)
    run(q, "last", "incremental", bitmap="bm")
    same(dir)
    q.cmd("block-export-del", id="e-b", mode="hard")
    q.wait_event("BLOCK_EXPORT_DELETED", timeout=WAIT)
    q.cmd("blockdev-del", node_name="b")
    assert server.stop(WAIT) == 0
