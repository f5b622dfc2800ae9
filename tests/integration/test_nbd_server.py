# SPDX-License-Identifier: BSD-3-Clause
"""nbd-server-start, -stop, -add and -remove: QEMU's way to serve guests.

The first rules are those of src/daemon/guest-server.h.
"""
import os
import re
import socket
import subprocess

import pytest

from stillpoint_test import guest, procs
from stillpoint_test.qmp import QmpClosed, backup

nbd = pytest.importorskip("nbd")
SIZE = 4 << 20


@pytest.fixture
def quiet(make_server):
    """A server that has no address for guests yet."""
    s = make_server()
    s.serves = False
    return s.start()


@pytest.fixture
def k(quiet):
    return quiet.qmp()


def inet(port="0", host="127.0.0.1", **kw):
    return {"type": "inet", "data": dict(host=host, port=str(port), **kw)}


def unix(path):
    return {"type": "unix", "data": {"path": path}}


def node(q, directory, name="n0", **kw):
    path = os.path.join(directory, name + ".img")
    if not os.path.exists(path):
        guest.make_image(path, SIZE, [(0, 1 << 20)])
    q.cmd("blockdev-add", dict(kw, driver="file", filename=path,
                               **{"node-name": name}))
    return path


def add(q, name="n0", **kw):
    q.cmd("block-export-add", type="nbd", id="e-" + name, node_name=name,
          writable=True, **kw)


def uri(path, name="n0"):
    return "nbd+unix:///%s?socket=%s" % (name, path)


def ports(server):
    with open(server.log) as f:
        return re.findall(r"guests connect to tcp:\S*:(\d+)", f.read())


# --- the rules --------------------------------------------------------------


@pytest.mark.rows("exports.start", "exports.start-unix", "exports.not-running",
                  "error.65.not-running")
def test_guest_server_rule_1_a_qemu_script_starts_the_server_first(
        k, dir, connect):
    where = os.path.join(dir, "guests.sock")
    node(k, dir)
    for more in ({}, {"name": "n" * 4097}, {"bitmaps": ["zz"]}):
        e = k.error("block-export-add", type="nbd", id="e", node_name="n0",
                    **more)
        assert e.desc == "NBD server not running"
    e = k.error("block-export-add", type="nbd", id="e", node_name="zz")
    assert e.desc == "Cannot find device='' nor node-name='zz'"
    assert k.cmd("nbd-server-start", addr=unix(where)) == {}
    add(k)
    h = connect(uri(where))
    h.pwrite(b"x" * 4096, 4096)
    assert bytes(h.pread(4096, 4096)) == b"x" * 4096


@pytest.mark.rows("exports.start-again", "error.65.running")
def test_guest_server_rule_1_configured_addresses_are_a_running_server(
        q, dir, disks, connect):
    e = q.error("nbd-server-start", addr=unix(os.path.join(dir, "x.sock")))
    assert e.desc == "NBD server already running"
    assert not os.path.exists(os.path.join(dir, "x.sock"))
    disks.add()
    connect(disks.uri()).pread(512, 0)


def test_guest_server_rule_1_started_server_is_not_started_again(k, dir):
    k.cmd("nbd-server-start", addr=unix(os.path.join(dir, "a.sock")))
    e = k.error("nbd-server-start", addr=unix(os.path.join(dir, "b.sock")))
    assert e.desc == "NBD server already running"


@pytest.mark.needs("stillpoint")
def test_guest_server_rule_2_a_running_backup_notices_nothing(
        k, dir, connect, make_target):
    path = node(k, dir)
    t = make_target().file(os.path.join(dir, "t.raw"), SIZE)
    k.cmd("blockdev-add", t.blockdev("t0"))
    k.cmd("blockdev-backup", backup("n0", "t0", "j", speed=1 << 20))
    where = os.path.join(dir, "guests.sock")
    k.cmd("nbd-server-start", addr=unix(where))
    add(k)
    connect(uri(where)).pwrite(b"new", 3 << 20)
    k.cmd("block-job-set-speed", device="j", speed=0)
    k.jobs_succeed("j")
    with open(path, "rb") as a, open(t.path, "rb") as b:
        assert a.read(1 << 20) == b.read(1 << 20)
        b.seek(3 << 20)
        assert b.read(3) == bytes(3)


