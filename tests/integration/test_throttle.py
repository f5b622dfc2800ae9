# SPDX-License-Identifier: BSD-3-Clause
"""Throttle nodes and their groups.  Times are checked from below only."""
import threading
import time

import pytest

GROUP = {"qom-type": "throttle-group", "id": "tg0"}


def disk(q, disks, name="disk0", group="tg0"):
    disks.node("file-" + name, size=16 << 20)
    q.cmd("blockdev-add", {"driver": "throttle", "node-name": name,
                           "throttle-group": group, "file": "file-" + name})
    disks.export(name)
    return disks.uri(name)


def seconds(f, *args):
    t = time.monotonic()
    f(*args)
    return time.monotonic() - t


def reads(h, n):
    for i in range(n):
        h.pread(4096, i * 4096)


@pytest.mark.rows("nodes.throttle")
def test_group_limits_a_guest(q, disks, connect):
    q.cmd("object-add", dict(GROUP, limits={"iops-total": 100}))
    h = connect(disk(q, disks))
    assert seconds(reads, h, 61) >= 0.4


@pytest.mark.rows("nodes.throttle")
@pytest.mark.parametrize("limits,most", [
    ({"bps-write": 4 << 20}, lambda s: (4 << 20) * (s + 0.1)),
    ({"bps-write": 1 << 20, "bps-write-max": 8 << 20,
      "bps-write-max-length": 2}, lambda s: (8 << 20) * (s + 0.1)),
    ({"bps-write": 1 << 20, "bps-write-max": 4 << 20},
     lambda s: (1 << 20) * s + (4 << 20))])
def test_limits_hold_over_every_second(q, disks, connect, limits, most):
    """A guest that writes all it can has no more through than it may have in
    any window of its own time."""
    chunk = 64 << 10
    q.cmd("object-add", dict(GROUP, limits=limits))
    h = connect(disk(q, disks))
    times = []
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        began = time.monotonic()
        h.pwrite(b"x" * chunk, len(times) % 200 * chunk)
        times.append((began, time.monotonic()))
    for i in range(len(times)):
        for k in range(i + 1, len(times)):
            seconds_ = times[k][1] - times[i][0]
            if seconds_ >= 1:
                assert (k - i + 1) * chunk <= most(seconds_) + chunk
                break
    took = times[-1][1] - times[0][0]
    assert len(times) * chunk <= most(took) + chunk


def test_x_members_limit_as_well(q, disks, connect):
    q.cmd("object-add", dict(GROUP, **{"x-bps-read": 400 << 10}))
    h = connect(disk(q, disks))
    assert seconds(reads, h, 41 + 20) >= 0.3


def test_nodes_of_a_group_share_its_limit(q, disks, connect):
    q.cmd("object-add", dict(GROUP, limits={"iops-total": 100}))
    handles = [connect(disk(q, disks, n)) for n in ("disk0", "disk1")]
    threads = [threading.Thread(target=reads, args=(h, 31)) for h in handles]
    t = time.monotonic()
    for x in threads:
        x.start()
    for x in threads:
        x.join()
    assert time.monotonic() - t >= 0.4


def test_limits_can_be_changed_while_a_guest_waits(q, disks, connect):
    q.cmd("object-add", dict(GROUP, limits={"iops-total": 1}))
    h = connect(disk(q, disks))
    waiting = threading.Thread(target=reads, args=(h, 60))
    waiting.start()
    q.cmd("qom-set", path="/objects/tg0", property="limits",
          value={"iops-total": 0})
    waiting.join(20)
    assert not waiting.is_alive()
    q.cmd("qom-set", path="tg0", property="limits",
          value={"iops-read": 100, "iops-write": 1000})
    assert q.cmd("qom-get", path="tg0", property="limits")[
        "iops-read"] == 100
    assert seconds(reads, h, 61) >= 0.4


@pytest.mark.rows("nodes.objects")
def test_limits_that_are_not_given_stay(q):
    q.cmd("object-add", dict(GROUP, limits={"iops-total": 100}))
    q.cmd("qom-set", path="tg0", property="limits", value={"bps-total": 5000})
    q.cmd("qom-set", path="tg0", property="limits", value={})
    now = q.cmd("qom-get", path="tg0", property="limits")
    assert (now["iops-total"], now["bps-total"]) == (100, 5000)


@pytest.mark.rows("protocol.class-device-not-found")
def test_path_that_leads_nowhere_is_a_device_not_found(q):
    for path in ("/objects/tg9", "tg9", "/machine/none"):
        where = {"path": path, "property": "limits"}
        for e in (q.error("qom-get", where),
                  q.error("qom-set", where, value={})):
            assert (e.cls, e.desc) == ("DeviceNotFound",
                                       "Device '%s' not found" % path)


