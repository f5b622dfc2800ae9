# SPDX-License-Identifier: BSD-3-Clause
"""The proof itself: counter-check must notice what it is there for."""
import os
import re
import struct
import subprocess
import zlib

import pytest

from stillpoint_test import daemon, guest

DISKS, SLOTS, SLOT = 3, 16, 4096
OFFSET = 8192


def block(value, disks=DISKS, slots=SLOTS, disk=None, slot=None):
    """A slot, made from the description of the format."""
    head = b"STILLCNT" + struct.pack(
        "<QIIQQ", value, value % disks if disk is None else disk, disks,
        value // disks % slots if slot is None else slot, slots)
    body = head + bytes(i * 7 & 0xff for i in range(SLOT - 4 - len(head)))
    return body + struct.pack("<I", zlib.crc32(body))


class Set:
    def __init__(self, directory):
        self.paths = [guest.make_image(os.path.join(directory, "d%d" % i),
                                       OFFSET + SLOTS * SLOT)
                      for i in range(DISKS)]

    def put(self, value, data=None):
        guest.patch(self.paths[value % DISKS],
                    OFFSET + value // DISKS % SLOTS * SLOT,
                    data or block(value))

    def fill(self, top):
        for value in range(1, top + 1):
            self.put(value)
        return self

    def check(self, *options):
        r = subprocess.run(
            [daemon.tool("counter-check")] + [str(o) for o in options] +
            [guest.area(OFFSET, SLOTS * SLOT, p) for p in self.paths],
            capture_output=True, text=True)
        return r.returncode, int(r.stdout), r.stderr


@pytest.fixture
def disks(dir):
    return Set(dir)


@pytest.mark.parametrize("top", [0, 1, 2, 47, 48, 49, 50, 200])
def test_every_prefix_is_accepted(disks, top):
    assert disks.fill(top).check() == (0, top, "")


@pytest.mark.parametrize("top, lost", [
    (30, 1), (30, 29), (100, 99), (100, 60), (100, 53)])
def test_one_lost_write_is_noticed(disks, top, lost):
    disks.fill(top)
    old = lost - DISKS * SLOTS
    disks.put(lost, block(old) if old > 0 else bytes(SLOT))
    status, value, text = disks.check()
    assert status == 1 and value == top
    assert "but value %d was written before %d" % (lost, top) in text


def test_write_from_after_the_cut_is_noticed(disks):
    disks.fill(100)
    disks.put(105)                          # 101 to 104 are not there
    status, value, text = disks.check()
    assert status == 1 and value == 105 and "value 101 was written" in text


def test_disk_of_another_instant_is_noticed(disks, dir):
    disks.fill(60)
    earlier = guest.sparse_copy(disks.paths[1], os.path.join(dir, "old"))
    disks.fill(90)
    disks.paths[1] = earlier
    status, value, text = disks.check()
    assert status == 1 and value >= 89 and "... and" not in text


def test_torn_slot_is_noticed(disks):
    disks.fill(40)
    disks.put(20, block(20)[:2048] + bytes(2048))
    status, _, text = disks.check()
    assert status == 1 and "torn" in text


def test_disks_in_the_wrong_order_are_noticed(disks):
    disks.fill(40)
    disks.paths.reverse()
    status, _, text = disks.check()
    assert status == 1 and "is labelled disk" in text


def test_foreign_data_is_noticed(disks):
    disks.fill(40)
    disks.put(7, b"\x55" * SLOT)
    status, _, text = disks.check()
    assert status == 1 and "no counter there" in text


def test_truncated_disk_is_noticed(disks):
    disks.fill(40)
    os.truncate(disks.paths[0], OFFSET + SLOT)
    status, _, text = disks.check()
    assert status == 1 and "ends before slot 1" in text


def test_bounds_are_judged(disks):
    disks.fill(40)
    assert disks.check("--at-least", 40, "--at-most", 40)[0] == 0
    assert disks.check("--at-least", 41)[0] == 1
    assert disks.check("--at-most", 39)[0] == 1


@pytest.fixture
def servers(dir, make_target):
    return [make_target("t%d" % i, unix=True).file(
        os.path.join(dir, "s%d" % i), OFFSET + SLOTS * SLOT)
        for i in range(DISKS)]


def written(servers):
    return [guest.area(OFFSET, SLOTS * SLOT, s.path) for s in servers]


def test_writer_leaves_what_the_check_expects(servers, writers):
    counter = writers(guest.Counter(
        [guest.area(OFFSET, SLOTS * SLOT, s.uri()) for s in servers],
        "--limit", 500))
    last, reconnections = counter.quit()
    assert reconnections == 0
    assert guest.counter_check(written(servers)) == last


def test_paused_writer_has_nothing_in_flight(servers, writers):
    counter = writers(guest.Counter(
        [guest.area(OFFSET, SLOTS * SLOT, s.uri()) for s in servers]))
    value = counter.pause()
    assert guest.counter_check(written(servers), value, value) == value
    assert counter.acked() == value
    counter.resume()
    assert counter.quit()[0] >= value


def test_writer_goes_on_after_its_server_was_killed(servers, writers):
    counter = writers(guest.Counter(
        [guest.area(OFFSET, SLOTS * SLOT, s.uri()) for s in servers],
        "--reconnect", 20))
    for s in servers:
        s.kill9()
        s.restart()
    before = counter.acked()
    while counter.acked() <= before:
        pass
    last, reconnections = counter.quit()
    assert reconnections >= 1
    assert guest.counter_check(written(servers), last, last) == last


def test_writer_without_patience_ends_with_the_reason(servers, dir):
    log = os.path.join(dir, "log")
    counter = guest.Counter([guest.area(OFFSET, SLOTS * SLOT,
                                        servers[0].uri())], log=log).ready()
    servers[0].kill9()
    assert counter.child.wait(10) == 1
    assert re.search(r"value \d+ to nbd\+unix", counter.child.stderr())


def test_load_sends_lost_requests_again(servers, writers):
    load = writers(guest.Load(guest.area(
        OFFSET, SLOTS * SLOT, servers[0].uri()), "--reconnect", 20,
        "--zero", 20, "--trim", 10, "--read", 10))
    servers[0].kill9()
    servers[0].restart()
    before = load.acked()
    while load.acked() <= before:
        pass
    end = load.quit()
    assert end["reconnections"] >= 1 and end["errors"] == 0


def test_load_counts_errors_and_goes_on(dir, make_target, writers):
    t = make_target("bad", unix=True).file(
        os.path.join(dir, "bad"), 1 << 20, ["error"],
        ["error-pwrite=EIO", "error-pwrite-rate=50%"])
    load = writers(guest.Load(guest.area(0, 1 << 20, t.uri())))
    while load.acked() < 100:
        pass
    end = load.quit()
    assert end["errors"] > 10 and end["ops"] > 10


@pytest.mark.parametrize("text", [
    "nonsense", "1@x", "-1+4096@x", "0+100@nbd+unix:///?socket=/none"])
def test_bad_disk_argument_is_refused(text):
    r = subprocess.run([daemon.tool("counter-writer"), text],
                       stdin=subprocess.DEVNULL, capture_output=True,
                       text=True)
    assert r.returncode == 1 and r.stderr
