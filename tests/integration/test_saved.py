# SPDX-License-Identifier: BSD-3-Clause
"""Persistent bitmaps of raw images over a restart of the host: the rules of
src/daemon/saved.h.

A host that was restarted has lost its shared memory and has another boot id.
"""
import glob
import json
import os

import pytest

from stillpoint_test import guest, procs
from stillpoint_test.qmp import backup
from stillpoint_test.rig import put

pytestmark = pytest.mark.needs("restart")
K = 65536
M = 1 << 20


class Disk:
    """disk0 with persistent bitmaps and a guest that can be connected."""

    def __init__(self, server, dir, make_target, connect):
        self.server, self.connect = server, connect
        self.folder = os.path.join(dir, "images")
        os.mkdir(self.folder)
        self.path = guest.make_image(os.path.join(self.folder, "disk.img"),
                                     16 * M, [(0, 2 * M)])
        self.target = make_target("t")
        self.target.file(os.path.join(dir, "disk.target"), 16 * M)
        self.written = 0

    def begin(self, **env):
        self.server.start(**env)
        self.q = self.server.qmp()
        self.q.cmd("blockdev-add", driver="file", node_name="disk0",
                   filename=self.path)
        self.q.cmd("block-export-add", type="nbd", id="e0",
                   node_name="disk0", name="disk0", writable=True)
        for name, more in (("b", {}), ("off", {"disabled": True})):
            self.q.cmd("block-dirty-bitmap-add", node="disk0", name=name,
                       persistent=True, **more)
        self.q.cmd("block-dirty-bitmap-add", node="disk0", name="short")
        self.q.cmd("blockdev-add", self.target.blockdev("t"))
        self.q.cmd("blockdev-backup", backup("disk0", "t", "full"))
        self.q.jobs_succeed("full")
        return self

    def write(self, *clusters):
        h = procs.wait_until(self.guest, "the export is back")
        self.written += 1
        for c in clusters:
            put(h, bytes([self.written]) * K, c * K)
        h.shutdown()

    def guest(self):
        try:
            return self.connect(self.server.uri("disk0"))
        except Exception:
            return None

    def end(self):
        assert self.server.stop() == 0
        procs.wait_until(lambda: not self.server.nbdkit_pid(), "nbdkit ends")

    def kill(self):
        self.server.kill9()
        self.server.kill9_nbdkit()

    def registry_path(self):
        return os.path.join(self.server.state, "registry.json")

    def registry(self):
        with open(self.registry_path()) as f:
            return json.load(f)

    def reboot(self):
        """The host, not the programs: they are gone."""
        for path in glob.glob(os.path.join(self.server.shm, "*")):
            os.unlink(path)
        doc = self.registry()
        doc["boot-id"] = "another"
        with open(self.registry_path(), "w") as f:
            json.dump(doc, f)

    def again(self, **env):
        self.server.start(**env)
        self.q = self.server.qmp()

    def checkpoints(self):
        return glob.glob(os.path.join(self.server.state, "epochs", "*"))

    def holds(self, name, clusters):
        info = self.q.bitmap("disk0", name)
        assert not info.get("inconsistent"), info
        assert info["count"] == clusters * K, info
        return info

    def lost(self, name="b"):
        info = self.q.bitmap("disk0", name)
        assert info["inconsistent"] is True, info
        assert not info["recording"], info

    def chain_goes_on(self):
        self.q.cmd("blockdev-backup", backup(
            "disk0", "t", "inc", sync="incremental", bitmap="b"))
        self.q.jobs_succeed("inc")
        guest.same(self.path, self.target.path)
        assert self.q.bitmap("disk0", "b")["count"] == 0


@pytest.fixture
def disk(make_server, dir, make_target, connect):
    return Disk(make_server(), dir, make_target, connect)


def test_bitmaps_outlive_an_orderly_restart_of_the_host(disk):
    disk.begin()
    disk.write(3, 7, 200)
    disk.end()
    disk.reboot()
    disk.again()
    assert disk.holds("b", 3)["recording"]
    assert not disk.holds("off", 0)["recording"]
    disk.lost("short")                      # it was not to be kept
    disk.write(9)
    disk.holds("b", 4)
    disk.chain_goes_on()


def test_they_outlive_several_of_them(disk):
    disk.begin()
    for i in range(3):
        disk.write(10 + i)
        disk.end()
        disk.reboot()
        disk.again()
        disk.holds("b", i + 1)
    disk.chain_goes_on()
    disk.end()
    disk.reboot()
    disk.again()
    disk.holds("b", 0)


def test_they_come_back_when_only_the_memory_is_gone(disk):
    """The same boot: somebody has cleaned up."""
    disk.begin()
    disk.write(3, 7)
    disk.end()
    for path in glob.glob(os.path.join(disk.server.shm, "*")):
        os.unlink(path)
    disk.again()
    disk.holds("b", 2)
    disk.chain_goes_on()


def test_file_below_a_raw_node_is_known_again(disk, dir):
    disk.begin()
    path = guest.make_image(os.path.join(dir, "other.img"), 4 * M, [])
    disk.q.cmd("blockdev-add", {
        "driver": "raw", "node-name": "part", "offset": M, "file": {
            "driver": "file", "filename": path}})
    disk.q.cmd("block-export-add", type="nbd", id="e1", node_name="part",
               name="part", writable=True)
    disk.q.cmd("block-dirty-bitmap-add", node="part", name="p",
               persistent=True, granularity=4096)
    disk.connect(disk.server.uri("part")).pwrite(b"x" * 4096, 8192)
    disk.end()
    disk.reboot()
    disk.again()
    assert disk.q.bitmap("part", "p")["count"] == 4096


