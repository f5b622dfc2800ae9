# SPDX-License-Identifier: BSD-3-Clause
"""What may be asked of a job in which state, and the exact refusals."""
import pytest

from stillpoint_test import procs
from stillpoint_test.qmp import action, backup
from stillpoint_test.target import slow_target

M = 1 << 20
START = ["created", "running", "paused", "running"]
GROUPED = {"completion-mode": "grouped"}
# command, its key, its verb
JOB = [("job-%s" % v, "id", v) for v in (
    "cancel", "pause", "resume", "complete", "finalize", "dismiss")]
BLOCK_JOB = [
    ("block-job-cancel", "device", "cancel"),
    ("block-job-pause", "device", "pause"),
    ("block-job-resume", "device", "resume"),
    ("block-job-complete", "device", "complete"),
    ("block-job-set-speed", "device", "set-speed"),
    ("block-job-finalize", "id", "finalize"),
    ("block-job-dismiss", "id", "dismiss")]
CHANGE = ("block-job-change", "id", "change")       # since QEMU 8.2
EXTRA = {"set-speed": {"speed": 0},
         "change": {"type": "mirror", "copy-mode": "write-blocking"}}
ALLOWED = {
    "running": {"cancel", "pause", "resume", "set-speed", "change"},
    "paused": {"cancel", "pause", "resume", "set-speed", "change"},
    "waiting": {"cancel"},
    "pending": {"cancel", "finalize"},
    "concluded": {"dismiss"},
}


def ask(q, command, key, verb, job="j"):
    """The error's text, or None when it was accepted."""
    reply = q.exchange(command, dict({key: job}, **EXTRA.get(verb, {})))
    return reply.get("error", {}).get("desc")


def status(q, job="j"):
    return next((j["status"] for j in q.cmd("query-jobs")
                 if j["id"] == job), None)


def wait_status(q, wanted, job="j"):
    procs.wait_until(lambda: status(q, job) == wanted,
                     "%s is %s" % (job, wanted))


@pytest.fixture
def place(q, disks, backup_node):
    """place(state): job j is in that state."""
    def to(state):
        disks.add(data=((0, 8 * M),))
        backup_node(**(slow_target(2) if state in ("running", "paused")
                       else {}))
        args = backup("disk0", "target0", "j",
                      auto_finalize=state != "pending",
                      auto_dismiss=state != "concluded")
        if state == "waiting":
            disks.add("disk1", data=((0, 8 * M),))
            backup_node("target1", **slow_target(2))
            q.cmd("transaction", actions=[
                action("blockdev-backup", args), action(
                    "blockdev-backup", backup("disk1", "target1", "k"))],
                properties=GROUPED)
        else:
            q.cmd("blockdev-backup", args)
        if state == "paused":
            q.cmd("job-pause", id="j")
        wait_status(q, state)
    return to


# --- who is not there ---------------------------------------------------------


@pytest.mark.rows("error.42", "jobs.missing")
@pytest.mark.parametrize("command, key, verb", JOB)
def test_missing_job(q, command, key, verb):
    e = q.error(command, {key: "nobody"})
    assert (e.cls, e.desc) == ("GenericError", "Job not found")


@pytest.mark.rows("error.43", "jobs.missing-block-job")
@pytest.mark.parametrize("command, key, verb", BLOCK_JOB)
def test_missing_block_job(q, command, key, verb):
    e = q.error(command, dict({key: "nobody"}, **EXTRA.get(verb, {})))
    assert (e.cls, e.desc) == ("DeviceNotActive",
                               "Block job 'nobody' not found")


@pytest.mark.needs("qemu-10")
@pytest.mark.rows("error.43", "error.47", "jobs.verbs")
def test_nothing_of_a_backup_can_be_changed(q, place):
    command, key, verb = CHANGE
    e = q.error(command, dict({key: "nobody"}, **EXTRA[verb]))
    assert (e.cls, e.desc) == ("DeviceNotActive",
                               "Block job 'nobody' not found")
    place("concluded")
    assert ask(q, *CHANGE) == ("Job 'j' in state 'concluded' cannot accept "
                               "command verb 'change'")
    q.cmd("job-dismiss", id="j")


@pytest.mark.needs("qemu-10")
@pytest.mark.rows("error.47")
def test_change_of_a_running_backup_is_refused(q, place):
    place("running")
    assert ask(q, *CHANGE) == "Job type does not support change"


# --- the table of verbs ----------------------------------------------------------


@pytest.mark.rows("error.41", "jobs.verbs")
@pytest.mark.parametrize("state", sorted(ALLOWED))
def test_verbs_that_a_state_refuses(q, place, state):
    place(state)
    for command, key, verb in JOB + BLOCK_JOB:
        if verb in ALLOWED[state]:
            continue
        want = "Job 'j' in state '%s' cannot accept command verb '%s'" % (
            state, verb)
        if verb == "resume":
            want = "Can't resume a job that was not paused"
        assert ask(q, command, key, verb) == want, command
    assert status(q) == state


