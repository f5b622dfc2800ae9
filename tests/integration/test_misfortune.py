# SPDX-License-Identifier: BSD-3-Clause
"""What happens to images and directories while they are in use: they
vanish, shrink, are changed by others, are full or become read-only.  Guests
go on, errors name the reason, and nothing that was promised is lost."""
import os
import subprocess
import tempfile
import time

import pytest

from stillpoint_test import guest, procs
from stillpoint_test.qmp import action, backup
from stillpoint_test.target import slow_target

pytestmark = pytest.mark.needs("stillpoint")
K = 65536
M = 1 << 20
FULL = "No space left on device"


class Place:
    """A small file system of its own."""

    def __init__(self, path):
        self.path = path
        self.ballast = os.path.join(path, "ballast")

    def fill(self):
        with open(self.ballast, "wb", buffering=0) as f:
            size = M
            while size >= 512:
                try:
                    f.write(bytes(size))
                except OSError:
                    size //= 2

    def empty(self):
        os.unlink(self.ballast)



@pytest.fixture
def place(request):
    """A tmpfs of a size given as a mark's argument; needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    size = request.node.get_closest_marker("size").args[0]
    path = tempfile.mkdtemp(prefix="sp-place-")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700,size=%d" %
                       size, "none", path], capture_output=True).returncode:
        os.rmdir(path)
        pytest.skip("mounting is not possible here")
    yield Place(path)
    subprocess.run(["umount", "-l", path], check=False)
    os.rmdir(path)


class World:
    """One disk with a bitmap and a guest, on a server that is set up."""

    def __init__(self, server, dir, writers, size=16 * M, depth=8):
        self.server, self.size = server, size
        server.start()
        self.q = server.qmp()
        self.path = guest.make_image(os.path.join(dir, "disk0.img"), size,
                                     [(0, size)])
        self.q.cmd("blockdev-add", driver="file", node_name="disk0",
                   filename=self.path)
        self.q.cmd("block-export-add", type="nbd", id="e", name="disk0",
                   node_name="disk0", writable=True)
        self.q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
        self.pid = server.nbdkit_pid()
        self.load = writers(guest.Load(
            guest.area(0, size, server.uri("disk0")), "--depth", depth,
            "--zero", 10, "--trim", 5))

    def guests_are_well(self):
        before = self.load.acked()
        procs.wait_until(lambda: self.load.acked() > before + 50,
                         "the guest goes on")
        assert self.server.nbdkit_pid() == self.pid

    def end(self):
        done = self.load.quit()
        assert done["errors"] == 0 and done["reconnections"] == 0

    def chain_is_right(self, target):
        """Bring the target up to date with the bitmap; compare."""
        self.load.pause()
        start = len(self.q.events)
        self.q.cmd("blockdev-backup", backup("disk0", "target0", "inc",
                                             sync="incremental", bitmap="b"))
        self.q.jobs_succeed("inc", start=start)
        guest.same(self.path, target.path)
        self.load.resume()


@pytest.fixture
def make_world(make_server, dir, writers):
    def make(prepare, **kw):
        server = make_server()
        prepare(server)
        return World(server, dir, writers, **kw)
    return make


@pytest.fixture
def target(dir, make_target):
    """target(world): a target that world's chain begins on."""
    def make(world, **kw):
        t = make_target("target0")
        t.file(os.path.join(dir, "target0.raw"), world.size, **kw)
        world.q.cmd("blockdev-add", t.blockdev("target0"))
        return t
    return make


def full(world):
    """Start the chain: bits from here on, and everything so far."""
    start = len(world.q.events)
    world.q.cmd("transaction", actions=[
        action("block-dirty-bitmap-clear", node="disk0", name="b"),
        action("blockdev-backup", backup("disk0", "target0", "full"))])
    world.q.jobs_succeed("full", start=start)


# --- full directories ---------------------------------------------------------


@pytest.mark.size(2 * M)
def test_full_store_fails_the_job_by_name_and_no_guest(place, make_world,
                                                       target):
    # Larger than what a job has read before the store is full.
    w = make_world(lambda s: s.extra.extend(["--store", place.path]),
                   size=96 * M)
    t = target(w, **slow_target(8))
    w.q.cmd("blockdev-backup", backup("disk0", "target0", "j"))
    event = w.q.wait_job("j")
    assert event["event"] == "BLOCK_JOB_COMPLETED"
    assert FULL in event["data"]["error"]
    w.guests_are_well()
    assert w.q.cmd("query-jobs") == []
    # The store's space is free again, and the next one succeeds.
    w.load.pause()
    t.cleanup()
    t.file(t.path, w.size)
    w.q.cmd("blockdev-del", node_name="target0")
    w.q.cmd("blockdev-add", t.blockdev("target0"))
    full(w)
    guest.same(w.path, t.path)
    w.load.resume()
    w.end()


