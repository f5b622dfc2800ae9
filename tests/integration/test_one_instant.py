# SPDX-License-Identifier: BSD-3-Clause
"""Many disks, one instant: proved by writes that depend on each other."""
import os
import time

import pytest

from stillpoint_test import guest
from stillpoint_test.qmp import action, backup

DISKS = 3
AREA = (1 << 20, 1 << 20)


@pytest.fixture
def world(q, disks, backup_node, writers):
    targets = []
    for i in range(DISKS):
        disks.add("disk%d" % i, data=((0, 1 << 20), (4 << 20, 4 << 20)))
        targets.append(backup_node("t%d" % i))
    counter = writers(guest.Counter(
        [guest.area(*AREA, disks.uri("disk%d" % i)) for i in range(DISKS)]))
    loads = [writers(guest.Load(
        guest.area(4 << 20, 8 << 20, disks.uri("disk%d" % i)), "--depth", 4))
        for i in range(DISKS)]
    time.sleep(0.3)
    yield targets, counter
    for w in [counter] + loads:
        w.quit()


def areas(targets):
    return [guest.area(*AREA, t.path) for t in targets]


def cut(q, *extra, grouped=False, **kw):
    start = len(q.events)
    q.cmd("transaction", actions=list(extra) + [
        action("blockdev-backup", backup("disk%d" % i, "t%d" % i,
                                         "j%d" % i, **kw))
        for i in range(DISKS)], properties={
            "completion-mode": "grouped" if grouped else "individual"})
    q.jobs_succeed(*["j%d" % i for i in range(DISKS)], start=start)


@pytest.mark.rows("transaction.one-instant")
def test_full_backups_of_one_transaction_are_one_instant(q, world):
    targets, counter = world
    before = counter.acked()
    cut(q)
    after = counter.acked()
    assert before <= guest.counter_check(areas(targets), before,
                                         after + 1) <= after + 1


def test_grouped_incrementals_are_one_instant(q, world):
    targets, counter = world
    cut(q, *[action("block-dirty-bitmap-add", node="disk%d" % i, name="b")
             for i in range(DISKS)])
    last = guest.counter_check(areas(targets))
    for _ in range(5):
        time.sleep(0.1)
        before = counter.acked()
        cut(q, grouped=True, sync="incremental", bitmap="b")
        now = guest.counter_check(areas(targets), at_least=before)
        assert now > last
        last = now


def test_backups_of_two_transactions_are_not_taken_for_one_instant(q, world):
    """The proof itself: it must notice what it is there for."""
    targets, counter = world
    for i in range(DISKS):
        start = len(q.events)
        q.cmd("blockdev-backup", backup("disk%d" % i, "t%d" % i, "s%d" % i))
        q.jobs_succeed("s%d" % i, start=start)
        time.sleep(0.05)
    with pytest.raises(AssertionError, match="was written before"):
        guest.counter_check(areas(targets))


def test_cut_while_paused_equals_the_digest_of_an_independent_client(
        q, world, disks, writers):
    targets, counter = world
    paused = [counter]
    paused[0].pause()
    # The load goes on elsewhere: only disk areas of the counter are fixed.
    digests = [guest.digest(disks.path("disk%d" % i), *AREA)
               for i in range(DISKS)]
    cut(q)
    paused[0].resume()
    assert [guest.digest(t.path, *AREA) for t in targets] == digests
    assert all(os.path.getsize(t.path) == disks.size for t in targets)
