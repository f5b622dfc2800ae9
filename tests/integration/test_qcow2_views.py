# SPDX-License-Identifier: BSD-3-Clause
"""A backup reads a qcow2 image that guests change, at the bad moments."""
import os
import subprocess

import pytest

from stillpoint_test import guest, procs, qcow2
from stillpoint_test.qmp import backup

M = 1 << 20
SIZE = 64 * M
pytestmark = pytest.mark.needs("stillpoint")


class Scene:
    """A guest on an image, a raw target, and a place at which a thread of
    stillpointd waits."""

    def __init__(self, dir, server):
        self.dir, self.server = dir, server
        self.park_file = os.path.join(dir, "park")

    def path(self, name):
        return os.path.join(self.dir, name)

    def start(self, image, park, **more):
        self.server.start(STILLPOINT_PARK_AT="%s:%s" % (park,
                                                        self.park_file))
        self.q = self.server.qmp()
        self.q.cmd("blockdev-add", qcow2.blockdev(image, discard="unmap",
                                                  **more))
        self.q.cmd("block-export-add", type="nbd", id="exp",
                   node_name="disk0", name="disk0", writable=True)
        self.target = guest.make_image(self.path("target"), SIZE)
        self.q.cmd("blockdev-add", driver="file", node_name="target0",
                   filename=self.target)

    def io(self, *commands):
        argv = ["qemu-io", "-f", "raw"]
        for c in commands:
            argv += ["-c", c]
        qcow2.run(*argv, self.server.uri("disk0"))

    def instant(self):
        out = self.path("then")
        subprocess.run(["nbdcopy", "--flush", self.server.uri("disk0"), out],
                       check=True)
        return out

    def begin(self, **kw):
        """The backup's command is on its way; a thread has come to the
        place."""
        open(self.park_file, "w").close()
        self.q.send({"execute": "blockdev-backup",
                     "arguments": backup("disk0", "target0", "j", **kw)})
        procs.wait_until(lambda: os.path.exists(self.park_file + ".parked"),
                         "a thread has come to the place")

    def go_on(self):
        os.unlink(self.park_file)

    def end(self):
        assert self.q.receive()["return"] == {}
        self.q.jobs_succeed("j")


@pytest.fixture
def scene(dir, make_server):
    s = Scene(dir, make_server())
    yield s
    if os.path.exists(s.park_file):
        s.go_on()


def test_rule_6_a_reader_sees_what_came_between_its_opening_and_the_cut(
        scene):
    """It has read an L1 table that was empty."""
    scene.start(qcow2.create(scene.path("disk"), SIZE), "transaction.made")
    scene.begin()
    scene.io("write -P 7 3M 5M", "flush")
    scene.go_on()
    scene.end()
    then = guest.make_image(scene.path("then"), SIZE)
    qcow2.io(then, "write -P 7 3M 5M", fmt="raw")
    guest.same(then, scene.target)


@pytest.mark.parametrize("place", ["transaction.published",
                                   "stream.before-read",
                                   "reader.after-extent"])
def test_space_is_held_while_a_reader_may_look_there(scene, place):
    """Every compressed cluster is moved by a small write, and what they gave
    up would be written over, between the reader's look at the tables and its
    look at the data.  (Before that look, what moved is read behind what was the
    end of the file at the cut.)"""
    raw = scene.path("raw")
    with open(raw, "wb") as f:
        for i in range(32 * M // 65536):
            f.write((b"%-31d\n" % i) * 2048)
        f.truncate(SIZE)
    image = scene.path("disk")
    qcow2.run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw,
              image)
    scene.start(image, place)
    then = scene.instant()
    scene.begin()
    scene.io(*["write -P 1 %dk 4k" % (64 * i + 4 * (i % 16))
               for i in range(512)], "flush", "discard 20M 2M", "flush",
             "write -P 2 32M 30M", "flush")
    scene.go_on()
    scene.end()
    guest.same(then, scene.target)
    scene.io("flush", "write -P 3 0 1M", "flush")
    scene.q.cmd("block-export-del", id="exp", mode="hard")
    scene.q.cmd("blockdev-del", node_name="disk0")
    qcow2.check(image)


def test_snapshots_clusters_are_copied_while_a_reader_looks(scene):
    image = qcow2.create(scene.path("disk"), SIZE)
    qcow2.io(image, "write -P 5 0 32M")
    qcow2.run("qemu-img", "snapshot", "-c", "one", image)
    scene.start(image, "stream.before-read")
    then = scene.instant()
    scene.begin()
    scene.io(*["write -P 1 %dk 4k" % (64 * i + 4 * (i % 16))
               for i in range(512)], "flush", "write -P 2 32M 30M", "flush")
    scene.go_on()
    scene.end()
    guest.same(then, scene.target)
    scene.q.cmd("block-export-del", id="exp", mode="hard")
    scene.q.cmd("blockdev-del", node_name="disk0")
    qcow2.check(image)


def test_a_new_data_plane_holds_before_it_lets_guests_in(scene):
    """nbdkit dies while a backup reads; the view goes on in the next one."""
    raw = scene.path("raw")
    with open(raw, "wb") as f:
        for i in range(32 * M // 65536):
            f.write((b"%-31d\n" % i) * 2048)
        f.truncate(SIZE)
    image = scene.path("disk")
    qcow2.run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw,
              image)
    scene.start(image, "stream.before-read")
    then = scene.instant()
    scene.begin()
    old = scene.server.kill9_nbdkit()
    scene.server.wait_new_nbdkit(old)
    scene.io(*["write -P 1 %dk 4k" % (64 * i + 4 * (i % 16))
               for i in range(512)], "flush", "write -P 2 32M 30M", "flush")
    scene.go_on()
    scene.end()
    guest.same(then, scene.target)
    scene.q.cmd("block-export-del", id="exp", mode="hard")
    scene.q.cmd("blockdev-del", node_name="disk0")
    qcow2.check(image, leaks=True)
