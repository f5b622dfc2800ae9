# SPDX-License-Identifier: BSD-3-Clause
"""What a job says about copies before writes: on-cbw-error, cbw-timeout, and
the filter node that clients see.

A save fails because the data plane may not make files longer than a limit:
the source is on another server, so only the store is concerned.
"""
import errno
import os
import resource
import time

import pytest

from stillpoint_test import guest, procs
from stillpoint_test.qmp import action, backup

K = 65536
M = 1 << 20
BUSY = "Node '%s' is busy: block device is in use by block job: backup"


@pytest.fixture
def far(q, dir, make_target, disks):
    """far(parameters): disk0 on a server, exported; its file's path."""
    def make(**kw):
        path = guest.make_image(os.path.join(dir, "far.raw"), disks.size,
                                [(0, disks.size)])
        t = make_target("far").file(path, **kw)
        q.cmd("blockdev-add", t.blockdev("disk0"))
        disks.export("disk0")
        return path
    return make


def limit_files(server, size):
    resource.prlimit(server.nbdkit_pid(), resource.RLIMIT_FSIZE,
                     (size, resource.RLIM_INFINITY))


def nodes(q):
    return {n["node-name"]: n for n in q.cmd("query-named-block-nodes")}


def start(q, **kw):
    q.cmd("blockdev-backup", backup("disk0", "target0", "j", **kw))


