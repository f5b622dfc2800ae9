# SPDX-License-Identifier: BSD-3-Clause
"""A process dies at a place that was chosen, and nothing is lost.

The rules are those of src/daemon/transaction.h, registry.h, recover.h,
graph.h and merge.h; a test has the name of its rule.  Places are those of
src/base/park.h; rig.py has the scene.
"""
import os
import signal
import time

import pytest

from stillpoint_test import guest, procs
from stillpoint_test.qmp import QmpClosed, QmpError, action, backup
from stillpoint_test.rig import DISKS, K, M
from stillpoint_test.target import slow_target

nbd = pytest.importorskip("nbd")
pytestmark = pytest.mark.needs("restart")


# --- stillpointd dies ---------------------------------------------------


@pytest.mark.parametrize("place", [
    "transaction.making", "transaction.made", "registry.written",
    "transaction.staged", "transaction.cut", "registry.publish",
    "registry.published", "transaction.published"])
def test_transaction_dies_with_the_daemon_and_nothing_is_lost(rig, place):
    rig.start(kill=place)
    rig.write(3, 4, 5)
    rig.arm()
    with pytest.raises((QmpClosed, OSError)):
        rig.q.cmd("transaction", actions=rig.incremental("i"))
    rig.write(7, fresh=False)               # nbdkit goes on
    rig.died()
    rig.written = {d: {7} for d in DISKS}
    if place not in ("transaction.published",):
        rig.written = {d: {3, 4, 5, 7} for d in DISKS}
    rig.holds()
    rig.written = {d: {3, 4, 5, 7} for d in DISKS}
    rig.next_incremental_equals_the_disk()


@pytest.mark.parametrize("place", [
    "job.settled", "registry.written", "registry.publish", "registry.published",
    "job.saved"])
def test_outcome_of_a_job_dies_with_the_daemon_and_nothing_is_lost(rig,
                                                                   place):
    rig.start(kill=place, park="stream.looking")
    rig.write(3, 4, 5)
    rig.arm(rig.park_file)
    rig.q.cmd("transaction", actions=rig.incremental("i"))
    rig.parked()
    rig.write(7)                            # not in this incremental
    rig.arm()
    rig.release()
    rig.died()
    rig.written = {d: {7} for d in DISKS}
    rig.holds()
    rig.written = {d: {3, 4, 5, 7} for d in DISKS}
    rig.next_incremental_equals_the_disk()


@pytest.mark.parametrize("place", [
    "recover.node", "recover.synced", "registry.written", "registry.publish",
    "recover.saved", "recover.open", "recover.restored", "plane.hello"])
@pytest.mark.parametrize("both", [False, True],
                         ids=["nbdkit lives", "nbdkit dies"])
def test_daemon_dies_again_in_its_recovery(rig, place, both):
    rig.start()
    rig.write(3, 4)
    rig.kill_daemon()
    rig.write(5, fresh=False)
    rig.arm()
    status, _ = rig.server.run_to_exit(STILLPOINT_KILL_AT="%s:%s" % (
        place, rig.kill_file))
    assert status == -signal.SIGKILL
    if both:
        rig.server.kill9_nbdkit()
    rig.restart()
    rig.holds()
    rig.next_incremental_equals_the_disk()


def test_daemon_that_is_stopped_in_its_recovery_forgets_nothing(rig):
    rig.start()
    rig.write(3, 4)
    rig.kill_daemon()
    rig.arm(rig.park_file)
    rig.server.child = procs.Child(
        rig.server.argv(), mark=rig.server.mark, stderr_path=rig.server.log,
        env={"STILLPOINT_PARK_AT": "recover.opening:" + rig.park_file})
    rig.parked()
    rig.server.child.signal(signal.SIGTERM)
    time.sleep(0.1)
    rig.release()
    assert rig.server.child.wait(15) == 0
    rig.restart()
    rig.holds()
    rig.next_incremental_equals_the_disk()


