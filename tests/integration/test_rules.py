# SPDX-License-Identifier: BSD-3-Clause
"""Rules that hold between the processes, each with its bad moment forced.

A test begins with the name of the header whose rule it shows; crash points
have a file of their own.  tests/mutate deletes each rule and wants its test
here to fail.
"""
import glob
import os
import re
import subprocess
import time

import pytest

from stillpoint_test import guest, procs
from stillpoint_test.qmp import QmpClosed, action, backup
from stillpoint_test.rig import DISKS, K, M

nbd = pytest.importorskip("nbd")
pytestmark = pytest.mark.needs("restart")


def on_both(kind, name, **more):
    return [action(kind, node=d, name=name, **more) for d in DISKS]


def count(rig, disk, name):
    return rig.q.bitmap(disk, name)["count"]


def epoch_files(rig):
    """In the order in which they were made."""
    return sorted(glob.glob(os.path.join(rig.server.shm, "epoch-*")),
                  key=lambda p: int(p.rpartition("-")[2]))


def mapped_epochs(rig):
    """The epochs that nbdkit records in."""
    with open("/proc/%d/maps" % rig.server.nbdkit_pid()) as f:
        return set(re.findall(r"/epoch-\d+", f.read()))


def send(rig, name, **arguments):
    rig.q.send({"execute": name, "id": name, "arguments": arguments})


def answer(rig):
    """To what was sent."""
    return rig.q.receive(timeout=20)


# --- the cut ------------------------------------------------------------------


def held_write(rig, data=b"w" * K, offset=20 * K):
    """A guest's write that stands inside of the gate."""
    rig.connect_guests()
    rig.arm(rig.park_file)
    h = rig.guests["disk0"]
    buf = nbd.Buffer.from_bytearray(bytearray(data))
    cookie = h.aio_pwrite(buf, offset)
    while not os.path.exists(rig.park_file + ".parked"):
        h.poll(2)
    return h, cookie, buf


def must_end(h, cookie):
    end = time.monotonic() + procs.patience(20)
    while not h.aio_command_completed(cookie):
        assert time.monotonic() < end, "a write does not end"
        h.poll(200)


@pytest.mark.parametrize("place", ["node.tracked", "node.saved",
                                   "node.written"])
def test_gate_rule_2_a_cut_waits_for_writes_in_flight(rig, place):
    """The write was begun before the cut: all of it belongs to the time
    before, its bit and its data."""
    rig.start(park=place)
    rig.write(3)
    h, cookie, _ = held_write(rig)
    send(rig, "transaction", actions=rig.incremental("i"))
    assert rig.q.silent(0.4)
    rig.release()
    assert "error" not in answer(rig)
    must_end(h, cookie)
    rig.q.jobs_succeed("i-disk0", "i-disk1")
    for d in DISKS:
        assert count(rig, d, "b") == 0
        guest.same(os.path.join(rig.dir, d + ".img"), rig.targets[d].path)
    rig.next_incremental_equals_the_disk()


def test_gate_rule_2_a_write_that_does_not_end_fails_the_cut(rig):
    rig.start(park="node.tracked")
    rig.write(3)
    h, cookie, _ = held_write(rig)
    send(rig, "transaction", actions=rig.incremental("i"))
    reply = answer(rig)
    assert "disk0" in reply["error"]["desc"], reply
    assert "in flight" in reply["error"]["desc"], reply
    rig.release()
    must_end(h, cookie)
    assert rig.q.cmd("query-jobs") == []
    rig.guests["disk1"].pwrite(b"x" * K, 30 * K)
    assert count(rig, "disk0", "b") == 2 * K
    assert count(rig, "disk1", "b") == 2 * K
    rig.next_incremental_equals_the_disk()


# --- the graph ------------------------------------------------------------------


