# SPDX-License-Identifier: BSD-3-Clause
"""Block devices of the host as guests' disks and as targets: driver
host_device over loop devices.  Needs root."""
import os
import subprocess

import pytest

from stillpoint_test import guest
from stillpoint_test.qmp import action, backup

pytestmark = pytest.mark.needs("stillpoint")
K = 65536
M = 1 << 20
SIZE = 16 * M


class Loop:
    """A loop device over a file."""

    def __init__(self, path, *options):
        self.path = path
        r = subprocess.run(["losetup", "--find", "--show", *options, path],
                           capture_output=True, text=True)
        if r.returncode:
            pytest.skip("no loop devices here: " + r.stderr.strip())
        self.device = r.stdout.strip()

    def drop_caches(self):
        """What was written is in the file, and is read from there."""
        subprocess.run(["blockdev", "--flushbufs", self.device], check=True)

    def allocated(self):
        self.drop_caches()
        os.sync()
        return guest.allocated(self.path)

    def cleanup(self):
        subprocess.run(["losetup", "--detach", self.device], check=False)


@pytest.fixture
def make_loop(dir):
    """make_loop(name): its file is on the file system of dir."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    made = []

    def make(name, size=SIZE, data=((0, 4 * M),), options=()):
        path = guest.make_image(os.path.join(dir, name + ".img"), size, data)
        made.append(Loop(path, *options))
        return made[-1]
    yield make
    for loop in made:
        loop.cleanup()


@pytest.fixture
def server(make_server, dir, make_loop):
    # make_loop comes first, so that devices are let go after the server
    s = make_server()
    s.allow = [dir, "/dev"]
    return s.start()


def add(q, loop, node="disk0", **more):
    args = {"driver": "host_device", "node-name": node,
            "filename": loop.device}
    args.update({k.replace("_", "-"): v for k, v in more.items()})
    q.cmd("blockdev-add", args)


@pytest.fixture
def disk(q, disks, make_loop):
    loop = make_loop("disk0")
    add(q, loop, discard="unmap")
    disks.export("disk0")
    return loop


def test_device_is_described(q, disk):
    (node,) = q.cmd("query-named-block-nodes")
    assert node["drv"] == "host_device"
    assert node["image"]["virtual-size"] == SIZE
    assert node["file"] == disk.device


def test_guest_reads_and_writes_the_device(q, disks, connect, disk):
    h = connect(disks.uri())
    assert h.get_size() == SIZE
    with open(disk.path, "rb") as f:
        assert bytes(h.pread(M, 0)) == f.read(M)
    h.pwrite(b"w" * K, 5 * M)
    h.pwrite(b"odd", 6 * M + 5)
    h.flush()
    assert bytes(h.pread(K, 5 * M)) == b"w" * K
    disk.drop_caches()
    with open(disk.path, "rb") as f:
        f.seek(5 * M)
        assert f.read(K) == b"w" * K
        f.seek(6 * M + 5)
        assert f.read(3) == b"odd"


def test_discard_and_zeroes_reach_the_device(q, disks, connect, disk):
    h = connect(disks.uri())
    before = disk.allocated()
    assert before >= 4 * M
    h.trim(M, 0)
    h.zero(M, 2 * M)
    h.zero(4096 + 512, 3 * M + 512)
    h.flush()
    assert bytes(h.pread(M, 0)) == bytes(M)
    assert bytes(h.pread(M, 2 * M)) == bytes(M)
    assert bytes(h.pread(4096 + 512, 3 * M + 512)) == bytes(4096 + 512)
    assert any(h.pread(512, 3 * M))
    assert disk.allocated() <= before - M + K


def test_full_and_incremental_backup_of_a_device(server, q, disks, connect,
                                                 disk, backup_node):
    t = backup_node()
    h = connect(disks.uri())
    q.cmd("transaction", actions=[
        action("block-dirty-bitmap-add", node="disk0", name="b"),
        action("blockdev-backup", backup("disk0", "target0", "full"))])
    h.pwrite(b"during" * K, 8 * M)
    q.jobs_succeed("full")
    h.pwrite(b"n" * K, 3 * M)
    h.zero(2 * K, M)
    h.trim(K, 10 * M)
    h.flush()
    server.kill9()                          # and it is known again
    server.start()
    q = server.qmp()
    assert q.bitmap("disk0", "b")["count"] >= 4 * K
    assert not q.bitmap("disk0", "b").get("inconsistent")
    q.cmd("blockdev-backup", backup("disk0", "target0", "inc",
                                    sync="incremental", bitmap="b"))
    q.jobs_succeed("inc")
    disk.drop_caches()
    guest.same(disk.path, t.path)


def test_both_processes_die_and_the_device_comes_back(server, q, disks,
                                                      connect, disk,
                                                      backup_node):
    t = backup_node()
    q.cmd("transaction", actions=[
        action("block-dirty-bitmap-add", node="disk0", name="b"),
        action("blockdev-backup", backup("disk0", "target0", "full"))])
    q.jobs_succeed("full")
    connect(disks.uri()).pwrite(b"1" * K, 7 * M)
    server.kill9()
    server.kill9_nbdkit()
    server.start()
    q = server.qmp()
    h = connect(disks.uri())
    h.pwrite(b"2" * K, 9 * M)
    h.flush()
    assert not q.bitmap("disk0", "b").get("inconsistent")
    q.cmd("blockdev-backup", backup("disk0", "target0", "inc",
                                    sync="incremental", bitmap="b"))
    q.jobs_succeed("inc")
    disk.drop_caches()
    guest.same(disk.path, t.path)


def test_device_with_large_sectors(q, disks, connect, make_loop, backup_node):
    """Guests are told, and what is smaller works all the same."""
    loop = make_loop("disk0", options=["--sector-size", "4096"])
    add(q, loop, cache={"direct": True})
    disks.export("disk0")
    t = backup_node()
    h = connect(disks.uri())
    h.pwrite(b"a" * 8192, 4096)
    h.pwrite(b"small", 12 * K + 100)
    h.flush()
    assert bytes(h.pread(5, 12 * K + 100)) == b"small"
    q.cmd("blockdev-backup", backup("disk0", "target0", "full"))
    q.jobs_succeed("full")
    loop.drop_caches()
    guest.same(loop.path, t.path)


def test_device_that_cannot_be_written_is_refused_as_a_disk(q, make_loop):
    loop = make_loop("ro", options=["--read-only"])
    e = q.error("blockdev-add", driver="host_device", node_name="n",
                filename=loop.device)
    assert e.desc == "Could not open '%s': Permission denied" % loop.device
    add(q, loop, "n", read_only=True)
    q.cmd("blockdev-del", node_name="n")
    add(q, loop, "n", auto_read_only=True)
    (node,) = q.cmd("query-named-block-nodes")
    assert node["ro"] is True


def test_driver_and_file_must_fit(q, dir, make_loop):
    loop = make_loop("disk0")
    e = q.error("blockdev-add", driver="file", node_name="n",
                filename=loop.device)
    assert "regular file" in e.desc, e.desc
    e = q.error("blockdev-add", driver="host_device", node_name="n",
                filename=loop.path)
    assert "block device" in e.desc, e.desc


def test_device_outside_the_allowed_directories_is_refused(make_server, dir,
                                                           make_loop):
    loop = make_loop("disk0")
    s = make_server(name="narrow")
    s.start()
    e = s.qmp().error("blockdev-add", driver="host_device", node_name="n",
                      filename=loop.device)
    assert "outside the allowed directories" in e.desc
