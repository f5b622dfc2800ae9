# SPDX-License-Identifier: BSD-3-Clause
"""Bitmaps that live in a qcow2 image: between QEMU and us, and back."""
import os
import struct
import subprocess

import pytest

from stillpoint_test import guest, qcow2
from stillpoint_test.qmp import QmpClosed, backup

M = 1 << 20
SIZE = 64 * M
pytestmark = pytest.mark.needs("stillpoint")


@pytest.fixture
def path(dir):
    return lambda name: os.path.join(dir, name)


@pytest.fixture
def image(path):
    """An image with a bitmap of QEMU's in which 1M at 4M is dirty."""
    p = qcow2.create(path("disk"), SIZE)
    qcow2.io(p, "write -P 1 0 16M")
    qemu_bitmap("--add", p, "b0", "-g", "64k")
    qcow2.io(p, "write -P 2 4M 1M")
    return p


def qemu_bitmap(what, image, name, *options):
    qcow2.run("qemu-img", "bitmap", what, *options, image, name)


def stored(image):
    """What qemu-img says: {name: flags}."""
    data = qcow2.info(image)["format-specific"]["data"]
    return {b["name"]: (b["granularity"], sorted(b["flags"]))
            for b in data.get("bitmaps", [])}


def add(q, image, **more):
    q.cmd("blockdev-add", qcow2.blockdev(image, discard="unmap", **more))


def export(q, server):
    q.cmd("block-export-add", type="nbd", id="exp", node_name="disk0",
          name="disk0", writable=True)

    def io(*commands):
        argv = ["qemu-io", "-f", "raw"]
        for c in commands:
            argv += ["-c", c]
        qcow2.run(*argv, server.uri("disk0"))
    return io


def withdraw(q):
    q.cmd("block-export-del", id="exp", mode="hard")


def dirty(image, name, path):
    """The ranges of a stored bitmap as QEMU's NBD server shows them."""
    import nbd
    sock = path("qnbd.sock")
    p = subprocess.Popen(["qemu-nbd", "-r", "-f", "qcow2", "-k", sock, "-B",
                          name, image])
    try:
        from stillpoint_test import procs
        procs.wait_until(lambda: os.path.exists(sock), "qemu-nbd")
        h = nbd.NBD()
        context = "qemu:dirty-bitmap:" + name
        h.add_meta_context(context)
        h.connect_unix(sock)
        out, at = [], [0]

        def extent(metacontext, offset, entries, error):
            if metacontext == context:
                for n, flags in zip(entries[::2], entries[1::2]):
                    if flags & 1:
                        out.append((at[0], n))
                    at[0] += n
        while at[0] < SIZE:
            h.block_status(SIZE - at[0], at[0], extent)
        h.shutdown()
        return out
    finally:
        p.wait(10)


@pytest.mark.rows("bitmaps.qcow2-stored")
def test_rule_1_the_image_says_that_they_are_in_use(q, image):
    assert stored(image) == {"b0": (65536, ["auto"])}
    add(q, image)
    assert stored(image) == {"b0": (65536, ["auto", "in-use"])}
    b = q.bitmap("disk0", "b0")
    assert b["persistent"] and b["recording"] and not b["busy"]
    assert b["granularity"] == 65536 and b["count"] == M
    assert "inconsistent" not in b


@pytest.mark.rows("bitmaps.qcow2-stored")
def test_rule_3_deleting_the_node_stores_them(q, server, image, path):
    add(q, image)
    io = export(q, server)
    io("write -P 3 32M 65536", "write -P 3 4100k 1k")
    assert q.bitmap("disk0", "b0")["count"] == M + 65536
    withdraw(q)
    q.cmd("blockdev-del", node_name="disk0")
    qcow2.check(image)
    assert stored(image) == {"b0": (65536, ["auto"])}
    assert dirty(image, "b0", path) == [(4 * M, M), (32 * M, 65536)]
    # and they come back
    add(q, image)
    assert q.bitmap("disk0", "b0")["count"] == M + 65536


