# SPDX-License-Identifier: BSD-3-Clause
"""What guests see over NBD, through libnbd and QEMU's tools."""
import errno
import json
import os
import subprocess

import pytest

from stillpoint_test import qcow2
from stillpoint_test.qmp import backup

nbd = pytest.importorskip("nbd")


def add_error(q, **kw):
    args = dict(type="nbd", id="e", node_name="disk0", name="disk0")
    args.update(kw)
    return q.error("block-export-add", **args)


def test_two_disks_are_two_exports_with_their_own_data(disks, connect):
    for name, seed in (("disk0", 1), ("disk1", 2)):
        disks.add(name, data=((0, 65536),))
    a, b = connect(disks.uri("disk0")), connect(disks.uri("disk1"))
    a.pwrite(b"A" * 4096, 8192)
    b.pwrite(b"B" * 4096, 8192)
    assert bytes(a.pread(4096, 8192)) == b"A" * 4096
    assert bytes(b.pread(4096, 8192)) == b"B" * 4096


@pytest.mark.rows("exports.add-description", "exports.handshake")
def test_exports_are_listed_with_their_descriptions(server, q, disks):
    disks.node("disk0")
    disks.node("disk1")
    disks.export("disk0", description="the first")
    disks.export("disk1", writable=False)
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(server.uri(""))
    seen = {}
    h.opt_list(lambda name, text: seen.update({name: text}))
    h.opt_abort()
    assert seen == {"disk0": "the first", "disk1": ""}


@pytest.mark.rows("exports.nbdinfo")
def test_qemu_nbd_lists_the_exports(server, q, disks):
    disks.add("disk0")
    r = subprocess.run(["qemu-nbd", "-L", "-k", server.nbd_unix],
                       capture_output=True, text=True, timeout=20)
    assert r.returncode == 0 and "disk0" in r.stdout


@pytest.mark.needs("stillpoint")
def test_tcp_and_unix_listeners_serve_the_same_disk(server, disks, connect):
    disks.add("disk0")
    a = connect(server.uri("disk0"))
    b = connect(server.uri("disk0", tcp=True))
    a.pwrite(b"x" * 512, 0)
    assert bytes(b.pread(512, 0)) == b"x" * 512


@pytest.mark.rows("exports.handshake")
def test_unknown_export_is_refused(server, disks, connect):
    disks.add("disk0")
    with pytest.raises(nbd.Error):
        connect(server.uri("nonsense"))


@pytest.mark.rows("exports.flags", "exports.errors")
def test_read_only_export_refuses_writes(q, disks, connect):
    disks.node("disk0")
    disks.export("disk0", writable=False)
    h = connect(disks.uri("disk0"))
    assert h.is_read_only()
    h.set_strict_mode(0)
    with pytest.raises(nbd.Error) as e:
        h.pwrite(b"x" * 512, 0)
    assert e.value.errnum in (errno.EPERM, errno.EINVAL)


@pytest.mark.rows("exports.flags", "exports.size")
def test_writable_export_has_what_a_guest_uses(disks, connect):
    disks.add("disk0")
    h = connect(disks.uri("disk0"))
    assert not h.is_read_only()
    assert h.can_flush() and h.can_fua() and h.can_zero() and h.can_trim()
    assert h.can_multi_conn()
    assert h.get_size() == disks.size


def test_write_zeroes_and_trim_read_back_as_zeroes(disks, connect):
    path = disks.add("disk0", discard="unmap")
    h = connect(disks.uri("disk0"))
    h.zero(65536, 65536)
    h.trim(65536, 262144)
    h.flush()
    assert bytes(h.pread(65536, 65536)) == bytes(65536)
    with open(path, "rb") as f:
        f.seek(65536)
        assert f.read(65536) == bytes(65536)


def test_unaligned_write_changes_exactly_its_bytes(disks, connect):
    path = disks.add("disk0")
    with open(path, "rb") as f:
        before = f.read(8192)
    h = connect(disks.uri("disk0"))
    h.pwrite(b"hello", 4094)
    h.flush()
    with open(path, "rb") as f:
        assert f.read(8192) == before[:4094] + b"hello" + before[4099:]


@pytest.mark.rows("exports.base-allocation")
def test_holes_of_a_sparse_image_are_reported(disks, connect, dir):
    disks.add("disk0", data=((4 << 20, 1 << 20),))
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    h.connect_uri(disks.uri("disk0"))
    extents = []

    def collect(context, offset, entries, error):
        extents.extend(entries)
    h.block_status(disks.size, 0, collect)
    assert extents[1] == 3 and extents[0] == 4 << 20


