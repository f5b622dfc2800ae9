# SPDX-License-Identifier: BSD-3-Clause
"""Nodes whose images could not be opened at a start: the rules of
src/daemon/lost.h."""
import json
import os

import pytest

from stillpoint_test import guest, procs
from stillpoint_test.qmp import action, backup

pytestmark = pytest.mark.needs("restart")
K = 65536
M = 1 << 20


class Away:
    """disk0 (raw over a file, both with names), disk1 (file), each with an
    export and a bitmap, in a folder that can be away."""

    def __init__(self, server, dir, make_target, connect):
        self.server, self.dir, self.connect = server, dir, connect
        self.folder = os.path.join(dir, "images")
        os.mkdir(self.folder)
        server.start()
        self.q = server.qmp()
        for name in ("low0", "disk1"):
            path = guest.make_image(os.path.join(self.folder, name), 8 * M)
            self.q.cmd("blockdev-add", driver="file", node_name=name,
                       filename=path)
        self.q.cmd("blockdev-add", driver="raw", node_name="disk0",
                   file="low0")
        for i, d in enumerate(("disk0", "disk1")):
            self.q.cmd("block-export-add", type="nbd", id="e%d" % i,
                       node_name=d, name=d, writable=True)
            self.q.cmd("block-dirty-bitmap-add", node=d, name="b")
            h = connect(server.uri(d))
            h.pwrite(b"x" * K, 3 * K)
            h.shutdown()
        self.target = make_target("t")
        self.target.file(os.path.join(dir, "t.raw"), 8 * M)
        self.q.cmd("blockdev-add", self.target.blockdev("t"))

    def restart_without(self, kill=False, **env):
        if kill:
            self.server.kill9()
            self.server.kill9_nbdkit()
        else:
            assert self.server.stop() == 0
            procs.wait_until(lambda: not self.server.nbdkit_pid(), "it ends")
        os.rename(self.folder, self.folder + ".away")
        self.server.start(**env)
        self.q = self.server.qmp()
        assert self.nodes() == ["t"]

    def restart(self):
        assert self.server.stop() == 0
        self.server.start()
        self.q = self.server.qmp()

    def back(self):
        os.rename(self.folder + ".away", self.folder)

    def nodes(self):
        return sorted(n["node-name"]
                      for n in self.q.cmd("query-named-block-nodes"))

    def exports(self):
        return sorted(e["id"] for e in self.q.cmd("query-block-exports"))

    def write(self, disk, cluster):
        h = self.connect(self.server.uri(disk))
        h.pwrite(b"y" * K, cluster * K)
        h.shutdown()

    def backup(self, disk):
        self.q.cmd("blockdev-backup", backup(
            disk, "t", "job", sync="incremental", bitmap="b"))
        self.q.jobs_succeed("job")


@pytest.fixture
def away(make_server, dir, make_target, connect):
    return Away(make_server(), dir, make_target, connect)


@pytest.mark.parametrize("kill", [False, True])
def test_lost_rule_2_a_command_that_names_it_finds_it_again(away, kill):
    away.restart_without(kill)
    away.back()
    assert away.nodes() == ["t"]            # queries try nothing
    away.q.cmd("blockdev-backup", backup("disk1", "t", "job",
                                         sync="incremental", bitmap="b"))
    away.q.jobs_succeed("job")
    guest.same(os.path.join(away.folder, "disk1"), away.target.path)
    assert away.nodes() == ["disk1", "t"]
    assert away.exports() == ["e1"]
    away.write("disk1", 9)
    assert away.q.bitmap("disk1", "b")["count"] == K


def test_lost_rule_2_what_it_stands_on_comes_with_it(away):
    away.restart_without()
    away.back()
    away.q.cmd("block-dirty-bitmap-add", node="disk0", name="other")
    assert away.nodes() == ["disk0", "low0", "t"]
    away.write("disk0", 9)
    assert away.q.bitmap("disk0", "b")["count"] == 2 * K
    assert away.q.bitmap("disk0", "other")["count"] == K


def test_lost_rule_2_the_name_of_an_export_is_a_name(away):
    away.restart_without()
    away.back()
    away.q.cmd("block-export-del", id="e1")
    assert away.nodes() == ["disk1", "t"]
    assert away.exports() == []
    assert away.q.bitmap("disk1", "b")["count"] == K
    away.restart()
    assert away.exports() == ["e0"]


def test_lost_rule_2_all_names_of_a_transaction(away):
    away.restart_without()
    away.back()
    away.q.cmd("transaction", actions=[
        action("block-dirty-bitmap-add", node=d, name="x")
        for d in ("disk1", "disk0")])
    assert away.exports() == ["e0", "e1"]
    for d in ("disk0", "disk1"):
        away.write(d, 5)
        assert away.q.bitmap(d, "x")["count"] == K


def test_lost_rule_1_it_is_kept_however_often_it_is_tried(away):
    away.restart_without()
    for _ in range(3):
        assert away.q.error("block-dirty-bitmap-add", node="disk1",
                            name="x").desc == (
            "Cannot find device='disk1' nor node-name='disk1'")
        away.restart()
    away.back()
    away.q.cmd("block-dirty-bitmap-add", node="disk1", name="x")
    assert away.q.bitmap("disk1", "b")["count"] == K


