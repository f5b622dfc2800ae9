# SPDX-License-Identifier: BSD-3-Clause
"""The server under test.

Stillpoint runs stillpointd from the build tree.  StorageDaemon puts
qemu-storage-daemon in its place: the peer of the benchmarks, and, with
STILLPOINT_PEER=qsd, the proof that a test asks for what QEMU does.
"""
import os
import shutil
import signal
import subprocess
import tempfile

from . import procs
from .qmp import Qmp, QmpClosed

REPO = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.dirname(os.path.abspath(__file__)))))


def build_dir():
    return os.path.abspath(os.environ.get("STILLPOINT_BUILD",
                                          os.path.join(REPO, "build")))


def tool(name):
    """A program of tests/tools, built or script."""
    built = os.path.join(build_dir(), "tests", "tools", name)
    return built if os.path.exists(built) else os.path.join(
        REPO, "tests", "tools", name)


class Daemon:
    """What both servers have in common.  dir holds sockets and logs."""

    features = frozenset()
    program = None

    def __init__(self, directory, name="server"):
        self.dir = str(directory)
        self.name = name
        self.mark = procs.new_mark()
        self.log = os.path.join(self.dir, name + ".log")
        self.child = None
        self.clients = []
        self.qmp_unix = os.path.join(self.dir, name + "-qmp.sock")
        self.qmp_port = procs.free_port()
        self.nbd_unix = os.path.join(self.dir, name + "-nbd.sock")
        self.nbd_port = procs.free_port()
        self.extra = []         # further options, kept over restarts
        self.serves = True      # False: no address for guests at the start

    def argv(self):
        raise NotImplementedError

    def start(self, timeout=15, **env):
        """Start and wait until QMP greets."""
        self.child = procs.Child(self.argv(), mark=self.mark,
                                 stderr_path=self.log, env=env)
        procs.wait_until(self._greets, "%s is ready" % self.program, timeout,
                         0.02)
        return self

    def _greets(self):
        if not self.child.alive():
            raise AssertionError("%s exited with %s at start:\n%s" % (
                self.program, self.child.popen.returncode,
                self.child.stderr()[-4000:]))
        try:
            # Stillpoint takes any number of clients; QEMU one per socket.
            Qmp("unix:" + self.qmp_unix, negotiate=False, timeout=2).close()
            return True
        except (OSError, QmpClosed, TimeoutError):
            return False

    def run_to_exit(self, timeout=15, **env):
        """Start a server that is expected to refuse: (status, stderr)."""
        self.child = procs.Child(self.argv(), mark=self.mark,
                                 stderr_path=self.log, env=env)
        try:
            return self.child.wait(timeout), self.child.stderr()
        except subprocess.TimeoutExpired:
            self.cleanup()
            raise AssertionError("%s kept running: %s" % (
                self.program, self.child.stderr()[-2000:]))

    def qmp(self, negotiate=True, tcp=False, timeout=10.0):
        address = ("tcp:127.0.0.1:%d" % self.qmp_port if tcp
                   else "unix:" + self.qmp_unix)
        client = Qmp(address, negotiate, timeout)
        self.clients.append(client)
        return client

    def uri(self, export, tcp=False):
        if tcp:
            return "nbd://127.0.0.1:%d/%s" % (self.nbd_port, export)
        return "nbd+unix:///%s?socket=%s" % (export, self.nbd_unix)

    def pids(self):
        """All processes of the server: the data plane counts."""
        return procs.marked_pids(self.mark)

    def cpu_seconds(self):
        return sum(procs.cpu_seconds(p) for p in self.pids())

    def memory_bytes(self):
        return sum(procs.memory_bytes(p) for p in self.pids())

    def close_clients(self):
        for client in self.clients:
            client.close()
        self.clients = []

    def stop(self, timeout=15):
        """SIGTERM; returns the exit status."""
        self.close_clients()
        return self.child.stop(timeout)

    def kill9(self):
        """SIGKILL to the daemon itself, nothing else."""
        self.child.kill()
        self.close_clients()

    def cleanup(self):
        """Leave nothing running, whatever happened before."""
        self.close_clients()
        if self.child and self.child.alive():
            try:
                self.child.stop(2)
            except subprocess.TimeoutExpired:
                pass
        procs.kill_marked(self.mark)


class Stillpoint(Daemon):
    features = frozenset(["stillpoint", "several-clients", "qemu-10",
                          "restart", "device-names", "drive-backup"])
    program = "stillpointd"

    def __init__(self, directory, name="stillpoint", state=None, allow=None):
        super().__init__(directory, name)
        self.state = state or os.path.join(self.dir, name + "-state")
        self.allow = [str(a) for a in (allow or [self.dir])]
        # A place of its own in shared memory, so that nothing is left behind
        # there; None: the daemon's default.
        self.shm = None
        if os.access("/dev/shm", os.W_OK):
            self.shm = tempfile.mkdtemp(prefix="sp-shm-", dir="/dev/shm")

    @staticmethod
    def path():
        return os.path.join(build_dir(), "src", "daemon", "stillpointd")

    @classmethod
    def available(cls):
        return os.access(cls.path(), os.X_OK)

    def argv(self):
        os.makedirs(self.state, exist_ok=True)
        # tests/sanitize: a program that runs it
        argv = [os.environ.get("STILLPOINT_DAEMON") or self.path(),
                "--qmp", "unix:" + self.qmp_unix,
                "--qmp", "tcp:127.0.0.1:%d" % self.qmp_port,
                "--state", self.state]
        if self.serves:
            argv += ["--nbd", "unix:" + self.nbd_unix,
                     "--nbd", "tcp:127.0.0.1:%d" % self.nbd_port]
        for a in self.allow:
            argv += ["--allow", a]
        if self.shm:
            argv += ["--shm", self.shm]
        if os.environ.get("STILLPOINT_NBDKIT"):     # tests/sanitize
            argv += ["--nbdkit", os.environ["STILLPOINT_NBDKIT"]]
        if os.environ.get("STILLPOINT_PLUGIN"):     # of another build
            argv += ["--plugin", os.environ["STILLPOINT_PLUGIN"]]
        return argv + self.extra

    def cleanup(self):
        super().cleanup()
        if self.shm:
            shutil.rmtree(self.shm, ignore_errors=True)

    def nbdkit_pid(self):
        """The data plane's process; None when there is none."""
        pids = procs.marked_pids(self.mark, "nbdkit")
        return pids[0] if pids else None

    def kill9_nbdkit(self):
        """Kill the data plane and return its old pid."""
        pid = procs.wait_until(self.nbdkit_pid, "nbdkit runs")
        os.kill(pid, signal.SIGKILL)
        procs.wait_gone(pid)
        return pid

    def wait_new_nbdkit(self, old, timeout=10):
        return procs.wait_until(
            lambda: self.nbdkit_pid() not in (None, old) and
            self.nbdkit_pid(), "nbdkit is started again", timeout)


class StorageDaemon(Daemon):
    features = frozenset(["qsd"])
    program = "qemu-storage-daemon"

    def argv(self):
        nbd = ["--nbd-server", "addr.type=unix,addr.path=%s,"
               "max-connections=0" % self.nbd_unix]
        return [self.program,
                "--chardev", "socket,id=qmp0,path=%s,server=on,wait=off"
                % self.qmp_unix,
                "--monitor", "chardev=qmp0",
                "--chardev", "socket,id=qmp1,host=127.0.0.1,port=%d,"
                "server=on,wait=off" % self.qmp_port,
                "--monitor", "chardev=qmp1"
                ] + (nbd if self.serves else []) + self.extra