def test_graph_rule_1_bitmaps_that_a_cut_does_not_name_go_on(rig):
    rig.start()
    rig.write(3)
    rig.q.cmd("transaction", actions=on_both("block-dirty-bitmap-clear", "b"))
    rig.write(9, 10)
    for d in DISKS:
        assert count(rig, d, "b") == 2 * K
        assert count(rig, d, "never") == 3 * K


def test_graph_rule_1_disabled_bitmap_stops_at_the_cut(rig):
    """The other bitmap of the disk goes on, and with it the recording."""
    rig.start()
    rig.write(3)
    rig.q.cmd("transaction",
              actions=on_both("block-dirty-bitmap-disable", "b"))
    rig.write(9, 10)
    for d in DISKS:
        assert count(rig, d, "b") == K
        assert count(rig, d, "never") == 3 * K


def test_graph_rule_2_nothing_is_recorded_without_a_bitmap(rig):
    rig.start()
    assert len(mapped_epochs(rig)) == 2
    for name in ("b", "never"):
        rig.q.cmd("block-dirty-bitmap-remove", node="disk0", name=name)
    procs.wait_until(lambda: len(mapped_epochs(rig)) == 1, "one is recorded")
    rig.write(3)
    rig.q.cmd("block-dirty-bitmap-add", node="disk0", name="x", disabled=True)
    assert len(mapped_epochs(rig)) == 1
    rig.q.cmd("block-dirty-bitmap-enable", node="disk0", name="x")
    procs.wait_until(lambda: len(mapped_epochs(rig)) == 2, "both are")
    rig.write(4, 5)
    rig.q.cmd("block-dirty-bitmap-disable", node="disk0", name="x")
    procs.wait_until(lambda: len(mapped_epochs(rig)) == 1, "one again")
    rig.write(6)
    assert count(rig, "disk0", "x") == 2 * K
    assert count(rig, "disk1", "b") == 4 * K


def test_graph_rule_3_closed_epochs_do_not_change(rig):
    """What a job took is what was written before its cut, whatever is
    written while it runs."""
    rig.start(park="stream.looking")
    rig.write(3)
    rig.arm(rig.park_file)
    rig.q.cmd("blockdev-backup", backup("disk0", "t-disk0", "i",
                                        sync="incremental", bitmap="b"))
    rig.parked()
    assert count(rig, "disk0", "b") == K
    rig.write(9, 10)
    assert count(rig, "disk0", "b") == K
    rig.release()
    rig.q.jobs_succeed("i")
    assert count(rig, "disk0", "b") == 2 * K
    rig.next_incremental_equals_the_disk()


def nodes(q):
    return sorted(n["node-name"]
                  for n in q.cmd("query-named-block-nodes"))


def test_graph_rule_4_children_live_while_somebody_has_them(q, disks, dir):
    disks.node("mine")
    q.cmd("blockdev-add", driver="raw", node_name="top", file="mine")
    path = guest.make_image(os.path.join(dir, "inline.img"), M)
    q.cmd("blockdev-add", {
        "driver": "raw", "node-name": "other", "file": {
            "driver": "file", "node-name": "below", "filename": path}})
    assert nodes(q) == ["below", "mine", "other", "top"]
    q.cmd("blockdev-del", node_name="top")
    q.cmd("blockdev-del", node_name="other")
    assert nodes(q) == ["mine"]
    q.cmd("blockdev-del", node_name="mine")


def test_graph_rule_5_a_node_cannot_stand_on_itself(q):
    e = q.error("blockdev-add", driver="raw", node_name="r", file="r")
    assert e.desc == "Cannot find device='r' nor node-name='r'"
    assert nodes(q) == []


def test_guest_server_rule_3_it_is_saved_before_the_answer(make_server, dir):
    """Nothing else is saved after it."""
    server = make_server()
    server.serves = False
    server.start()
    where = os.path.join(dir, "guests.sock")
    server.qmp().cmd("nbd-server-start", addr={
        "type": "unix", "data": {"path": where}})
    server.kill9()
    server.kill9_nbdkit()
    server.start()
    assert "already running" in server.qmp().error("nbd-server-start", addr={
        "type": "unix", "data": {"path": where}}).desc