@pytest.mark.rows("exports.fua")
def test_flush_and_fua_succeed(disks, connect):
    disks.add("disk0")
    h = connect(disks.uri("disk0"))
    h.pwrite(b"x" * 4096, 0, nbd.CMD_FLAG_FUA)
    h.flush()
    assert bytes(h.pread(4096, 0)) == b"x" * 4096


def test_read_beyond_the_end_is_refused(disks, connect):
    disks.add("disk0")
    h = connect(disks.uri("disk0"))
    h.set_strict_mode(0)
    with pytest.raises(nbd.Error):
        h.pread(512, disks.size)


@pytest.mark.rows("exports.size")
def test_disk_of_odd_size_is_served_to_its_last_sector(disks, connect):
    disks.add("disk0", size=(1 << 20) + 512)
    h = connect(disks.uri("disk0"))
    assert h.get_size() == (1 << 20) + 512
    h.pwrite(b"e" * 512, 1 << 20)
    assert bytes(h.pread(512, 1 << 20)) == b"e" * 512


@pytest.mark.parametrize("change, desc", [
    ({"id": "1 x"}, "Invalid block export id"),
    ({"node_name": "zz"}, "Cannot find device='' nor node-name='zz'"),
    ({"id": "exp-disk0", "name": "y"},
     "Block export id 'exp-disk0' is already in use"),
    ({"id": "e2"}, "NBD server already has export named 'disk0'"),
])
@pytest.mark.rows("exports.add-id", "exports.add-node", "exports.add-id-used",
                  "exports.add-name-used", "error.66.invalid", "error.66.used",
                  "error.67")
def test_bad_export_is_refused(q, disks, change, desc):
    disks.add("disk0")
    e = add_error(q, **change)
    assert e.desc == desc
    assert len(q.cmd("query-block-exports")) == 1


@pytest.mark.rows("exports.query")
def test_exports_are_queried_newest_first(q, disks):
    disks.add("disk0")
    disks.add("disk1")
    assert q.cmd("query-block-exports") == [
        {"id": "exp-disk1", "type": "nbd", "node-name": "disk1",
         "shutting-down": False},
        {"id": "exp-disk0", "type": "nbd", "node-name": "disk0",
         "shutting-down": False}]


@pytest.mark.rows("exports.del-unknown", "error.68.not-found")
def test_deleting_an_unknown_export_is_refused(q):
    assert q.error("block-export-del", id="zz").desc == \
        "Export 'zz' is not found"


@pytest.mark.rows("exports.del-safe", "exports.del-hard", "error.68.in-use")
def test_export_with_a_client_needs_hard_deletion(q, disks, connect):
    disks.add("disk0")
    h = connect(disks.uri("disk0"))
    e = q.error("block-export-del", id="exp-disk0")
    assert e.desc == "export 'exp-disk0' still in use"
    h.pread(512, 0)
    q.cmd("block-export-del", id="exp-disk0", mode="hard")
    q.wait_event("BLOCK_EXPORT_DELETED", {"id": "exp-disk0"})
    with pytest.raises(nbd.Error):
        for _ in range(10):
            h.pread(512, 0)


@pytest.mark.rows("exports.del", "event.BLOCK_EXPORT_DELETED")
def test_deleted_export_is_gone_and_its_node_free(q, disks):
    disks.add("disk0")
    q.cmd("block-export-del", id="exp-disk0")
    q.wait_event("BLOCK_EXPORT_DELETED", {"id": "exp-disk0"})
    assert q.cmd("query-block-exports") == []
    q.cmd("blockdev-del", node_name="disk0")


@pytest.mark.rows("exports.nbdinfo")
def test_qemu_io_reads_what_it_wrote(disks):
    disks.add("disk0")
    r = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write -P 0xab 1M 64k", "-c",
         "read -P 0xab 1M 64k", "-c", "flush", disks.uri("disk0")],
        capture_output=True, text=True, timeout=20)
    assert r.returncode == 0 and "verification failed" not in r.stdout


@pytest.mark.rows("exports.nbdinfo")
def test_nbdinfo_understands_the_server(server, disks):
    disks.add("disk0")
    r = subprocess.run(["nbdinfo", "--json", disks.uri("disk0")],
                       capture_output=True, text=True, timeout=20)
    info = json.loads(r.stdout)["exports"][0]
    assert info["export-size"] == disks.size
    assert "base:allocation" in info["contexts"]


# --- what else block-export-add takes and refuses ------------------------------


