# SPDX-License-Identifier: BSD-3-Clause
"""Guests: the writers of tests/tools under control, and disk images."""
import fcntl
import hashlib
import json
import os
import random
import struct
import subprocess

from . import procs
from .daemon import tool


class Writer:
    """A writer of tests/tools: started, paused, counted, stopped."""

    def __init__(self, program, *argv, log=None):
        self.child = procs.Child([tool(program)] + [str(a) for a in argv],
                                 pipes=True, stderr_path=log)
        self.program = program
        self.out = procs.LineReader(self.child.popen.stdout)

    def ready(self, timeout=10):
        self.out.wait_for("ready", 0, timeout)
        return self

    def _order(self, word, answer, timeout):
        start = len(self.out.lines)
        self.child.popen.stdin.write(word + "\n")
        self.child.popen.stdin.flush()
        return self.out.wait_for(answer, start, timeout)

    def pause(self, timeout=30):
        """Returns how far the writer got; nothing is in flight any more."""
        return int(self._order("pause", "paused", timeout).split()[1])

    def resume(self, timeout=30):
        self._order("resume", "running", timeout)

    def acked(self, timeout=30):
        return int(self._order("status", "acked", timeout).split()[1])

    def quit(self, timeout=30):
        """Stop the writer; returns the words or the object after "done"."""
        if self.child.alive():
            try:
                self.child.popen.stdin.write("quit\n")
                self.child.popen.stdin.close()
            except OSError:
                pass
        status = self.child.wait(timeout)
        assert status == 0, "%s ended with %d: %s" % (
            self.program, status, self.child.stderr()[-1000:])
        line = self.out.wait_for("done", 0, timeout)[len("done "):]
        return json.loads(line) if line.startswith("{") else \
            [int(w) for w in line.split()]

    def cleanup(self):
        if self.child.alive():
            self.child.kill()


class Load(Writer):
    """load-writer with its stat lines as samples."""

    def __init__(self, area, *options, log=None):
        super().__init__("load-writer", *options, area, log=log)

    def samples(self):
        """[(end, ops, errors, max_us)] with end on time.monotonic()."""
        out = []
        for line in list(self.out.lines):
            if line.startswith("stat "):
                t, ops, errors, longest = line.split()[1:]
                out.append((float(t), int(ops), int(errors), float(longest)))
        return out

    def rate(self, start, end):
        """Requests per second in a window; an interval counts with the part
        of it that lies in the window."""
        ops = time = 0.0
        samples = self.samples()
        for (t0, _, _, _), (t1, n, _, _) in zip(samples, samples[1:]):
            part = min(t1, end) - max(t0, start)
            if part > 0:
                ops += n * part / (t1 - t0)
                time += part
        return ops / time if time else 0.0

    def longest_us(self, start, end):
        """Longest latency in all intervals that touch a window."""
        samples = self.samples()
        return max((m for (t0, _, _, _), (t1, _, _, m)
                    in zip(samples, samples[1:])
                    if t1 >= start and t0 <= end), default=0.0)


class Counter(Writer):
    def __init__(self, areas, *options, log=None):
        super().__init__("counter-writer", *options, *areas, log=log)


class RudeClients(Writer):
    """QMP clients that flood, do not read, and vanish."""

    def __init__(self, path, flood=0, deaf=0, vanish=0, log=None):
        super().__init__("rude-client", path, "--flood", flood, "--deaf",
                         deaf, "--vanish", vanish, log=log)


def counter_check(areas, at_least=0, at_most=None):
    """Run counter-check; returns the last value, fails with its words."""
    argv = [tool("counter-check"), "--at-least", str(at_least)]
    if at_most is not None:
        argv += ["--at-most", str(at_most)]
    r = subprocess.run(argv + list(areas), capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    return int(r.stdout)


def area(offset, length, where):
    return "%d+%d@%s" % (offset, length, where)


def make_image(path, size, data=(), seed=1):
    """A sparse file with random data at [(offset, length)]."""
    rng = random.Random(seed)
    with open(path, "wb") as f:
        f.truncate(size)
        for offset, length in data:
            f.seek(offset)
            while length:
                n = min(length, 1 << 20)
                f.write(rng.randbytes(n))
                length -= n
    return str(path)


def digest(path, offset=0, length=None):
    """SHA-256 of (a part of) a file."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        f.seek(offset)
        while length is None or length > 0:
            block = f.read(1 << 20 if length is None else
                           min(length, 1 << 20))
            if not block:
                break
            h.update(block)
            length = None if length is None else length - len(block)
    return h.hexdigest()


def nbd_digest(uri):
    """SHA-256 of an export as an independent client (nbdcopy) reads it."""
    h = hashlib.sha256()
    p = subprocess.Popen(["nbdcopy", "--flush", uri, "-"],
                         stdout=subprocess.PIPE)
    with p.stdout:
        for block in iter(lambda: p.stdout.read(1 << 20), b""):
            h.update(block)
    assert p.wait() == 0, "nbdcopy %s failed" % uri
    return h.hexdigest()


def same(path_a, path_b, length=None):
    """Compare two files byte for byte (the first length bytes)."""
    argv = ["cmp"] + (["-n", str(length)] if length is not None else [])
    r = subprocess.run(argv + [str(path_a), str(path_b)],
                       capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr


def patch(path, offset, data):
    """Write into a file that no server has open."""
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


def sparse_copy(source, target):
    """cp that keeps holes; shares blocks where the file system can."""
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(source),
                    str(target)], check=True)
    return str(target)


def lock_like_a_machine(path):
    """Hold the byte locks of a QEMU that runs a machine on this image: it
    writes (byte 101), nobody else may write or resize (201, 203).  Returns
    the open file; closing it gives the locks back."""
    f = open(path, "r+b")
    for byte in (100, 101, 201, 203):
        fcntl.fcntl(f, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, byte, 1,
                                       0))      # 37 is F_OFD_SETLK
    return f


def allocated(path):
    return os.stat(path).st_blocks * 512
