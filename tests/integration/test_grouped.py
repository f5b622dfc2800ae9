# SPDX-License-Identifier: BSD-3-Clause
"""Grouped transactions: all jobs succeed or none does."""
import pytest

from stillpoint_test import guest
from stillpoint_test.qmp import action, backup
from stillpoint_test.target import slow_target

K = 65536
GROUPED = {"completion-mode": "grouped"}


@pytest.fixture
def two(q, disks, connect):
    paths, handles = [], []
    for i in range(2):
        paths.append(disks.add("disk%d" % i))
        q.cmd("block-dirty-bitmap-add", node="disk%d" % i, name="b")
        handles.append(connect(disks.uri("disk%d" % i)))
    return paths, handles


def start(q, *targets, mode=GROUPED, **kw):
    q.cmd("transaction", actions=[
        action("blockdev-backup", backup("disk%d" % i, t, "j%d" % i,
                                         sync="incremental", bitmap="b",
                                         **kw))
        for i, t in enumerate(targets)], properties=mode)


def test_grouped_incrementals_all_succeed(q, two, backup_node):
    paths, handles = two
    targets = [backup_node("t%d" % i) for i in range(2)]
    for p, t in zip(paths, targets):
        guest.sparse_copy(p, t.path)
    for i, h in enumerate(handles):
        h.pwrite(b"x" * K, i * K)
        h.flush()
    start(q, "t0", "t1")
    q.jobs_succeed("j0", "j1")
    for i in range(2):
        guest.same(paths[i], targets[i].path)
        assert q.bitmap("disk%d" % i, "b")["count"] == 0


@pytest.mark.rows("transaction.grouped-waiting")
def test_finished_job_waits_for_the_slower_one(q, two, backup_node):
    _, handles = two
    handles[0].pwrite(b"x" * K, 0)
    handles[1].pwrite(b"x" * (4 << 20), 0)
    backup_node("fast")
    backup_node("slow", **slow_target(4))
    start(q, "fast", "slow")
    q.wait_event("JOB_STATUS_CHANGE", {"id": "j0", "status": "waiting"})
    states = {j["id"]: j["status"] for j in q.cmd("query-jobs")}
    assert states["j0"] == "waiting" and states["j1"] == "running"
    assert q.bitmap("disk0", "b")["busy"] is True
    q.jobs_succeed("j0", "j1")
    end = [(e["data"]["id"], e["data"]["status"]) for e in q.events
           if e["event"] == "JOB_STATUS_CHANGE"]
    assert end.index(("j0", "pending")) > end.index(("j1", "waiting"))


@pytest.mark.parametrize("mode", ["grouped", "individual"])
@pytest.mark.rows("transaction.grouped-failure", "transaction.individual",
                  "transaction.grouped-bitmaps", "bitmaps.grouped")
def test_failure_of_one_decides_over_the_other_only_when_grouped(
        q, two, backup_node, mode):
    _, handles = two
    handles[0].pwrite(b"x" * K, 0)
    handles[1].pwrite(b"x" * (1 << 20), 0)
    backup_node("good")
    backup_node("bad", filters=["delay", "error"],
                parameters=["delay-write=300ms", "error-pwrite=EIO",
                            "error-pwrite-rate=100%"])
    start(q, "good", "bad", mode={"completion-mode": mode})
    good, bad = q.wait_job("j0"), q.wait_job("j1")
    assert bad["event"] == "BLOCK_JOB_COMPLETED"
    assert bad["data"]["error"] == "Input/output error"
    assert q.bitmap("disk1", "b")["count"] == 1 << 20
    if mode == "grouped":
        assert good["event"] == "BLOCK_JOB_CANCELLED"
        assert q.bitmap("disk0", "b")["count"] == K
    else:
        assert good["event"] == "BLOCK_JOB_COMPLETED"
        assert "error" not in good["data"]
        assert q.bitmap("disk0", "b")["count"] == 0
    assert not q.bitmap("disk0", "b")["busy"]


@pytest.mark.rows("transaction.grouped-cancel")
def test_cancelling_one_cancels_the_group(q, two, backup_node):
    _, handles = two
    for i, h in enumerate(handles):
        h.pwrite(b"x" * (4 << 20), 0)
        backup_node("t%d" % i, **slow_target(2))
    start(q, "t0", "t1")
    q.cmd("job-cancel", id="j0")
    for j in ("j0", "j1"):
        assert q.wait_job(j)["event"] == "BLOCK_JOB_CANCELLED"
    for i in range(2):
        assert q.bitmap("disk%d" % i, "b")["count"] == 4 << 20


def test_repeated_group_after_a_failure_succeeds(q, two, backup_node):
    paths, handles = two
    goods = [backup_node("g%d" % i) for i in range(2)]
    for p, t in zip(paths, goods):
        guest.sparse_copy(p, t.path)
    handles[0].pwrite(b"1" * K, 0)
    handles[1].pwrite(b"2" * K, 0)
    backup_node("bad", filters=["error"], parameters=[
        "error-pwrite=EIO", "error-pwrite-rate=100%"])
    start(q, "g0", "bad")
    for j in ("j0", "j1"):
        q.wait_job(j)
    handles[0].pwrite(b"3" * K, 9 * K)
    position = len(q.events)
    start(q, "g0", "g1")
    q.jobs_succeed("j0", "j1", start=position)
    for h, p, t in zip(handles, paths, goods):
        h.flush()
        guest.same(p, t.path)