def test_daemon_that_cannot_start_nbdkit_forgets_nothing(rig):
    rig.start()
    rig.write(3, 4)
    assert rig.server.stop() == 0
    rig.server.extra = ["--nbdkit", "/nonexistent/nbdkit"]
    status, _ = rig.server.run_to_exit()
    assert status == 1
    rig.server.extra = []
    rig.restart()
    rig.holds()
    rig.next_incremental_equals_the_disk()


# --- nbdkit dies -----------------------------------------------------------


@pytest.mark.parametrize("place", [
    "node.tracked", "node.saved", "node.written", "epoch.set"])
def test_nbdkit_dies_in_a_write_and_nothing_is_lost(rig, place):
    rig.start(kill=place)
    rig.write(3, 4)
    old = rig.server.nbdkit_pid()
    rig.arm()
    with pytest.raises(nbd.Error):
        rig.guests["disk0"].pwrite(b"?" * K, 20 * K)
    rig.server.wait_new_nbdkit(old)
    rig.write(6)
    rig.holds()
    rig.next_incremental_equals_the_disk()


@pytest.mark.parametrize("place", [
    "cut.closed", "cut.applied", "cut.opened"])
def test_nbdkit_dies_in_a_cut_and_nothing_is_lost(rig, place):
    rig.start(kill=place)
    rig.write(3, 4)
    old = rig.server.nbdkit_pid()
    rig.arm()
    with pytest.raises(QmpError):
        rig.q.cmd("transaction", actions=rig.incremental("i"))
    rig.server.wait_new_nbdkit(old)
    rig.write(6)
    rig.holds()
    rig.next_incremental_equals_the_disk()


@pytest.mark.parametrize("place", ["cbw.claimed", "cbw.copied", "node.saved"])
def test_nbdkit_dies_in_a_copy_before_write_and_the_view_stays_whole(rig,
                                                                     place):
    rig.start(kill=place, park="stream.looking")
    rig.write(3, 4)
    at_the_cut = guest.digest(os.path.join(rig.dir, "disk0.img"))
    old = rig.server.nbdkit_pid()
    rig.arm(rig.park_file)
    rig.q.cmd("blockdev-backup", backup("disk0", "t-disk0", "i",
                                        sync="incremental", bitmap="b"))
    rig.parked()
    rig.arm()
    with pytest.raises(nbd.Error):
        rig.guests["disk0"].pwrite(b"?" * K, 4 * K)
    rig.server.wait_new_nbdkit(old)
    rig.write(3, 4)                         # needs the view again
    rig.release()
    event = rig.q.wait_job("i")
    assert event["event"] == "BLOCK_JOB_COMPLETED"
    assert "error" not in event["data"], event
    assert guest.digest(rig.targets["disk0"].path) == at_the_cut
    rig.next_incremental_equals_the_disk()


def test_transaction_rule_5_unanswered_cut_counts_for_every_bitmap(rig):
    rig.start(park="cut.opened")
    rig.write(3)
    rig.arm(rig.park_file)
    rig.q.send({"execute": "transaction", "arguments": {
        "actions": rig.incremental("i")}})
    rig.parked()
    # The cut took place; these are recorded in the epoch that it opened.
    rig.write(9, fresh=False)
    old = rig.server.nbdkit_pid()
    os.kill(old, signal.SIGKILL)
    rig.release()
    rig.server.wait_new_nbdkit(old)
    rig.server.close_clients()
    rig.q = rig.server.qmp()
    procs.wait_until(lambda: rig.q.cmd("query-jobs") == [], "it failed")
    rig.holds()
    rig.holds("never")
    rig.connect_guests()    # until its plugin is there, nbdkit dies with us
    rig.kill_daemon()                       # the registry knows it as well
    rig.server.kill9_nbdkit()
    rig.restart()
    rig.holds()
    rig.next_incremental_equals_the_disk()


