# SPDX-License-Identifier: BSD-3-Clause
"""nbdkit dies in the middle of allocating writes; its guest goes on.

STILLPOINT_KILLS=n in the environment kills it n times.
"""
import os
import random
import subprocess
import threading

from stillpoint_test import procs

SIZE = 64 << 20
BLOCK = 4096
KILLS = int(os.environ.get("STILLPOINT_KILLS", "3"))


def check(path):
    """Leaks at most: nobody could give them back."""
    r = subprocess.run(["qemu-img", "check", "-U", "-f", "qcow2", path],
                       capture_output=True, text=True)
    assert r.returncode in (0, 3), r.stdout + r.stderr


class Writer:
    """A guest of its own: block after block, until its server dies."""

    def __init__(self, h, dice, model):
        self.h, self.dice, self.model = h, dice, model
        self.acked = 0
        self.doubt = None       # of the request that got no answer
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        try:
            while True:
                at = self.dice.randrange(0, SIZE // BLOCK) * BLOCK
                data = self.dice.randbytes(BLOCK)
                self.doubt = at
                self.h.pwrite(data, at)
                self.model[at] = data
                self.doubt = None
                self.acked += 1
        except Exception:       # nbd.Error: the server is gone
            pass


def reconnect(connect, uri):
    def attempt():
        try:
            return connect(uri)
        except Exception:       # nbd.Error: not yet
            return None
    return procs.wait_until(attempt, "the guest is connected again")


def test_acknowledged_writes_outlive_nbdkit(q, server, dir, connect):
    path = os.path.join(dir, "disk0.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path,
                    str(SIZE)], check=True)
    q.cmd("blockdev-add", {
        "driver": "qcow2", "node-name": "disk0",
        "file": {"driver": "file", "filename": path}})
    q.cmd("block-export-add", {"type": "nbd", "id": "e0", "writable": True,
                               "node-name": "disk0", "name": "disk0"})
    dice, model = random.Random(11), {}
    for _ in range(KILLS):
        h = reconnect(connect, server.uri("disk0"))
        w = Writer(h, dice, model)
        procs.wait_until(lambda: w.acked >= 50 or not w.thread.is_alive(),
                         "the guest writes")
        old = server.kill9_nbdkit()
        w.thread.join(10)
        assert not w.thread.is_alive() and w.acked >= 50
        check(path)
        server.wait_new_nbdkit(old)
        h = reconnect(connect, server.uri("disk0"))
        if w.doubt is not None:
            model[w.doubt] = h.pread(BLOCK, w.doubt)
        for at, data in model.items():
            assert h.pread(BLOCK, at) == data, at


def test_an_image_that_is_given_up_has_no_leaks(q, server, dir, connect):
    path = os.path.join(dir, "disk0.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path,
                    str(SIZE)], check=True)
    q.cmd("blockdev-add", {
        "driver": "qcow2", "node-name": "disk0", "discard": "unmap",
        "file": {"driver": "file", "filename": path}})
    q.cmd("block-export-add", {"type": "nbd", "id": "e0", "writable": True,
                               "node-name": "disk0", "name": "disk0"})
    h = connect(server.uri("disk0"))
    h.pwrite(b"x" * (3 << 20), 12345)
    h.trim(1 << 20, 1 << 20)
    h.shutdown()
    # the server may not have seen yet that the guest is gone
    q.cmd("block-export-del", {"id": "e0", "mode": "hard"})
    q.wait_event("BLOCK_EXPORT_DELETED")
    q.cmd("blockdev-del", {"node-name": "disk0"})
    r = subprocess.run(["qemu-img", "check", "-f", "qcow2", path],
                       capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr


def test_image_that_is_being_closed_is_not_opened_again(server, dir, connect):
    """stillpointd dies while nbdkit closes an image, which takes a while: the
    next one must not open it before it is closed."""
    park = os.path.join(dir, "park")
    path = os.path.join(dir, "disk0.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path,
                    str(SIZE)], check=True)
    server.stop()
    server.start(STILLPOINT_PARK_AT="node.closing:" + park)
    q = server.qmp()
    q.cmd("blockdev-add", driver="qcow2", node_name="disk0",
          file={"driver": "file", "filename": path})
    q.cmd("block-export-add", type="nbd", id="e", node_name="disk0",
          name="disk0", writable=True)
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b", persistent=True)
    h = connect(server.uri("disk0"))
    h.pwrite(b"1" * BLOCK, 0)
    h.shutdown()
    nbdkit = server.nbdkit_pid()
    open(park, "w").close()
    q.send({"execute": "block-export-del", "arguments": {
        "id": "e", "mode": "hard"}, "id": 1})
    procs.wait_until(lambda: os.path.exists(park + ".parked"), "it closes")
    server.kill9()
    starting = threading.Thread(target=server.start)
    starting.start()
    starting.join(1.5)
    assert starting.is_alive()      # it waits for nbdkit
    os.unlink(park)
    starting.join()
    assert server.nbdkit_pid() == nbdkit
    h = reconnect(connect, server.uri("disk0"))
    assert h.pread(BLOCK, 0) == b"1" * BLOCK
    h.pwrite(b"2" * BLOCK, BLOCK)
    h.shutdown()
    server.stop()
    check(path)