@pytest.mark.needs("stillpoint")
def test_cut_does_not_wait_for_a_guest_that_is_delayed(q, disks, connect):
    q.cmd("object-add", dict(GROUP, limits={"iops-total": 1}))
    h = connect(disk(q, disks))
    waiting = threading.Thread(target=lambda: [
        h.pwrite(b"x" * 512, i * 512) for i in range(60)])
    waiting.start()
    assert seconds(lambda: q.cmd("block-dirty-bitmap-add", node="disk0",
                                 name="b")) < 1.5
    q.cmd("qom-set", path="tg0", property="limits", value={"iops-total": 0})
    waiting.join(20)


@pytest.mark.needs("stillpoint")
def test_export_can_be_removed_while_a_guest_is_delayed(q, disks, connect):
    q.cmd("object-add", dict(GROUP, limits={"iops-total": 1}))
    h = connect(disk(q, disks))
    cookies = [h.aio_pread(__import__("nbd").Buffer(512), 0)
               for _ in range(50)]
    q.cmd("block-export-del", id="exp-disk0", mode="hard")
    assert q.cmd("query-block-exports") == [] and cookies


@pytest.mark.parametrize("arguments, desc", [
    ({"limits": {"iops-total": 1, "iops-read": 1}},
     "bps/iops/max total values and read/write values cannot be used at the "
     "same time"),
    ({"limits": {"bps-total": 10, "bps-total-max": 9}},
     "bps_max/iops_max cannot be lower than bps/iops"),
    ({"limits": {"bps-total-max": 9}},
     "bps_max/iops_max require corresponding bps/iops values"),
    ({"limits": {"bps-total": 9, "bps-total-max-length": 2}},
     "burst length set without burst rate"),
    ({"limits": {"iops-size": 9}},
     "iops size requires an iops value to be set"),
    ({"limits": {"bps-total": -1}},
     "bps/iops/max values must be within [0, 1000000000000000]"),
    ({"limits": {"bps-total": 1000000000000001}},
     "bps/iops/max values must be within [0, 1000000000000000]"),
])
@pytest.mark.rows("nodes.throttle-limits")
def test_impossible_limits_are_refused(q, arguments, desc):
    assert q.error("object-add", dict(GROUP, **arguments)).desc == desc
    assert q.error("object-del", id="tg0").desc == "object 'tg0' not found"


def test_largest_limit_is_accepted(q):
    q.cmd("object-add", dict(GROUP, limits={"bps-total": 10 ** 15}))


@pytest.mark.rows("nodes.objects", "error.72.object", "error.72.in-use")
def test_group_in_use_cannot_be_deleted(q):
    q.cmd("object-add", GROUP)
    q.cmd("blockdev-add", {"driver": "throttle", "node-name": "t",
                           "throttle-group": "tg0",
                           "file": {"driver": "null-co"}})
    assert q.error("object-del", id="tg0").desc == \
        "object 'tg0' is in use, can not be deleted"
    q.cmd("blockdev-del", node_name="t")
    q.cmd("object-del", id="tg0")
    assert q.error("object-del", id="tg0").desc == "object 'tg0' not found"


@pytest.mark.rows("error.72.throttle")
def test_missing_group_is_named(q):
    e = q.error("blockdev-add", {
        "driver": "throttle", "node-name": "t", "throttle-group": "zz",
        "file": {"driver": "null-co"}})
    assert e.desc == "Throttle group 'zz' does not exist"


def test_object_names_are_checked(q):
    q.cmd("object-add", GROUP)
    assert q.error("object-add", GROUP).desc == \
        "attempt to add duplicate property 'tg0' to object (type 'container')"
    assert q.error("object-add", dict(GROUP, id="1x")).desc == \
        "Parameter 'id' expects an identifier"


def test_unknown_objects_and_properties_are_refused(q):
    q.cmd("object-add", GROUP)
    e = q.error("qom-get", path="zz", property="limits")
    assert (e.cls, e.desc) == ("DeviceNotFound", "Device 'zz' not found")
    assert q.error("qom-get", path="/objects/tg0", property="zz").desc == \
        "Property 'throttle-group.zz' not found"
    assert q.cmd("qom-get", path="tg0", property="type") == "throttle-group"


@pytest.mark.needs("stillpoint")
def test_group_and_its_limits_outlive_both_processes(server, q, disks,
                                                     connect):
    q.cmd("object-add", dict(GROUP, limits={"iops-total": 7}))
    uri = disk(q, disks)
    q.cmd("qom-set", path="tg0", property="limits",
          value={"iops-total": 0, "iops-read": 100})
    server.kill9()
    server.start()
    q = server.qmp()
    assert q.cmd("qom-get", path="tg0", property="limits")[
        "iops-read"] == 100
    server.wait_new_nbdkit(server.kill9_nbdkit())
    assert seconds(reads, connect(uri), 61) >= 0.4