@pytest.mark.parametrize("both", [False, True], ids=["daemon", "both"])
@pytest.mark.needs("stillpoint")
def test_guest_server_rule_3_address_and_exports_survive_a_kill(
        quiet, k, dir, connect, both):
    where = os.path.join(dir, "guests.sock")
    node(k, dir)
    k.cmd("nbd-server-start", addr=unix(where))
    add(k)
    connect(uri(where)).pwrite(b"kept", 0)
    quiet.kill9()
    if both:
        procs.kill_marked(quiet.mark)
    quiet.start()
    q = quiet.qmp()
    assert bytes(connect(uri(where)).pread(4, 0)) == b"kept"
    assert q.error("nbd-server-start", addr=unix(where)).desc == \
        "NBD server already running"
    q.cmd("nbd-server-stop")
    assert not os.path.exists(where)


@pytest.mark.needs("stillpoint")
def test_guest_server_rule_3_the_port_that_was_chosen_is_kept(quiet, k, dir,
                                                              connect):
    node(k, dir)
    k.cmd("nbd-server-start", addr=inet(0))
    add(k)
    (port,) = ports(quiet)
    assert quiet.stop() == 0
    quiet.start()
    assert connect("nbd://127.0.0.1:%s/n0" % port).get_size() == SIZE


@pytest.mark.needs("stillpoint")
def test_guest_server_rule_3_stopped_server_stays_stopped(quiet, k, dir):
    where = os.path.join(dir, "guests.sock")
    k.cmd("nbd-server-start", addr=unix(where))
    k.cmd("nbd-server-stop")
    assert quiet.stop() == 0
    quiet.start()
    assert not os.path.exists(where)
    assert quiet.qmp().error("nbd-server-stop").desc == \
        "NBD server not running"


@pytest.mark.needs("stillpoint")
def test_remembered_address_that_is_taken_does_not_keep_clients_out(
        quiet, k, dir, connect):
    node(k, dir)
    k.cmd("nbd-server-start", addr=inet(0))
    add(k)
    (port,) = ports(quiet)
    assert quiet.stop() == 0
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(port)))
        other.listen()
        quiet.start()
        q = quiet.qmp()
        where = os.path.join(dir, "other.sock")
        q.cmd("nbd-server-start", addr=unix(where))
        assert connect(uri(where)).get_size() == SIZE


@pytest.mark.needs("stillpoint")
@pytest.mark.parametrize("place", ["guests.saved", "guests.listening"])
def test_guest_server_rule_3_daemon_dies_while_it_starts_the_server(
        make_server, dir, connect, place):
    s = make_server()
    s.serves = False
    s.start(STILLPOINT_KILL_AT=place + ":1")
    q = s.qmp()
    node(q, dir)
    where = os.path.join(dir, "guests.sock")
    with pytest.raises((QmpClosed, OSError)):
        q.cmd("nbd-server-start", addr=unix(where))
    procs.wait_until(lambda: not s.child.alive(), "the daemon died")
    s.close_clients()
    s.start()
    q = s.qmp()
    assert q.error("nbd-server-start", addr=unix(where)).desc == \
        "NBD server already running"
    add(q)
    assert connect(uri(where)).get_size() == SIZE


# --- addresses -------------------------------------------------------------


@pytest.mark.rows("exports.start-inet")
@pytest.mark.needs("stillpoint")
def test_inet_address_takes_qemus_members(quiet, k, dir, connect):
    node(k, dir)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first = taken.getsockname()[1]
        k.cmd("nbd-server-start", addr=inet(
            first, to=min(first + 50, 65535), numeric=True, ipv4=True,
            ipv6=False))
    add(k)
    (port,) = ports(quiet)
    assert first < int(port) <= first + 50
    assert connect("nbd://127.0.0.1:%s/n0" % port).get_size() == SIZE


