# SPDX-License-Identifier: BSD-3-Clause
"""NBD servers that want TLS with X.509 certificates, as targets and as the
place where an image lives.  The certificates are made here, with certtool."""
import os
import shutil
import subprocess

import pytest

from stillpoint_test import guest
from stillpoint_test.qmp import action, backup

pytestmark = [
    pytest.mark.needs("stillpoint"),
    pytest.mark.skipif(not shutil.which("certtool"),
                       reason="certtool is not installed")]


class Authority:
    """A certificate authority in a directory of its own."""

    def __init__(self, directory, name):
        self.dir = os.path.join(directory, name)
        os.mkdir(self.dir)
        self.name = name
        self.key("ca-key.pem")
        self.run("ca-cert.pem", ["cn = " + name, "ca", "cert_signing_key"],
                 "--generate-self-signed", "--load-privkey",
                 self.path("ca-key.pem"))

    def path(self, name):
        return os.path.join(self.dir, name)

    def key(self, name):
        subprocess.run(["certtool", "--generate-privkey", "--key-type",
                        "ecdsa", "--outfile", self.path(name)], check=True,
                       capture_output=True)

    def run(self, name, template, *argv):
        with open(self.path("template"), "w") as f:
            f.write("\n".join(template + ["expiration_days = 2", ""]))
        subprocess.run(["certtool", "--template", self.path("template"),
                        "--outfile", self.path(name), *argv], check=True,
                       capture_output=True)

    def certificate(self, what, names=(), addresses=()):
        """what-cert.pem and what-key.pem, of a "server" or a "client"."""
        self.key(what + "-key.pem")
        self.run(what + "-cert.pem", [
            "cn = " + self.name + " " + what, "tls_www_" + what,
            "signing_key"] + ["dns_name = " + n for n in names] + [
            "ip_address = " + a for a in addresses],
            "--generate-certificate", "--load-privkey",
            self.path(what + "-key.pem"), "--load-ca-certificate",
            self.path("ca-cert.pem"), "--load-ca-privkey",
            self.path("ca-key.pem"))

    def for_clients(self, name, certificate=False):
        """A directory as a client needs it; with or without its own."""
        where = self.path(name)
        os.mkdir(where)
        for f in ["ca-cert.pem"] + (["client-cert.pem", "client-key.pem"]
                                    if certificate else []):
            shutil.copy(self.path(f), where)
        return where


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Certificates take a while to make: all tests share them."""
    top = str(tmp_path_factory.mktemp("tls"))
    ours = Authority(top, "ours")
    ours.certificate("server", ["localhost"], ["127.0.0.1"])
    ours.certificate("client")
    other = Authority(top, "other")
    elsewhere = Authority(top, "elsewhere")
    shutil.copy(ours.path("ca-cert.pem"), elsewhere.dir)
    shutil.copy(ours.path("ca-key.pem"), elsewhere.dir)
    elsewhere.certificate("server", ["far.example"], ["192.0.2.1"])
    return {"server": ours.dir, "elsewhere": elsewhere.dir,
            "known": ours.for_clients("known"),
            "client": ours.for_clients("with-client", True),
            "stranger": other.for_clients("stranger")}


def tls(made, server="server", verify=False):
    return ["--tls=require", "--tls-certificates=" + made[server]] + (
        ["--tls-verify-peer"] if verify else [])


@pytest.fixture
def serve(dir, make_target, made):
    def make(size, name="t", **kw):
        return make_target(name).file(os.path.join(dir, name + ".raw"), size,
                                      options=tls(made, **kw))
    return make


def node(t, made, who="known", name="target0", **more):
    return dict(t.blockdev(name, **more),
                **{"x-tls-certificates": made[who]})


def full(q, device="disk0"):
    start = len(q.events)
    q.cmd("blockdev-backup", backup(device, "target0", "full"))
    q.jobs_succeed("full", start=start)


def test_target_whose_certificate_is_good_is_written(q, disks, serve, made):
    path = disks.add()
    t = serve(disks.size)
    q.cmd("blockdev-add", node(t, made))
    full(q)
    guest.same(path, t.path)


def test_server_that_knows_its_clients_knows_us(q, disks, serve, made):
    path = disks.add()
    t = serve(disks.size, verify=True)
    q.cmd("blockdev-add", node(t, made, "client"))
    full(q)
    guest.same(path, t.path)


def test_server_that_knows_its_clients_refuses_who_has_no_certificate(
        q, disks, serve, made):
    disks.add()
    t = serve(disks.size, verify=True)
    e = q.error("blockdev-add", node(t, made))
    assert e.desc.startswith("Failed to connect to "), e.desc


@pytest.mark.parametrize("who, which", [
    ("stranger", "server"),                 # another authority
    ("known", "elsewhere")],                # another host's certificate
    ids=["authority", "host"])
def test_server_that_is_not_who_it_should_be_is_refused(q, disks, serve,
                                                        made, who, which):
    disks.add()
    t = serve(disks.size, server=which)
    e = q.error("blockdev-add", node(t, made, who))
    assert e.desc.startswith("Failed to connect to "), e.desc
    assert "certificate" in e.desc, e.desc
    with open(t.path, "rb") as f:
        assert not f.read(4096).strip(b"\0")


def test_server_without_tls_is_not_talked_to(q, dir, disks, make_target,
                                             made):
    disks.add()
    t = make_target().file(os.path.join(dir, "t.raw"), disks.size)
    e = q.error("blockdev-add", node(t, made))
    assert e.desc.startswith("Failed to connect to "), e.desc


def test_without_an_authority_nobody_is_trusted(q, disks, serve, dir):
    """libnbd would look for others, and then verify nothing."""
    disks.add()
    t = serve(disks.size)
    e = q.error("blockdev-add", dict(t.blockdev("target0"), **{
        "x-tls-certificates": os.path.join(dir, "nowhere")}))
    assert e.desc.endswith("cannot read '%s/nowhere/ca-cert.pem': No such "
                           "file or directory" % dir), e.desc


def test_certificate_on_a_unix_socket_cannot_be_verified(
        q, dir, disks, make_target, made):
    disks.add()
    t = make_target(unix=True).file(os.path.join(dir, "t.raw"), disks.size,
                                    options=tls(made))
    e = q.error("blockdev-add", node(t, made))
    assert e.desc.endswith("on a unix socket"), e.desc


def test_disk_whose_image_is_far_away_is_a_disk_like_others(
        server, q, disks, serve, made, connect, backup_node):
    """Guests, incrementals, and both processes killed."""
    far = serve(disks.size, "far", verify=True)
    q.cmd("blockdev-add", node(far, made, "client", "disk0",
                               reconnect_delay=10))
    disks.export("disk0")
    t = backup_node()
    h = connect(disks.uri())
    h.pwrite(b"a" * 65536, 1 << 20)
    assert h.pread(65536, 1 << 20) == b"a" * 65536
    q.cmd("transaction", actions=[
        action("block-dirty-bitmap-add", node="disk0", name="b"),
        action("blockdev-backup", backup("disk0", "target0", "full"))])
    q.jobs_succeed("full")
    h.pwrite(b"b" * 65536, 2 << 20)
    server.kill9()
    server.kill9_nbdkit()
    server.start()
    q = server.qmp()
    h = connect(disks.uri())
    assert h.pread(65536, 2 << 20) == b"b" * 65536
    h.zero(65536, 1 << 20)
    h.flush()
    assert q.bitmap("disk0", "b")["count"] >= 2 * 65536
    q.cmd("blockdev-backup", backup("disk0", "target0", "inc",
                                    sync="incremental", bitmap="b"))
    q.jobs_succeed("inc")
    guest.same(far.path, t.path)
