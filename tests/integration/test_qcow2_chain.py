# SPDX-License-Identifier: BSD-3-Clause
"""What a qcow2 image's header names: backing files and data files."""
import os
import struct
import subprocess

import pytest

from stillpoint_test import guest, qcow2

K, M = 1 << 10, 1 << 20
pytestmark = pytest.mark.needs("stillpoint")


@pytest.fixture
def path(dir):
    return lambda name: os.path.join(dir, name)


def base(path, name="base.qcow2", **kw):
    p = qcow2.create(path(name), 16 * M, **kw)
    qcow2.io(p, "write -P 17 0 4M")
    return p


def serve(q, image, **more):
    q.cmd("blockdev-add", qcow2.blockdev(image, **more))
    q.cmd("block-export-add", type="nbd", id="exp", node_name="disk0",
          name="disk0", writable=not more.get("read_only", False))


def test_backing_file_is_opened_for_the_header(q, path, server):
    base(path)
    top = qcow2.create(path("top"), backing="base.qcow2")
    serve(q, top)
    qcow2.run("qemu-io", "-f", "raw", "-c", "read -P 17 0 4M", "-c",
              "read -P 0 4M 4M", "-c", "write -P 1 1M 1M", server.uri("disk0"))
    named = {n["node-name"]: n for n in q.cmd("query-named-block-nodes")}
    implicit = [n for n in named if n.startswith("#block")]
    assert len(named) == 4 and len(implicit) == 3
    assert {named[n]["drv"] for n in implicit} == {"file", "qcow2"}
    assert sum(n["ro"] for n in named.values()) == 2    # the backing image
    q.cmd("block-export-del", id="exp", mode="hard")
    q.cmd("blockdev-del", node_name="disk0")
    assert q.cmd("query-named-block-nodes") == []
    qcow2.check(top)
    qcow2.io(top, "read -P 17 0 1M", "read -P 1 1M 1M", "read -P 17 2M 2M")


def test_raw_backing_file(q, path, server):
    guest.make_image(path("base.raw"), 16 * M, [(0, M)])
    top = qcow2.create(path("top"), backing="base.raw", fmt="raw")
    serve(q, top)
    assert guest.nbd_digest(server.uri("disk0")) == guest.digest(
        path("base.raw"))


def test_backing_null_means_none(q, path, server):
    base(path)
    top = qcow2.create(path("top"), backing="base.qcow2")
    serve(q, top, backing=None)
    qcow2.run("qemu-io", "-f", "raw", "-c", "read -P 0 0 16M",
              server.uri("disk0"))
    assert len(q.cmd("query-named-block-nodes")) == 2


def test_backing_by_reference_and_by_definition(q, path, server):
    base(path)
    other = qcow2.create(path("other"), 16 * M)
    qcow2.io(other, "write -P 9 0 1M")
    top = qcow2.create(path("top"), backing="base.qcow2")
    q.cmd("blockdev-add", qcow2.blockdev(other, "low", read_only=True))
    q.cmd("blockdev-add", qcow2.blockdev(top, "a", backing="low",
                                         read_only=True))
    q.cmd("blockdev-add", qcow2.blockdev(top, "b", read_only=True, backing={
        "driver": "qcow2", "node-name": "b-low",
        "file": {"driver": "file", "filename": other}}))
    for n in "ab":
        q.cmd("block-export-add", type="nbd", id=n + "x", node_name=n)
        qcow2.run("qemu-io", "-r", "-f", "raw", "-c", "read -P 9 0 1M",
                  server.uri(n))
    assert q.error("blockdev-del", node_name="low").desc == \
        "Block device low is in use"


@pytest.mark.parametrize("size", [4 * M, 32 * M])
def test_backing_file_shorter_or_longer_than_its_overlay(q, path, server,
                                                         size):
    b = qcow2.create(path("base"), size)
    qcow2.io(b, "write -P 17 0 %d" % size)
    top = qcow2.create(path("top"), 16 * M, backing="base")
    serve(q, top)
    data = min(size, 16 * M)
    qcow2.run("qemu-io", "-f", "raw", "-c", "read -P 17 0 %d" % data,
              *(["-c", "read -P 0 4M 12M"] if size < 16 * M else []),
              server.uri("disk0"))
    assert qcow2.node(q, "disk0")["image"]["virtual-size"] == 16 * M


