# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of the integration tests.

By default the server is stillpointd from the build tree (STILLPOINT_BUILD,
default build/).  STILLPOINT_PEER=qsd runs the same tests against
qemu-storage-daemon: what passes there asks for nothing that QEMU does not
do.  A test that needs more says so with @pytest.mark.needs("feature").
"""
import os
import shutil
import signal
import sys
import tempfile

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "rows")]

import rowtable  # noqa: E402
from stillpoint_test import daemon, guest, target  # noqa: E402

PEER = os.environ.get("STILLPOINT_PEER", "stillpoint")
SERVERS = {"stillpoint": daemon.Stillpoint, "qsd": daemon.StorageDaemon}
SIZE = 16 << 20
REASONS = {
    "stillpoint": "asks for what only Stillpoint has",
    "several-clients": "QEMU serves one client per monitor socket",
    "qemu-10": "QEMU 7.2 does not do what QEMU 10 does here",
    "restart": "qemu-storage-daemon keeps nothing over a restart",
    "device-names": "qemu-storage-daemon has no device names",
    "drive-backup": "qemu-storage-daemon has no drive-backup",
}


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "needs(feature): skip where the server lacks a feature")
    config.addinivalue_line("markers", "size(bytes): of the fixture place")
    config.addinivalue_line(
        "markers", "rows(id, ...): of tests/rows, that this test shows")
    # A test run that is ended from outside cleans up all the same.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if PEER not in SERVERS:
        raise pytest.UsageError("STILLPOINT_PEER is stillpoint or qsd")


def pytest_collection_modifyitems(items):
    known = set(rowtable.load_areas(daemon.REPO)[0])
    for item in items:
        for mark in item.iter_markers("rows"):
            unknown = set(mark.args) - known
            if unknown:
                raise pytest.UsageError("%s: no such row in tests/rows: %s" % (
                    item.nodeid, ", ".join(sorted(unknown))))
        for mark in item.iter_markers("needs"):
            for feature in mark.args:
                if feature not in SERVERS[PEER].features:
                    item.add_marker(pytest.mark.skip(
                        reason=REASONS.get(feature, feature)))


@pytest.fixture
def dir():
    """A short path (sockets have 108 bytes), in memory when possible."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = tempfile.mkdtemp(prefix="sp-", dir=base)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def make_server(dir):
    """Make servers that are not started yet; all are cleaned up."""
    made = []

    def make(**kw):
        cls = SERVERS[PEER]
        if cls is daemon.Stillpoint and not cls.available():
            pytest.fail("not built: %s (set STILLPOINT_BUILD)" % cls.path())
        made.append(cls(dir, **kw))
        return made[-1]
    yield make
    for server in made:
        server.cleanup()


@pytest.fixture
def server(make_server):
    s = make_server()
    s.start()
    return s


@pytest.fixture
def q(server):
    """A client in command mode."""
    return server.qmp()


class Disks:
    """Disks of the server: image, node and writable export in one call."""

    def __init__(self, server, q, directory):
        self.server, self.q, self.dir = server, q, directory
        self.size = SIZE

    def path(self, name):
        return os.path.join(self.dir, name + ".img")

    def node(self, name="disk0", size=None, data=((0, 4 << 20),), **more):
        size = self.size if size is None else size
        guest.make_image(self.path(name), size, [
            (o, min(n, size - o)) for o, n in data if o < size])
        args = {"driver": "file", "node-name": name,
                "filename": self.path(name)}
        args.update({k.replace("_", "-"): v for k, v in more.items()})
        self.q.cmd("blockdev-add", args)
        return self.path(name)

    def add(self, name="disk0", size=None, data=((0, 4 << 20),), **more):
        path = self.node(name, size, data, **more)
        self.export(name)
        return path

    def export(self, node, name=None, id=None, writable=True, **more):
        name = name or node
        self.q.cmd("block-export-add", type="nbd", id=id or "exp-" + name,
                   node_name=node, name=name, writable=writable, **more)

    def uri(self, name="disk0"):
        return self.server.uri(name)


@pytest.fixture
def disks(server, q, dir):
    return Disks(server, q, dir)


@pytest.fixture
def make_target(dir):
    made = []

    def make(name="target", **kw):
        made.append(target.Target(dir, name, **kw))
        return made[-1]
    yield make
    for t in made:
        t.cleanup()


@pytest.fixture
def backup_node(q, dir, make_target):
    """backup_node(name, size): a target node on a fresh nbdkit; the Target.

    Its file is target.path."""
    def make(node="target0", size=SIZE, filters=(), parameters=(), **more):
        t = make_target(node)
        t.file(os.path.join(dir, node + ".raw"), size, filters, parameters)
        q.cmd("blockdev-add", t.blockdev(node, **more))
        return t
    return make


@pytest.fixture
def connect():
    """connect(uri): a libnbd handle; all are closed at the end."""
    nbd = pytest.importorskip("nbd")
    handles = []

    def make(uri):
        h = nbd.NBD()
        h.connect_uri(uri)
        handles.append(h)
        return h
    yield make
    handles.clear()


@pytest.fixture
def rig(make_server, dir, make_target, connect):
    """A Rig that is not started yet."""
    pytest.importorskip("nbd")
    from stillpoint_test.rig import Rig
    return Rig(make_server(), dir, make_target, connect)


@pytest.fixture
def writers():
    """Keeps guest writers; kills those that a failed test left."""
    kept = []

    def keep(writer):
        kept.append(writer)
        return writer.ready()
    yield keep
    for w in kept:
        w.cleanup()