# --- transactions ------------------------------------------------------------------


def test_transaction_rule_1_failures_are_undone_in_reverse(rig):
    rig.start()
    rig.write(3)
    err = rig.q.error("transaction", actions=[
        a for kind in ("clear", "disable", "clear") for a in
        on_both("block-dirty-bitmap-" + kind, "b")] + [action("abort", {})])
    assert "abort" in err.desc.lower()
    rig.holds()
    for d in DISKS:
        assert count(rig, d, "b") == K
    rig.next_incremental_equals_the_disk()


def test_transaction_rule_2_without_files_nothing_happens(rig):
    rig.start()
    rig.write(3)
    newest = int(epoch_files(rig)[-1].rpartition("-")[2])
    blocked = [os.path.join(rig.server.shm, "epoch-%d" % n)
               for n in range(newest + 1, newest + 40)
               if not os.path.exists(
                   os.path.join(rig.server.shm, "epoch-%d" % n))]
    for path in blocked:
        os.mkdir(path)
    err = rig.q.error("transaction",
                      actions=on_both("block-dirty-bitmap-clear", "b"))
    assert "epoch-" in err.desc
    rig.write(4)
    rig.holds()
    rig.holds("never")
    for path in blocked:
        os.rmdir(path)
    rig.next_incremental_equals_the_disk()


def test_transaction_rule_3_a_part_that_fails_stops_the_cut(rig):
    """nbdkit cannot use what one disk was to be recorded in: no disk is
    cut."""
    rig.start(park="transaction.made")
    rig.write(3)
    before = epoch_files(rig)
    rig.arm(rig.park_file)
    send(rig, "transaction",
         actions=on_both("block-dirty-bitmap-clear", "b"))
    rig.parked()
    new = [p for p in epoch_files(rig) if p not in before]
    assert len(new) == 2
    with open(new[-1], "r+b") as f:
        f.write(bytes(8))                   # it is no epoch any more
    rig.release()
    assert "error" in answer(rig)
    rig.write(9)
    rig.holds()
    rig.holds("never")
    for d in DISKS:
        assert count(rig, d, "b") == 2 * K
    rig.next_incremental_equals_the_disk()


# --- merging of epochs ----------------------------------------------------------------


def cuts(rig, times):
    """So many epochs that "never" alone uses."""
    for i in range(times):
        rig.write(3 + i, fresh=i == 0)
        start = len(rig.q.events)
        rig.q.cmd("transaction", actions=rig.incremental("i"))
        rig.q.jobs_succeed(*["i-" + d for d in DISKS], start=start)


@pytest.fixture
def small_shm(request):
    """A tmpfs for the server's shared memory; needs root."""
    def mount(server, size):
        if os.geteuid() != 0 or subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "mode=700,size=%d" % size,
                 "none", server.shm], capture_output=True).returncode:
            pytest.skip("mounting is not possible here")
        request.addfinalizer(lambda: subprocess.run(
            ["umount", "-l", server.shm], check=False))
    return mount


def test_merge_rule_2_union_that_says_more_is_dropped(rig, small_shm):
    """There is memory for the file of the union, and none for its bits."""
    small_shm(rig.server, 2 * M)
    rig.start(park="merge.making")
    rig.arm(rig.park_file)
    cuts(rig, 5)
    rig.parked()
    ballast = os.path.join(rig.server.shm, "ballast")
    with open(ballast, "wb", buffering=0) as f, pytest.raises(OSError):
        while f.write(bytes(4096)) == 4096:
            pass
    rig.release()
    time.sleep(0.2)                         # time to replace the parts
    for d in DISKS:
        assert count(rig, d, "never") == 5 * K
    os.unlink(ballast)
    cuts(rig, 1)                            # looks again
    for d in DISKS:
        assert count(rig, d, "never") == 5 * K
    rig.next_incremental_equals_the_disk()