def test_transaction_rule_3_node_that_is_on_its_way_back_is_not_cut(rig):
    """nbdkit has been told to open it with the epoch that was open before: a
    transaction that pretended to have cut it would lose what comes next."""
    rig.start(park="node.opening")
    rig.write(3)
    rig.arm(rig.park_file)
    old = rig.server.kill9_nbdkit()
    rig.parked()
    started = time.monotonic()
    rig.q.send({"execute": "block-dirty-bitmap-clear", "id": 1,
                "arguments": {"node": "disk0", "name": "b"}})
    answer = rig.q.receive(timeout=20)
    while "event" in answer:
        answer = rig.q.receive(timeout=20)
    assert "does not run" in answer["error"]["desc"], answer
    assert time.monotonic() - started < 15
    rig.release()
    rig.server.wait_new_nbdkit(old)
    rig.write(8)
    rig.holds()
    rig.next_incremental_equals_the_disk()


def test_transaction_survives_that_nbdkit_dies_while_files_are_made(rig):
    rig.start(park="transaction.making")
    rig.write(3)
    rig.arm(rig.park_file)
    rig.q.send({"execute": "transaction", "arguments": {
        "actions": rig.incremental("i")}})
    rig.parked()
    old = rig.server.kill9_nbdkit()
    rig.release()
    rig.server.wait_new_nbdkit(old)
    rig.server.close_clients()
    rig.q = rig.server.qmp()
    rig.write(8)
    procs.wait_until(lambda: rig.q.cmd("query-jobs") == [], "it is over")
    rig.next_incremental_equals_the_disk()


@pytest.mark.parametrize("place", [
    "recover.node", "recover.synced", "recover.saved", "recover.open",
    "recover.restored"])
def test_nbdkit_dies_again_in_the_recovery(rig, place):
    rig.start()
    rig.write(3, 4)
    rig.kill_daemon()
    rig.write(5, fresh=False)
    rig.arm(rig.park_file)
    rig.server.child = procs.Child(
        rig.server.argv(), mark=rig.server.mark, stderr_path=rig.server.log,
        env={"STILLPOINT_PARK_AT": "%s:%s" % (place, rig.park_file)})
    rig.parked()
    rig.server.kill9_nbdkit()
    rig.release()
    procs.wait_until(rig.server._greets, "the daemon is ready", 15)
    rig.q = rig.server.qmp()
    rig.holds()
    rig.next_incremental_equals_the_disk()


def test_image_whose_server_is_down_costs_no_other_disk_its_nbdkit(rig, dir):
    rig.start()
    far = rig.make_target("far")
    far.file(os.path.join(dir, "far.raw"), 8 * M)
    rig.q.cmd("blockdev-add", far.blockdev("far"))
    rig.q.cmd("block-export-add", type="nbd", id="e-far", node_name="far",
              name="far", writable=True)
    rig.q.cmd("block-dirty-bitmap-add", node="far", name="b")
    rig.connect(rig.server.uri("far")).pwrite(b"1" * K, 3 * K)
    far.kill9()
    new = rig.server.wait_new_nbdkit(rig.server.kill9_nbdkit())
    rig.write(5)
    assert "does not run" in rig.q.error(
        "block-dirty-bitmap-clear", node="far", name="b").desc
    time.sleep(2.5)
    assert rig.server.nbdkit_pid() == new
    rig.write(6, fresh=False)
    far.restart()
    h = procs.wait_until(lambda: rig.guest("far"), "it is back")
    h.pwrite(b"2" * K, 5 * K)
    assert rig.server.nbdkit_pid() == new
    assert rig.q.bitmap("far", "b")["count"] == 2 * K
    rig.q.cmd("block-export-del", id="e-far", mode="hard")
    rig.q.cmd("blockdev-del", node_name="far")
    rig.next_incremental_equals_the_disk()


# --- both die -----------------------------------------------------------------