def test_nothing_is_left_in_the_state_directory_once_it_is_used(disk):
    disk.begin()
    disk.write(3)
    assert disk.checkpoints() == []
    disk.end()
    assert disk.checkpoints() != []
    disk.again()
    assert disk.checkpoints() == []


def test_saved_rule_1_nothing_is_saved_while_nbdkit_goes_on(disk):
    disk.server.extra = ["--keep-nbdkit"]
    disk.begin()
    disk.write(3)
    assert disk.server.stop() == 0
    disk.write(5)                           # its nbdkit is there
    assert disk.checkpoints() == []
    disk.server.kill9_nbdkit()
    disk.reboot()
    disk.again()
    disk.lost()


def test_saved_rule_1_nothing_is_saved_by_a_death(disk):
    disk.begin()
    disk.write(3)
    disk.kill()
    disk.reboot()
    disk.again()
    disk.lost()


def test_saved_rule_3_files_without_a_registry_that_knows_them(disk):
    """It dies when the files are there and the registry says nothing."""
    kill = disk.server.dir + "/kill"
    disk.begin(STILLPOINT_KILL_AT="saved.written:" + kill)
    disk.write(3)
    with open(kill, "w"):
        pass
    disk.server.stop()
    assert disk.checkpoints() != []
    disk.reboot()
    disk.again()
    disk.lost()


def test_saved_rule_3_what_cannot_be_written_is_not_saved(disk):
    disk.begin()
    disk.write(3)
    with open(os.path.join(disk.server.state, "epochs"), "w"):
        pass                                # no folder can be made
    disk.end()
    assert "not outlive a restart of the host" in disk.server.child.stderr()
    assert not [b for n in disk.registry()["nodes"] for b in n["bitmaps"]
                if b.get("saved")]
    disk.reboot()
    disk.again()
    disk.lost()


@pytest.mark.parametrize("moment", ["saved", "written"])
def test_saved_rule_4_it_counts_once(disk, moment):
    """After the next start the files say less than what is true."""
    disk.begin()
    disk.write(3)
    disk.end()
    disk.reboot()
    park = disk.server.dir + "/park"
    if moment == "saved":                   # nbdkit has got no node yet
        with open(park, "w"):
            pass
        disk.server.child = procs.Child(
            disk.server.argv(), mark=disk.server.mark,
            stderr_path=disk.server.log,
            env={"STILLPOINT_PARK_AT": "recover.saved:" + park})
        procs.wait_until(lambda: os.path.exists(park + ".parked"), "parked")
    else:
        disk.again()
        disk.write(5)
    disk.kill()
    if os.path.exists(park):
        os.unlink(park)
    disk.reboot()
    disk.again()
    disk.lost()


def touch_back(path, change):
    """Somebody who leaves no trace in the time of the last write."""
    st = os.stat(path)
    change()
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


def rewrite(path):
    with open(path, "r+b") as f:
        f.seek(5 * K)
        f.write(b"other")


@pytest.mark.parametrize("how", ["written", "written, times put back",
                                 "longer", "another file", "times alone"])
def test_saved_rule_5_an_image_that_somebody_changed(disk, how):
    disk.begin()
    disk.write(3)
    disk.end()
    disk.reboot()
    if how == "written":
        rewrite(disk.path)
    elif how == "written, times put back":
        touch_back(disk.path, lambda: rewrite(disk.path))
    elif how == "longer":
        touch_back(disk.path, lambda: os.truncate(disk.path, 17 * M))
    elif how == "another file":
        os.rename(disk.path, disk.path + ".old")
        with open(disk.path + ".old", "rb") as a, open(disk.path, "wb") as b:
            b.write(a.read())
    else:
        os.utime(disk.path)
    disk.again()
    disk.lost()
    reason = [b["x-reason"] for n in disk.q.cmd("query-named-block-nodes")
              if n["node-name"] == "disk0" for b in n["dirty-bitmaps"]
              if b["name"] == "b"]
    assert "while Stillpoint did not run" in reason[0] or \
        "another file" in reason[0]


@pytest.mark.parametrize("how", ["missing", "cut", "another byte"])
def test_saved_rule_6_a_file_that_is_missing_or_damaged(disk, how):
    disk.begin()
    disk.write(3)
    disk.end()
    disk.reboot()
    for path in disk.checkpoints():
        size = os.path.getsize(path)
        if how == "missing":
            os.unlink(path)
        elif how == "cut":
            os.truncate(path, size - 8)
        else:
            # where the head of a file without bits is not
            with open(path, "r+b") as f:
                f.seek(size - 1)
                byte = f.read(1)[0]
                f.seek(size - 1)
                f.write(bytes([byte ^ 1]))
    disk.again()
    disk.lost()


def test_bitmaps_of_a_lost_node_wait_with_it(disk):
    """Two restarts of the host, and the image is not there after the
    first."""
    disk.begin()
    disk.write(3)
    disk.end()
    disk.reboot()
    os.rename(disk.folder, disk.folder + ".away")
    disk.again()
    assert "disk0" not in [n["node-name"] for n in
                           disk.q.cmd("query-named-block-nodes")]
    disk.end()
    disk.reboot()
    os.rename(disk.folder + ".away", disk.folder)
    disk.again()
    disk.holds("b", 1)
    disk.chain_goes_on()
