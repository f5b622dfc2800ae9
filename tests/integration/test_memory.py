# SPDX-License-Identifier: BSD-3-Clause
"""The plugin runs out of memory, at any allocation, while guests read and
write and cuts happen.

Nothing aborts: a guest's request fails with ENOMEM or succeeds, a command
fails or succeeds, and afterwards everything is as it should be.  Which
allocation fails is chosen by tests/tools/oom-preload.c.  By default some of
them are tried; STILLPOINT_OOM_STEP=1 tries all.
"""
import errno
import os
import random
import subprocess
import time

import pytest

from stillpoint_test import daemon, guest, procs
from stillpoint_test.memory import Shortage
from stillpoint_test.qmp import QmpClosed, QmpError, action, backup

nbd = pytest.importorskip("nbd")
pytestmark = [pytest.mark.needs("stillpoint"), pytest.mark.skipif(
    "STILLPOINT_SANITIZER_LOG" in os.environ,
    reason="a sanitizer has an allocator of its own")]
K = 65536
M = 1 << 20
SIZE = 8 * M
DISKS = ["disk0", "disk1"]
STEP = int(os.environ.get("STILLPOINT_OOM_STEP", "0"))
SECONDS = float("inf") if STEP else 25


class World:
    """Two disks with bitmaps and targets."""

    def __init__(self, server, dir, make_target, connect):
        self.server, self.dir, self.connect = server, dir, connect
        self.shortage = Shortage(dir)
        server.extra += self.shortage.arguments()
        server.start()
        self.q = server.qmp()
        self.serial = 0
        self.targets = {}
        for d in DISKS:
            self.q.cmd("blockdev-add", driver="file", node_name=d,
                       filename=guest.make_image(self.path(d), SIZE,
                                                 [(0, M)]),
                       discard="unmap")
            self.q.cmd("block-export-add", type="nbd", id="e-" + d,
                       node_name=d, name=d, writable=True)
            t = self.targets[d] = make_target("t-" + d)
            t.file(os.path.join(dir, d + ".target"), SIZE)
            self.q.cmd("blockdev-add", t.blockdev("t-" + d))
        guest.make_image(self.path("extra"), M, [(0, M)])
        self.cut([action("block-dirty-bitmap-add", node=d, name="b")
                  for d in DISKS], "full")
        self.pid = server.nbdkit_pid()

    def path(self, disk):
        return os.path.join(self.dir, disk + ".img")

    def cut(self, actions, sync):
        """A backup of all disks at one instant."""
        self.serial += 1
        jobs = ["j%d-%s" % (self.serial, d) for d in DISKS]
        start = len(self.q.events)
        kw = {"bitmap": "b"} if sync == "incremental" else {}
        self.q.cmd("transaction", actions=actions + [
            action("blockdev-backup", backup(d, "t-" + d, j, sync=sync, **kw))
            for d, j in zip(DISKS, jobs)])
        self.q.jobs_succeed(*jobs, start=start)

    def bitmap_names(self):
        return {b["name"] for n in self.q.cmd("query-named-block-nodes")
                if n["node-name"] in DISKS for b in n["dirty-bitmaps"]
                if "name" in b}

    # --- what happens while memory is short -------------------------------

    def guests_work(self):
        for d in DISKS:
            h = self.connect(self.server.uri(d))
            at = self.serial % 100 * K
            h.pwrite(b"%07d." % self.serial * (K // 8), at)
            h.pwrite(b"part", at + 5)
            h.zero(4 * K, 20 * K)
            h.trim(2 * K, 40 * K)
            h.pread(K, at)
            h.cache(K, at)
            h.flush()
            h.shutdown()

    def commands_work(self):
        start = len(self.q.events)
        self.q.cmd("block-dirty-bitmap-add", node="disk0", name="x")
        self.q.cmd("blockdev-backup", backup(
            "disk0", "t-disk0", "slow", sync="full", speed=1))
        h = self.connect(self.server.uri("disk0"))
        h.pwrite(b"new." * (K // 2), 3 * K + 512)   # saves first
        self.q.cmd("job-cancel", id="slow")
        self.q.wait_event("JOB_STATUS_CHANGE", {"id": "slow",
                                                "status": "null"}, start)
        self.q.cmd("block-dirty-bitmap-remove", node="disk0", name="x")
        self.q.cmd("blockdev-add", driver="file", node_name="extra",
                   filename=self.path("extra"))
        self.q.cmd("block-export-add", type="nbd", id="e-extra",
                   node_name="extra", name="extra")
        subprocess.run(["nbdinfo", "--list", self.server.uri("")],
                       capture_output=True, timeout=30, check=False)
        self.q.cmd("block-export-del", id="e-extra", mode="hard")
        self.q.cmd("blockdev-del", node_name="extra")

    def try_everything(self):
        """Requests and commands may fail."""
        try:
            self.guests_work()
        except nbd.Error as e:
            # ENOENT: what a client hears of an open that failed
            assert e.errnum in (errno.ENOMEM, errno.ENOENT), e
        try:
            self.commands_work()
        except (QmpError, nbd.Error):
            pass

    # --- and afterwards ------------------------------------------------------

    def tidy_up(self):
        """What a command that failed half-way has left."""
        def settled():
            try:
                self.q.cmd("transaction", actions=[
                    action("block-dirty-bitmap-" + verb, node=d, name="probe")
                    for d in DISKS for verb in ("add", "remove")])
                return True
            except QmpError:
                return False
        procs.wait_until(settled, "cuts are possible again", 30, 0.05)
        for job in self.q.cmd("query-jobs"):
            start = len(self.q.events)
            self.q.cmd("job-cancel", id=job["id"])
            self.q.wait_event("JOB_STATUS_CHANGE", {
                "id": job["id"], "status": "null"}, start)
        if "x" in self.bitmap_names():
            self.q.cmd("block-dirty-bitmap-remove", node="disk0", name="x")
        if any(x["id"] == "e-extra"
               for x in self.q.cmd("query-block-exports")):
            self.q.cmd("block-export-del", id="e-extra", mode="hard")
            procs.wait_until(lambda: "e-extra" not in [
                x["id"] for x in self.q.cmd("query-block-exports")], "gone")
        if any(n["node-name"] == "extra"
               for n in self.q.cmd("query-named-block-nodes")):
            self.q.cmd("blockdev-del", node_name="extra")

    def is_right(self):
        """Nobody died, the guests are served, and the chain holds."""
        assert self.server.child.alive()
        assert self.server.nbdkit_pid() == self.pid, "nbdkit died"
        self.tidy_up()
        assert self.bitmap_names() == {"b"}
        self.guests_work()
        self.cut([], "incremental")
        for d in DISKS:
            guest.same(self.path(d), self.targets[d].path)


@pytest.fixture
def world(make_server, dir, make_target, connect):
    return World(make_server(), dir, make_target, connect)


def test_the_plugin_asks_for_no_memory_for_its_threads():
    """The C library would allocate what a library that is loaded later keeps
    for each thread at its first use, and end the process if it cannot."""
    plugin = os.path.join(daemon.build_dir(), "plugins", "stillpoint",
                          "nbdkit-stillpoint-plugin.so")
    r = subprocess.run(["readelf", "--relocs", "--wide", plugin],
                       capture_output=True, text=True, check=True)
    assert "TPOFF" in r.stdout              # it has such variables
    assert "DTPMOD" not in r.stdout and "TLSDESC" not in r.stdout


def test_any_allocation_of_the_plugin_may_fail(world):
    world.shortage.begin(1 << 40)
    world.guests_work()
    world.commands_work()
    _, total = world.shortage.end()
    assert total > 100
    world.is_right()
    rng = random.Random(int(time.time()))
    places = list(range(1, total + 1, STEP or 1))
    if not STEP:
        rng.shuffle(places)
    end = time.monotonic() + SECONDS
    tried = served = 0
    for n in places:
        if time.monotonic() > end:
            break
        world.shortage.begin(n)
        world.try_everything()
        failed, _ = world.shortage.end()
        tried, served = tried + 1, served + failed
        try:
            world.is_right()
        except (AssertionError, QmpError, QmpClosed, nbd.Error, OSError) as e:
            raise AssertionError("after allocation %d of %d failed: %s\n%s" % (
                n, total, e, world.server.child.stderr()[-3000:])) from e
    print("%d of %d allocations were tried, %d failed" % (tried, total,
                                                          served))
    assert tried > 5 and served > tried // 2


def test_memory_that_is_short_all_the_time_costs_requests_only(world, dir):
    """Guests at full speed and cuts, with one of 40 allocations failing."""
    load = guest.Load(guest.area(0, SIZE, world.server.uri("disk0")),
                      "--depth", 8, "--zero", 10, "--trim", 5,
                      "--reconnect", 10)
    try:
        load.ready()
        world.shortage.begin(40, 40)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                world.cut([], "incremental")
            except (QmpError, AssertionError):
                pass
        failed, _ = world.shortage.end()
        before = load.acked()
        procs.wait_until(lambda: load.acked() > before + 50, "guests go on")
        load.quit()
    finally:
        load.cleanup()
    assert failed > 10
    world.is_right()
