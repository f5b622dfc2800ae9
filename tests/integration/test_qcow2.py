# SPDX-License-Identifier: BSD-3-Clause
"""Guests on qcow2 images, and backups of them."""
import os
import shutil
import subprocess
import threading

import pytest

from stillpoint_test import guest, qcow2
from stillpoint_test.qmp import backup

M = 1 << 20
SIZE = 64 * M
pytestmark = pytest.mark.needs("stillpoint")

VARIANTS = {
    "v3": {},
    "v2": {"compat": "0.10"},
    "512": {"cluster_size": 512},
    "2M": {"cluster_size": "2M"},
    "extended": {"extended_l2": "on", "cluster_size": "128k"},
    "refcount1": {"refcount_bits": 1},
    "lazy": {"lazy_refcounts": "on"},
    "metadata": {"preallocation": "metadata"},
}


# what an overlay can be (QEMU preallocates none of those)
OVERLAYS = [v for v in VARIANTS if v != "metadata"]


@pytest.fixture
def path(dir):
    return lambda name: os.path.join(dir, name)


class Guest:
    """An image, its node and its export."""

    def __init__(self, q, server, image, name="disk0", **more):
        self.q, self.name, self.image = q, name, image
        self.uri = server.uri(name)
        q.cmd("blockdev-add", qcow2.blockdev(image, name, **more))
        q.cmd("block-export-add", type="nbd", id="exp-" + name,
              node_name=name, name=name, writable=True)

    def io(self, *commands):
        argv = ["qemu-io", "-f", "raw"]
        for c in commands:
            argv += ["-c", c]
        out = qcow2.run(*argv, self.uri)
        assert "failed" not in out, out

    def leave(self):
        self.q.cmd("block-export-del", id="exp-" + self.name, mode="hard")
        self.q.cmd("blockdev-del", node_name=self.name)


@pytest.fixture
def serve(q, server):
    return lambda image, name="disk0", **more: Guest(q, server, image, name,
                                                     **more)


def scribble(g, seed=0):
    """Writes that begin and end anywhere, zeroes and discards."""
    g.io("write -P %d 0 3M" % (1 + seed), "write -P 2 5000k 700k",
         "write -z 1M 100k", "write -P 3 20M 1536", "discard 2M 2M",
         "write -z -u 40M 2M", "write -P %d 41000k 1k" % (4 + seed),
         "write -P 5 63M 1M", "flush")


@pytest.mark.parametrize("variant", VARIANTS)
def test_guest_sees_what_qemu_sees(serve, path, variant):
    img = qcow2.create(path("disk"), SIZE, **VARIANTS[variant])
    ref = guest.make_image(path("ref"), SIZE)
    g = serve(img, discard="unmap")
    scribble(g)
    subprocess.run(["qemu-io", "-f", "raw"] + [
        x for c in ("write -P 1 0 3M", "write -P 2 5000k 700k",
                    "write -z 1M 100k", "write -P 3 20M 1536",
                    "write -z 2M 2M", "write -z 40M 2M",
                    "write -P 4 41000k 1k", "write -P 5 63M 1M")
        for x in ("-c", c)] + [ref], check=True, stdout=subprocess.DEVNULL)
    assert guest.nbd_digest(g.uri) == guest.digest(ref)
    g.leave()
    qcow2.check(img)
    qcow2.compare(img, ref, fmt_b="raw")


@pytest.mark.parametrize("variant", OVERLAYS)
def test_guest_on_an_overlay(serve, path, variant):
    base = qcow2.create(path("base"), SIZE)
    qcow2.io(base, "write -P 99 0 32M")
    img = qcow2.create(path("disk"), backing="base", **VARIANTS[variant])
    other = shutil.copy(img, path("other"))
    scribble(serve(img))
    before = guest.digest(base)
    qcow2.io(other, "write -P 1 0 3M", "write -P 2 5000k 700k",
             "write -z 1M 100k", "write -P 3 20M 1536", "write -z 40M 2M",
             "write -P 4 41000k 1k", "write -P 5 63M 1M")
    out = qcow2.raw_copy(img, path("raw"))
    qcow2.compare(other, out, fmt_b="raw")
    assert guest.digest(base) == before


def test_guest_on_compressed_clusters_and_snapshots(serve, path):
    raw = guest.make_image(path("raw"), SIZE)
    qcow2.io(raw, "write -P 7 0 16M", "write -P 8 17M 1M", fmt="raw")
    img = path("disk")
    qcow2.run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw,
              img)
    qcow2.run("qemu-img", "snapshot", "-c", "one", img)
    g = serve(img)
    g.io("read -P 7 0 16M", "write -P 9 1M 1000", "write -P 9 17M 1M",
         "read -P 7 1050000 1M")
    g.leave()
    qcow2.check(img)
    qcow2.run("qemu-img", "convert", "-l", "one", "-f", "qcow2", "-O", "raw",
              img, path("old"))
    guest.same(raw, path("old"))