def test_chain_of_32(q, path, server):
    base(path, "c0")
    for i in range(1, 32):
        qcow2.create(path("c%d" % i), backing="c%d" % (i - 1))
        qcow2.io(path("c%d" % i), "write -P %d %dk 64k" % (i, i * 64))
    serve(q, path("c31"))
    cmds = []
    for i in range(1, 32):
        cmds += ["-c", "read -P %d %dk 64k" % (i, i * 64)]
    qcow2.run("qemu-io", "-f", "raw", *cmds, "-c", "read -P 17 2M 2M",
              server.uri("disk0"))
    assert len(q.cmd("query-named-block-nodes")) == 64


def test_chains_end_at_64_images(q, path):
    qcow2.create(path("c0"), M)
    for i in range(1, 65):
        qcow2.run("cp", path("c0"), path("c%d" % i))
        qcow2.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2",
                  "-b", "c%d" % (i - 1), path("c%d" % i))
    q.cmd("blockdev-add", qcow2.blockdev(path("c63")))
    q.cmd("blockdev-del", node_name="disk0")
    assert q.error("blockdev-add", qcow2.blockdev(path("c64"))).desc == \
        "Node 'disk0' has more than 127 nodes below it"
    assert q.cmd("query-named-block-nodes") == []


def test_no_image_is_below_itself(q, path):
    qcow2.create(path("a"), M)
    qcow2.create(path("b"), backing="a")
    qcow2.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b",
              "b", path("a"))
    for more in {}, {"read_only": True}:
        desc = q.error("blockdev-add",
                       qcow2.blockdev(path("a"), **more)).desc
        assert desc == "the image '%s' is below itself in its chain" % \
            path("a")


def test_formats_are_never_probed(q, path):
    base(path)
    top = qcow2.create(path("top"), backing="base.qcow2")
    with open(top, "r+b") as f:         # an extension that nobody knows
        head = f.read(65536)
        f.seek(head.index(struct.pack(">I", 0xe2792aca)))
        f.write(b"\x12\x34\x56\x78")
    desc = q.error("blockdev-add", qcow2.blockdev(top)).desc
    assert "without its format" in desc, desc
    q.cmd("blockdev-add", qcow2.blockdev(top, backing={
        "driver": "qcow2",
        "file": {"driver": "file", "filename": path("base.qcow2")}}))


def test_unknown_backing_format(q, path):
    base(path)
    top = qcow2.create(path("top"), backing="base.qcow2")
    with open(top, "r+b") as f:
        head = f.read(65536)
        f.seek(head.index(struct.pack(">II", 0xe2792aca, 5) + b"qcow2") + 8)
        f.write(b"vhdxx")
    assert q.error("blockdev-add", qcow2.blockdev(top)).desc == \
        "the backing file of '%s' has the unknown format 'vhdxx'" % top


def patch_backing(top, name):
    """A name that is no longer, so that nothing else moves."""
    with open(top, "r+b") as f:
        f.seek(8)
        off, n = struct.unpack(">QI", f.read(12))
        assert len(name) <= n
        f.seek(16)
        f.write(struct.pack(">I", len(name)))
        f.seek(off)
        f.write(name.encode())


@pytest.mark.parametrize("name", ["nbd://127.0.0.1:1/x", "json:{}", "ssh:x"])
def test_headers_name_only_files(q, path, name):
    base(path, "a-base-with-a-longer-name")
    top = qcow2.create(path("top"), backing="a-base-with-a-longer-name")
    patch_backing(top, name)
    desc = q.error("blockdev-add", qcow2.blockdev(top)).desc
    assert "only plain files are opened for a header" in desc, desc


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd"])
def test_headers_name_only_allowed_files(q, path, name):
    base(path, "a-base-with-a-longer-name")
    top = qcow2.create(path("top"), backing="a-base-with-a-longer-name")
    patch_backing(top, name)
    desc = q.error("blockdev-add", qcow2.blockdev(top)).desc
    assert "outside the allowed directories" in desc, desc


def test_backing_file_in_use_by_a_writer(q, path):
    b = base(path)
    top = qcow2.create(path("top"), backing="base.qcow2")
    held = guest.lock_like_a_machine(b)
    desc = q.error("blockdev-add", qcow2.blockdev(top)).desc
    assert 'Failed to get shared "write" lock' in desc, desc
    held.close()
    q.cmd("blockdev-add", qcow2.blockdev(top))
    # and while we have it, nobody writes to it; readers may
    r = subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 0 1k", b],
                       capture_output=True, text=True)
    assert "lock" in r.stderr
    qcow2.run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", b, b)