@pytest.mark.rows("exports.add")
def test_export_is_named_after_its_node_by_default(q, disks, connect):
    disks.node("disk0")
    q.cmd("block-export-add", type="nbd", id="e", node_name="disk0")
    h = connect(disks.uri("disk0"))
    assert h.is_read_only() and h.get_size() == disks.size


@pytest.mark.rows("exports.add-name-long")
def test_names_and_descriptions_have_4096_bytes(server, q, disks):
    disks.node("disk0")
    e = add_error(q, name="n" * 4097)
    assert e.desc.startswith("export name 'nnn")
    e = add_error(q, name="x", description="d" * 4097)
    assert e.desc.startswith("description 'ddd")
    disks.export("disk0", name="n" * 4096, id="e", description="d" * 4096)
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(server.uri(""))
    seen = []
    h.opt_list(lambda name, text: seen.append((name, text)))
    h.opt_abort()
    assert seen == [("n" * 4096, "d" * 4096)]


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("exports.add-iothread")
def test_iothreads_do_not_exist(q, disks):
    disks.node("disk0")
    assert add_error(q, iothread="io0").desc == 'iothread "io0" not found'
    q.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk0",
                               "fixed-iothread": False,
                               "allow-inactive": False})


@pytest.mark.rows("exports.add-bitmap-missing", "exports.add-bitmap-enabled",
                  "error.70.not-found", "error.70.enabled")
def test_bitmap_of_an_export_is_looked_for_first(q, disks):
    disks.node("disk0")
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    assert add_error(q, bitmaps=["zz"]).desc == "Bitmap 'zz' is not found"
    assert add_error(q, bitmaps=[{"node": "disk0", "name": "zz"}]).desc == \
        "Dirty bitmap 'zz' not found"
    assert add_error(q, bitmaps=["b"]).desc == \
        "Enabled bitmap 'b' incompatible with readonly export"
    assert q.cmd("query-block-exports") == []


@pytest.mark.rows("exports.add-bitmap-enabled", "error.70.enabled")
def test_bitmap_of_an_export_is_looked_for_below_too(q, disks, dir):
    disks.node("disk0")
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    p = qcow2.create(os.path.join(dir, "top.qcow2"), disks.size)
    q.cmd("blockdev-add", qcow2.blockdev(p, "top", backing="disk0"))
    assert add_error(q, node_name="top", bitmaps=["b"]).desc == \
        "Enabled bitmap 'b' incompatible with readonly export"
    assert add_error(q, node_name="top", bitmaps=["zz"]).desc == \
        "Bitmap 'zz' is not found"


@pytest.mark.rows("exports.add-name-used", "exports.add-description")
def test_lengths_are_looked_at_before_names(q, disks):
    disks.node("disk0")
    disks.export("disk0")
    assert add_error(q, description="d" * 4097).desc.startswith(
        "description 'ddd")
    assert add_error(q, bitmaps=["zz"]).desc == \
        "NBD server already has export named 'disk0'"


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("exports.add-bitmap-contexts")
@pytest.mark.parametrize("more", [
    {"bitmaps": ["b"], "writable": True},
    {"bitmaps": [{"node": "disk0", "name": "b"}]},
    {"allocation-depth": True}], ids=["name", "pair", "depth"])
def test_metadata_contexts_for_guests_are_refused_with_the_reason(q, disks,
                                                                  more):
    disks.node("disk0")
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    e = q.error("block-export-add", {"type": "nbd", "id": "e",
                                     "node-name": "disk0", **more})
    assert e.desc == ("Export 'e' is for guests: it has no metadata context "
                      "but base:allocation")
    assert q.cmd("query-block-exports") == []
    assert q.bitmap("disk0", "b")["busy"] is False
    q.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk0",
                               "allocation-depth": False, "bitmaps": []})


@pytest.mark.rows("exports.add-bitmap-busy")
@pytest.mark.needs("stillpoint")
def test_busy_bitmap_is_refused_for_an_export(q, disks, backup_node):
    disks.node("disk0")
    backup_node()
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", speed=1,
                                    bitmap="b", bitmap_mode="on-success"))
    assert add_error(q, bitmaps=["b"], writable=True).desc == (
        "Bitmap 'b' is currently in use by another operation and cannot be "
        "used")
    q.cmd("job-cancel", id="j")
    q.wait_job("j")