# --- on-cbw-error -----------------------------------------------------------


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("jobs.cbw-break-guest-write")
def test_break_guest_write_fails_the_write_and_keeps_the_snapshot(
        server, q, disks, far, connect, backup_node):
    import nbd
    path = far()
    before = guest.digest(path)
    t = backup_node()
    h = connect(disks.uri())
    start(q, speed=1, on_cbw_error="break-guest-write")
    limit_files(server, M)
    with pytest.raises(nbd.Error) as e:
        h.pwrite(b"x" * K, 12 * M)
    assert e.value.errnum == errno.ENOSPC       # EFBIG, as NBD has it
    h.pwrite(b"y" * K, M // 2)                  # where the store may grow
    assert [j["status"] for j in q.cmd("query-jobs")] == ["running"]
    limit_files(server, resource.RLIM_INFINITY)
    h.pwrite(b"x" * K, 12 * M)                  # tried again, and saved
    q.cmd("block-job-set-speed", device="j", speed=0)
    q.jobs_succeed("j")
    assert guest.digest(t.path) == before
    h.flush()
    assert bytes(h.pread(K, 12 * M)) == b"x" * K


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("jobs.cbw-break-snapshot")
@pytest.mark.parametrize("options", [{}, {"on_cbw_error": "break-snapshot"}])
def test_break_snapshot_fails_the_job_and_not_the_write(
        server, q, disks, far, connect, backup_node, options):
    far()
    backup_node()
    h = connect(disks.uri())
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    h.pwrite(b"a" * K, 4 * M)
    h.pwrite(b"b" * K, 12 * M)
    start(q, sync="incremental", bitmap="b", speed=1,
          on_source_error="ignore", on_target_error="ignore", **options)
    limit_files(server, M)
    h.pwrite(b"c" * K, 12 * M)
    # the job may be gone already
    q.exchange("block-job-set-speed", {"device": "j", "speed": 0})
    event = q.wait_job("j")
    assert "snapshot" in event["data"]["error"]
    limit_files(server, resource.RLIM_INFINITY)
    assert q.bitmap("disk0", "b")["count"] == 2 * K
    assert bytes(h.pread(K, 12 * M)) == b"c" * K


# --- cbw-timeout --------------------------------------------------------------


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("jobs.cbw-timeout")
@pytest.mark.parametrize("policy", ["break-guest-write", "break-snapshot"])
def test_save_that_takes_longer_than_the_timeout_has_failed(
        server, q, disks, far, connect, backup_node, policy):
    import nbd
    far(filters=["delay"], parameters=["delay-read=4"])
    backup_node()
    h = connect(disks.uri())
    start(q, speed=1, on_cbw_error=policy, cbw_timeout=1)
    began = time.monotonic()
    if policy == "break-guest-write":
        with pytest.raises(nbd.Error) as e:
            h.pwrite(b"x" * 4096, 12 * M)
        assert e.value.errnum == errno.EINVAL   # ETIMEDOUT, as NBD has it
    else:
        h.pwrite(b"x" * 4096, 12 * M)
    assert 0.9 < time.monotonic() - began < 3.5
    if policy == "break-guest-write":
        # the copy was made in the meantime
        procs.wait_until(lambda: time.monotonic() - began > 4.5, "a while")
        h.pwrite(b"x" * 4096, 12 * M)
        assert q.cmd("query-jobs")[0]["status"] == "running"
        q.cmd("job-cancel", id="j")
        q.wait_job("j", timeout=30)
    else:
        event = q.wait_job("j", timeout=30)
        assert "timed out" in event["data"]["error"]


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("jobs.cbw-timeout")
def test_timeout_that_is_long_enough_changes_nothing(q, disks, connect,
                                                     backup_node):
    disks.add(data=((0, 8 * M),))
    before = guest.digest(disks.path("disk0"))
    t = backup_node()
    h = connect(disks.uri())
    start(q, speed=1, cbw_timeout=4294967295)
    for i in range(64):
        h.pwrite(b"z" * 4096, i * 2 * K)
    q.cmd("block-job-set-speed", device="j", speed=0)
    q.jobs_succeed("j")
    assert guest.digest(t.path) == before


@pytest.mark.needs("stillpoint")
@pytest.mark.parametrize("args, text", [
    ({"on-cbw-error": "panic"},
     "Parameter 'on-cbw-error' does not accept value 'panic'"),
    ({"cbw-timeout": 1 << 32}, "Parameter 'cbw-timeout' expects uint32_t"),
])
def test_bad_values_are_refused(q, disks, backup_node, args, text):
    disks.add()
    backup_node()
    e = q.error("blockdev-backup", dict(backup("disk0", "target0", "j"),
                                        **args))
    assert e.desc == text


# --- the filter node ------------------------------------------------------------


@pytest.mark.rows("jobs.filter", "jobs.filter-bitmaps")
def test_filter_is_seen_while_the_job_runs(q, disks, connect, backup_node):
    disks.add(data=((0, 8 * M),))
    backup_node()
    h = connect(disks.uri())
    start(q, speed=1, filter_node_name="above.disk-0_")
    h.pwrite(b"x" * 4096, 4 * M)
    f = nodes(q)["above.disk-0_"]
    assert f["drv"] == "copy-before-write" and f["ro"] is False
    assert f["file"] == disks.path("disk0")
    assert f["image"]["virtual-size"] == disks.size
    bitmaps = f["dirty-bitmaps"]
    assert len(bitmaps) == 3
    for b in bitmaps:
        assert "name" not in b and b["granularity"] == K
        assert not b["busy"] and not b["recording"] and not b["persistent"]
    readable, copied, left = (b["count"] for b in bitmaps)
    assert readable == disks.size
    assert copied == K
    assert 0 < left <= disks.size
    q.cmd("block-job-set-speed", device="j", speed=0)
    q.jobs_succeed("j")
    assert "above.disk-0_" not in nodes(q)


@pytest.mark.rows("jobs.filter")
def test_filter_without_a_name_gets_one(q, disks, backup_node):
    disks.add(data=((0, 8 * M),))
    backup_node()
    before = set(nodes(q))
    start(q, speed=1)
    (name,) = set(nodes(q)) - before
    assert name.startswith("#block")
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    assert set(nodes(q)) == before


@pytest.mark.rows("jobs.filter-names")
def test_names_of_filters_follow_the_rules_of_nodes(q, disks, backup_node):
    disks.add(data=((0, 8 * M),))
    backup_node()
    backup_node("target1")
    start(q, speed=1, filter_node_name="f")
    for name, text in [
            ("1x", "Invalid node-name: '1x'"),
            ("#block7", "Invalid node-name: '#block7'"),
            ("n" * 32, "Node name too long"),
            ("disk0", "Duplicate nodes with node-name='disk0'"),
            ("f", "Duplicate nodes with node-name='f'")]:
        e = q.error("blockdev-backup", backup(
            "disk0", "target1", "k", filter_node_name=name))
        assert text in e.desc, name
    e = q.error("blockdev-add", driver="null-co", node_name="f")
    assert e.desc == "Duplicate nodes with node-name='f'"


@pytest.mark.needs("device-names")
@pytest.mark.rows("jobs.filter-names")
def test_filter_cannot_have_the_name_of_a_device(q, disks, backup_node):
    disks.add()
    backup_node()
    e = q.error("blockdev-backup", backup("disk0", "target0", "k",
                                          filter_node_name="exp-disk0"))
    assert "node-name=exp-disk0 is conflicting with a device id" in e.desc


@pytest.mark.rows("jobs.filter-busy")
def test_filter_is_busy(q, disks, backup_node):
    disks.add(data=((0, 8 * M),))
    backup_node()
    backup_node("target1")
    start(q, speed=1, filter_node_name="f")
    assert q.error("blockdev-del", node_name="f").desc == BUSY % "f"
    assert q.error("blockdev-backup", backup(
        "f", "target1", "k")).desc == BUSY % "f"


@pytest.mark.rows("jobs.filter")
def test_filter_of_a_job_that_never_was_is_gone(q, disks, backup_node):
    disks.add()
    backup_node()
    q.error("transaction", actions=[
        action("blockdev-backup", backup("disk0", "target0", "j",
                                         filter_node_name="f")),
        action("abort")])
    assert "f" not in nodes(q)
    q.cmd("blockdev-add", driver="null-co", node_name="f")


@pytest.mark.rows("jobs.filter")
def test_filter_is_gone_when_the_job_is_concluded(q, disks, backup_node):
    disks.add()
    backup_node(filters=["error"], parameters=["error-pwrite=EIO",
                                               "error-pwrite-rate=100%"])
    start(q, filter_node_name="f", auto_dismiss=False)
    q.wait_event("JOB_STATUS_CHANGE", {"id": "j", "status": "concluded"})
    assert "f" not in nodes(q)
    q.cmd("job-dismiss", id="j")


@pytest.mark.rows("jobs.filter", "jobs.policy-stop")
def test_drive_backup_has_the_same_options(q, dir, disks):
    disks.add(data=((0, 8 * M),))
    q.cmd("drive-backup", job_id="j", device="disk0", sync="full", speed=1,
          target=os.path.join(dir, "copy.raw"), format="raw",
          filter_node_name="f", on_target_error="stop",
          on_source_error="ignore")
    assert nodes(q)["f"]["drv"] == "copy-before-write"
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    assert "f" not in nodes(q)


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("jobs.cbw-break-guest-write")
def test_drive_backup_says_what_becomes_of_a_guest_s_write(
        server, q, dir, disks, far, connect):
    import nbd
    far()
    h = connect(disks.uri())
    q.cmd("drive-backup", job_id="j", device="disk0", sync="full", speed=1,
          target=os.path.join(dir, "copy.raw"), format="raw",
          on_cbw_error="break-guest-write", cbw_timeout=60)
    limit_files(server, M)
    with pytest.raises(nbd.Error):
        h.pwrite(b"x" * K, 12 * M)
    assert q.cmd("query-jobs")[0]["status"] == "running"
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
