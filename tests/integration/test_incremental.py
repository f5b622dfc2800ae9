# SPDX-License-Identifier: BSD-3-Clause
"""Chains: what changed is in the next backup, and nothing else need be."""
import os

import pytest

from stillpoint_test import guest
from stillpoint_test.qmp import action, backup
from stillpoint_test.target import slow_target

K = 65536


@pytest.fixture
def chain(q, disks, connect, backup_node):
    """A disk with bitmap b whose full backup is on target0."""
    path = disks.add()
    target = backup_node()
    h = connect(disks.uri())
    q.cmd("transaction", actions=[
        action("block-dirty-bitmap-add", node="disk0", name="b"),
        action("blockdev-backup", backup("disk0", "target0", "full"))])
    q.jobs_succeed("full")
    return path, target, h


def incremental(q, job="inc", **kw):
    args = dict(sync="incremental", bitmap="b")
    args.update(kw)
    q.cmd("blockdev-backup", backup("disk0", "target0", job, **args))
    return q.wait_job(job)


def test_incrementals_keep_the_target_equal(q, chain):
    path, target, h = chain
    for i in range(5):
        h.pwrite(bytes([i + 1]) * 100000, i * 300000)
        h.zero(K, (100 + i) * K)
        event = incremental(q, "inc%d" % i)
        assert "error" not in event["data"]
        h.flush()
        guest.same(path, target.path)
        assert q.bitmap("disk0", "b")["count"] == 0


def test_incremental_sends_only_what_changed(q, chain):
    path, target, h = chain
    h.pwrite(b"x", 3 * K)
    event = incremental(q)
    assert event["data"]["len"] == event["data"]["offset"] == K


def test_incremental_of_nothing_completes_with_length_0(q, chain):
    event = incremental(q)
    assert (event["data"]["len"], event["data"]["offset"]) == (0, 0)
    assert "error" not in event["data"]


@pytest.mark.rows("backup.bitmap", "backup.incremental")
def test_incremental_touches_only_dirty_granules_of_the_target(q, chain):
    path, target, h = chain
    h.pwrite(b"new", 2 * K)
    with open(target.path, "r+b") as f:     # a mark where nothing changed
        f.seek(9 * K)
        f.write(b"mark")
    incremental(q)
    with open(target.path, "rb") as f:
        f.seek(9 * K)
        assert f.read(4) == b"mark"
        f.seek(2 * K)
        assert f.read(3) == b"new"


@pytest.mark.rows("backup.instant")
def test_writes_during_an_incremental_are_in_the_next_one(
        q, dir, disks, connect, backup_node):
    path = disks.add(data=((0, 16 << 20),))
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    h = connect(disks.uri())
    h.pwrite(b"1" * (8 << 20), 0)
    before = guest.sparse_copy(path, os.path.join(dir, "before"))
    target = backup_node(**slow_target(10))
    guest.sparse_copy(path, target.path + ".new")
    with open(path, "rb") as s, open(target.path, "r+b") as t:
        s.seek(8 << 20)
        t.seek(8 << 20)
        t.write(s.read())
    q.cmd("blockdev-backup", backup("disk0", "target0", "inc",
                                    sync="incremental", bitmap="b"))
    for i in range(0, 12 << 20, 1 << 20):
        h.pwrite(b"2" * 4096, i)
    h.flush()
    q.jobs_succeed("inc")
    guest.same(before, target.path)
    assert q.bitmap("disk0", "b")["count"] == 12 * K
    event = incremental(q, "inc2")
    assert event["data"]["len"] == 12 * K
    guest.same(path, target.path)


@pytest.mark.parametrize("mode, after", [
    ("on-success", K), ("always", K), ("never", 3 * K)])
@pytest.mark.rows("backup.mode-success", "backup.bitmap")
def test_bitmap_mode_decides_what_remains_after_success(q, chain, mode,
                                                        after):
    path, target, h = chain
    h.pwrite(b"x" * (2 * K), 0)
    event = incremental(q, sync="bitmap", bitmap_mode=mode)
    assert "error" not in event["data"]
    h.pwrite(b"x", 10 * K)
    assert q.bitmap("disk0", "b")["count"] == after