@pytest.mark.size(2 * M)
def test_full_shared_memory_costs_precision_and_no_guest(place, make_world,
                                                         target):
    def prepare(server):
        os.rmdir(server.shm)
        server.shm = place.path
    w = make_world(prepare, size=64 * M)
    t = target(w)
    full(w)
    place.fill()
    w.guests_are_well()
    time.sleep(0.3)
    w.guests_are_well()
    # What needs new shared memory is refused with the reason.
    desc = w.q.error("block-dirty-bitmap-add", node="disk0", name="c").desc
    assert FULL in desc
    desc = w.q.error("blockdev-backup", backup(
        "disk0", "target0", "j", sync="incremental", bitmap="b")).desc
    assert FULL in desc
    w.guests_are_well()
    place.empty()
    w.chain_is_right(t)
    w.guests_are_well()
    w.end()


@pytest.mark.size(2 * M)
def test_shared_memory_that_fills_up_during_a_backup_harms_no_guest(
        place, make_world, target):
    def prepare(server):
        os.rmdir(server.shm)
        server.shm = place.path
    w = make_world(prepare, size=64 * M)
    t = target(w, **slow_target(40))
    w.q.cmd("blockdev-backup", backup("disk0", "target0", "j"))
    place.fill()
    w.guests_are_well()
    event = w.q.wait_job("j")
    assert "error" not in event["data"] or FULL in event["data"]["error"]
    place.empty()
    w.guests_are_well()
    t.cleanup()
    t.file(t.path, w.size)
    w.q.cmd("blockdev-del", node_name="target0")
    w.q.cmd("blockdev-add", t.blockdev("target0"))
    full(w)
    w.chain_is_right(t)
    w.end()


class Immutable:
    """A directory in which nothing can be made, not even by root."""

    def __init__(self, path):
        self.path = path

    def _set(self, flag):
        return subprocess.run(["chattr", flag + "i", self.path],
                              capture_output=True).returncode == 0

    def fill(self):
        assert self._set("+")

    def empty(self):
        assert self._set("-")


@pytest.fixture
def frozen_place(tmp_path):
    """A directory on a disk that can be made immutable; needs root."""
    place = Immutable(str(tmp_path))
    if not place._set("+"):
        pytest.skip("making a directory immutable is not possible here")
    place.empty()
    yield place
    place._set("-")


@pytest.mark.size(1 * M)
def test_full_state_directory_loses_nothing(place, make_world, target, dir):
    unwritable_state(place, FULL, place.path, make_world, target, dir)


def test_read_only_state_directory_loses_nothing(frozen_place, make_world,
                                                 target, dir):
    unwritable_state(frozen_place, "Operation not permitted",
                     frozen_place.path, make_world, target, dir)


def unwritable_state(place, reason, state, make_world, target, dir):
    def prepare(server):
        server.state = state
        server.extra += ["--store", os.path.join(dir, "store")]
        os.mkdir(os.path.join(dir, "store"), 0o700)
    w = make_world(prepare)
    t = target(w)
    full(w)
    place.fill()
    before = w.q.cmd("query-named-block-nodes")
    names = sorted(b["name"] for n in before
                   for b in n.get("dirty-bitmaps", []))
    other = guest.make_image(os.path.join(dir, "other.img"), M)
    for error in (
            w.q.error("block-dirty-bitmap-add", node="disk0", name="c"),
            w.q.error("block-dirty-bitmap-clear", node="disk0", name="b"),
            w.q.error("block-dirty-bitmap-remove", node="disk0", name="b"),
            w.q.error("blockdev-add", driver="file", node_name="other",
                      filename=other),
            w.q.error("blockdev-backup", backup(
                "disk0", "target0", "j", sync="incremental", bitmap="b"))):
        assert reason in error.desc and error.cls == "GenericError"
    after = w.q.cmd("query-named-block-nodes")
    assert sorted(b["name"] for n in after
                  for b in n.get("dirty-bitmaps", [])) == names
    assert len(after) == len(before) and w.q.cmd("query-jobs") == []
    w.guests_are_well()
    # A death now: what was saved last is what there is.
    w.server.kill9()
    place.empty()
    w.server.start()
    w.q = w.server.qmp()
    info = w.q.bitmap("disk0", "b")
    assert info["recording"] and not info.get("inconsistent")
    w.chain_is_right(t)
    w.guests_are_well()
    w.end()


# --- images ---------------------------------------------------------------------