@pytest.mark.parametrize("place", [
    "transaction.staged", "transaction.cut", "registry.publish",
    "registry.published"])
def test_recover_rule_1_epoch_of_an_unfinished_transaction_counts(rig, place):
    rig.start(kill=place)
    rig.write(3)
    rig.arm()
    with pytest.raises((QmpClosed, OSError)):
        rig.q.cmd("transaction", actions=rig.incremental("i"))
    rig.write(9, fresh=False)
    rig.died(kill_nbdkit=True)
    rig.holds()
    rig.holds("never")
    rig.next_incremental_equals_the_disk()


def test_recover_rule_1_epoch_that_nbdkit_has_open_counts(rig):
    """The cut took place, and of the transaction nothing is left on disk."""
    rig.start(kill="transaction.cut")
    rig.write(3)
    rig.arm()
    with pytest.raises((QmpClosed, OSError)):
        rig.q.cmd("transaction", actions=rig.incremental("i"))
    rig.write(9, fresh=False)
    procs.wait_until(lambda: not rig.server.child.alive(), "it dies")
    os.unlink(os.path.join(rig.server.state, "registry.json.new"))
    rig.restart()
    rig.holds()
    rig.holds("never")
    rig.next_incremental_equals_the_disk()


def test_recover_rule_3_another_boot_makes_bitmaps_inconsistent(rig):
    rig.start()
    rig.write(3)
    assert rig.server.stop() == 0
    path = os.path.join(rig.server.state, "registry.json")
    text = open(path).read()
    start = text.index('"boot-id"')
    end = text.index(",", start)
    with open(path, "w") as f:
        f.write(text[:start] + '"boot-id": "another"' + text[end:])
    rig.restart()
    for d in DISKS:
        assert rig.q.bitmap(d, "b")["inconsistent"] is True
    rig.q.cmd("block-dirty-bitmap-remove", node="disk0", name="b")


# --- the registry ---------------------------------------------------------------


def test_registry_rule_2_nobody_saves_a_transaction_that_may_still_fail(
        rig, dir):
    rig.start(park="transaction.making")
    slow = rig.make_target("slow")
    slow.file(os.path.join(dir, "slow.raw"), 8 * M, **slow_target(2))
    rig.q.cmd("blockdev-add", slow.blockdev("slow"))
    rig.write(3, 4)
    rig.q.cmd("blockdev-backup", backup("disk1", "slow", "j"))
    rig.arm(rig.park_file)
    rig.q.send({"execute": "block-dirty-bitmap-clear",
                "arguments": {"node": "disk0", "name": "b"}})
    rig.parked()
    other = rig.server.qmp()
    procs.wait_until(lambda: [j["status"] for j in other.cmd("query-jobs")]
                     != ["running"], "the job ends", 30)
    time.sleep(0.3)                         # time enough to save
    rig.kill_daemon()
    rig.restart()
    rig.written["disk1"] = {3, 4}
    rig.holds()


def test_registry_rule_1_files_that_it_names_are_there(rig):
    """A save fails: what the old registry names must not be gone."""
    rig.start(park="stream.looking")
    for d in DISKS:                         # "b" alone keeps its epochs
        rig.q.cmd("block-dirty-bitmap-remove", node=d, name="never")
    rig.write(3, 4)
    os.mkdir(os.path.join(rig.server.state, "registry.json.new"))
    start = len(rig.q.events)
    assert "registry" in rig.q.error(
        "transaction", actions=rig.incremental("i")).desc
    rig.write(5)
    os.rmdir(os.path.join(rig.server.state, "registry.json.new"))
    rig.arm(rig.park_file)
    rig.q.cmd("transaction", actions=rig.incremental("k"))
    rig.parked()
    os.mkdir(os.path.join(rig.server.state, "registry.json.new"))
    rig.release()
    rig.q.jobs_succeed(*["k-" + d for d in DISKS], start=start)
    rig.kill_daemon()
    os.rmdir(os.path.join(rig.server.state, "registry.json.new"))
    rig.restart()
    rig.holds()
    rig.next_incremental_equals_the_disk(never=False)


