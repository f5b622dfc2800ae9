# SPDX-License-Identifier: BSD-3-Clause
"""Transactions: everything or nothing, in order, and undone in reverse."""
import os
import threading

import pytest

from stillpoint_test import guest
from stillpoint_test.qmp import action, backup
from stillpoint_test.target import slow_target

K = 65536


@pytest.fixture
def disk(disks, connect):
    disks.add("disk0")
    disks.add("disk1")
    return connect(disks.uri("disk0"))


def add(name, node="disk0", **kw):
    return action("block-dirty-bitmap-add", node=node, name=name, **kw)


def on(command, name, node="disk0"):
    return action("block-dirty-bitmap-" + command, node=node, name=name)


def merge(target, *bitmaps, node="disk0"):
    return action("block-dirty-bitmap-merge", node=node, target=target,
                  bitmaps=list(bitmaps))


def picture(q):
    """Everything about bitmaps that a client can see."""
    return {n["node-name"]: n.get("dirty-bitmaps", [])
            for n in q.cmd("query-named-block-nodes")}


def fails(q, *actions):
    return q.error("transaction", actions=list(actions)).desc


@pytest.mark.rows("transaction.empty", "transaction.properties")
def test_empty_transaction_succeeds(q):
    assert q.cmd("transaction", actions=[]) == {}
    assert q.cmd("transaction", actions=[], properties={}) == {}


def test_actions_take_effect_on_all_disks(q, disk):
    q.cmd("transaction", actions=[add("a"), add("b", "disk1")])
    assert q.bitmap("disk0", "a") and q.bitmap("disk1", "b")


@pytest.mark.rows("transaction.in-order", "transaction.add",
                  "transaction.add-remove")
def test_action_sees_what_the_ones_before_it_did(q, disk):
    q.cmd("transaction", actions=[
        add("a"), on("disable", "a"), add("b"), merge("b", "a"),
        add("c"), on("remove", "c")])
    assert q.bitmap("disk0", "a")["recording"] is False
    assert q.bitmap("disk0", "c") is None


@pytest.mark.rows("transaction.remove-add")
def test_removed_name_cannot_be_added_again_in_the_same_transaction(q, disk):
    q.cmd("transaction", actions=[add("a")])
    assert fails(q, on("remove", "a"), add("a")) == \
        "Bitmap already exists: a"
    assert q.bitmap("disk0", "a")


@pytest.mark.rows("transaction.remove-clear")
def test_removed_bitmap_is_in_use_for_later_actions(q, disk):
    q.cmd("transaction", actions=[add("a")])
    assert "in use" in fails(q, on("remove", "a"), on("clear", "a"))
    assert q.bitmap("disk0", "a")["busy"] is False


@pytest.fixture
def history(q, disk):
    """Bitmaps in every state, with bits."""
    q.cmd("transaction", actions=[add("on"), add("off"), add("gone"),
                                  add("far", "disk1")])
    disk.pwrite(b"x", 0)
    q.cmd("transaction", actions=[on("disable", "off")])
    disk.pwrite(b"x", K)
    return picture(q)


ACTIONS = [
    add("new"), on("clear", "on"), on("disable", "on"), on("enable", "off"),
    merge("off", "on"), on("clear", "off"), on("disable", "off"),
    on("remove", "gone"), add("new2", "disk1", disabled=True),
    merge("on", {"node": "disk1", "name": "far"})]


@pytest.mark.parametrize("n", range(len(ACTIONS) + 1))
@pytest.mark.rows("transaction.abort", "transaction.rollback",
                  "transaction.remove-undone", "transaction.clear-undone",
                  "transaction.enable-undone", "transaction.merge-undone",
                  "error.48")
def test_abort_after_any_prefix_leaves_everything_as_it_was(q, disk, history,
                                                            n):
    assert fails(q, *ACTIONS[:n], action("abort")) == \
        "Transaction aborted using Abort action"
    assert picture(q) == history


def test_undone_bitmaps_go_on_recording_as_before(q, disk, history):
    fails(q, *ACTIONS, action("abort"))
    disk.pwrite(b"x", 20 * K)
    grown = {b["name"]: b["count"] for b in picture(q)["disk0"]}
    before = {b["name"]: b["count"] for b in history["disk0"]}
    assert grown == {"on": before["on"] + K, "off": before["off"],
                     "gone": before["gone"] + K}