def test_merge_rule_4_sets_that_changed_meanwhile_are_left_alone(rig):
    """While their bits are united, a job takes the parts."""
    rig.start(park="merge.made")
    rig.arm(rig.park_file)
    cuts(rig, 5)
    rig.parked()
    start = len(rig.q.events)
    for d in DISKS:
        rig.q.cmd("blockdev-backup", backup(
            d, "t-" + d, "n-" + d, sync="incremental", bitmap="never",
            speed=1))
    rig.release()
    time.sleep(0.2)                         # time to replace the parts
    for d in DISKS:
        rig.q.cmd("block-job-set-speed", device="n-" + d, speed=0)
    rig.q.jobs_succeed(*["n-" + d for d in DISKS], start=start)
    for d in DISKS:
        assert count(rig, d, "never") == 0
    rig.next_incremental_equals_the_disk(never=False)


# --- recovery -----------------------------------------------------------------------------


def test_recover_rule_2_what_was_not_recorded_counts_as_changed(rig):
    """The daemon dies after a cut that stopped the recording, and before it
    could say so in the registry: its bitmaps are enabled again."""
    rig.start(kill="transaction.cut")
    rig.write(3)
    rig.arm()
    with pytest.raises((QmpClosed, OSError)):
        rig.q.cmd("transaction", actions=[
            a for name in ("b", "never") for a in
            on_both("block-dirty-bitmap-disable", name)])
    rig.write(9, fresh=False)               # is recorded nowhere
    rig.died()
    rig.holds()
    rig.holds("never")
    for d in DISKS:
        assert count(rig, d, "b") == 8 * M
    rig.write(11)
    rig.next_incremental_equals_the_disk()


def test_recover_rule_3_bitmap_whose_epoch_is_gone_says_so(rig):
    rig.start()
    rig.write(3)
    rig.q.cmd("block-dirty-bitmap-add", node="disk0", name="new",
              disabled=True)
    assert rig.server.stop() == 0
    for path in epoch_files(rig):
        os.unlink(path)
    rig.restart()
    for d in DISKS:
        for name in ("b", "never"):
            info = rig.q.bitmap(d, name)
            assert info["inconsistent"] is True, info
            assert not info["recording"], info
    assert not rig.q.bitmap("disk0", "new").get("inconsistent")
    err = rig.q.error("blockdev-backup", backup(
        "disk0", "t-disk0", "i", sync="incremental", bitmap="b"))
    assert "inconsistent" in err.desc


def test_recover_rule_4_new_epochs_are_saved_before_guests_write(rig):
    """Both die, come back with new epochs, are written to, and die again."""
    rig.start()
    rig.write(3)
    for cluster in (5, 7):
        rig.kill_daemon()
        rig.server.kill9_nbdkit()
        rig.restart()
        rig.write(cluster)
        rig.holds()
    rig.kill_daemon()
    rig.server.kill9_nbdkit()
    rig.restart()
    rig.holds()
    rig.holds("never")
    rig.next_incremental_equals_the_disk()


def far_disk(rig, dir):
    """A disk whose image has a server, which may be frozen."""
    far = rig.make_target("far")
    far.file(os.path.join(dir, "far.raw"), 8 * M)
    rig.q.cmd("blockdev-add", far.blockdev("far"))
    rig.q.cmd("block-export-add", type="nbd", id="e-far", node_name="far",
              name="far", writable=True)
    return far