def test_image_that_shrinks_during_its_backup_harms_no_other(
        q, server, disks, connect, backup_node):
    path = disks.add("disk0", data=((0, 16 * M),))
    disks.add("disk1")
    backup_node(**slow_target(8))
    h, other = connect(disks.uri("disk0")), connect(disks.uri("disk1"))
    pid = server.nbdkit_pid()
    q.cmd("blockdev-backup", backup("disk0", "target0", "j"))
    os.truncate(path, M)
    import nbd
    for offset in (0, 8 * M, 15 * M):
        try:
            h.pwrite(b"x" * K, offset)
        except nbd.Error:
            pass                    # an answer is all we ask for
    assert q.wait_job("j")["event"] == "BLOCK_JOB_COMPLETED"
    other.pwrite(b"y" * K, 0)
    assert bytes(other.pread(K, 0)) == b"y" * K
    assert server.nbdkit_pid() == pid
    assert q.cmd("query-jobs") == []


def test_image_that_vanished_is_backed_up_and_survives_the_daemon(
        q, server, disks, connect, backup_node):
    path = disks.add("disk0")
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    h = connect(disks.uri())
    kept = open(path, "rb")         # to compare with
    os.unlink(path)
    h.pwrite(b"x" * K, 3 * K)
    target = backup_node()
    q.cmd("blockdev-backup", backup("disk0", "target0", "j"))
    q.jobs_succeed("j")
    server.kill9()
    h.pwrite(b"y" * K, 5 * K)
    server.start()
    q = server.qmp()
    assert q.bitmap("disk0", "b")["count"] == 2 * K
    q.cmd("blockdev-backup", backup("disk0", "target0", "k",
                                    sync="incremental", bitmap="b"))
    q.jobs_succeed("k")
    assert kept.read() == open(target.path, "rb").read()


def test_image_that_vanished_is_named_when_nothing_holds_it_any_more(
        server, q, disks, connect):
    path = disks.add("disk0")
    disks.add("disk1")
    q.cmd("block-dirty-bitmap-add", node="disk1", name="b")
    assert server.stop() == 0
    os.unlink(path)
    server.start()
    q = server.qmp()
    assert [n["node-name"] for n in q.cmd("query-named-block-nodes")] == \
        ["disk1"]
    assert "disk0" in server.child.stderr() and path in server.child.stderr()
    assert not q.bitmap("disk1", "b").get("inconsistent")
    connect(disks.uri("disk1")).pwrite(b"x", 0)


def test_image_that_another_machine_uses_is_refused_and_named(q, dir):
    path = guest.make_image(os.path.join(dir, "a.img"), M)
    with guest.lock_like_a_machine(path):
        e = q.error("blockdev-add", driver="file", node_name="n",
                    filename=path)
        assert "lock" in e.desc and q.cmd("query-named-block-nodes") == []
    q.cmd("blockdev-add", driver="file", node_name="n", filename=path)


def somebody_writes(path):
    guest.patch(path, 9 * K, b"somebody else")


def somebody_replaces(path):
    guest.sparse_copy(path, path + ".new")
    os.rename(path + ".new", path)


def somebody_grows(path):
    os.truncate(path, os.path.getsize(path) + M)


def somebody_shrinks(path):
    os.truncate(path, os.path.getsize(path) - M)


@pytest.mark.parametrize("change, reason", [
    (somebody_writes, "changed while Stillpoint did not run"),
    (somebody_replaces, "another file"),
    (somebody_grows, "size was changed"),
    (somebody_shrinks, "size was changed")])
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_image_that_somebody_changed_meanwhile_makes_bitmaps_inconsistent(
        server, q, dir, disks, connect, make_target, change, reason, end):
    path = disks.add("disk0")
    disks.add("disk1")
    for i in range(2):
        q.cmd("block-dirty-bitmap-add", node="disk%d" % i, name="b")
    connect(disks.uri()).pwrite(b"x", 3 * K)
    if end == "stop":
        assert server.stop() == 0
    else:
        if change is somebody_writes:
            pytest.skip("what nbdkit wrote last looks the same")
        server.kill9()
        pid = server.nbdkit_pid()
        os.kill(pid, 9)
        procs.wait_gone(pid)
    change(path)
    server.start()
    q = server.qmp()
    info = q.bitmap("disk0", "b")
    assert info["inconsistent"] is True and not info["recording"]
    assert reason in info["x-reason"]
    assert not q.bitmap("disk1", "b").get("inconsistent")
    t = make_target("target0").file(os.path.join(dir, "target0.raw"),
                                    os.path.getsize(path))
    q.cmd("blockdev-add", t.blockdev("target0"))
    e = q.error("blockdev-backup", backup("disk0", "target0", "j",
                                          sync="incremental", bitmap="b"))
    assert "inconsistent" in e.desc
    # A new chain is possible.
    q.cmd("block-dirty-bitmap-remove", node="disk0", name="b")
    q.cmd("transaction", actions=[
        action("block-dirty-bitmap-add", node="disk0", name="b"),
        action("blockdev-backup", backup("disk0", "target0", "full"))])
    q.jobs_succeed("full")


# --- starts that meet something ---------------------------------------------------


