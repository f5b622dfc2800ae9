# SPDX-License-Identifier: BSD-3-Clause
"""The order of job events that QEMU's clients rely on."""
import pytest

from stillpoint_test import procs
from stillpoint_test.qmp import action, backup
from stillpoint_test.target import slow_target

START = ["created", "running", "paused", "running"]
SUCCESS = START + ["waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded",
                   "null"]


@pytest.fixture
def slow(disks, backup_node):
    disks.add(data=((0, 16 << 20),))
    backup_node(**slow_target(10))


def start(q, **kw):
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", **kw))


@pytest.mark.rows("jobs.choreography", "jobs.starts-with-pair")
def test_successful_backup_goes_through_all_its_states(q, disks,
                                                       backup_node):
    disks.add()
    backup_node()
    start(q)
    q.wait_job("j")
    assert q.choreography("j") == SUCCESS


@pytest.mark.rows("jobs.started-before-answer", "protocol.event-before-return")
def test_created_and_running_come_before_the_answer(q, slow):
    start(q)
    assert q.choreography("j")[:2] == ["created", "running"]
    q.wait_job("j")


@pytest.mark.rows("protocol.event-form", "event.BLOCK_JOB_COMPLETED")
def test_completed_event_has_all_members(q, disks, backup_node):
    disks.add()
    backup_node()
    start(q)
    event = q.wait_job("j")
    assert event["data"] == {
        "device": "j", "type": "backup", "len": disks.size,
        "offset": disks.size, "speed": 0}
    assert set(event["timestamp"]) == {"seconds", "microseconds"}
    assert 0 <= event["timestamp"]["microseconds"] < 1000000


@pytest.mark.rows("jobs.cancel-choreography")
def test_cancelled_backup_aborts(q, slow):
    start(q)
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    assert q.choreography("j") == START + [
        "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]


@pytest.mark.rows("jobs.error-choreography", "event.BLOCK_JOB_ERROR", "error.73")
def test_failed_backup_reports_the_write_error(q, disks, backup_node):
    disks.add()
    backup_node(filters=["error"], parameters=["error-pwrite=EIO",
                                               "error-pwrite-rate=100%"])
    start(q)
    event = q.wait_job("j")
    assert event["data"]["error"] == "Input/output error"
    seen = q.choreography("j")
    assert "BLOCK_JOB_ERROR" in seen
    rest = [s for s in seen if s != "BLOCK_JOB_ERROR"]
    assert rest == START + ["aborting", "BLOCK_JOB_COMPLETED", "concluded",
                            "null"]
    error = q.wait_event("BLOCK_JOB_ERROR")
    assert error["data"] == {"device": "j", "operation": "write",
                             "action": "report"}


@pytest.mark.rows("error.48", "transaction.backup-undone")
def test_rolled_back_job_has_no_block_job_event(q, disks, backup_node):
    disks.add()
    backup_node()
    e = q.error("transaction", actions=[
        action("blockdev-backup", backup("disk0", "target0", "j")),
        action("abort")])
    assert e.desc == "Transaction aborted using Abort action"
    q.wait_event("JOB_STATUS_CHANGE", {"id": "j", "status": "null"})
    assert q.choreography("j") == ["created", "aborting", "concluded",
                                   "null"]


@pytest.mark.needs("qemu-10")        # 7.2 starts them in the order of the list
@pytest.mark.rows("transaction.commit-reverse", "event.JOB_STATUS_CHANGE")
def test_jobs_of_a_transaction_start_in_reverse_order(q, disks,
                                                      backup_node):
    acts = []
    for i in range(3):
        disks.add("disk%d" % i)
        backup_node("t%d" % i)
        acts.append(action("blockdev-backup",
                           backup("disk%d" % i, "t%d" % i, "j%d" % i)))
    q.cmd("transaction", actions=acts)
    q.jobs_succeed("j0", "j1", "j2")
    order = [(e["data"]["id"], e["data"]["status"]) for e in q.events
             if e["event"] == "JOB_STATUS_CHANGE"]
    created = [j for j, s in order if s == "created"]
    first_running = [j for n, (j, s) in enumerate(order)
                     if s == "running" and (j, s) not in order[:n]]
    assert created == ["j0", "j1", "j2"]
    assert first_running == ["j2", "j1", "j0"]
    for j in created:
        assert q.choreography(j) == SUCCESS


@pytest.mark.rows("jobs.manual-dismiss", "error.41")
def test_manual_dismissal_leaves_the_job_concluded(q, disks, backup_node):
    disks.add()
    backup_node()
    start(q, auto_dismiss=False)
    q.wait_event("JOB_STATUS_CHANGE", {"id": "j", "status": "concluded"})
    (job,) = q.cmd("query-jobs")
    assert job["status"] == "concluded" and "error" not in job
    e = q.error("job-cancel", id="j")
    assert e.desc == ("Job 'j' in state 'concluded' cannot accept command "
                      "verb 'cancel'")
    q.cmd("job-dismiss", id="j")
    q.wait_event("JOB_STATUS_CHANGE", {"id": "j", "status": "null"})
    assert q.cmd("query-jobs") == []


@pytest.mark.rows("jobs.query", "jobs.query-block")
def test_running_job_is_described_by_both_queries(q, slow):
    start(q, speed=8 << 20)
    (job,) = q.cmd("query-jobs")
    # The length is known when the stream has looked at the disk.
    (block,) = procs.wait_until(
        lambda: [b for b in q.cmd("query-block-jobs") if b["len"]],
        "the job knows its length")
    assert job["type"] == block["type"] == "backup"
    assert job["id"] == block["device"] == "j"
    assert job["status"] in ("running", "paused")
    assert block["len"] == 16 << 20 and block["speed"] == 8 << 20
    assert block["io-status"] == "ok" and block["ready"] is False
    assert block["auto-finalize"] and block["auto-dismiss"]
    q.cmd("job-cancel", id="j")
    q.wait_job("j")


@pytest.mark.needs("qemu-10")       # 7.2 shows the pair for every transaction
@pytest.mark.rows("jobs.drain-pairs")
def test_another_backup_of_the_node_shows_as_a_pair(q, disks, slow,
                                                    backup_node):
    disks.add("disk1")
    for t in ("t1", "t2", "t3"):
        backup_node(t)
    start(q, speed=1)
    q.cmd("job-pause", id="j")
    q.wait_event("JOB_STATUS_CHANGE", {"id": "j", "status": "paused"}, 4)
    # a paused job has nothing to show, and another node is none of its own
    for job, disk, t in (("k", "disk0", "t1"), ("l", "disk1", "t2"),
                         ("m", "disk0", "t3")):
        q.cmd("blockdev-backup", backup(disk, t, job, speed=1))
    q.drain_events()
    assert q.choreography("j") == START + ["paused"]
    assert q.choreography("k") == START + ["paused", "running"]
    assert q.choreography("l") == START == q.choreography("m")


@pytest.mark.rows("jobs.query", "jobs.query-block")
def test_newest_job_is_listed_first(q, slow, backup_node):
    backup_node("t1")
    start(q, speed=1 << 20)
    q.cmd("blockdev-backup", backup("disk0", "t1", "k", speed=1 << 20))
    assert [j["id"] for j in q.cmd("query-jobs")] == ["k", "j"]
    for j in ("j", "k"):
        q.cmd("job-cancel", id=j)
        q.wait_job(j)