@pytest.mark.needs("stillpoint")
def test_empty_host_means_every_interface(quiet, k, dir, connect):
    node(k, dir)
    k.cmd("nbd-server-start", addr=inet(0, host=""))
    add(k)
    port = ports(quiet)[0]
    assert connect("nbd://127.0.0.1:%s/n0" % port).get_size() == SIZE


@pytest.mark.rows("exports.start-fd")
@pytest.mark.parametrize("addr, desc", [
    (inet("nbd"), "port 'nbd' is not a number from 0 to 65535"),
    (inet(65536), "port '65536' is not a number from 0 to 65535"),
    (inet(0, ipv4=False, ipv6=False),
     "Cannot disable IPv4 and IPv6 at same time"),
    ({"type": "fd", "data": {"str": "sock"}},
     "File descriptor named 'sock' has not been found"),
    ({"type": "vsock", "data": {"cid": "3", "port": "1"}},
     "vsock addresses are not supported"),
    ({"type": "inet", "data": {"host": "127.0.0.1", "port": 1}},
     "Invalid parameter type for 'addr.data.port', expected: string"),
    ({"type": "inet", "data": {"port": "1"}},
     "Parameter 'addr.data.host' is missing"),
    ({"type": "unix", "data": {"path": "/etc/x.sock"}},
     "Could not open '/etc/x.sock': it is outside the allowed directories"),
    ({"type": "unix", "data": {"path": "x" * 108}},
     "UNIX socket path '%s' is empty or longer than 107 bytes" % ("x" * 108)),
    ({"type": "unix", "data": {"path": "a", "abstract": True}},
     "abstract socket 'a' is refused: every user of the host could connect "
     "to it"),
], ids=lambda v: v["type"] if isinstance(v, dict) else "")
@pytest.mark.needs("stillpoint")
def test_address_that_cannot_be_used_is_refused(k, addr, desc):
    assert k.error("nbd-server-start", addr=addr).desc == desc
    assert k.error("nbd-server-stop").desc == "NBD server not running"


@pytest.mark.needs("stillpoint")
def test_links_do_not_lead_a_socket_out_of_the_allowed_directories(
        k, dir, tmp_path):
    os.symlink(str(tmp_path), os.path.join(dir, "out"))
    e = k.error("nbd-server-start",
                addr=unix(os.path.join(dir, "out", "x.sock")))
    assert "outside the allowed directories" in e.desc
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.needs("stillpoint")
def test_address_in_use_is_named_and_the_server_can_be_started_elsewhere(
        k, dir):
    where = os.path.join(dir, "taken.sock")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(where)
        s.listen()
        e = k.error("nbd-server-start", addr=unix(where))
        assert where in e.desc and "another process listens" in e.desc
    k.cmd("nbd-server-start", addr=unix(os.path.join(dir, "free.sock")))


@pytest.mark.rows("exports.start-tls")
@pytest.mark.needs("stillpoint")
def test_tls_is_that_of_the_configuration(make_server, dir, connect):
    key = os.path.join(dir, "keys.psk")
    with open(key, "w", opener=lambda p, f: os.open(p, f, 0o600)) as f:
        f.write("guest:%s\n" % ("ab" * 32))
    s = make_server()
    s.serves = False
    s.extra = ["--tls", "require", "--tls-psk", key]
    q = s.start().qmp()
    where = os.path.join(dir, "guests.sock")
    e = q.error("nbd-server-start", addr=unix(where), tls_creds="tls0")
    assert e.desc == "No TLS credentials with id 'tls0'"
    q.cmd("nbd-server-start", addr=unix(where))
    node(q, dir)
    add(q)
    with pytest.raises(nbd.Error):
        connect(uri(where))
    h = nbd.NBD()
    h.set_tls(nbd.TLS_REQUIRE)
    h.set_tls_username("guest")
    h.set_tls_psk_file(key)
    h.set_export_name("n0")
    h.connect_unix(where)
    assert h.get_size() == SIZE