# --- merging of epochs -------------------------------------------------------------


def epochs(rig):
    return [f for f in os.listdir(rig.server.shm) if f.startswith("epoch-")]


def backed_up_often(rig, times):
    for i in range(times):
        rig.write(3 + i % 50, fresh=i == 0)
        start = len(rig.q.events)
        rig.q.cmd("transaction", actions=rig.incremental("i"))
        rig.q.jobs_succeed(*["i-" + d for d in DISKS], start=start)


def test_merge_bitmap_that_is_never_backed_up_has_a_handful_of_epochs(rig):
    rig.start()
    backed_up_often(rig, 200)
    rig.settled()
    procs.wait_until(lambda: len(epochs(rig)) <= 12, "epochs are merged")
    for d in DISKS:
        assert rig.q.bitmap(d, "never")["count"] == 50 * K
        assert rig.q.bitmap(d, "b")["count"] == 0
    rig.kill_daemon()
    rig.restart()
    for d in DISKS:
        assert rig.q.bitmap(d, "never")["count"] == 50 * K
    rig.next_incremental_equals_the_disk()


@pytest.mark.parametrize("place", [
    "merge.made", "merge.replaced", "merge.saved"])
@pytest.mark.parametrize("both", [False, True],
                         ids=["nbdkit lives", "nbdkit dies"])
def test_merge_rule_3_crash_in_the_middle_leaves_every_bit(rig, place, both):
    rig.start(kill=place)
    rig.arm()
    with pytest.raises((QmpClosed, OSError)):
        backed_up_often(rig, 20)
    rig.died(kill_nbdkit=both)
    rig.holds("never")
    rig.next_incremental_equals_the_disk()


def test_merge_rule_1_epochs_that_a_job_took_are_left_alone(rig):
    """The job fails: its bitmap holds exactly what it held."""
    rig.start(park="stream.looking")
    for c in range(3, 9):
        rig.write(c)
        rig.q.cmd("transaction", actions=[      # a cut that changes nothing
            action("block-dirty-bitmap-enable", node=d, name="b")
            for d in DISKS])
    rig.arm(rig.park_file)
    rig.q.cmd("transaction", actions=rig.incremental("i"))
    rig.parked()
    for c in range(9, 15):
        rig.write(c)
        rig.q.cmd("transaction", actions=[
            action("block-dirty-bitmap-enable", node=d, name="never")
            for d in DISKS])
    rig.q.cmd("job-cancel", id="i-disk0")
    rig.release()
    procs.wait_until(lambda: rig.q.cmd("query-jobs") == [], "jobs are over")
    assert rig.q.bitmap("disk0", "b")["count"] == 12 * K
    assert rig.q.bitmap("disk1", "b")["count"] == 6 * K
    rig.holds("never")
    rig.next_incremental_equals_the_disk()


# --- the graph ------------------------------------------------------------------------


def test_graph_rule_1_a_target_with_a_bitmap_counts_what_is_written(rig):
    """A bitmap on a node that a job of ours writes to."""
    rig.start()
    rig.q.cmd("block-dirty-bitmap-add", node="t-disk0", name="on-target")
    rig.write(3)
    rig.q.cmd("blockdev-backup", backup("disk0", "t-disk0", "i",
                                        sync="incremental", bitmap="b"))
    rig.q.jobs_succeed("i")
    assert rig.q.bitmap("t-disk0", "on-target")["count"] >= K


def test_export_that_is_going_is_told_so_and_comes_back_if_it_stays(rig):
    rig.start()
    rig.connect_guests()
    assert "still in use" in rig.q.error("block-export-del",
                                         id="e-disk0").desc
    rig.kill_daemon()
    rig.restart()
    rig.settled()
