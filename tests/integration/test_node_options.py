# SPDX-License-Identifier: BSD-3-Clause
"""Options of nodes at their edges, and in which order nodes are listed."""
import os

import pytest

from stillpoint_test import guest, qcow2
from stillpoint_test.qmp import backup

M = 1 << 20


@pytest.fixture
def path(dir):
    return lambda name: os.path.join(dir, name)


@pytest.fixture
def image(path):
    return guest.make_image(path("a"), M, [(0, M)])


def options(filename, name="n", **more):
    return dict({"driver": "file", "node-name": name, "filename": filename},
                **{k.replace("_", "-"): v for k, v in more.items()})


def names(q):
    """In the order of the list; nodes without names by their drivers."""
    return [n["node-name"] if n["node-name"][0] != "#" else "#" + n["drv"]
            for n in q.cmd("query-named-block-nodes")]


@pytest.mark.rows("nodes.file-options", "error.56")
def test_names_of_files(q, path):
    for driver in "file", "host_device":
        assert q.error("blockdev-add", options("", driver=driver)).desc == \
            "The '%s' block driver requires a file name" % driver
    assert q.error("blockdev-add", options(path("."))).desc == \
        "Could not open '%s': Is a directory" % path(".")
    assert q.error("blockdev-add", options(path("x"))).desc == \
        "Could not open '%s': No such file or directory" % path("x")


@pytest.mark.rows("nodes.file-options")
def test_options_of_a_file_that_do_nothing_here(q, image):
    more = {"aio-max-batch": 4, "drop-cache": False, "locking": "on",
            "x-check-cache-dropped": True, "aio": "threads"}
    q.cmd("blockdev-add", options(image, **more))
    q.cmd("blockdev-del", node_name="n")
    assert q.error("blockdev-add", options(image, aio="native")).desc == (
        "aio=native was specified, but it requires cache.direct=on, which "
        "was not specified.")
    assert "persistent reservation manager with id 'zz'" in q.error(
        "blockdev-add", options(image, pr_manager="zz")).desc.lower() \
        .replace("no ", "")


@pytest.mark.rows("nodes.null-size")
def test_null_aio_is_null_co(q, disks, connect):
    q.cmd("blockdev-add", driver="null-aio", node_name="n", size=M)
    (n,) = q.cmd("query-named-block-nodes")
    assert n["drv"] == n["image"]["format"] == "null-aio"
    assert n["image"]["virtual-size"] == M and n["image"]["actual-size"] == 0
    disks.export("n")
    h = connect(disks.uri("n"))
    assert h.get_size() == M
    h.pwrite(b"x" * 512, 0)


@pytest.mark.rows("nodes.read-only-below")
def test_filter_on_what_is_read_only(q, disks, backup_node, image, dir):
    ro = options(image, "ro", read_only=True)
    q.cmd("blockdev-add", ro)
    q.cmd("blockdev-add", driver="raw", node_name="r", file="ro")
    assert {n["node-name"]: n["ro"]
            for n in q.cmd("query-named-block-nodes")} == {
                "r": False, "ro": True}
    assert q.error("block-export-add", type="nbd", id="e", node_name="r",
                   writable=True).desc == "Block node is read-only"
    assert q.error("nbd-server-add", device="r", writable=True).desc == \
        "Block node is read-only"
    other = guest.make_image(os.path.join(dir, "b"), M)
    q.cmd("blockdev-add", options(other, "b"))
    assert q.error("blockdev-backup", backup("b", "r", "j")).desc == \
        "Could not create node: Block node is read-only"
    assert q.error("block_resize", node_name="r", size=2 * M).desc == \
        "Image is read-only"
    # what is below changes: so does the filter
    q.cmd("blockdev-reopen", options=[dict(ro, **{"read-only": False})])
    q.cmd("blockdev-backup", backup("b", "r", "j"))
    q.jobs_succeed("j")
    q.cmd("blockdev-reopen", options=[ro])
    assert q.error("blockdev-backup", backup("b", "r", "j")).desc == \
        "Could not create node: Block node is read-only"


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("nodes.read-only-below")
def test_guest_of_a_filter_keeps_what_is_below_writable(q, disks, image):
    o = options(image, "f")
    q.cmd("blockdev-add", o)
    q.cmd("blockdev-add", driver="raw", node_name="disk0", file="f")
    disks.export("disk0")
    assert q.error("blockdev-reopen", options=[
        dict(o, **{"read-only": True})]).desc == "Block node is read-only"