@pytest.mark.rows("exports.start-max-connections", "exports.start-handshake")
@pytest.mark.parametrize("limit, places", [(2, 2), (0, 110), (None, 100)])
@pytest.mark.needs("qemu-10")
def test_max_connections_is_the_number_of_clients(k, dir, limit, places):
    where = os.path.join(dir, "guests.sock")
    more = {} if limit is None else {"max-connections": limit}
    k.cmd("nbd-server-start", {"addr": unix(where),
                               "handshake-max-seconds": 5, **more})
    node(k, dir)
    add(k)
    clients = []
    for _ in range(places):
        clients.append(nbd.NBD())
        clients[-1].connect_uri(uri(where))
    extra = nbd.NBD()
    if limit != 0:
        with pytest.raises(nbd.Error):
            extra.connect_uri(uri(where))
    clients.pop().shutdown()

    def comes_in():
        h = nbd.NBD()
        try:
            h.connect_uri(uri(where))
        except nbd.Error:
            return False
        return h.get_size() == SIZE
    procs.wait_until(comes_in, "a client that left makes room")
    assert clients[0].can_multi_conn()


def test_one_connection_is_no_reason_for_several(k, dir, connect):
    where = os.path.join(dir, "guests.sock")
    k.cmd("nbd-server-start", addr=unix(where), max_connections=1)
    node(k, dir)
    add(k)
    assert not connect(uri(where)).can_multi_conn()


# --- nbd-server-stop ---------------------------------------------------------


@pytest.mark.rows("exports.stop", "exports.stop-events", "exports.stop-start")
def test_stop_ends_all_exports_and_closes_the_address(k, dir, connect):
    where = os.path.join(dir, "guests.sock")
    k.cmd("nbd-server-start", addr=unix(where))
    handles = []
    for name in ("n0", "n1", "n2"):
        node(k, dir, name)
        add(k, name)
        handles.append(connect(uri(where, name)))
    start = len(k.events)
    k.send({"execute": "nbd-server-stop", "id": "stop"})
    assert k.receive() == {"return": {}, "id": "stop"}
    gone = [e["data"]["id"] for e in k.events[start:]
            if e["event"] == "BLOCK_EXPORT_DELETED"]
    assert gone == ["e-n2", "e-n1", "e-n0"]
    assert k.cmd("query-block-exports") == []
    for h in handles:
        with pytest.raises(nbd.Error):
            h.pread(512, 0)
    with pytest.raises(nbd.Error):
        connect(uri(where))
    for name in ("n0", "n1", "n2"):
        k.cmd("blockdev-del", node_name=name)
    other = os.path.join(dir, "other.sock")
    k.cmd("nbd-server-start", addr=unix(other))
    node(k, dir)
    add(k)
    assert connect(uri(other)).get_size() == SIZE


@pytest.mark.rows("exports.stop-not-running")
def test_server_that_does_not_run_is_not_stopped(k):
    e = k.error("nbd-server-stop")
    assert (e.cls, e.desc) == ("GenericError", "NBD server not running")


def test_stop_closes_configured_addresses_too(server, q, disks, connect):
    disks.add()
    q.cmd("nbd-server-stop")
    with pytest.raises(nbd.Error):
        connect(disks.uri())
    q.cmd("nbd-server-start", addr=inet(server.nbd_port))
    disks.export("disk0")
    assert connect(server.uri("disk0", tcp=True)).get_size() == disks.size


def test_bitmap_goes_on_over_a_stop_and_a_start(k, dir, connect):
    where = os.path.join(dir, "guests.sock")
    node(k, dir)
    k.cmd("block-dirty-bitmap-add", node="n0", name="b")
    for offset in (0, 1 << 20):
        k.cmd("nbd-server-start", addr=unix(where))
        add(k)
        connect(uri(where)).pwrite(b"x", offset)
        k.cmd("nbd-server-stop")
    assert k.bitmap("n0", "b")["count"] == 2 * 65536


