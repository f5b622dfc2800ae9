# SPDX-License-Identifier: BSD-3-Clause
"""bench's rows for guests that write while a backup of their disk runs."""
import __main__ as bench        # tests/bench/bench itself
import functools
import os
import subprocess
import time

import nbd

from stillpoint_test import daemon, target


def disturbed(b, make, image, t, depth, window=None):
    """Share of a guest's write rate that is left while a backup runs; with a
    window the backup is cancelled after it: (share, rates, cancel time)."""
    with b.scope():
        s = make()
        uri = s.disk("disk", image.path)
        s.target(t, "target")
        load = b.load(uri, image.size, "--depth", depth)
        load.resume()
        time.sleep(0.3)
        a, start = load.acked(), time.monotonic()
        time.sleep(1 if b.o.quick else 2)
        before = (load.acked() - a) / (time.monotonic() - start)
        a, start = load.acked(), time.monotonic()
        job, position = s.begin("disk", "target")
        cancel = None
        if window:
            s.q.drain_events(0.0001)
            time.sleep(window)
            during = (load.acked(120) - a) / (time.monotonic() - start)
            started = time.monotonic()
            if s.q.cmd("query-jobs"):  # else the window was too long for it
                s.q.cmd("job-cancel", id=job)
                s.q.wait_job(job, position, 120)
                cancel = time.monotonic() - started
        else:
            s.end(job, position)
            during = (load.acked(120) - a) / (time.monotonic() - start)
        load.pause(120)
        s.close()
        return during / before, before, during, cancel


def bare(b, image, t, depth, window):
    """The same guest on the least that any copy-before-write does
    (tests/tools/bare-cbw.c), while nbdcopy reads the image into the target:
    what this machine leaves whoever does it.  (share, rates, None)."""
    with b.scope():
        s = b.keep(target.Target(b.fresh_dir("bare"), "bare", unix=True))
        s.nbdkit(daemon.tool("nbdkit-bare-cbw-plugin.so"),
                 "file=" + image.path, "store=" + b.path("bare.store"))
        load = b.load(s.uri(), image.size, "--depth", depth)
        load.resume()
        time.sleep(0.3)
        a, start = load.acked(), time.monotonic()
        time.sleep(1 if b.o.quick else 2)
        before = (load.acked() - a) / (time.monotonic() - start)
        h = nbd.NBD()
        h.connect_uri(s.uri())
        h.cache(4096, 0)                # from here on it copies
        a, start = load.acked(), time.monotonic()
        with subprocess.Popen(["nbdcopy", "--connections=4", image.path,
                               t.uri()], stderr=subprocess.DEVNULL) as copy:
            time.sleep(window)
            during = (load.acked(120) - a) / (time.monotonic() - start)
            copy.kill()
        load.pause(120)
        h.shutdown()
    os.unlink(b.path("bare.store"))
    return during / before, before, during, None


def disturbed_row(b, label, limit, make_target, window):
    image = bench.MixedImage(b)
    cancels = {}
    sides = [(name, functools.partial(disturbed, b, make))
             for name, make in b.sides()]
    if window:
        sides.append(("bare", functools.partial(bare, b)))
    for depth in (1, 16):
        got = {}
        for turn in range(b.o.repeat or 3):
            for name, side in sides:
                if window is None:
                    image.shape()
                with b.scope():
                    t = make_target(image.size)
                    got.setdefault(name, []).append(
                        side(image, t, depth, window))
                    os.unlink(t.path)
        share = {k: bench.median(x[0] for x in v) for k, v in got.items()}
        rate = {k: bench.median(x[2] for x in v) for k, v in got.items()}
        peers = {k + " share": share[k] for k in ("qsd", "bare")
                 if k in share}
        for k, v in got.items():
            peers[k + " IOPS"] = "%.0f > %.0f" % (
                bench.median(x[1] for x in v), rate[k])
            cancels.setdefault(k, []).extend(
                x[3] for x in v if x[3] is not None)
        b.row("guest write share, %s, depth %d" % (label, depth),
              share.get("stillpoint"), limit, True, peers=peers, detail=got)
        if window:
            b.row("  its rate, to a bare copy-before-write's",
                  bench.ratio(rate.get("stillpoint"), rate["bare"]), 0.9, True)
    image.remove()
    return cancels


def fast(b):
    """guests during a full backup to a fast target"""
    disturbed_row(b, "fast target", 0.3,
                  lambda size: b.file_target("target", size), None)


def slow(b):
    """guests during a backup to a target of 20 MB/s; cancelling it"""
    cancels = disturbed_row(
        b, "target of 20 MB/s", 0.7,
        lambda size: b.file_target("target", size, **target.slow_target(20)),
        2 if b.o.quick else 4)
    mine = cancels.get("stillpoint")
    b.row("cancelling a job whose target takes 20 MB/s",
          max(mine) if mine else None, 0.2, False, "s",
          peers={"qsd": bench.median(cancels["qsd"])}, detail=cancels)


def far(b):
    """guests during a backup to a target that answers after 10 ms"""
    disturbed_row(
        b, "target 10 ms away", 0.7,
        lambda size: b.file_target(
            "target", size, filters=["delay"],
            parameters=["delay-write=10ms", "delay-zero=10ms",
                        "delay-read=10ms"]), 2 if b.o.quick else 4)


BENCHES = {
    "during-fast": fast,
    "during-slow": slow,
    "during-far": far,
}