@pytest.mark.rows("transaction.first-error")
def test_first_failing_action_gives_the_error(q, disk, history):
    assert fails(q, add("x"), on("clear", "zz"), action("abort")) == \
        "Dirty bitmap 'zz' not found"
    assert picture(q) == history


def test_failing_second_backup_undoes_the_first(q, disk, backup_node):
    backup_node("t0")
    backup_node("t1", size=1 << 20)
    assert fails(q, add("a"), add("b", "disk1"),
                 action("blockdev-backup", backup("disk0", "t0", "j0")),
                 action("blockdev-backup", backup("disk1", "t1", "j1"))) == \
        "Source and target image have different sizes"
    assert q.cmd("query-jobs") == []
    assert picture(q)["disk0"] == [] and picture(q)["disk1"] == []
    q.cmd("blockdev-backup", backup("disk0", "t0", "j0"))
    q.jobs_succeed("j0", start=len(q.events) - 2)


def test_clear_and_full_backup_start_a_chain_at_one_instant(q, disk, disks,
                                                            backup_node):
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    disk.pwrite(b"x", 0)
    backup_node("t0", **slow_target(20))
    q.cmd("transaction", actions=[
        on("clear", "b"),
        action("blockdev-backup", backup("disk0", "t0", "j"))])
    disk.pwrite(b"x", 5 * K)
    q.jobs_succeed("j")
    assert q.bitmap("disk0", "b")["count"] == K


@pytest.mark.parametrize("bad", [
    add("x"), on("clear", "x"), on("remove", "x"), on("disable", "x"),
    merge("x", "y"),
    # QEMU 7.2 ends with a signal on the first, and takes the second.
    pytest.param(on("enable", "x"), marks=pytest.mark.needs("qemu-10")),
    pytest.param(action("abort"), marks=pytest.mark.needs("qemu-10"))])
@pytest.mark.rows("transaction.grouped-only-jobs", "error.49")
def test_grouped_mode_takes_nothing_but_jobs(q, disk, bad):
    e = q.error("transaction", actions=[bad],
                properties={"completion-mode": "grouped"})
    # QEMU 7.2 wrote Transaction with a capital.
    assert e.desc.replace("Transaction", "transaction").endswith(
        "does not support transaction property completion-mode = grouped")
    assert "'%s'" % bad["type"] in e.desc


def test_thousand_actions_are_one_transaction(q, disk):
    q.cmd("transaction", actions=[
        a for i in range(500) for a in (add("b%d" % i),
                                        on("disable", "b%d" % i))])
    assert len(picture(q)["disk0"]) == 500


@pytest.mark.rows("transaction.one-command")
def test_single_backup_command_is_rolled_back_as_a_transaction(q, disk,
                                                               backup_node):
    backup_node("t0", size=1 << 20)
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    start = len(q.events)
    e = q.error("blockdev-backup", backup("disk0", "t0", "j", bitmap="b",
                                          bitmap_mode="on-success"))
    assert e.desc == "Source and target image have different sizes"
    assert q.cmd("query-jobs") == []
    assert [x for x in q.events[start:]
            if x["event"].startswith("BLOCK_JOB")] == []
    assert q.bitmap("disk0", "b")["busy"] is False


@pytest.mark.rows("transaction.backup-undone",
                  "transaction.backup-undone-bitmap")
@pytest.mark.parametrize("dismiss", [True, False])
def test_job_that_is_rolled_back_leaves_its_bitmap_as_it_was(
        q, disk, backup_node, dismiss):
    backup_node("t0")
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    disk.pwrite(b"x", 3 * K)
    before = picture(q)
    start = len(q.events)
    assert fails(q, action("blockdev-backup", backup(
        "disk0", "t0", "j", sync="incremental", bitmap="b",
        auto_dismiss=dismiss)), action("abort")) == \
        "Transaction aborted using Abort action"
    assert q.choreography("j", start) == ["created", "aborting", "concluded",
                                          "null"]
    assert q.cmd("query-jobs") == [] and picture(q) == before
    disk.pwrite(b"x", 9 * K)
    assert q.bitmap("disk0", "b")["count"] == 2 * K
    q.cmd("blockdev-del", node_name="t0")