@pytest.mark.needs("stillpoint")
def test_stop_ends_exports_that_wait_for_their_node_too(quiet, k, dir,
                                                        make_target):
    where = os.path.join(dir, "guests.sock")
    t = make_target("remote", unix=True).file(
        os.path.join(dir, "remote.img"), SIZE)
    k.cmd("blockdev-add", t.blockdev("far"))
    k.cmd("nbd-server-start", addr=unix(where))
    add(k, "far")
    quiet.stop()
    t.kill9()
    q = quiet.start().qmp()
    assert q.cmd("query-named-block-nodes") == []
    q.cmd("nbd-server-stop")
    quiet.stop()
    t.restart()
    q = quiet.start().qmp()
    assert [n["node-name"] for n in q.cmd("query-named-block-nodes")] == [
        "far"]
    assert q.cmd("query-block-exports") == []


# --- nbd-server-add and -remove ------------------------------------------------


@pytest.mark.rows("exports.legacy-add", "exports.add-description")
def test_old_add_names_the_export_after_the_device(server, q, disks, connect):
    disks.node("n0")
    disks.node("ro", read_only=True)
    assert q.cmd("nbd-server-add", device="n0", writable=True) == {}
    q.cmd("nbd-server-add", device="n0", name="again",
          description="the same disk")
    q.cmd("nbd-server-add", device="ro", writable=True)
    assert [(x["id"], x["node-name"])
            for x in q.cmd("query-block-exports")] == [
                ("ro", "ro"), ("again", "n0"), ("n0", "n0")]
    assert not connect(server.uri("n0")).is_read_only()
    assert connect(server.uri("again")).is_read_only()
    assert connect(server.uri("ro")).is_read_only()


@pytest.mark.rows("exports.legacy-add-device")
@pytest.mark.needs("device-names")
def test_old_add_takes_a_device_or_a_node(q, disks):
    disks.node("n0")
    disks.export("n0", id="virtio0")
    q.cmd("nbd-server-add", device="virtio0", name="seen")
    assert q.cmd("query-block-exports")[0] == {
        "id": "seen", "type": "nbd", "node-name": "n0",
        "shutting-down": False}
    e = q.error("nbd-server-add", device="zz")
    assert e.desc == "Cannot find device='zz' nor node-name='zz'"
    e = q.error("nbd-server-add", device="n0", name="seen")
    assert e.desc == "Block export id 'seen' is already in use"
    e = q.error("nbd-server-add", device="n0", name="x", bitmap="b")
    assert e.desc == "Bitmap 'b' is not found"


@pytest.mark.rows("exports.legacy-remove")
def test_old_remove_is_safe_or_hard(q, disks, connect):
    disks.node("n0")
    q.cmd("nbd-server-add", device="n0", writable=True)
    h = connect(disks.uri("n0"))
    assert q.error("nbd-server-remove", name="n0").desc == \
        "export 'n0' still in use"
    q.cmd("nbd-server-remove", name="n0", mode="hard")
    q.wait_event("BLOCK_EXPORT_DELETED", {"id": "n0"})
    with pytest.raises(nbd.Error):
        for _ in range(10):
            h.pread(512, 0)
    assert q.error("nbd-server-remove", name="n0").desc == \
        "Export 'n0' is not found"


def test_qemu_img_finds_what_an_old_script_serves(k, dir):
    where = os.path.join(dir, "guests.sock")
    path = node(k, dir)
    k.cmd("nbd-server-start", addr=unix(where))
    k.cmd("nbd-server-add", device="n0")
    r = subprocess.run(["qemu-img", "compare", "-U", "-f", "raw", "-F", "raw",
                        path, uri(where)], capture_output=True, text=True,
                       timeout=30)
    assert r.returncode == 0, r.stdout + r.stderr