@pytest.mark.rows("backup.mode-failure")
def test_failed_incremental_keeps_every_bit(q, disks, connect, backup_node):
    disks.add()
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    connect(disks.uri()).pwrite(b"x" * (4 * K), 0)
    backup_node(filters=["error"], parameters=["error-pwrite=EIO",
                                               "error-pwrite-rate=100%"])
    event = incremental(q)
    assert event["data"]["error"] == "Input/output error"
    info = q.bitmap("disk0", "b")
    assert info["count"] == 4 * K and not info["busy"]


def test_retried_incremental_gives_the_same_as_one_that_succeeded(
        q, dir, chain, make_target):
    path, target, h = chain
    h.pwrite(b"1" * K, 0)
    bad = make_target("bad").file(
        os.path.join(dir, "bad.raw"), 16 << 20, ["error"],
        ["error-pwrite=EIO", "error-pwrite-rate=100%"])
    q.cmd("blockdev-add", bad.blockdev("badtarget"))
    q.cmd("blockdev-backup", backup("disk0", "badtarget", "fail",
                                    sync="incremental", bitmap="b"))
    assert "error" in q.wait_job("fail")["data"]
    h.pwrite(b"2" * K, 7 * K)
    incremental(q)
    h.flush()
    guest.same(path, target.path)


@pytest.mark.rows("backup.full-bitmap")
def test_full_backup_with_a_bitmap_starts_a_new_chain(q, chain):
    path, target, h = chain
    h.pwrite(b"x" * K, 0)
    q.cmd("blockdev-backup", backup("disk0", "target0", "again",
                                    bitmap="b", bitmap_mode="on-success"))
    q.jobs_succeed("again")
    assert q.bitmap("disk0", "b")["count"] == 0
    guest.same(path, target.path)


def test_two_chains_of_one_disk_do_not_disturb_each_other(q, chain,
                                                          backup_node):
    path, target, h = chain
    other = backup_node("t1")
    q.cmd("transaction", actions=[
        action("block-dirty-bitmap-add", node="disk0", name="weekly"),
        action("blockdev-backup", backup("disk0", "t1", "w"))])
    q.jobs_succeed("w")
    for i in range(3):
        h.pwrite(bytes([65 + i]) * K, i * 2 * K)
        incremental(q, "inc%d" % i)
    assert q.bitmap("disk0", "weekly")["count"] == 3 * K
    q.cmd("blockdev-backup", backup("disk0", "t1", "w2", sync="incremental",
                                    bitmap="weekly"))
    q.jobs_succeed("w2")
    h.flush()
    guest.same(path, target.path)
    guest.same(path, other.path)


@pytest.mark.rows("bitmaps.disabled-backup")
def test_disabled_bitmap_can_be_backed_up_and_stays_disabled(q, chain):
    path, target, h = chain
    h.pwrite(b"x" * K, 0)
    q.cmd("block-dirty-bitmap-disable", node="disk0", name="b")
    h.pwrite(b"y" * K, 5 * K)
    event = incremental(q)
    assert event["data"]["len"] == K
    info = q.bitmap("disk0", "b")
    assert info["count"] == 0 and info["recording"] is False


def test_odd_tail_of_a_disk_is_in_the_incremental(q, disks, connect,
                                                  backup_node):
    size = (2 << 20) + 512
    path = disks.add(size=size)
    target = backup_node(size=size)
    h = connect(disks.uri())
    q.cmd("transaction", actions=[
        action("block-dirty-bitmap-add", node="disk0", name="b"),
        action("blockdev-backup", backup("disk0", "target0", "full"))])
    q.jobs_succeed("full")
    h.pwrite(b"t" * 512, size - 512)
    incremental(q)
    h.flush()
    guest.same(path, target.path)
