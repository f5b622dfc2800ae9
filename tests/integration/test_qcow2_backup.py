# SPDX-License-Identifier: BSD-3-Clause
"""Backups to qcow2 images that the server itself opens, and chains of them."""
import os
import subprocess

import pytest

from stillpoint_test import guest, qcow2
from stillpoint_test.qmp import backup

M = 1 << 20
SIZE = 64 * M
pytestmark = pytest.mark.needs("stillpoint")


@pytest.fixture
def path(dir):
    return lambda name: os.path.join(dir, name)


@pytest.fixture
def disk(q, server, path):
    """disk(): a guest's qcow2 image, and qemu-io on its export."""
    def make(image=None, **more):
        image = image or qcow2.create(path("disk"), SIZE)
        q.cmd("blockdev-add", qcow2.blockdev(image, discard="unmap", **more))
        q.cmd("block-export-add", type="nbd", id="exp", node_name="disk0",
              name="disk0", writable=True)

        def io(*commands):
            argv = ["qemu-io", "-f", "raw"]
            for c in commands:
                argv += ["-c", c]
            qcow2.run(*argv, server.uri("disk0"))
        return io
    return make


@pytest.fixture
def instant(server, path):
    """The disk now (its guest is quiet), as a raw file."""
    def make(name):
        subprocess.run(["nbdcopy", "--flush", server.uri("disk0"),
                        path(name)], check=True)
        return path(name)
    return make


def target(q, image, name="target0", **more):
    q.cmd("blockdev-add", qcow2.blockdev(image, name, **more))


def run(q, job="j", to="target0", **kw):
    q.cmd("blockdev-backup", backup("disk0", to, job, **kw))
    q.jobs_succeed(job)
    q.cmd("blockdev-del", node_name=to)


VARIANTS = {
    "v3": {},
    "v2": {"compat": "0.10"},
    "512": {"cluster_size": 512},
    "2M": {"cluster_size": "2M"},
    "extended": {"extended_l2": "on", "cluster_size": "128k"},
    "metadata": {"preallocation": "metadata"},
    "zstd": {"compression_type": "zstd"},
}


@pytest.mark.rows("backup.full", "backup.target-driver", "backup.compress")
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_full_backup(q, disk, instant, path, variant, compress):
    io = disk()
    io("write -P 1 0 3M", "write -P 2 5000k 700k", "write -z 6M 1M",
       "write -P 3 20M 1536", "write -P 4 63M 1M")
    out = qcow2.create(path("out"), SIZE, **VARIANTS[variant])
    target(q, out)
    run(q, compress=compress)
    qcow2.check(out)
    qcow2.compare(instant("then"), out, fmt_a="raw")
    if compress:
        assert qcow2.check(out)["compressed-clusters"] > 0
    if variant == "v3":
        assert guest.allocated(out) <= 8 * M


def test_compressed_backup_is_small(q, disk, instant, path):
    io = disk()
    io("write -P 1 0 48M")
    out = qcow2.create(path("out"), SIZE)
    target(q, out)
    run(q, compress=True)
    qcow2.compare(instant("then"), out, fmt_a="raw")
    assert guest.allocated(out) <= 4 * M


@pytest.mark.rows("error.32")
def test_compression_needs_a_target_that_can(q, disk, path):
    disk()
    guest.make_image(path("raw"), SIZE)
    q.cmd("blockdev-add", driver="file", node_name="t", filename=path("raw"))
    assert q.error("blockdev-backup", backup(
        "disk0", "t", "j", compress=True)).desc == \
        "Compression is not supported for this drive "


def test_old_content_of_the_target_is_gone(q, disk, instant, path):
    io = disk()
    io("write -P 1 0 3M")
    out = qcow2.create(path("out"), SIZE)
    qcow2.io(out, "write -P 9 0 64M")
    target(q, out, discard="unmap")
    run(q)
    qcow2.check(out)
    qcow2.compare(instant("then"), out, fmt_a="raw")


@pytest.mark.rows("backup.target-cluster")
def test_job_counts_in_clusters_of_the_target(q, disk, path):
    io = disk()
    io("write -P 1 0 1M")
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    io("write -P 1 10M 1k", "write -P 1 30M 1k")
    target(q, qcow2.create(path("out"), SIZE, cluster_size="1M"))
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", bitmap="b",
                                    sync="incremental"))
    q.wait_job("j")
    done = q.wait_event("BLOCK_JOB_COMPLETED", {"device": "j"})
    assert done["data"]["len"] == done["data"]["offset"] == 2 * M


@pytest.mark.rows("error.35")
def test_max_chunk_below_the_targets_cluster(q, disk, path):
    disk()
    target(q, qcow2.create(path("out"), SIZE, cluster_size="1M"))
    assert q.error("blockdev-backup", backup(
        "disk0", "target0", "j", **{"x-perf": {"max-chunk": 65536}})).desc \
        == "Required max-chunk (65536) is less than backup cluster size " \
           "(1048576)"


@pytest.mark.rows("error.30")
def test_sizes_must_be_equal(q, disk, path):
    disk()
    target(q, qcow2.create(path("out"), 2 * SIZE))
    assert q.error("blockdev-backup", backup(
        "disk0", "target0", "j")).desc == \
        "Source and target image have different sizes"