def test_two_overlays_share_a_backing_file(q, path, server):
    base(path)
    for n in "ab":
        qcow2.create(path(n), backing="base.qcow2")
        q.cmd("blockdev-add", qcow2.blockdev(path(n), n))
        q.cmd("block-export-add", type="nbd", id=n + "x", node_name=n,
              writable=True)
        qcow2.run("qemu-io", "-f", "raw", "-c", "write -P 3 0 1M", "-c",
                  "read -P 17 1M 1M", server.uri(n))


def test_data_file_is_opened_for_the_header(q, path, server):
    img = qcow2.create(path("meta"), 16 * M, data_file=path("data"))
    serve(q, img)
    qcow2.run("qemu-io", "-f", "raw", "-c", "write -P 5 1M 2M", "-c",
              "read -P 5 1M 2M", server.uri("disk0"))
    q.cmd("block-export-del", id="exp", mode="hard")
    q.cmd("blockdev-del", node_name="disk0")
    qcow2.check(img)
    qcow2.io(img, "read -P 5 1M 2M", "read -P 0 0 1M")


@pytest.mark.rows("error.57")
def test_no_qcow2_image(q, path):
    guest.make_image(path("x"), M, [(0, M)])
    desc = q.error("blockdev-add", qcow2.blockdev(path("x"))).desc
    assert desc.endswith("Image is not in qcow2 format"), desc


@pytest.mark.parametrize("method", [1, 2])
def test_encryption_is_refused_by_name(q, path, method):
    p = qcow2.create(path("i"), M)
    with open(p, "r+b") as f:
        f.seek(32)
        f.write(struct.pack(">I", method))
    desc = q.error("blockdev-add", qcow2.blockdev(p)).desc
    assert desc.endswith("Encrypted images are not supported"), desc


@pytest.mark.parametrize("options,desc", [
    ({"cache_size": 1 << 20, "l2_cache_size": 2 << 20},
     "l2-cache-size may not exceed cache-size"),
    ({"cache_size": 1 << 20, "refcount_cache_size": 2 << 20},
     "refcount-cache-size may not exceed cache-size"),
    ({"cache_size": 1 << 20, "refcount_cache_size": 1, "l2_cache_size": 1},
     "cache-size, l2-cache-size and refcount-cache-size may not be set at "
     "the same time"),
    ({"cache_size": -1}, "the size of a cache cannot be negative")])
def test_cache_options(q, path, options, desc):
    p = qcow2.create(path("i"), M)
    assert q.error("blockdev-add", qcow2.blockdev(p, **options)).desc == \
        desc


def test_everything_comes_back_after_a_restart(q, path, server):
    base(path)
    top = qcow2.create(path("top"), backing="base.qcow2")
    serve(q, top)
    qcow2.run("qemu-io", "-f", "raw", "-c", "write -P 1 1M 1M",
              server.uri("disk0"))
    server.kill9()
    server.start()
    q = server.qmp()
    assert len(q.cmd("query-named-block-nodes")) == 4
    qcow2.run("qemu-io", "-f", "raw", "-c", "read -P 1 1M 1M", "-c",
              "write -P 2 2M 1M", server.uri("disk0"))
    server.stop()
    qcow2.check(top)
    server.start()
    qcow2.run("qemu-io", "-f", "raw", "-c", "read -P 1 1M 1M", "-c",
              "read -P 2 2M 1M", server.uri("disk0"))


def test_data_file_comes_back_with_a_running_data_plane(q, path, server):
    img = qcow2.create(path("meta"), 16 * M, data_file=path("data"))
    serve(q, img)
    qcow2.run("qemu-io", "-f", "raw", "-c", "write -P 5 1M 2M",
              server.uri("disk0"))
    server.kill9()
    server.start()
    q = server.qmp()
    assert qcow2.node(q, "disk0")["drv"] == "qcow2"
    qcow2.run("qemu-io", "-f", "raw", "-c", "read -P 5 1M 2M",
              server.uri("disk0"))


def test_images_are_described(q, path):
    base(path, compat="0.10", cluster_size=4096)
    top = qcow2.create(path("top"), backing="base.qcow2", refcount_bits=8,
                       extended_l2="on")
    q.cmd("blockdev-add", qcow2.blockdev(top))
    n = qcow2.node(q, "disk0", flat=False)
    want = qcow2.info(top)
    assert n["drv"] == "qcow2" and n["file"] == top
    assert n["backing_file"] == path("base.qcow2")
    assert n["backing_file_depth"] == 1
    image = n["image"]
    below = image.pop("backing-image")
    assert below["format-specific"]["data"]["compat"] == "0.10"
    assert below["cluster-size"] == 4096
    for member in ("format", "virtual-size", "cluster-size", "filename",
                   "backing-filename", "full-backing-filename",
                   "backing-filename-format", "format-specific",
                   "dirty-flag"):
        assert image[member] == want[member], member
    assert "backing-image" not in qcow2.node(q, "disk0")["image"]


