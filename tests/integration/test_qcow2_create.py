# SPDX-License-Identifier: BSD-3-Clause
"""blockdev-create of qcow2 images, as clients of QEMU make them."""
import os

import pytest

from stillpoint_test import qcow2
from stillpoint_test.qmp import backup

M = 1 << 20
SIZE = 64 * M
pytestmark = pytest.mark.needs("stillpoint")


@pytest.fixture
def path(dir):
    return lambda name: os.path.join(dir, name)


def job(q, **options):
    q.cmd("blockdev-create", {"job-id": "c", "options": {
        k.replace("_", "-"): v for k, v in options.items()}})
    q.wait_event("JOB_STATUS_CHANGE", {"id": "c", "status": "concluded"})
    (j,) = q.cmd("query-jobs")
    q.cmd("job-dismiss", id="c")
    q.drain_events(0)
    del q.events[:]
    return j.get("error")


@pytest.fixture
def file_node(q, path):
    def make(name="f"):
        assert job(q, driver="file", filename=path(name), size=0) is None
        q.cmd("blockdev-add", driver="file", node_name=name,
              filename=path(name))
        return path(name)
    return make


def test_image_is_made_and_used_by_reference(q, disks, file_node):
    disks.add(size=SIZE, data=((0, 4 * M), (33 * M, 512)))
    out = file_node()
    assert job(q, driver="qcow2", file="f", size=SIZE) is None
    q.cmd("blockdev-add", driver="qcow2", node_name="t", file="f")
    q.cmd("blockdev-backup", backup("disk0", "t", "j"))
    q.jobs_succeed("j")
    q.cmd("blockdev-del", node_name="t")
    q.cmd("blockdev-del", node_name="f")
    qcow2.check(out)
    qcow2.compare(disks.path("disk0"), out, fmt_a="raw")


@pytest.mark.parametrize("options,create", [
    ({}, {}),
    ({"version": "v2"}, {"compat": "0.10"}),
    ({"cluster_size": 2 * M}, {"cluster_size": 2 * M}),
    ({"refcount_bits": 1, "lazy_refcounts": True},
     {"refcount_bits": 1, "lazy_refcounts": "on"}),
    ({"extended_l2": True, "compression_type": "zstd"},
     {"extended_l2": "on", "compression_type": "zstd"}),
    ({"preallocation": "metadata"}, {"preallocation": "metadata"}),
    ({"preallocation": "falloc"}, {"preallocation": "falloc"}),
], ids=lambda o: ",".join(o) or "default")
def test_options(q, path, file_node, options, create):
    out = file_node()
    assert job(q, driver="qcow2", file="f", size=SIZE, **options) is None
    q.cmd("blockdev-del", node_name="f")
    ours = qcow2.info(out)
    theirs = qcow2.info(qcow2.create(path("q"), SIZE, **create))
    for member in "virtual-size", "cluster-size", "format-specific":
        assert ours[member] == theirs[member]
    qcow2.check(out)


def test_overlay(q, path, server, file_node):
    base = qcow2.create(path("base"), SIZE)
    qcow2.io(base, "write -P 7 0 1M")
    out = file_node()
    assert job(q, driver="qcow2", file="f", size=SIZE, backing_file=base,
               backing_fmt="qcow2") is None
    q.cmd("blockdev-add", driver="qcow2", node_name="t", file="f",
          read_only=True)
    q.cmd("block-export-add", type="nbd", id="x", node_name="t")
    qcow2.run("qemu-io", "-r", "-f", "raw", "-c", "read -P 7 0 1M",
              server.uri("t"))
    assert qcow2.info(out)["full-backing-filename"] == base


def test_data_file(q, file_node):
    out = file_node()
    file_node("d")
    assert job(q, driver="qcow2", file="f", data_file="d", size=SIZE,
               data_file_raw=True) is None
    for n in "fd":
        q.cmd("blockdev-del", node_name=n)
    qcow2.io(out, "write -P 7 1M 1M", "read -P 7 1M 1M")
    qcow2.check(out)


@pytest.mark.parametrize("options", [
    {"cluster_size": 1000}, {"cluster_size": 0}, {"refcount_bits": 3},
    {"refcount_bits": 65}, {"version": "v2", "extended_l2": True},
    {"size": 1000}, {"backing_fmt": "raw"}])
def test_what_there_cannot_be(q, file_node, options):
    file_node()
    assert job(q, **dict({"driver": "qcow2", "file": "f", "size": SIZE},
                         **options))


def test_nodes_that_are_used_or_not_there(q, disks):
    disks.add()
    assert job(q, driver="qcow2", file="disk0", size=SIZE) == \
        "Node 'disk0' is in use"
    assert job(q, driver="qcow2", file="x", size=SIZE) == \
        "Cannot find device='x' nor node-name='x'"


def test_node_with_bitmaps_is_not_made_into_an_image(q, file_node):
    """What the job writes is recorded by nobody, and the node would have
    another size than its record."""
    file_node()
    q.cmd("block-dirty-bitmap-add", node="f", name="b")
    assert "Node 'f' has bitmaps" in job(q, driver="qcow2", file="f",
                                         size=SIZE)
    assert q.bitmap("f", "b")["count"] == 0
    q.cmd("block-dirty-bitmap-remove", node="f", name="b")
    assert job(q, driver="qcow2", file="f", size=SIZE) is None