@pytest.mark.rows("backup.overlay", "backup.compress")
@pytest.mark.parametrize("compress", [False, True])
def test_chain_of_increments_as_overlays(q, disk, instant, path, compress):
    """The worked example of QEMU's documentation: each backup is an overlay
    of the one before it."""
    io = disk()
    io("write -P 1 0 16M", "write -P 2 32M 5000k")
    full = qcow2.create(path("backup0"), SIZE)
    target(q, full)
    q.cmd("transaction", actions=[
        {"type": "block-dirty-bitmap-add",
         "data": {"node": "disk0", "name": "b"}},
        {"type": "blockdev-backup",
         "data": backup("disk0", "target0", "j0", compress=compress)}])
    q.jobs_succeed("j0")
    q.cmd("blockdev-del", node_name="target0")
    then = [instant("then0")]
    for i in range(1, 4):
        io("write -P %d %dM 3M" % (10 + i, 4 * i), "write -z 1M 64k",
           "write -P %d %dk 1k" % (20 + i, 33 * i), "discard 33M 1M",
           "write -P %d 60M %dk" % (30 + i, 700 * i))
        inc = qcow2.create(path("backup%d" % i), SIZE,
                           backing="backup%d" % (i - 1))
        target(q, inc)
        then.append(instant("then%d" % i))
        run(q, "j%d" % i, sync="incremental", bitmap="b", compress=compress)
    for i in range(4):
        qcow2.check(path("backup%d" % i))
        qcow2.compare(then[i], path("backup%d" % i), fmt_a="raw")
        out = qcow2.raw_copy(path("backup%d" % i), path("restored"))
        guest.same(then[i], out)


def test_chain_of_increments_through_qemu_nbd(q, disk, instant, path,
                                              make_target):
    io = disk()
    io("write -P 1 0 16M", "write -P 2 32M 5000k")
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    then = []
    for i in range(4):
        if i:
            io("write -P %d %dM 3M" % (10 + i, 4 * i), "write -z 1M 64k",
               "write -P %d %dk 1k" % (20 + i, 33 * i), "discard 33M 1M")
        image = qcow2.create(path("r%d" % i), SIZE,
                             **({"backing": "r%d" % (i - 1)} if i else {}))
        t = make_target("t%d" % i)
        t.qemu_nbd(image, "qcow2")
        q.cmd("blockdev-add", t.blockdev("target0"))
        then.append(instant("then%d" % i))
        run(q, "j%d" % i, sync="incremental" if i else "full",
            **({"bitmap": "b"} if i else {}))
        t.cleanup()
    for i in range(4):
        qcow2.check(path("r%d" % i))
        guest.same(then[i], qcow2.raw_copy(path("r%d" % i), path("out")))


# --- sync top ---------------------------------------------------------------------

@pytest.fixture
def overlay(path, disk):
    base = qcow2.create(path("base"), SIZE)
    qcow2.io(base, "write -P 99 0 32M")
    io = disk(qcow2.create(path("disk"), backing="base"))
    io("write -P 1 1M 1M", "write -P 2 5000k 1k", "write -z 31M 2M",
       "write -P 3 63M 1M")
    return io


@pytest.mark.rows("backup.top")
def test_top_copies_what_the_top_layer_holds(q, overlay, instant, path):
    out = qcow2.create(path("out"), SIZE, backing="base")
    target(q, out)
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", sync="top"))
    q.wait_job("j")
    done = q.wait_event("BLOCK_JOB_COMPLETED", {"device": "j"})
    # 1M, 64k for 1k, 2M of zeroes, 1M
    assert done["data"]["len"] == done["data"]["offset"] == 4 * M + 65536
    q.cmd("blockdev-del", node_name="target0")
    qcow2.check(out)
    qcow2.compare(instant("then"), out, fmt_a="raw")
    layers = qcow2.run("qemu-img", "map", "--output=json", out)
    assert guest.allocated(out) <= 3 * M, layers


def test_top_while_the_guest_goes_on(q, overlay, instant, path):
    out = qcow2.create(path("out"), SIZE, backing="base")
    then = instant("then")
    target(q, out)
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", sync="top",
                                    speed=1 * M))
    overlay("write -P 50 0 8M", "write -P 51 30M 8M", "discard 40M 4M")
    q.cmd("block-job-set-speed", device="j", speed=0)
    q.jobs_succeed("j")
    q.cmd("blockdev-del", node_name="target0")
    qcow2.compare(then, out, fmt_a="raw")


def test_top_without_a_backing_file(q, disk, path):
    """As QEMU has it, too: the top layer is all there is, and what it does
    not hold is left alone."""
    io = disk()
    io("write -P 1 1M 1M")
    out = qcow2.create(path("out"), SIZE)
    qcow2.io(out, "write -P 9 0 4M")
    target(q, out)
    run(q, sync="top")
    qcow2.check(out)
    qcow2.io(out, "read -P 9 0 1M", "read -P 1 1M 1M", "read -P 9 2M 2M",
             "read -P 0 4M 60M")


@pytest.mark.parametrize("cluster,default", [
    (512, 4096), (8192, 8192), (65536, 65536), (2 * M, 65536)])
def test_default_granularity_of_a_bitmap(q, disk, path, cluster, default):
    disk(qcow2.create(path("disk"), SIZE, cluster_size=cluster))
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    assert q.bitmap("disk0", "b")["granularity"] == default