@pytest.mark.rows("bitmaps.qcow2-stored")
def test_rule_3_the_end_of_both_programs_stores_them(q, server, image, path):
    add(q, image)
    io = export(q, server)
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b1", persistent=True,
          granularity=4096)
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b2", persistent=True,
          disabled=True)
    q.cmd("block-dirty-bitmap-add", node="disk0", name="mine")
    io("write -P 3 32M 4k")
    server.stop()
    qcow2.check(image)
    assert stored(image) == {"b0": (65536, ["auto"]), "b1": (4096, ["auto"]),
                             "b2": (65536, [])}
    assert dirty(image, "b1", path) == [(32 * M, 4096)]
    server.start()
    q = server.qmp()
    names = {b["name"]: b for b in qcow2.node(q, "disk0")["dirty-bitmaps"]}
    assert sorted(names) == ["b0", "b1", "b2", "mine"]
    assert names["b1"]["count"] == 4096
    assert not names["b2"]["recording"] and names["b1"]["recording"]
    assert names["mine"]["count"] == 65536      # from the state directory
    io("write -P 3 40M 4k")
    assert q.bitmap("disk0", "b1")["count"] == 8192


def test_what_qemu_did_meanwhile_is_seen(q, server, image):
    add(q, image)
    server.stop()
    qcow2.io(image, "write -P 7 50M 64k")
    qemu_bitmap("--add", image, "theirs")
    qemu_bitmap("--remove", image, "b0")
    server.start()
    q = server.qmp()
    names = [b["name"] for b in qcow2.node(q, "disk0")["dirty-bitmaps"]]
    assert names == ["theirs"]


def test_rule_2_the_registry_goes_first(q, server, image):
    add(q, image)
    io = export(q, server)
    io("write -P 3 32M 65536")
    server.kill9()
    server.start()
    q = server.qmp()
    b = q.bitmap("disk0", "b0")
    assert "inconsistent" not in b and b["count"] == M + 65536
    io("write -P 3 40M 65536")
    old = server.kill9_nbdkit()
    server.wait_new_nbdkit(old)
    io("write -P 3 41M 65536")
    assert q.bitmap("disk0", "b0")["count"] == M + 3 * 65536
    q.cmd("block-dirty-bitmap-remove", node="disk0", name="b0")
    server.kill9()
    server.start()
    q = server.qmp()
    assert not qcow2.node(q, "disk0").get("dirty-bitmaps")
    server.stop()
    assert stored(image) == {}