def test_daemon_that_died_while_nbdkit_started_starts_again(make_server, dir):
    """nbdkit has the guests' sockets before it answers."""
    slow = os.path.join(dir, "slow-nbdkit")
    with open(slow, "w") as f:
        f.write('#!/bin/sh\nsleep 0.5\nexec ${STILLPOINT_NBDKIT:-nbdkit} "$@"\n')
    os.chmod(slow, 0o755)
    server = make_server()
    server.extra = ["--nbdkit", slow]
    server.child = procs.Child(server.argv(), mark=server.mark,
                               stderr_path=server.log)
    procs.wait_until(lambda: "nbdkit started" in server.child.stderr(),
                     "nbdkit starts")
    server.kill9()
    server.start()
    q = server.qmp()
    pid = server.nbdkit_pid()
    path = guest.make_image(os.path.join(dir, "a.img"), M)
    q.cmd("blockdev-add", driver="file", node_name="n", filename=path)
    q.cmd("block-export-add", type="nbd", id="e", name="n", node_name="n",
          writable=True)
    guest.nbd_digest(server.uri("n"))
    assert server.nbdkit_pid() == pid


def test_address_that_stays_in_use_is_given_up_and_named(make_server, dir):
    import socket
    server = make_server()
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(server.nbd_unix)
        s.listen(1)
        started = time.monotonic()
        status, text = server.run_to_exit()
        assert status == 1 and server.nbd_unix in text
        assert "another process" in text
        assert time.monotonic() - started < 10


def test_node_whose_image_server_is_down_at_the_start_is_kept_with_its_bitmap(
        server, q, dir, make_target, connect):
    path = os.path.join(dir, "remote.img")
    remote = make_target("remote", unix=True).file(path, size=16 * M)
    q.cmd("blockdev-add", remote.blockdev("far"))
    q.cmd("block-export-add", type="nbd", id="exp-far", node_name="far",
          name="far", writable=True)
    q.cmd("block-dirty-bitmap-add", node="far", name="b")
    connect(server.uri("far")).pwrite(b"x", 3 * K)
    server.stop()
    remote.kill9()
    server.start()
    assert server.qmp().cmd("query-named-block-nodes") == []
    server.stop()
    remote.restart()
    server.start()
    assert server.qmp().bitmap("far", "b")["count"] == K
    connect(server.uri("far")).pwrite(b"y", 5 * K)
    assert server.qmp().bitmap("far", "b")["count"] == 2 * K


def test_guests_of_a_node_that_the_new_daemon_cannot_open_go_on(
        server, q, dir, make_target, connect):
    path = os.path.join(dir, "remote.img")
    remote = make_target("remote", unix=True).file(path, size=16 * M)
    q.cmd("blockdev-add", remote.blockdev("far", **{"reconnect-delay": 60}))
    q.cmd("block-export-add", type="nbd", id="exp-far", node_name="far",
          name="far", writable=True)
    q.cmd("block-dirty-bitmap-add", node="far", name="b")
    h = connect(server.uri("far"))
    h.pwrite(b"x", 3 * K)
    server.kill9()
    remote.kill9()
    server.start()
    remote.restart()
    h.pwrite(b"y", 5 * K)
    server.kill9()
    server.start()
    assert server.qmp().bitmap("far", "b")["count"] == 2 * K


def test_export_that_is_deleted_while_its_node_is_being_opened(
        server, q, dir, make_target, connect):
    """nbdkit opens the node for an export that waited and is gone when it
    is done: it does not stay there."""
    park = os.path.join(dir, "park")
    server.stop()
    server.start(STILLPOINT_PARK_AT="node.opening:" + park)
    q = server.qmp()
    path = os.path.join(dir, "remote.img")
    remote = make_target("remote", unix=True).file(path, size=16 * M)
    q.cmd("blockdev-add", remote.blockdev("far"))
    q.cmd("block-export-add", type="nbd", id="e", node_name="far",
          name="far", writable=True)
    remote.kill9()
    server.kill9_nbdkit()
    procs.wait_until(lambda: "export 'e' waits" in server.child.stderr(),
                     "the export waits")
    remote.restart()
    open(park, "w").close()
    procs.wait_until(lambda: os.path.exists(park + ".parked"), "it is tried")
    q.send({"execute": "block-export-del", "arguments": {"id": "e"}, "id": 1})
    time.sleep(0.2)                         # time to ask for the closing
    os.unlink(park)
    assert "error" not in q.receive(20)
    time.sleep(0.5)                         # time to open it
    q.cmd("blockdev-del", node_name="far")
    q.cmd("blockdev-add", driver="file", node_name="far",
          filename=guest.make_image(os.path.join(dir, "near.img"), M))
    q.cmd("block-export-add", type="nbd", id="f", node_name="far",
          name="far", writable=True)
    assert connect(server.uri("far")).get_size() == M