@pytest.mark.rows("exports.add-writethrough", "exports.fua")
@pytest.mark.needs("stillpoint")
def test_writethrough_flushes_before_it_answers(server, q, dir, make_target,
                                                connect):
    """The image is on a server that logs what it is asked for."""
    log = os.path.join(dir, "requests.log")
    t = make_target().file(os.path.join(dir, "image.raw"), 1 << 20,
                           filters=["log"], parameters=["logfile=" + log])
    q.cmd("blockdev-add", t.blockdev("n0", discard="unmap"))
    for name, through in (("back", False), ("through", True)):
        q.cmd("block-export-add", type="nbd", id=name, name=name,
              node_name="n0", writable=True, writethrough=through)
    back, through = connect(server.uri("back")), connect(server.uri("through"))

    def flushes(request):
        def count():
            with open(log) as f:
                return sum(" Flush " in line and "..." in line or
                           "fua" in line.lower() and "fua=1" in line
                           for line in f)
        before = count()
        request()
        return count() - before
    assert flushes(lambda: back.pwrite(b"x" * 4096, 0)) == 0
    assert flushes(back.flush) == 1
    assert flushes(lambda: back.pwrite(b"x", 0, nbd.CMD_FLAG_FUA)) == 1
    assert flushes(lambda: through.pwrite(b"x" * 4096, 0)) == 1
    assert flushes(lambda: through.zero(4096, 65536)) == 1
    assert flushes(lambda: through.trim(4096, 0)) == 1
    assert flushes(lambda: through.pread(4096, 0)) == 0


# --- what the protocol offers ------------------------------------------------


@pytest.mark.rows("exports.block-size")
def test_sizes_of_requests_are_told(disks, connect):
    disks.add("disk0")
    h = connect(disks.uri("disk0"))
    assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
    assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
    assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
    h.pwrite(b"x" * (32 << 20 if disks.size > 32 << 20 else 1 << 20), 0)


@pytest.mark.rows("exports.structured")
def test_structured_replies_are_spoken(disks, connect):
    disks.add("disk0")
    h = connect(disks.uri("disk0"))
    assert h.get_structured_replies_negotiated()
    chunks = []
    buf = h.pread_structured(
        4096, 0, lambda data, offset, status, error:
        chunks.append((offset, len(data), status)))
    assert len(buf) == 4096 and sum(c[1] for c in chunks) == 4096


@pytest.mark.rows("exports.multi-conn")
def test_connections_share_one_disk(disks, connect):
    disks.add("disk0")
    a, b = connect(disks.uri("disk0")), connect(disks.uri("disk0"))
    assert a.can_multi_conn()
    for i in range(50):
        a.pwrite(bytes([i]) * 4096, 4096 * i)
        assert bytes(b.pread(4096, 4096 * i)) == bytes([i]) * 4096
        b.flush()


@pytest.mark.rows("exports.parallel")
def test_many_requests_in_flight_are_all_answered(disks, connect):
    disks.add("disk0")
    h = connect(disks.uri("disk0"))
    bufs = [nbd.Buffer.from_bytearray(bytearray([i]) * 4096)
            for i in range(64)]
    cookies = [h.aio_pwrite(b, 4096 * i) for i, b in enumerate(bufs)]
    while cookies:
        h.poll(-1)
        cookies = [c for c in cookies if not h.aio_command_completed(c)]
    data = bytes(h.pread(64 * 4096, 0))
    assert data == b"".join(bytes([i]) * 4096 for i in range(64))


@pytest.mark.rows("exports.errors")
@pytest.mark.needs("qemu-10")
def test_requests_past_the_end_fail(disks, connect):
    disks.add("disk0")
    h = connect(disks.uri("disk0"))
    h.set_strict_mode(0)
    for request, want in [
            (lambda: h.pread(512, disks.size), errno.EINVAL),
            (lambda: h.pwrite(b"x" * 512, disks.size), errno.ENOSPC),
            (lambda: h.zero(512, disks.size), errno.ENOSPC),
            (lambda: h.trim(512, disks.size), errno.EINVAL)]:
        with pytest.raises(nbd.Error) as e:
            request()
        assert e.value.errnum == want
    h.pwrite(b"x" * 512, disks.size - 512)


# --- an export on its way out --------------------------------------------------


@pytest.mark.needs("several-clients")
def test_export_that_two_clients_remove_is_removed_once(server, q, disks):
    """Changes wait for each other, so the second one finds nothing."""
    disks.add("disk0")
    other = server.qmp()
    for client in (q, other):
        client.send({"execute": "block-export-del",
                     "arguments": {"id": "exp-disk0"}})
    answers = [q.receive(), other.receive()]
    (failed,) = [a["error"]["desc"] for a in answers if "error" in a]
    assert failed == "Export 'exp-disk0' is not found"
    assert sum("return" in a for a in answers) == 1
