# SPDX-License-Identifier: BSD-3-Clause
"""Pausing holds a job within one chunk; speed limits hold and do not burst."""
import time

import pytest

from stillpoint_test import guest, procs
from stillpoint_test.qmp import backup

M = 1 << 20
SIZE = 256 * M
CHUNK = 256 << 10


@pytest.fixture
def disk(q, disks, dir, backup_node):
    disks.add(size=SIZE, data=((0, SIZE),))
    return backup_node(size=SIZE)


def start(q, **kw):
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", **kw))
    procs.wait_until(lambda: job(q)["len"], "the job knows its length")


def job(q):
    (b,) = q.cmd("query-block-jobs")
    return b


def finish(q):
    q.cmd("block-job-set-speed", device="j", speed=0)
    q.jobs_succeed("j")


@pytest.mark.rows("jobs.pause-chunk")
def test_paused_job_does_not_move(q, disks, disk):
    start(q, speed=16 * M)
    time.sleep(0.3)
    q.cmd("job-pause", id="j")
    position = len(q.events)
    procs.wait_until(lambda: job(q)["status"] == "paused", "it rests")
    before = job(q)["offset"]
    assert 0 < before < SIZE
    time.sleep(0.5)
    assert job(q)["offset"] == before
    assert len(q.drain_events()) - position <= 1
    q.cmd("job-resume", id="j")
    finish(q)
    guest.same(disks.path("disk0"), disk.path)


@pytest.mark.rows("jobs.pause-chunk")
def test_pausing_ends_what_is_in_flight_and_takes_no_more(q, disk):
    start(q, speed=16 * M)
    time.sleep(0.3)
    at = job(q)["offset"]
    q.cmd("job-pause", id="j")
    procs.wait_until(lambda: job(q)["status"] == "paused", "it rests")
    # what the limit lets through between the two looks, and one chunk
    assert job(q)["offset"] - at <= 2 * M + CHUNK
    q.cmd("job-cancel", id="j")
    q.wait_job("j")


def moved(q, seconds):
    began, before = time.monotonic(), job(q)["offset"]
    time.sleep(seconds)
    after = job(q)["offset"]
    return (after - before) / (time.monotonic() - began)


@pytest.mark.rows("jobs.speed")
def test_speed_holds_over_a_second(q, disk):
    limit = 16 * M
    start(q, speed=limit)
    for _ in range(3):
        assert 0.8 * limit < moved(q, 1) < 1.2 * limit
    finish(q)


@pytest.mark.rows("jobs.speed")
def test_no_burst_after_a_pause(q, disk):
    limit = 16 * M
    start(q, speed=limit)
    time.sleep(0.3)
    q.cmd("job-pause", id="j")
    time.sleep(1.5)
    before, began = job(q)["offset"], time.monotonic()
    q.cmd("job-resume", id="j")
    time.sleep(0.5)
    got, took = job(q)["offset"] - before, time.monotonic() - began
    # a slice of a tenth of a second may be caught up with
    assert got <= limit * (took + 0.1) + CHUNK
    assert got > 0
    finish(q)


@pytest.mark.rows("jobs.speed-change")
def test_speed_change_takes_effect_at_once_and_does_not_burst(q, disk):
    start(q, speed=4 * M)
    time.sleep(0.5)
    for limit in (32 * M, 8 * M):
        q.cmd("block-job-set-speed", device="j", speed=limit)
        assert job(q)["speed"] == limit
        before, began = job(q)["offset"], time.monotonic()
        time.sleep(0.6)
        got, took = job(q)["offset"] - before, time.monotonic() - began
        assert 0.6 * limit * took < got < limit * (took + 0.1) + CHUNK
    finish(q)


@pytest.mark.rows("jobs.speed-change")
def test_crawling_job_hurries_when_its_limit_is_lifted(q, disks, disk):
    start(q, speed=1)
    time.sleep(0.2)
    assert job(q)["offset"] <= 4 * CHUNK
    began = time.monotonic()
    finish(q)
    assert time.monotonic() - began < 20
    guest.same(disks.path("disk0"), disk.path)


@pytest.mark.rows("jobs.speed")
def test_speed_holds_over_a_minute(q, disk):
    limit = 2 * M
    start(q, speed=limit)
    assert 0.98 * limit < moved(q, 60) < 1.02 * limit
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
