# SPDX-License-Identifier: BSD-3-Clause
"""Two disks with bitmaps and guests, for tests that let a process die, or a
thread wait, at a place of src/base/park.h that the test has chosen.

A process dies (or a thread waits) there once, when the test has made the file
that the environment names.
"""
import os
import time

import nbd

from . import guest, procs
from .qmp import action, backup

K = 65536
M = 1 << 20
DISKS = ["disk0", "disk1"]


def put(h, data, offset):
    """A write that must end."""
    buf = nbd.Buffer.from_bytearray(bytearray(data))
    cookie = h.aio_pwrite(buf, offset)
    end = time.monotonic() + procs.patience(10)
    while not h.aio_command_completed(cookie):
        assert time.monotonic() < end, "a write does not end"
        h.poll(200)


class Rig:
    """Two disks with bitmaps "b", backed up in full, and "never", which no
    backup uses.  The guest's writes are remembered."""

    def __init__(self, server, dir, make_target, connect):
        self.server, self.dir, self.connect = server, dir, connect
        self.kill_file = os.path.join(dir, "kill")
        self.park_file = os.path.join(dir, "park")
        self.make_target = make_target
        self.step = 0
        self.written = {d: set() for d in DISKS}
        self.env = {}

    def start(self, kill=None, park=None):
        if kill:
            self.env["STILLPOINT_KILL_AT"] = "%s:%s" % (kill, self.kill_file)
        if park:
            self.env["STILLPOINT_PARK_AT"] = "%s:%s" % (park, self.park_file)
        self.server.start(**self.env)
        self.q = self.server.qmp()
        self.targets = {}
        for d in DISKS:
            path = os.path.join(self.dir, d + ".img")
            guest.make_image(path, 8 * M, [(0, M)])
            self.q.cmd("blockdev-add", driver="file", node_name=d,
                       filename=path)
            self.q.cmd("block-export-add", type="nbd", id="e-" + d,
                       node_name=d, name=d, writable=True)
            t = self.make_target("t-" + d)
            t.file(os.path.join(self.dir, d + ".target"), 8 * M)
            self.targets[d] = t
            self.q.cmd("blockdev-add", t.blockdev("t-" + d))
        self.q.cmd("transaction", actions=[
            action("block-dirty-bitmap-add", node=d, name=n)
            for d in DISKS for n in ("b", "never")] + [
            action("blockdev-backup", backup(d, "t-" + d, "full-" + d))
            for d in DISKS])
        self.q.jobs_succeed(*["full-" + d for d in DISKS])
        return self

    def connect_guests(self):
        self.guests = {d: procs.wait_until(lambda d=d: self.guest(d),
                                           "export %s is back" % d)
                       for d in DISKS}

    def guest(self, disk):
        """A guest that tries again: a new nbdkit has no exports at first."""
        try:
            return self.connect(self.server.uri(disk))
        except nbd.Error:
            return None

    def write(self, *clusters, fresh=True):
        """Acknowledged writes of a pattern that no other write has."""
        if fresh:
            self.connect_guests()
        self.step += 1
        for d in DISKS:
            for c in clusters:
                put(self.guests[d], bytes([self.step]) * K, c * K)
                self.written[d].add(c)

    def incremental(self, tag, disks=DISKS):
        return [action("blockdev-backup", backup(
            d, "t-" + d, tag + "-" + d, sync="incremental", bitmap="b"))
            for d in disks]

    def arm(self, path=None):
        with open(path or self.kill_file, "w"):
            pass

    def release(self):
        os.unlink(self.park_file)

    def parked(self):
        procs.wait_until(lambda: os.path.exists(self.park_file + ".parked"),
                         "a thread has come to the place")

    def died(self, kill_nbdkit=False):
        """stillpointd is dead; it comes back, unarmed."""
        procs.wait_until(lambda: not self.server.child.alive(),
                         "stillpointd dies")
        if kill_nbdkit:
            self.server.kill9_nbdkit()
        self.restart()

    def restart(self):
        self.server.close_clients()
        self.server.start()
        self.q = self.server.qmp()

    def kill_daemon(self):
        self.server.kill9()

    def holds(self, name="b"):
        """No bitmap is inconsistent, and all that was written is in them."""
        for d in DISKS:
            info = self.q.bitmap(d, name)
            assert not info.get("inconsistent"), info
            assert info["recording"] and not info["busy"], info
            assert info["count"] >= K * len(self.written[d]), (d, info)

    def settled(self):
        """Names, exports and jobs are as they were; a chain goes on."""
        nodes = {n["node-name"] for n in self.q.cmd("query-named-block-nodes")}
        assert nodes >= set(DISKS) | {"t-" + d for d in DISKS}
        assert {e["id"] for e in self.q.cmd("query-block-exports")} == {
            "e-" + d for d in DISKS}
        procs.wait_until(lambda: [
            j for j in self.q.cmd("query-jobs")
            if j["status"] != "concluded"] == [], "no job is left")

    def next_incremental_equals_the_disk(self, never=True):
        self.settled()
        self.write(100)
        start = len(self.q.events)
        self.q.cmd("transaction", actions=self.incremental("next"))
        self.q.jobs_succeed(*["next-" + d for d in DISKS], start=start)
        for d in DISKS:
            self.guests[d].flush()
            guest.same(os.path.join(self.dir, d + ".img"),
                       self.targets[d].path)
            assert self.q.bitmap(d, "b")["count"] == 0
        if never:
            self.holds("never")