def test_node_that_a_dead_daemon_asked_for_is_opened_anew(rig, dir):
    """nbdkit is still opening it when the next daemon says hello: that one
    was not told of it."""
    rig.start()
    far = far_disk(rig, dir)
    far.freeze()
    rig.server.wait_new_nbdkit(rig.server.kill9_nbdkit())
    time.sleep(0.3)                         # it is told to open them
    rig.kill_daemon()
    rig.server.child = procs.Child(rig.server.argv(), mark=rig.server.mark,
                                   stderr_path=rig.server.log)
    procs.wait_until(lambda: "adopted nbdkit" in rig.server.child.stderr(),
                     "the next daemon is there")
    far.thaw()
    procs.wait_until(rig.server._greets, "it is ready", 15)
    rig.q = rig.server.qmp()
    h = procs.wait_until(lambda: rig.guest("far"), "it is back", 15)
    h.pwrite(b"2" * K, 5 * K)
    rig.q.cmd("block-export-del", id="e-far", mode="hard")
    rig.q.cmd("blockdev-del", node_name="far")
    rig.next_incremental_equals_the_disk()


def test_recovery_goes_on_after_an_nbdkit_that_died_at_hello(rig):
    """The pause that follows such a death is over when the next nbdkit
    answers; it must not cut that one off."""
    rig.start(kill="link.hello", park="node.opening")
    rig.write(3)
    rig.arm(rig.park_file)
    rig.arm()
    rig.server.kill9_nbdkit()
    rig.parked()
    assert not os.path.exists(rig.kill_file)
    time.sleep(1)                           # longer than the pause
    rig.release()
    rig.connect_guests()
    assert "link to the data plane was closed" not in \
        rig.server.child.stderr()
    rig.holds()
    rig.next_incremental_equals_the_disk()


def test_nothing_happens_to_guests_when_nobody_hears_of_a_failure(rig):
    """A node cannot be opened, and the stillpointd that asked for it is
    dead: the data plane has nobody to tell, and goes on."""
    rig.start(park="node.opening")
    t = rig.make_target("remote")
    t.file(os.path.join(rig.dir, "remote.img"), 1 << 20)
    rig.q.cmd("blockdev-add", t.blockdev("remote"))
    rig.write(3)
    rig.arm(rig.park_file)
    rig.q.send({"execute": "block-export-add", "arguments": {
        "type": "nbd", "id": "e-remote", "node-name": "remote",
        "name": "remote", "writable": True}})
    rig.parked()
    nbdkit = rig.server.nbdkit_pid()
    t.kill9()
    rig.server.kill9()
    rig.release()
    rig.write(4, fresh=False)
    rig.server.start()
    rig.q = rig.server.qmp()
    assert rig.server.nbdkit_pid() == nbdkit
    rig.write(5, fresh=False)
    rig.next_incremental_equals_the_disk()


# --- views in the data plane ---------------------------------------------------


def open_views(rig):
    """Stores that nbdkit has open: their space is gone while it has."""
    fds = "/proc/%d/fd" % rig.server.nbdkit_pid()
    names = [os.readlink(os.path.join(fds, n)) for n in os.listdir(fds)]
    return [n for n in names if "/store/view-" in n]


def test_node_rule_9_a_view_is_let_go_when_the_last_write_has_ended(rig):
    """A write stands in the gate when the job ends: nobody waits for it, and
    nothing is held for good."""
    rig.start(park="cbw.copied")
    rig.write(3)
    rig.q.cmd("blockdev-backup", backup("disk0", "t-disk0", "slow", speed=1))
    h, cookie, _ = held_write(rig)
    assert open_views(rig)
    rig.q.cmd("job-cancel", id="slow")
    rig.q.wait_job("slow")
    other = rig.connect(rig.server.uri("disk0"))
    began = time.monotonic()
    for n in range(40, 60):                 # other writes go on
        other.pwrite(b"o" * K, n * K)
        rig.written["disk0"].add(n)
    assert time.monotonic() - began < procs.patience(1)
    rig.release()
    must_end(h, cookie)
    procs.wait_until(lambda: not open_views(rig), "the view is let go")
    rig.holds()
    rig.next_incremental_equals_the_disk(never=False)