@pytest.mark.rows("jobs.verbs")
@pytest.mark.parametrize("command, key, verb", [
    c for c in JOB + BLOCK_JOB if c[2] in ALLOWED["running"]])
def test_verbs_of_a_running_job(q, place, command, key, verb):
    place("running")
    text = ask(q, command, key, verb)
    if verb == "resume":
        assert text == "Can't resume a job that was not paused"
    else:
        assert text is None


@pytest.mark.rows("jobs.verbs")
@pytest.mark.parametrize("command, key, verb", [
    c for c in JOB + BLOCK_JOB if c[2] in ALLOWED["pending"]])
def test_verbs_of_a_pending_job(q, place, command, key, verb):
    place("pending")
    assert ask(q, command, key, verb) is None
    event = q.wait_job("j")
    assert event["event"] == ("BLOCK_JOB_CANCELLED" if verb == "cancel"
                              else "BLOCK_JOB_COMPLETED")


@pytest.mark.rows("jobs.verbs")
@pytest.mark.parametrize("command, key, verb", [
    c for c in JOB + BLOCK_JOB if c[2] in ALLOWED["concluded"]])
def test_verbs_of_a_concluded_job(q, place, command, key, verb):
    place("concluded")
    assert ask(q, command, key, verb) is None
    assert status(q) is None


@pytest.mark.rows("jobs.verbs")
def test_waiting_job_can_be_cancelled_with_its_group(q, place):
    place("waiting")
    q.cmd("job-cancel", id="j")
    for j in ("j", "k"):
        assert q.wait_job(j)["event"] == "BLOCK_JOB_CANCELLED"


# --- pause and resume ---------------------------------------------------------------


@pytest.mark.rows("error.44.paused", "error.44.not-paused", "jobs.pause")
@pytest.mark.parametrize("family, key", [("job", "id"),
                                         ("block-job", "device")])
def test_pause_and_resume_say_what_is_wrong(q, place, family, key):
    place("running")
    resume = {"execute": family + "-resume", "arguments": {key: "j"}}
    e = q.error(resume["execute"], {key: "j"})
    assert (e.cls, e.desc) == ("GenericError",
                               "Can't resume a job that was not paused")
    q.cmd(family + "-pause", {key: "j"})
    e = q.error(family + "-pause", {key: "j"})
    assert (e.cls, e.desc) == ("GenericError", "Job is already paused")
    wait_status(q, "paused")
    assert q.error(family + "-pause", {key: "j"}).desc == \
        "Job is already paused"
    position = len(q.events)
    q.cmd(family + "-resume", {key: "j"})
    q.wait_event("JOB_STATUS_CHANGE", {"id": "j", "status": "running"},
                 position)
    assert q.choreography("j")[:6] == START + ["paused", "running"]


@pytest.mark.rows("error.45", "jobs.cancel-paused")
def test_cancelling_a_paused_job_needs_force(q, place):
    place("paused")
    for force in ({}, {"force": False}):
        e = q.error("block-job-cancel", dict({"device": "j"}, **force))
        assert (e.cls, e.desc) == (
            "GenericError", "The block job for device 'j' is currently "
            "paused")
    q.cmd("block-job-cancel", device="j", force=True)
    q.wait_job("j")
    assert q.choreography("j") == START + [
        "paused", "running", "aborting", "BLOCK_JOB_CANCELLED", "concluded",
        "null"]


@pytest.mark.rows("jobs.cancel-paused")
def test_job_cancel_is_always_forced(q, place):
    place("paused")
    q.cmd("job-cancel", id="j")
    assert q.wait_job("j")["event"] == "BLOCK_JOB_CANCELLED"


@pytest.mark.rows("transaction.grouped-failure")
def test_failure_of_a_group_wakes_its_paused_member(q, disks, backup_node):
    for i, more in enumerate([slow_target(2), {
            "filters": ["delay", "error"], "parameters": [
                "delay-write=1", "error-pwrite=EIO",
                "error-pwrite-rate=100%"]}]):
        disks.add("disk%d" % i)
        backup_node("t%d" % i, **more)
    q.cmd("transaction", actions=[
        action("blockdev-backup", backup("disk%d" % i, "t%d" % i,
                                         "j%d" % i)) for i in range(2)],
          properties=GROUPED)
    q.cmd("job-pause", id="j0")
    assert "error" in q.wait_job("j1")["data"]
    assert q.wait_job("j0")["event"] == "BLOCK_JOB_CANCELLED"
    assert q.choreography("j0") in (
        START + middle + ["aborting", "BLOCK_JOB_CANCELLED", "concluded",
                          "null"]
        for middle in ([], ["paused", "running"]))


# --- names and speeds -----------------------------------------------------------------