@pytest.mark.rows("bitmaps.qcow2-inconsistent")
def test_in_use_by_somebody_who_crashed_is_inconsistent(q, server, image):
    p = subprocess.Popen(["qemu-io", "-f", "qcow2", image],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    p.stdin.write(b"write -P 1 0 64k\n")
    p.stdin.flush()
    while b"wrote" not in p.stdout.readline():
        pass
    p.kill()
    p.wait()
    add(q, image)
    b = q.bitmap("disk0", "b0")
    assert b["inconsistent"] and b["count"] == 0 and not b["recording"]
    assert b["persistent"]
    assert q.error("blockdev-backup", backup(
        "disk0", "x", "j", sync="incremental", bitmap="b0")).desc
    q.cmd("blockdev-del", node_name="disk0")
    assert "in-use" in stored(image)["b0"][1]   # as it was
    add(q, image)
    q.cmd("block-dirty-bitmap-remove", node="disk0", name="b0")
    q.cmd("blockdev-del", node_name="disk0")
    assert stored(image) == {}
    qcow2.check(image)


def test_rule_4_read_only_images_keep_them(q, server, image):
    add(q, image, read_only=True)
    b = q.bitmap("disk0", "b0")
    assert b["persistent"] and b["count"] == M
    assert q.error("block-dirty-bitmap-clear", node="disk0",
                   name="b0").desc == \
        "Bitmap 'b0' is readonly and cannot be modified"
    server.kill9()
    server.start()
    q = server.qmp()
    assert q.bitmap("disk0", "b0")["count"] == M
    q.cmd("blockdev-del", node_name="disk0")
    assert stored(image) == {"b0": (65536, ["auto"])}


@pytest.mark.rows("error.22", "bitmaps.qcow2-v2")
def test_persistent_bitmaps_need_an_image_that_can(q, path):
    p = qcow2.create(path("v2"), SIZE, compat="0.10")
    add(q, p)
    assert q.error("block-dirty-bitmap-add", node="disk0", name="b",
                   persistent=True).desc == \
        "Can't make bitmap 'b' persistent in 'disk0': Cannot store dirty " \
        "bitmaps in qcow2 v2 files"
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")


@pytest.mark.rows("error.22", "bitmaps.qcow2-limits")
def test_long_name_in_an_image(q, path):
    add(q, qcow2.create(path("q"), SIZE))
    assert q.error("block-dirty-bitmap-add", node="disk0", name="b" * 1024,
                   persistent=True).desc == \
        "Can't make bitmap '%s' persistent in 'disk0': Name length exceeds " \
        "maximum (1023 characters)" % ("b" * 1024)


@pytest.mark.rows("error.22", "bitmaps.qcow2-limits")
def test_too_much_space_for_a_bitmap(q, path):
    p = qcow2.create(path("big"), 4 << 40)
    add(q, p)
    assert q.error("block-dirty-bitmap-add", node="disk0", name="b",
                   persistent=True, granularity=512).desc == \
        "Can't make bitmap 'b' persistent in 'disk0': Too much space will " \
        "be occupied by the bitmap. Use larger granularity"


def reopen(q, image, read_only):
    q.cmd("blockdev-reopen", options=[qcow2.blockdev(
        image, discard="unmap", read_only=read_only)])


@pytest.mark.rows("bitmaps.qcow2-reopen")
def test_rule_1_and_3_over_a_reopen(q, server, image, path):
    """Read-only, writable, read-only again: the image says what is true."""
    add(q, image, read_only=True)
    assert stored(image) == {"b0": (65536, ["auto"])}
    reopen(q, image, False)
    assert stored(image) == {"b0": (65536, ["auto", "in-use"])}
    io = export(q, server)
    io("write -P 3 32M 65536")
    withdraw(q)
    assert stored(image) == {"b0": (65536, ["auto", "in-use"])}
    reopen(q, image, True)
    assert stored(image) == {"b0": (65536, ["auto"])}
    assert dirty(image, "b0", path) == [(4 * M, M), (32 * M, 65536)]
    assert q.bitmap("disk0", "b0")["count"] == M + 65536
    assert q.error("block-dirty-bitmap-clear", node="disk0",
                   name="b0").desc == \
        "Bitmap 'b0' is readonly and cannot be modified"
    reopen(q, image, False)
    q.cmd("block-dirty-bitmap-clear", node="disk0", name="b0")
    io = export(q, server)
    io("write -P 3 40M 65536")
    server.stop()
    assert dirty(image, "b0", path) == [(40 * M, 65536)]
    qcow2.check(image)


@pytest.mark.rows("bitmaps.qcow2-reopen")
def test_reopened_for_writing_and_killed(q, server, image):
    add(q, image, read_only=True)
    reopen(q, image, False)
    io = export(q, server)
    io("write -P 3 32M 65536")
    server.kill9()
    server.start()
    b = server.qmp().bitmap("disk0", "b0")
    assert "inconsistent" not in b and b["count"] == M + 65536


@pytest.mark.rows("bitmaps.qcow2-reopen")
def test_bitmap_in_use_keeps_its_image_writable(q, image, backup_node):
    add(q, image)
    backup_node("t", SIZE)
    q.cmd("blockdev-backup", backup("disk0", "t", "j", sync="bitmap",
                                    bitmap="b0", bitmap_mode="never",
                                    auto_finalize=False))
    q.wait_event("JOB_STATUS_CHANGE", {"id": "j", "status": "pending"})
    assert q.error("blockdev-reopen", options=[qcow2.blockdev(
        image, discard="unmap", read_only=True)]).desc == \
        "Bitmap 'b0' is currently in use by another operation and cannot be " \
        "used"
    assert stored(image) == {"b0": (65536, ["auto", "in-use"])}
    q.cmd("job-finalize", id="j")
    q.jobs_succeed("j")
    reopen(q, image, True)
    assert stored(image) == {"b0": (65536, ["auto"])}


@pytest.mark.rows("nodes.reopen-options")
def test_file_that_has_grown_is_no_obstacle(q, server, path):
    p = qcow2.create(path("new"), SIZE)
    add(q, p)
    io = export(q, server)
    io("write -P 3 0 8M")
    q.cmd("blockdev-reopen", options=[qcow2.blockdev(
        p, discard="unmap", detect_zeroes="on")])
    io("read -P 3 0 8M", "write -P 4 8M 8M")
    assert qcow2.node(q, "disk0")["detect_zeroes"] == "on"


@pytest.mark.rows("bitmaps.qcow2-stored")
def test_rule_1_after_a_death_between_storing_and_forgetting(q, server, image):
    """The bitmaps were stored and the node is still known: they are in use
    again before anybody writes."""
    add(q, image)
    server.stop()
    server.start(STILLPOINT_KILL_AT="stored.stored")
    q = server.qmp()
    with pytest.raises(QmpClosed):
        q.cmd("blockdev-del", node_name="disk0")
    server.child.wait(10)
    server.close_clients()
    assert stored(image) == {"b0": (65536, ["auto"])}
    server.start()
    q = server.qmp()
    assert q.bitmap("disk0", "b0")["count"] == M
    assert stored(image) == {"b0": (65536, ["auto", "in-use"])}


def test_interoperation(q, server, image, path):
    """QEMU makes a bitmap, we use it for an incremental and record in it,
    QEMU makes an incremental from it: each is right."""
    full = qcow2.raw_copy(image, path("full"))      # not yet: b0 has 4M+1M
    qcow2.run("qemu-img", "bitmap", "--clear", image, "b0")
    qcow2.io(image, "write -P 3 8M 1M")             # QEMU records
    add(q, image)
    io = export(q, server)
    io("write -P 4 20M 1M")                         # we record
    guest.sparse_copy(full, path("inc"))
    q.cmd("blockdev-add", driver="file", node_name="t", filename=path("inc"))
    q.cmd("blockdev-backup", backup("disk0", "t", "j", sync="incremental",
                                    bitmap="b0"))
    q.jobs_succeed("j")
    assert guest.digest(path("inc")) == guest.nbd_digest(server.uri("disk0"))
    io("write -P 5 30M 1M", "write -z 21M 512k")
    server.stop()
    qcow2.io(image, "write -P 6 40M 1M")            # QEMU records
    # an incremental by QEMU, from what both recorded
    dirt = dirty(image, "b0", path)
    assert dirt == [(21 * M, M // 2), (30 * M, M), (40 * M, M)]
    now = qcow2.raw_copy(image, path("now"))
    with open(now, "rb") as src, open(path("inc"), "r+b") as dst:
        for off, n in dirt:
            src.seek(off)
            dst.seek(off)
            dst.write(src.read(n))
    guest.same(now, path("inc"))


def change(path, at, fmt, *values):
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(struct.pack(fmt, *values))


def test_a_disk_that_does_not_end_with_a_sector(q, server, image):
    """Bits behind the last whole sector are no part of the disk."""
    with open(image, "rb") as f:
        head = f.read(65536)
        at = head.index(struct.pack(">II", 0x23852875, 24))
        directory = struct.unpack(">Q", head[at + 24:at + 32])[0]
        f.seek(directory)
        table, = struct.unpack(">Q", f.read(8))
    change(image, table, ">Q", 1)           # everything is dirty
    change(image, 24, ">Q", SIZE + 1)       # the size in the header
    add(q, image)
    assert q.bitmap("disk0", "b0")["count"] == SIZE
    q.cmd("blockdev-del", node_name="disk0")
    add(q, image)
    assert q.bitmap("disk0", "b0")["count"] == SIZE


def on_top(image, kind):
    """Options for a node "disk0" that shows all of the image."""
    q2 = qcow2.blockdev(image, "inner", discard="unmap")
    if kind == "raw":
        return {"driver": "raw", "node-name": "disk0", "file": q2}
    t = {"driver": "throttle", "throttle-group": "tg0", "file": q2}
    if kind == "throttle":
        return dict(t, **{"node-name": "disk0"})
    return {"driver": "raw", "node-name": "disk0", "file": t}


def add_on_top(q, image, kind, **more):
    if kind != "raw":
        q.cmd("object-add", {"qom-type": "throttle-group", "id": "tg0"})
    q.cmd("blockdev-add", dict(on_top(image, kind), discard="unmap", **more))


@pytest.mark.rows("bitmaps.qcow2-stored")
@pytest.mark.parametrize("kind", ["throttle", "raw", "raw on throttle"])
def test_rule_5_a_filter_has_the_bitmaps_below_it(q, server, image, path, kind):
    add_on_top(q, image, kind)
    assert stored(image) == {"b0": (65536, ["auto", "in-use"])}
    assert q.bitmap("disk0", "b0")["count"] == M
    io = export(q, server)
    io("write -P 3 32M 65536", "write -P 3 4100k 1k")
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b1", persistent=True)
    io("write -P 3 40M 65536")
    withdraw(q)
    q.cmd("blockdev-del", node_name="disk0")
    qcow2.check(image)
    assert stored(image) == {"b0": (65536, ["auto"]), "b1": (65536, ["auto"])}
    assert dirty(image, "b0", path) == [(4 * M, M), (32 * M, 65536),
                                        (40 * M, 65536)]
    assert dirty(image, "b1", path) == [(40 * M, 65536)]
    # QEMU goes on with them, and so do we
    qcow2.io(image, "write -P 5 50M 64k")
    q.cmd("blockdev-add", dict(on_top(image, kind), discard="unmap"))
    assert q.bitmap("disk0", "b0")["count"] == M + 3 * 65536
    assert q.bitmap("disk0", "b1")["count"] == 2 * 65536


@pytest.mark.rows("bitmaps.qcow2-stored")
def test_rule_5_over_deaths_and_the_end(q, server, image, path):
    add_on_top(q, image, "throttle")
    io = export(q, server)
    io("write -P 3 32M 65536")
    server.kill9()
    server.start()
    io("write -P 3 40M 65536")
    server.wait_new_nbdkit(server.kill9_nbdkit())
    io("write -P 3 48M 65536")
    q = server.qmp()
    assert q.bitmap("disk0", "b0")["count"] == M + 3 * 65536
    assert stored(image) == {"b0": (65536, ["auto", "in-use"])}
    server.stop()
    qcow2.check(image)
    assert stored(image) == {"b0": (65536, ["auto"])}
    assert dirty(image, "b0", path) == [
        (4 * M, M), (32 * M, 65536), (40 * M, 65536), (48 * M, 65536)]
    server.start()
    assert server.qmp().bitmap("disk0", "b0")["count"] == M + 3 * 65536


@pytest.mark.rows("bitmaps.qcow2-stored")
def test_rule_5_read_only_below_a_filter(q, image):
    add_on_top(q, image, "raw", **{"read-only": True})
    b = q.bitmap("disk0", "b0")
    assert b["persistent"] and b["count"] == M
    assert q.error("block-dirty-bitmap-clear", node="disk0",
                   name="b0").desc == \
        "Bitmap 'b0' is readonly and cannot be modified"
    q.cmd("blockdev-del", node_name="disk0")
    assert stored(image) == {"b0": (65536, ["auto"])}


@pytest.mark.rows("bitmaps.qcow2-reopen")
def test_rule_5_what_is_below_a_filter_is_not_reopened(q, image):
    """Its bitmaps would have to go into the image or come out of it."""
    add_on_top(q, image, "raw")
    inner = qcow2.blockdev(image, "inner", discard="unmap")
    for options in (dict(inner, **{"read-only": True}),
                    dict(on_top(image, "raw"), discard="unmap",
                         **{"read-only": True})):
        assert q.error("blockdev-reopen", options=[options]).desc == \
            "Node 'inner' is part of a node with bitmaps in its image: " \
            "its 'read-only' cannot change"
    q.cmd("blockdev-del", node_name="disk0")
    assert stored(image) == {"b0": (65536, ["auto"])}


@pytest.mark.rows("bitmaps.qcow2-inconsistent")
def test_rule_6_part_of_an_image(q, server, image):
    """Nobody could say what its bitmap has after a write: nobody believes it
    any more, and nobody forgets it."""
    q.cmd("blockdev-add", driver="raw", node_name="disk0", offset=M,
          discard="unmap", file=qcow2.blockdev(image, "inner"))
    assert stored(image) == {"b0": (65536, ["auto", "in-use"])}
    io = export(q, server)
    io("write -P 3 31M 65536")
    server.kill9()
    server.start()
    io("write -P 3 32M 65536")
    server.stop()
    qcow2.check(image)
    assert stored(image) == {"b0": (65536, ["auto", "in-use"])}
    server.start()
    q = server.qmp()
    q.cmd("block-export-del", id="exp", mode="hard")
    q.cmd("blockdev-del", node_name="disk0")
    add(q, image)
    b = q.bitmap("disk0", "b0")
    assert b["inconsistent"] and b["persistent"]


def test_rule_6_backing_images_keep_theirs(q, server, image, path):
    """Whatever their options say: nobody writes to them."""
    top = qcow2.create(path("top"), backing=image, fmt="qcow2")
    q.cmd("blockdev-add", qcow2.blockdev(
        top, backing=qcow2.blockdev(image, "base", read_only=False)))
    io = export(q, server)
    io("write -P 3 32M 65536")
    server.stop()
    assert stored(image) == {"b0": (65536, ["auto"])}
