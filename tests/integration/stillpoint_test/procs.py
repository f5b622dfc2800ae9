# SPDX-License-Identifier: BSD-3-Clause
"""Processes that never outlive the test that started them.

Every child dies with its parent thread (PR_SET_PDEATHSIG) and is killed by
its own pid.  A daemon may start others in sessions of their own; they are
found by a mark in the environment that they inherit, never by their name.
"""
import ctypes
import os
import random
import signal
import socket
import subprocess
import threading
import time
import uuid

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
MARK = "STILLPOINT_TEST_MARK"


PATIENCE = float(os.environ.get("STILLPOINT_PATIENCE", "1"))


def patience(seconds):
    """How long to wait where programs are slow (tests/sanitize)."""
    return seconds * PATIENCE


def _die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def new_mark():
    return uuid.uuid4().hex


_reserved = []


def _reserve(port):
    """No other process of these tests takes this port while we live: the
    name of an abstract socket belongs to one process at a time."""
    s = socket.socket(socket.AF_UNIX)
    try:
        s.bind("\0stillpoint-test-port-%d" % port)
    except OSError:
        s.close()
        return False
    _reserved.append(s)
    return True


def free_port():
    """A TCP port on loopback that nothing uses and no other test will.  It
    lies below those that the kernel hands out by itself."""
    while True:
        port = random.randrange(10000, 32000)
        if not _reserve(port):
            continue
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_until(condition, what, timeout=10.0, step=0.01):
    """Return the first true value of condition(); fail after timeout."""
    timeout = patience(timeout)
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("waited %.1f s in vain: %s" % (timeout, what))
        time.sleep(step)


class Child:
    """A child process whose standard error is kept (file or list of lines)."""

    def __init__(self, argv, mark=None, stderr_path=None, pipes=False,
                 cwd=None, env=None):
        self.argv = [str(a) for a in argv]
        environment = dict(os.environ, **(env or {}))
        if mark:
            environment[MARK] = mark
        self.stderr_path = stderr_path
        err = open(stderr_path, "ab") if stderr_path else None
        try:
            self.popen = subprocess.Popen(
                self.argv, cwd=cwd, env=environment,
                preexec_fn=_die_with_parent,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else err or None,
                stderr=err, text=pipes, bufsize=1 if pipes else -1)
        finally:
            if err:
                err.close()

    @property
    def pid(self):
        return self.popen.pid

    def alive(self):
        return self.popen.poll() is None

    def stderr(self):
        if not self.stderr_path or not os.path.exists(self.stderr_path):
            return ""
        with open(self.stderr_path, errors="replace") as f:
            return f.read()

    def signal(self, number):
        if self.alive():
            self.popen.send_signal(number)

    def wait(self, timeout=10):
        return self.popen.wait(patience(timeout))

    def stop(self, timeout=10):
        """SIGTERM, then SIGKILL; returns the exit status."""
        self.signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.popen.returncode

    def kill(self):
        self.signal(signal.SIGKILL)
        self.wait(10)


def _environ_has(pid, mark):
    try:
        with open("/proc/%d/environ" % pid, "rb") as f:
            return ("%s=%s" % (MARK, mark)).encode() in f.read().split(b"\0")
    except OSError:
        return False


def command_line(pid):
    """The arguments of a process; [] when it is gone or a zombie."""
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as f:
            return [a.decode(errors="replace")
                    for a in f.read().split(b"\0")[:-1]]
    except OSError:
        return []


def marked_pids(mark, program=None):
    """Pids of living processes that inherited the mark."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or not _environ_has(int(name), mark):
            continue
        argv = command_line(int(name))
        if argv and (program is None
                     or os.path.basename(argv[0]) == program):
            found.append(int(name))
    return sorted(found)


def kill_marked(mark):
    """SIGKILL everything that carries the mark, each by its own pid."""
    for _ in range(50):
        pids = marked_pids(mark)
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)


def wait_gone(pid, timeout=10):
    """Wait for a process that may not be our child."""
    wait_until(lambda: not command_line(pid), "process %d ends" % pid, timeout)


def cpu_seconds(pid):
    """User and system time of a process with all its threads."""
    with open("/proc/%d/stat" % pid) as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def io_counter(pid, name):
    """A counter of /proc/PID/io, for instance wchar."""
    with open("/proc/%d/io" % pid) as f:
        for line in f:
            key, _, value = line.partition(":")
            if key == name:
                return int(value)
    raise KeyError(name)


def memory_bytes(pid):
    """Proportional share of memory that is not a mapped ordinary file."""
    total = 0
    try:
        with open("/proc/%d/smaps_rollup" % pid) as f:
            for line in f:
                key, _, rest = line.partition(":")
                if key in ("Pss_Anon", "Pss_Shmem"):
                    total += int(rest.split()[0]) * 1024
    except OSError:
        pass
    return total


class LineReader(threading.Thread):
    """Collects the lines of a stream and lets others wait for one."""

    def __init__(self, stream):
        super().__init__(daemon=True)
        self.stream = stream
        self.lines = []
        self.closed = False
        self.changed = threading.Condition()
        self.start()

    def run(self):
        for line in self.stream:
            with self.changed:
                self.lines.append(line.rstrip("\n"))
                self.changed.notify_all()
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def wait_for(self, prefix, start=0, timeout=10.0):
        """The first line at or after index start with this prefix."""
        timeout = patience(timeout)
        end = time.monotonic() + timeout
        with self.changed:
            while True:
                while start < len(self.lines):
                    if self.lines[start].startswith(prefix):
                        return self.lines[start]
                    start += 1
                left = end - time.monotonic()
                if self.closed or left <= 0:
                    raise AssertionError(
                        "no line '%s...' %s; the last were %r" % (
                            prefix, "before the end" if self.closed else
                            "within %.1f s" % timeout, self.lines[-5:]))
                self.changed.wait(left)