@pytest.mark.rows("error.39", "error.40", "jobs.ids")
def test_job_ids_are_checked(q, disks, backup_node):
    disks.add(data=((0, 8 * M),))
    backup_node(**slow_target(2))
    backup_node("target1")
    for bad in ("1abc", "a b", "-x", "a/b", "#block1"):
        e = q.error("blockdev-backup", backup("disk0", "target0", bad))
        assert e.desc == "Invalid job ID '%s'" % bad
    args = backup("disk0", "target0")
    del args["job-id"]
    assert q.error("blockdev-backup", dict(args, **{
        "job-id": ""})).desc == "Invalid job ID ''"
    long = "j" * 300 + "._-9"
    q.cmd("blockdev-backup", backup("disk0", "target0", long, speed=1))
    e = q.error("blockdev-backup", backup("disk0", "target1", long))
    assert e.desc == "Job ID '%s' already in use" % long


@pytest.mark.rows("jobs.negative-speed")
def test_negative_speed_is_refused(q, place, disks, backup_node):
    place("running")
    want = "Parameter 'speed' expects a non-negative value"
    for speed in (-1, -(1 << 63)):
        e = q.error("block-job-set-speed", device="j", speed=speed)
        assert (e.cls, e.desc) == ("GenericError", want)
    assert q.error("block-job-set-speed", device="j",
                   speed=1 << 63).cls == "GenericError"
    backup_node("target1")
    position = len(q.events)
    e = q.error("blockdev-backup", backup("disk0", "target1", "k", speed=-1))
    assert (e.cls, e.desc) == ("GenericError", want)
    q.drain_events()
    assert q.choreography("k", position) == ["created", "null"]


# --- finalizing and dismissing ----------------------------------------------------------


@pytest.mark.rows("jobs.manual-finalize", "event.BLOCK_JOB_PENDING")
@pytest.mark.parametrize("command", ["job-finalize", "block-job-finalize"])
def test_finalize_lets_a_pending_job_take_effect(q, place, command):
    place("pending")
    event = q.wait_event("BLOCK_JOB_PENDING")
    assert event["data"] == {"type": "backup", "id": "j"}
    assert q.choreography("j") == START + ["waiting", "pending",
                                           "BLOCK_JOB_PENDING"]
    q.cmd(command, id="j")
    q.wait_job("j")
    assert q.choreography("j")[-3:] == ["BLOCK_JOB_COMPLETED", "concluded",
                                        "null"]


@pytest.mark.rows("jobs.cancel-pending", "error.73")
def test_cancelling_a_pending_job_says_so(q, disks, backup_node):
    disks.add()
    backup_node()
    q.cmd("blockdev-backup", backup("disk0", "target0", "j",
                                    auto_finalize=False, auto_dismiss=False))
    wait_status(q, "pending")
    q.cmd("job-cancel", id="j")
    wait_status(q, "concluded")
    assert q.choreography("j") == START + [
        "waiting", "pending", "BLOCK_JOB_PENDING", "aborting",
        "BLOCK_JOB_CANCELLED", "concluded"]
    done = q.wait_event("BLOCK_JOB_CANCELLED")["data"]
    assert done["offset"] == done["len"] == disks.size
    (job,) = q.cmd("query-jobs")
    assert job["error"] == "Operation canceled"
    q.cmd("block-job-dismiss", id="j")
    assert q.cmd("query-jobs") == []


@pytest.mark.rows("transaction.grouped-finalize",
                  "transaction.grouped-waiting")
def test_one_manual_member_holds_the_group_and_any_member_finalizes_it(
        q, disks, backup_node):
    for i in range(3):
        disks.add("disk%d" % i)
        backup_node("t%d" % i)
    q.cmd("transaction", actions=[
        action("blockdev-backup", backup(
            "disk%d" % i, "t%d" % i, "j%d" % i,
            **({"auto_finalize": False} if i == 1 else {})))
        for i in range(3)], properties=GROUPED)
    wait_status(q, "pending", "j0")
    q.drain_events()
    pending = [e["data"]["id"] for e in q.events
               if e["event"] == "JOB_STATUS_CHANGE" and
               e["data"]["status"] == "pending"]
    assert pending == ["j2", "j1", "j0"]        # newest first
    assert [e["data"]["id"] for e in q.events
            if e["event"] == "BLOCK_JOB_PENDING"] == ["j1"]
    assert {status(q, "j%d" % i) for i in range(3)} == {"pending"}
    q.cmd("job-finalize", id="j2")
    q.jobs_succeed("j0", "j1", "j2")
    ends = [(e["event"], e["data"].get("id", e["data"].get("device")),
             e["data"].get("status")) for e in q.events]
    done = [x for x in ends if x[0] == "BLOCK_JOB_COMPLETED"]
    assert [x[1] for x in done] == ["j2", "j1", "j0"]
    for j in ("j2", "j1", "j0"):
        at = ends.index(("BLOCK_JOB_COMPLETED", j, None))
        assert ends[at + 1:at + 3] == [
            ("JOB_STATUS_CHANGE", j, "concluded"),
            ("JOB_STATUS_CHANGE", j, "null")]
