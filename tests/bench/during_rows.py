# SPDX-License-Identifier: BSD-3-Clause
"""bench's rows for guests that write while a backup of their disk runs."""
import __main__ as bench        # tests/bench/bench itself
import functools
import os
import subprocess
import time

import nbd

import steal
from stillpoint_test import daemon, target


def guest_rates(load, window, begin):
    """A guest's rates before and while something goes on that begin() starts
    and that takes the window's seconds, or as long as what begin returns."""
    load.resume()
    time.sleep(0.3)
    a, start = load.acked(), time.monotonic()
    time.sleep(window)
    before = (load.acked() - a) / (time.monotonic() - start)
    a, start = load.acked(), time.monotonic()
    wait = begin()
    if wait:
        wait()
    else:
        time.sleep(window)
    return before, (load.acked(120) - a) / (time.monotonic() - start)


def disturbed(b, make, speed, image, t, depth, window):
    """A guest while its disk is backed up; without a window to the end, with
    one the backup is cancelled after it.  speed() is its limit."""
    with b.scope():
        s = make()
        uri = s.disk("disk", image.path)
        s.target(t, "target")
        load = b.load(uri, image.size, "--depth", depth)
        job = []

        def begin():
            job[:] = s.begin("disk", "target", speed=speed())
            return None if window else lambda: s.end(*job)

        before, during = guest_rates(load, window or 2, begin)
        cancel = None
        s.q.drain_events(0.0001)
        if s.q.cmd("query-jobs"):  # else the window was too long for it
            started = time.monotonic()
            s.q.cmd("job-cancel", id=job[0])
            s.q.wait_job(*job, 120)
            cancel = time.monotonic() - started
        load.pause(120)
        s.close()
        return Rates(before, during, cancel, None)


def bare(b, copies, image, t, depth, window):
    """The same guest on the least that any copy-before-write does
    (tests/tools/bare-cbw.c), while nbdcopy reads the image into the target,
    or while nothing does: what this machine leaves whoever does it."""
    with b.scope():
        s = b.keep(target.Target(b.fresh_dir("bare"), "bare", unix=True))
        s.nbdkit(daemon.tool("nbdkit-bare-cbw-plugin.so"),
                 "file=" + image.path, "store=" + b.path("bare.store"))
        load = b.load(s.uri(), image.size, "--depth", depth)
        h = nbd.NBD()
        h.connect_uri(s.uri())
        copy = []

        def begin():
            h.cache(4096, 0)                # from here on it copies
            if copies:
                copy.append(subprocess.Popen(
                    ["nbdcopy", "--connections=4", image.path, t.uri()],
                    stderr=subprocess.DEVNULL))

        before, during = guest_rates(load, window, begin)
        sent = os.stat(t.path).st_blocks * 512 / window
        for process in copy:
            process.kill()
            process.wait()
        load.pause(120)
        h.shutdown()
    os.unlink(b.path("bare.store"))
    return Rates(before, during, None, sent)


class Rates:
    """What one repetition found, in requests (and bytes) per second."""

    def __init__(self, before, during, cancel, sent):
        self.before, self.during = before, during
        self.share = during / before
        self.cancel, self.sent = cancel, sent


class Disturbed:
    """One benchmark: its sides, repeated in turn at both depths.

    Where the backup is not to end (window), the sides are also the bare
    copy-before-write alone, the same beside nbdcopy, and Stillpoint at
    nbdcopy's pace: twice its bytes, since half of the disk is not data."""

    def __init__(self, b, make_target, window):
        self.b, self.make_target, self.window = b, make_target, window
        # a backup that ends within the window would flatter its share
        self.image = bench.MixedImage(
            b, size=4 * bench.GIB if window else None)
        self.got = {}
        self.sides = {name: functools.partial(disturbed, b, make, lambda: 0)
                      for name, make in b.sides()}
        if window:
            self.sides["alone"] = functools.partial(bare, b, False)
            self.sides["bare"] = functools.partial(bare, b, True)
            if "stillpoint" in self.sides:
                self.sides["paced"] = functools.partial(
                    disturbed, b, b.stillpoint, self.pace)

    def pace(self):
        return max(1, int(2 * self.got["bare"][-1].sent))

    def once(self, side, depth):
        if self.window is None:
            self.image.shape()
        with self.b.scope():
            t = self.make_target(self.image.size)
            result = side(self.image, t, depth, self.window)
            os.unlink(t.path)
        return result

    def rows(self, label, limit):
        """Prints the rows; returns the times of all cancels, by side."""
        cancels = {}
        for depth in (1, 16):
            self.got.clear()
            for turn in range(self.b.o.repeat or 3):
                for name, side in self.sides.items():
                    self.got.setdefault(name, []).append(steal.undisturbed(
                        functools.partial(self.once, side, depth)))
            for name, v in self.got.items():
                cancels.setdefault(name, []).extend(
                    x.cancel for x in v if x.cancel is not None)
            self.print("%s, depth %d" % (label, depth), limit)
        self.image.remove()
        return cancels

    def print(self, label, limit):
        mid = {name: [bench.median(getattr(x, k) for x in v)
                      for k in ("share", "before", "during")]
               for name, v in self.got.items()}
        mine = mid.get("stillpoint", [None])
        peers = {k + " share": v[0] for k, v in mid.items() if v is not mine}
        peers.update((k + " IOPS", "%.0f > %.0f" % tuple(v[1:]))
                     for k, v in mid.items())
        self.b.row("guest write share, " + label, mine[0], limit, True,
                   peers=peers, detail={k: [vars(x) for x in v]
                                        for k, v in self.got.items()})
        if self.window:
            paced, least = ([x.share for x in self.got.get(k, [])]
                            for k in ("paced", "bare"))
            self.b.row("  at nbdcopy's pace, to a bare copy-before-write's",
                       bench.paired(paced, least), 0.9, True)


def fast(b):
    """guests during a full backup to a fast target"""
    Disturbed(b, lambda size: b.file_target("target", size), None).rows(
        "fast target", 0.3)


def slow(b):
    """guests during a backup to a target of 20 MB/s; cancelling it"""
    cancels = Disturbed(
        b, lambda size: b.file_target("target", size,
                                      **target.slow_target(20)),
        2 if b.o.quick else 4).rows("target of 20 MB/s", 0.7)
    mine = cancels.get("stillpoint")
    b.row("cancelling a job whose target takes 20 MB/s",
          max(mine) if mine else None, 0.2, False, "s",
          peers={"qsd": bench.median(cancels["qsd"])}, detail=cancels)


def far(b):
    """guests during a backup to a target that answers after 10 ms"""
    Disturbed(
        b, lambda size: b.file_target(
            "target", size, filters=["delay"],
            parameters=["delay-write=10ms", "delay-zero=10ms",
                        "delay-read=10ms"]),
        2 if b.o.quick else 4).rows("target 10 ms away", 0.7)


BENCHES = {
    "during-fast": fast,
    "during-slow": slow,
    "during-far": far,
}