@pytest.mark.rows("nodes.query-order")
def test_inline_children_are_listed_as_they_are_opened(q, path):
    qcow2.create(path("q"), M)
    qcow2.create(path("o"), M, backing=path("q"))
    qcow2.create(path("o2"), M, backing=path("o"))
    q.cmd("blockdev-add", {
        "driver": "qcow2", "node-name": "o2",
        "file": dict(options(path("o2"), "of"))})
    assert names(q) == ["#qcow2", "#file", "#qcow2", "#file", "o2", "of"]
    q.cmd("blockdev-del", node_name="o2")
    q.cmd("blockdev-add", {
        "driver": "qcow2", "node-name": "o", "file": options(path("o"), "of"),
        "backing": {"driver": "qcow2", "node-name": "b",
                    "file": options(path("q"), "bf")}})
    assert names(q) == ["b", "bf", "o", "of"]


@pytest.mark.rows("error.8")
def test_references_that_lead_nowhere(q, path):
    qcow2.create(path("q"), M)
    assert q.error("blockdev-add", driver="raw", node_name="r",
                   file="x").desc == \
        "Cannot find device='x' nor node-name='x'"
    assert q.error("blockdev-add", {
        "driver": "qcow2", "node-name": "o", "file": options(path("q"), "f"),
        "backing": "x"}).desc == \
        "Could not open backing file: Cannot find device='x' nor node-name='x'"


@pytest.mark.rows("nodes.qcow2-options")
@pytest.mark.parametrize("compat,more,desc", [
    ("1.1", {"l2-cache-entry-size": 3},
     "L2 cache entry size must be a power of two between 512 and the cluster "
     "size (65536)"),
    ("1.1", {"l2-cache-entry-size": 256},
     "L2 cache entry size must be a power of two between 512 and the cluster "
     "size (65536)"),
    ("1.1", {"l2-cache-entry-size": 1 << 17},
     "L2 cache entry size must be a power of two between 512 and the cluster "
     "size (65536)"),
    ("1.1", {"cache-clean-interval": 1 << 32},
     "Cache clean interval too big"),
    ("0.10", {"lazy-refcounts": True},
     "Lazy refcounts require a qcow2 image with at least qemu 1.1 "
     "compatibility level")])
def test_qcow2_options_that_cannot_be(q, path, compat, more, desc):
    p = qcow2.create(path("q"), M, compat=compat)
    assert q.error("blockdev-add",
                   dict(qcow2.blockdev(p), **more)).desc == desc


@pytest.mark.rows("nodes.qcow2-options")
def test_qcow2_options_at_their_edges(q, path):
    p = qcow2.create(path("q"), M)
    for more in ({"l2-cache-entry-size": 512}, {"l2-cache-entry-size": 65536},
                 {"cache-clean-interval": (1 << 32) - 1},
                 {"cache-clean-interval": 0}, {"lazy-refcounts": True},
                 {"overlap-check": "all"}, {"overlap-check": {}},
                 {"overlap-check": {"template": "none", "active-l1": True}}):
        q.cmd("blockdev-add", dict(qcow2.blockdev(p), **more))
        q.cmd("blockdev-del", node_name="disk0")


@pytest.mark.rows("nodes.resize-refused")
def test_new_size_of_a_qcow2_image_is_whole_sectors(q, path):
    p = qcow2.create(path("q"), M)
    q.cmd("blockdev-add", qcow2.blockdev(p))
    assert q.error("block_resize", node_name="disk0", size=M + 100).desc == \
        "The new size must be a multiple of 512"
    q.cmd("block_resize", node_name="disk0", size=M + 512)


# --- options that only QEMU 10 has ------------------------------------------

@pytest.mark.needs("qemu-10")
@pytest.mark.rows("nodes.active")
def test_nodes_are_active(q, image):
    q.cmd("blockdev-add", options(image, active=True))
    q.cmd("blockdev-set-active", node_name="n", active=True)
    q.cmd("blockdev-set-active", active=True)
    assert q.error("blockdev-set-active", node_name="zz", active=True).desc \
        == "Failed to find node with node-name='zz'"
    assert q.cmd("query-named-block-nodes")[0]["active"] is True


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("nodes.active")
def test_nodes_cannot_be_inactive(q, image):
    assert "cannot be inactive" in q.error(
        "blockdev-add", options(image, active=False)).desc
    q.cmd("blockdev-add", options(image))
    assert "cannot be inactive" in q.error("blockdev-set-active",
                                           active=False).desc


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("nodes.qcow2-options")
def test_discards_that_keep_clusters_are_refused(q, path):
    p = qcow2.create(path("q"), M)
    assert q.error("blockdev-add", dict(
        qcow2.blockdev(p), **{"discard-no-unref": True})).desc == \
        "discard-no-unref is not supported"
    q.cmd("blockdev-add", dict(qcow2.blockdev(p),
                               **{"discard-no-unref": False}))