def test_lost_rule_1_it_is_kept_when_the_registry_cannot_be_written(away):
    away.restart_without()
    away.back()
    block = os.path.join(away.server.state, "registry.json.new")
    os.mkdir(block)
    assert "Cannot find" in away.q.error(
        "block-dirty-bitmap-add", node="disk1", name="x").desc
    assert away.nodes() == ["t"]
    os.rmdir(block)
    away.q.cmd("object-add", {"qom-type": "throttle-group", "id": "g"})
    away.backup("disk1")                    # its epochs are there
    guest.same(os.path.join(away.folder, "disk1"), away.target.path)


def test_lost_rule_1_guests_go_on_when_it_is_found(server, q, dir,
                                                   make_target, connect):
    path = os.path.join(dir, "remote.img")
    remote = make_target("remote", unix=True).file(path, size=16 * M)
    q.cmd("blockdev-add", remote.blockdev("far", **{"reconnect-delay": 60}))
    q.cmd("block-export-add", type="nbd", id="exp-far", node_name="far",
          name="far", writable=True)
    q.cmd("block-dirty-bitmap-add", node="far", name="b")
    h = connect(server.uri("far"))
    h.pwrite(b"x", 3 * K)
    server.kill9()
    remote.kill9()
    server.start()
    remote.restart()
    h.pwrite(b"y", 5 * K)
    q = server.qmp()
    q.cmd("block-dirty-bitmap-add", node="far", name="c")
    h.pwrite(b"z", 7 * K)                   # the same connection
    assert q.bitmap("far", "b")["count"] == 3 * K
    assert q.bitmap("far", "c")["count"] == K
    assert [e["id"] for e in q.cmd("query-block-exports")] == ["exp-far"]


def test_lost_rule_3_a_new_node_takes_the_place_for_good(away):
    away.restart_without()
    away.q.cmd("blockdev-add", driver="null-co", node_name="disk1", size=M)
    away.back()
    assert away.nodes() == ["disk1", "t"]
    away.q.cmd("blockdev-del", node_name="disk1")
    away.restart()
    assert away.nodes() == ["disk0", "low0", "t"]
    assert away.exports() == ["e0"]


def test_lost_rule_3_adding_it_tries_nothing(away):
    away.restart_without()
    away.back()
    away.q.cmd("blockdev-add", driver="file", node_name="disk1",
               filename=os.path.join(away.folder, "disk1"))
    assert away.nodes() == ["disk1", "t"]
    assert away.exports() == []
    assert away.q.error("block-dirty-bitmap-remove", node="disk1",
                        name="b").desc == "Dirty bitmap 'b' not found"


def test_nbdkit_dies_while_a_lost_node_is_found(away):
    park = os.path.join(away.dir, "park")
    away.restart_without(STILLPOINT_PARK_AT="recover.found:" + park)
    away.back()
    open(park, "w").close()
    away.q.send({"execute": "block-dirty-bitmap-add", "id": 1,
                 "arguments": {"node": "disk1", "name": "x"}})
    procs.wait_until(lambda: os.path.exists(park + ".parked"), "parked")
    away.server.kill9_nbdkit()
    os.unlink(park)
    assert "error" not in away.q.receive(30)
    away.write("disk1", 9)
    assert away.q.bitmap("disk1", "x")["count"] == K
    assert away.q.bitmap("disk1", "b")["count"] == 2 * K


def test_the_end_does_not_wait_for_a_lost_node(away):
    """SIGTERM while its image is being opened."""
    park = os.path.join(away.dir, "park")
    away.restart_without(STILLPOINT_PARK_AT="recover.opening:" + park)
    away.back()
    open(park, "w").close()
    away.q.send({"execute": "block-dirty-bitmap-add", "id": 1,
                 "arguments": {"node": "disk1", "name": "x"}})
    procs.wait_until(lambda: os.path.exists(park + ".parked"), "parked")
    away.server.child.popen.terminate()
    os.unlink(park)
    assert away.server.child.wait(20) == 0
    away.server.close_clients()
    away.server.start()
    away.q = away.server.qmp()
    assert away.exports() == ["e0", "e1"]
    assert away.q.bitmap("disk1", "b")["count"] == K


def test_lost_rule_3_options_leave_it_lost(away):
    """The daemon starts, and the node keeps its bitmap."""
    away.server.extra = [
        "--blockdev", json.dumps({
            "driver": "file", "node-name": "disk1",
            "filename": os.path.join(away.folder, "disk1")}),
        "--export", json.dumps({
            "type": "nbd", "id": "e1", "node-name": "disk1",
            "name": "disk1", "writable": True})]
    away.restart_without()
    away.back()
    away.q.cmd("block-dirty-bitmap-add", node="disk1", name="x")
    assert away.exports() == ["e1"]
    assert away.q.bitmap("disk1", "b")["count"] == K