@pytest.mark.rows("transaction.one-instant", "transaction.sixty-four")
def test_one_transaction_takes_sixty_four_disks(server, q, disks, dir,
                                                make_target, connect):
    """Full backups and then incrementals of 64 disks, each as one
    transaction, while a guest goes from disk to disk: a disk's number is
    written before that of the next one, so what the backups hold must be a
    beginning of that row."""
    n, size = 64, 1 << 20
    t = make_target().nbdkit("file", "dir=" + dir)
    for i in range(n):
        disks.add("d%02d" % i, size=size, data=())
        guest.make_image(os.path.join(dir, "t%02d" % i), size)
        q.cmd("blockdev-add", t.blockdev("t%02d" % i, "t%02d" % i))
    guests = [connect(disks.uri("d%02d" % i)) for i in range(n)]

    def run(kind, *before, **more):
        start = len(q.events)
        q.cmd("transaction", actions=[
            a for i in range(n) for a in
            [action(b, node="d%02d" % i, name="b") for b in before] +
            [action("blockdev-backup", backup("d%02d" % i, "t%02d" % i,
                                              "j%02d" % i, kind, **more))]])
        q.jobs_succeed(*("j%02d" % i for i in range(n)), start=start)

    run("full", "block-dirty-bitmap-add")
    for turn in range(1, 4):
        stop = threading.Event()

        def write():
            while not stop.is_set():
                for h in guests:
                    value = int.from_bytes(bytes(h.pread(8, 0)), "big") + 1
                    h.pwrite(value.to_bytes(8, "big"), 0)
        writer = threading.Thread(target=write)
        writer.start()
        try:
            run("incremental", bitmap="b")
        finally:
            stop.set()
            writer.join()
        held = []
        for i in range(n):
            with open(os.path.join(dir, "t%02d" % i), "rb") as f:
                held.append(int.from_bytes(f.read(8), "big"))
        # each disk is as far as the next one, or one step ahead
        assert held == sorted(held, reverse=True), held
        assert held[0] - held[-1] <= 1, held
    assert held[0] > 0
    run("incremental", bitmap="b")
    for i in range(n):
        guest.same(disks.path("d%02d" % i), os.path.join(dir, "t%02d" % i))


@pytest.mark.rows("transaction.grouped-finalize", "event.BLOCK_JOB_PENDING",
                  "transaction.grouped-waiting")
def test_one_job_holds_its_whole_group_until_it_is_finalized(q, disk, disks,
                                                             connect,
                                                             backup_node):
    for i in (0, 1):
        backup_node("t%d" % i)
        q.cmd("block-dirty-bitmap-add", node="disk%d" % i, name="b")
        connect(disks.uri("disk%d" % i)).pwrite(b"x", 0)
    q.cmd("transaction", actions=[
        action("blockdev-backup", backup(
            "disk%d" % i, "t%d" % i, "j%d" % i, sync="incremental",
            bitmap="b", auto_finalize=i == 0)) for i in (0, 1)],
        properties={"completion-mode": "grouped"})
    event = q.wait_event("BLOCK_JOB_PENDING", {"id": "j1"})
    assert event["data"] == {"type": "backup", "id": "j1"}
    assert {j["id"]: j["status"] for j in q.cmd("query-jobs")} == {
        "j0": "pending", "j1": "pending"}
    pending = [e["data"]["id"] for e in q.events
               if e["event"] == "JOB_STATUS_CHANGE" and
               e["data"]["status"] == "pending"]
    assert pending == ["j1", "j0"]      # newest first
    assert q.bitmap("disk0", "b")["busy"] and q.bitmap("disk1", "b")["busy"]
    assert [e for e in q.events if e["event"] == "BLOCK_JOB_COMPLETED"] == []
    q.cmd("job-finalize", id="j0")      # any of them
    q.jobs_succeed("j0", "j1")
    assert [q.bitmap("disk%d" % i, "b")["count"] for i in (0, 1)] == [0, 0]


@pytest.mark.needs("qemu-10")
@pytest.mark.rows("transaction.grouped-only-jobs", "error.49")
def test_grouped_mode_is_checked_before_anything_is_prepared(q, disk,
                                                             backup_node):
    backup_node("t0")
    start = len(q.events)
    e = q.error("transaction", actions=[
        action("blockdev-backup", backup("disk0", "t0", "j")),
        add("b"), action("abort")],
        properties={"completion-mode": "grouped"})
    assert e.desc == ("Action 'block-dirty-bitmap-add' does not support "
                      "transaction property completion-mode = grouped")
    assert q.drain_events() == q.events[:start]