def fio(uri, *options):
    argv = ["fio", "--name=j", "--verify_state_save=0", "--ioengine=nbd", "--uri=" + uri,
            "--size=%d" % SIZE, *options]
    r = subprocess.run(argv, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout[-2000:] + r.stderr[-2000:]


@pytest.mark.skipif(not shutil.which("fio"), reason="no fio")
def test_a_dirty_image_is_repaired_when_it_is_opened(serve, path):
    """QEMU died before it had written the refcounts that it may postpone."""
    img = qcow2.create(path("disk"), SIZE, lazy_refcounts="on")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 5M",
                    "-c", "sigraise 9", img], check=False,
                   stdout=subprocess.DEVNULL)
    with open(img, "rb") as f:
        assert f.read(80)[79] & 1, "not dirty"
    g = serve(img)
    g.io("read -P 7 0 5M", "write -P 8 3M 4M")
    g.leave()
    qcow2.check(img)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "read -P 7 0 3M",
                    "-c", "read -P 8 3M 4M", img], check=True,
                   stdout=subprocess.DEVNULL)


def test_fio_verifies_random_writes(serve, path):
    img = qcow2.create(path("disk"), SIZE)
    g = serve(img, discard="unmap")
    fio(g.uri, "--rw=randwrite", "--bsrange=512-64k", "--iodepth=16",
        "--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
        "--norandommap=0", "--loops=1")
    g.leave()
    qcow2.check(img)


# --- backups -------------------------------------------------------------------

class Churn:
    """A guest that writes, zeroes and discards until it is told to stop."""

    def __init__(self, uri, seed=1):
        self.uri, self.stop, self.failed = uri, threading.Event(), None
        self.thread = threading.Thread(target=self.run, args=(seed,))

    def run(self, seed):
        import nbd
        import random
        rng = random.Random(seed)
        h = nbd.NBD()
        try:
            h.connect_uri(self.uri)
            while not self.stop.is_set():
                off = rng.randrange(0, SIZE - 256 * 1024, 512)
                n = rng.choice((512, 4096, 65536, 200 * 1024))
                what = rng.randrange(8)
                if what == 0:
                    h.trim(n, off)
                elif what == 1:
                    h.zero(n, off)
                else:
                    h.pwrite(rng.randbytes(n), off)
            h.shutdown()
        except nbd.Error as e:
            self.failed = e

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *unused):
        self.stop.set()
        self.thread.join()
        assert self.failed is None, self.failed


@pytest.fixture
def instant(q, server, dir):
    """How the disk was at a cut: a second backup to a raw file in the same
    transaction would be no oracle, so the guest is quiet while it is read."""
    def make(g, name):
        out = os.path.join(dir, name)
        subprocess.run(["nbdcopy", "--flush", g.uri, out], check=True)
        return out
    return make


def nbd_target(q, make_target, name, size=SIZE):
    t = make_target(name)
    t.file(os.path.join(t.dir, name + ".raw"), size)
    q.cmd("blockdev-add", t.blockdev(name))
    return t


@pytest.mark.parametrize("variant", OVERLAYS)
def test_backup_while_the_guest_goes_on(q, serve, path, make_target, instant,
                                        variant):
    base = qcow2.create(path("base"), SIZE)
    qcow2.io(base, "write -P 99 0 32M")
    img = qcow2.create(path("disk"), backing="base", **VARIANTS[variant])
    g = serve(img, discard="unmap")
    scribble(g)
    t = nbd_target(q, make_target, "target0")
    then = instant(g, "then")
    # the guest begins after the cut, so what was read before is the instant
    q.cmd("blockdev-backup", backup("disk0", "target0", "j",
                                    speed=32 * M))
    with Churn(g.uri):
        q.cmd("block-job-set-speed", device="j", speed=64 * M)
        q.jobs_succeed("j")
    guest.same(then, t.path)
    g.leave()
    qcow2.check(img)


def test_increments_of_a_guest_that_goes_on(q, serve, path, make_target):
    img = qcow2.create(path("disk"), SIZE, cluster_size="64k")
    g = serve(img, discard="unmap")
    scribble(g)
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    full = nbd_target(q, make_target, "full")
    q.cmd("blockdev-backup", backup("disk0", "full", "f"))
    q.jobs_succeed("f")
    for i in range(3):
        with Churn(g.uri, i):
            q.cmd("blockdev-backup", backup("disk0", "full", "i%d" % i,
                                            sync="incremental", bitmap="b"))
            q.jobs_succeed("i%d" % i)
    q.cmd("blockdev-backup", backup("disk0", "full", "last",
                                    sync="incremental", bitmap="b"))
    q.jobs_succeed("last")
    assert guest.nbd_digest(g.uri) == guest.digest(full.path)
    g.leave()
    qcow2.check(img)