def test_zeroes_stay_where_the_backing_file_was_not_open(q, path, server):
    """As QEMU has it, too: the header's backing file may be there later."""
    base(path)
    top = qcow2.create(path("top"), backing="base.qcow2")
    serve(q, top, backing=None, discard="unmap")
    qcow2.run("qemu-io", "-f", "raw", "-c", "write -z 0 1M", "-c",
              "write -z -u 1M 1M", "-c", "write -z 2500k 4k",
              server.uri("disk0"))
    q.cmd("block-export-del", id="exp", mode="hard")
    q.cmd("blockdev-del", node_name="disk0")
    qcow2.check(top)
    qcow2.io(top, "read -P 0 0 2M", "read -P 17 2M 256k", "read -P 0 2500k 4k",
             "read -P 17 3M 1M")


@pytest.mark.parametrize("options", [
    {}, {"extended_l2": "on"}, {"cluster_size": "4k"}, {"compat": "0.10"}],
    ids=["plain", "extended", "small", "version-2"])
def test_zeroes_hide_a_backing_file_that_comes_later(q, path, server, options):
    """An increment may be written without its backing file, and get it by
    qemu-img rebase -u: its zeroes are said even where nothing is below."""
    base(path)
    top = qcow2.create(path("top"), 16 * M, **options)
    serve(q, top)
    qcow2.run("qemu-io", "-f", "raw", "-c", "write -z 1M 1M", "-c",
              "write -z -u 2M 64k", "-c", "write -z 2564k 4k", "-c",
              "write -z 3071k 2k", server.uri("disk0"))
    q.cmd("block-export-del", id="exp", mode="hard")
    q.cmd("blockdev-del", node_name="disk0")
    qcow2.check(top)
    qcow2.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "base.qcow2",
              "-F", "qcow2", top)
    qcow2.io(top, "read -P 17 0 1M", "read -P 0 1M 1M", "read -P 0 2M 64k",
             "read -P 17 2176k 64k", "read -P 0 2564k 4k",
             "read -P 17 2688k 64k", "read -P 0 3071k 2k",
             "read -P 17 3200k 64k")
    qcow2.check(top)


@pytest.mark.parametrize("options", [
    {}, {"extended_l2": "on", "cluster_size": "128k"}, {"compat": "0.10"}],
    ids=["plain", "extended", "version-2"])
@pytest.mark.parametrize("end", [100 * K, 99 * K + 512])
def test_zeroes_behind_the_end_of_a_backing_file_leave_what_is_before(
        q, path, server, options, end):
    """Its end is inside of a cluster (and of a subcluster)."""
    guest.make_image(path("base.raw"), end, [(0, end)])
    top = qcow2.create(path("top"), M, backing="base.raw", fmt="raw",
                       **options)
    serve(q, top)
    before = guest.nbd_digest(server.uri("disk0"))
    qcow2.run("qemu-io", "-f", "raw", "-c", "write -z 102k 4k", "-c",
              "write -z 100k 512", server.uri("disk0"))
    assert guest.nbd_digest(server.uri("disk0")) == before
    q.cmd("block-export-del", id="exp", mode="hard")
    q.cmd("blockdev-del", node_name="disk0")
    qcow2.check(top)


@pytest.mark.parametrize("options", [
    {}, {"extended_l2": "on", "cluster_size": "128k"}],
    ids=["plain", "extended"])
@pytest.mark.parametrize("verb", ["write -z", "write -z -u", "discard"])
def test_raw_data_file_is_readable_alone(q, path, server, verb, options):
    """Zeroes are in it, those of a part of a cluster too."""
    img = qcow2.create(path("meta"), 4 * M, data_file=path("data"),
                       data_file_raw="on", **options)
    serve(q, img, discard="unmap")
    qcow2.run("qemu-io", "-f", "raw", "-d", "unmap", *(x for c in (
        "write -P 7 0 4M", verb + " 68k 8k", verb + " 516k 1k",
        verb + " 1M 256k", verb + " 1500k 300k") for x in ("-c", c)),
              server.uri("disk0"))
    q.cmd("block-export-del", id="exp", mode="hard")
    q.cmd("blockdev-del", node_name="disk0")
    qcow2.check(img)
    qcow2.compare(img, path("data"), fmt_b="raw")
    qcow2.io(img, "read -P 0 1M 256k", "read -P 7 2M 2M")
