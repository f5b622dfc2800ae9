# SPDX-License-Identifier: BSD-3-Clause
"""A guest kernel that boots from a disk of ours and writes through its page
cache while backups run: every restored backup is a file system that a
machine could have had at the cut."""
import os

import pytest

from stillpoint_test import guest, qcow2, vm
from stillpoint_test.qmp import action, backup

SIZE = 128 << 20


@pytest.fixture
def boot(server, q, dir):
    """boot(**blockdev): a guest whose root is the image; its export is vm."""
    started = []

    def run(**blockdev):
        q.cmd("blockdev-add", dict({"node-name": "root", "discard": "unmap"},
                                   **blockdev))
        q.cmd("block-export-add", {"type": "nbd", "id": "vm",
                                   "node-name": "root", "name": "vm",
                                   "writable": True})
        g = vm.Guest(dir, server.nbd_unix, "vm")
        started.append(g)
        return g
    yield run
    for g in started:
        g.cleanup()


def disk(dir):
    try:
        return vm.make_disk(os.path.join(dir, "root.img"), SIZE, dir)
    except vm.Unavailable as e:
        pytest.skip(str(e))


def point_in_time(q, g, target, dir, name, **kw):
    """One more backup; (a copy of the restored disk, what must be in it)."""
    must = g.durable()
    actions = [action("blockdev-backup", backup("root", "target0", name,
                                                **kw))]
    if kw.get("sync") == "full":
        actions.insert(0, action("block-dirty-bitmap-add", node="root",
                                 name="b"))
    q.cmd("transaction", actions=actions)
    q.jobs_succeed(name, timeout=120)
    for number in g.removed():
        must.pop(number, None)
    return guest.sparse_copy(target.path, os.path.join(dir, name)), must


def backups_of(q, g, target, dir):
    g.wait_synced(8)
    full, must = point_in_time(q, g, target, dir, "full", sync="full")
    assert len(must) >= 8
    vm.check_file_system(full, dir, must)
    for i in range(3):
        g.wait_synced(max(g.durable()) + 12)
        inc, must = point_in_time(q, g, target, dir, "inc%d" % i,
                                  sync="incremental", bitmap="b")
        vm.check_file_system(inc, dir, must)


def test_a_booted_guest_on_a_raw_disk(q, dir, boot, backup_node):
    image = disk(dir)
    target = backup_node(size=SIZE)
    g = boot(driver="file", filename=image)
    backups_of(q, g, target, dir)


def to_qcow2(image, dir):
    """The disk as an overlay in which half of it is and half is not."""
    base = os.path.join(dir, "base.qcow2")
    qcow2.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, base)
    return qcow2.create(os.path.join(dir, "root.qcow2"), backing=base)


@pytest.mark.needs("stillpoint")
def test_a_booted_guest_on_a_qcow2_disk(server, q, dir, boot, backup_node):
    """With its chain, and with backups as qcow2 images."""
    top = to_qcow2(disk(dir), dir)
    target = backup_node(size=SIZE)
    g = boot(driver="qcow2", file={"driver": "file", "filename": top})
    backups_of(q, g, target, dir)
    out = qcow2.create(os.path.join(dir, "out"), SIZE)
    q.cmd("blockdev-add", qcow2.blockdev(out, "local"))
    must = g.durable()
    q.cmd("blockdev-backup", backup("root", "local", "last", compress=True))
    q.jobs_succeed("last", timeout=120)
    for number in g.removed():
        must.pop(number, None)
    q.cmd("blockdev-del", node_name="local")
    qcow2.check(out)
    vm.check_file_system(qcow2.raw_copy(out, os.path.join(dir, "raw")), dir,
                         must)
    g.cleanup()
    server.stop()
    qcow2.check(top)


@pytest.mark.needs("stillpoint")
def test_a_booted_guest_outlives_its_data_plane(server, q, dir, boot,
                                                backup_node):
    image = disk(dir)
    target = backup_node(size=SIZE)
    g = boot(driver="file", filename=image)
    g.wait_synced(5)
    for i in range(3):
        server.wait_new_nbdkit(server.kill9_nbdkit())
        g.wait_synced(max(g.durable()) + 5)
    full, must = point_in_time(q, g, target, dir, "full", sync="full")
    vm.check_file_system(full, dir, must)
