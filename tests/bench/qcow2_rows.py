# SPDX-License-Identifier: BSD-3-Clause
"""bench's rows for qcow2: the same image format served by both sides, each
with an image of its own that qemu-img made alike."""
import __main__ as bench        # tests/bench/bench itself
import contextlib
import os
import subprocess
import time

from stillpoint_test import qcow2

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


def add(s, name, path, **more):
    s.q.cmd("blockdev-add", qcow2.blockdev(path, name, discard="unmap",
                                           **more))
    s.q.cmd("block-export-add", type="nbd", id="e-" + name, node_name=name,
            name=name, writable=True)
    return s.server.uri(name)


def filled(b, name, size):
    """Every cluster allocated, with data."""
    path = qcow2.create(b.path(name), size)
    for at in range(0, size, 256 * MIB):
        qcow2.io(path, "write -P %d %d %d" % (
            1 + at // (256 * MIB) % 255, at, min(256 * MIB, size - at)))
    return path


def forget(b, *names):
    for name in names:
        with contextlib.suppress(OSError):
            os.unlink(b.path(name))


def load_row(b, label, limit, make_image, size, repeat, seconds, *options):
    """Rates of one kind of load on both sides, taken in turns."""
    with b.scope():
        uris = {}
        for name, make in b.sides():
            uris[name] = add(make(), "disk", make_image(b, name + ".qcow2",
                                                        size))
        rates = bench.slices({name: b.load(uri, size, *options)
                              for name, uri in uris.items()},
                             seconds, b.o.repeat or repeat)
        mid = {k: bench.median(v) for k, v in rates.items()}
        b.row("qcow2 %s, to qsd" % label,
              bench.ratio(mid.get("stillpoint"), mid["qsd"]), limit, True,
              peers=mid, detail=rates)
    forget(b, "stillpoint.qcow2", "qsd.qcow2")


def guest(b):
    """guests on qcow2: 4 KiB at random, 1 MiB in sequence"""
    size = 256 * MIB if b.o.quick else GIB
    seconds, repeat = (0.4, 6) if b.o.quick else (0.8, 8)
    for mode, options in ("read", ("--read", 100)), ("write", ()):
        for depth in 1, 32:
            load_row(b, "guest %s depth %d, allocated" % (mode, depth), 1.5,
                     filled, size, repeat, seconds, "--depth", depth,
                     *options)
    # Few requests, so that nearly all of them find nothing and memory lasts.
    for depth in 1, 32:
        load_row(b, "guest write depth %d, not allocated" % depth, 1.5,
                 lambda b, name, n: qcow2.create(b.path(name), n),
                 256 * GIB, 4, 0.3, "--depth", depth)
    for mode, options in ("read", ("--read", 100)), ("write", ()):
        load_row(b, "1 MiB in sequence, %s depth 4" % mode, 1.3, filled,
                 size, repeat, seconds, "--sequential", "--block", MIB,
                 "--depth", 4, *options)


def full(b):
    """full backup of a qcow2 disk to an NBD target"""
    size = GIB if b.o.quick else 4 * GIB
    image = filled(b, "image.qcow2", size)
    wall = {}
    for turn in range(b.o.repeat or (2 if b.o.quick else 5)):
        sides = b.sides()
        for name, make in sides if turn % 2 else list(reversed(sides)):
            with b.scope():
                t = b.file_target("target", size)
                s = make()
                add(s, "disk", image)
                s.target(t, "target")
                wall.setdefault(name, []).append(s.run("disk", "target"))
                s.close()
                os.unlink(t.path)
    forget(b, "image.qcow2")
    speed = {k: size / MIB / bench.median(v) for k, v in wall.items()}
    b.row("qcow2 full backup speed, to qsd",
          bench.ratio(speed.get("stillpoint"), speed["qsd"]), 1.5, True,
          peers={k + " MiB/s": v for k, v in speed.items()}, detail=wall)


def during(b):
    """guests on qcow2 during a full backup to a fast target"""
    size = GIB if b.o.quick else 4 * GIB
    for depth in 1, 16:
        got = {}
        for _ in range(b.o.repeat or (1 if b.o.quick else 3)):
            for name, make in b.sides():
                image = filled(b, "image.qcow2", size)
                with b.scope():
                    t = b.file_target("target", size)
                    got.setdefault(name, []).append(
                        one_share(b, make, image, size, t, depth))
                    os.unlink(t.path)
                forget(b, "image.qcow2")
        share = {k: bench.median(v) for k, v in got.items()}
        b.row("qcow2 guest write share, fast target, depth %d" % depth,
              share.get("stillpoint"), 0.3, True,
              peers={"qsd share": share["qsd"]}, detail=got)


def one_share(b, make, image, size, t, depth):
    with b.scope():
        s = make()
        uri = add(s, "disk", image)
        s.target(t, "target")
        load = b.load(uri, size, "--depth", depth)
        load.resume()
        time.sleep(0.3)
        a, start = load.acked(), time.monotonic()
        time.sleep(1 if b.o.quick else 2)
        before = (load.acked() - a) / (time.monotonic() - start)
        a, start = load.acked(), time.monotonic()
        s.end(*s.begin("disk", "target"))
        during_it = (load.acked(120) - a) / (time.monotonic() - start)
        load.pause(120)
        s.close()
        return during_it / before


def chain(b):
    """opening a 16 TiB image with a chain of 32"""
    names = ["c%d" % i for i in range(32)]
    for i, name in enumerate(names):
        path = qcow2.create(b.path(name), 16 * TIB, **(
            {"backing": names[i - 1]} if i else {}))
        # tables all over the disk, as one that was used has them
        qcow2.io(path, *["write %dG 4k" % g
                         for g in range(i, 16384, 128)])
    took = {}
    for _ in range(b.o.repeat or 7):
        for name, make in b.sides():
            with b.scope():
                s = make()
                began = time.monotonic()
                uri = add(s, "disk", b.path(names[-1]))
                subprocess.run(["nbdinfo", "--size", uri], check=True,
                               stdout=subprocess.DEVNULL)
                took.setdefault(name, []).append(time.monotonic() - began)
                s.close()
    forget(b, *names)
    mid = {k: bench.median(v) for k, v in took.items()}
    b.row("qcow2 16 TiB, chain of 32: time to serve it, to qsd",
          bench.ratio(mid.get("stillpoint"), mid["qsd"]), 1.0, False,
          peers={k + " s": v for k, v in mid.items()}, detail=took)


BENCHES = {
    "qcow2-guest": guest,
    "qcow2-full": full,
    "qcow2-during": during,
    "qcow2-chain": chain,
}
