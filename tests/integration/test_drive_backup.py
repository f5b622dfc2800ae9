# SPDX-License-Identifier: BSD-3-Clause
"""drive-backup: the target is a path or an address, opened by the job."""
import os
import shutil
import subprocess
import time

import pytest

from stillpoint_test import guest, procs
from stillpoint_test.qmp import action

pytestmark = pytest.mark.needs("drive-backup")
M = 1 << 20
GROUPED = {"completion-mode": "grouped"}


def compare(a, b):
    """An oracle of QEMU's own."""
    r = subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", a,
                        b], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr


def drive(target, job="j", sync="full", device="disk0", **kw):
    args = {"job-id": job, "device": device, "target": target, "sync": sync}
    args.update({k.replace("_", "-"): v for k, v in kw.items()})
    return args


def run(q, target, job="j", **kw):
    q.cmd("drive-backup", drive(target, job, **kw))
    q.jobs_succeed(job)


@pytest.fixture
def out(dir):
    return os.path.join(dir, "out")


def anonymous(q):
    return [n["node-name"] for n in q.cmd("query-named-block-nodes")
            if n["node-name"].startswith("#")]


@pytest.mark.rows("drive.create", "drive.node")
@pytest.mark.parametrize("kw", [{"format": "raw"}, {"format": "file"}, {},
                                {"mode": "absolute-paths"}], ids=str)
def test_path_is_made(q, disks, out, kw):
    path = disks.add(data=((0, 4 * M), (9 * M, 512)))
    run(q, out, **kw)
    compare(path, out)
    assert guest.allocated(out) <= 5 * M
    assert anonymous(q) == []


@pytest.mark.rows("drive.node")
def test_node_is_there_as_long_as_the_job(q, disks, out):
    disks.add(data=((0, 16 * M),))
    q.cmd("drive-backup", drive(out, speed=M, format="raw"))
    (name, *_) = anonymous(q)
    e = q.error("blockdev-del", node_name=name)
    assert "busy" in e.desc or "in use" in e.desc or "owned" in e.desc
    e = q.error("drive-backup", drive(out, "k", format="raw"))
    assert 'Failed to get "write" lock' in e.desc
    q.cmd("job-cancel", id="j")
    q.wait_job("j")
    assert anonymous(q) == []


@pytest.mark.rows("drive.create")
def test_file_that_is_there_is_cut_first(q, dir, disks, out):
    path = disks.add(data=((0, M),))
    guest.make_image(out, 20 * M, [(0, 20 * M)], seed=9)
    run(q, out, format="raw")
    compare(path, out)
    assert os.stat(out).st_size == 16 * M


@pytest.mark.rows("drive.existing")
def test_existing_file_is_used_as_it_is(q, disks, connect, out):
    path = disks.add(data=((0, 4 * M),))
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    run(q, out, format="raw")
    h = connect(disks.uri())
    h.pwrite(b"x" * 70000, 5 * M)
    h.flush()
    run(q, out, "k", format="raw", mode="existing", sync="incremental",
        bitmap="b")
    compare(path, out)


@pytest.mark.needs("stillpoint")            # QEMU probes
@pytest.mark.rows("drive.existing")
def test_existing_file_of_no_format_is_raw_unless_it_looks_otherwise(
        q, dir, disks, out):
    path = disks.add(data=((0, 4 * M),))
    guest.make_image(out, 16 * M)
    run(q, out, mode="existing")
    compare(path, out)
    guest.patch(out, 0, b"QFI\xfb")
    e = q.error("drive-backup", drive(out, "k", mode="existing"))
    assert "looks like" in e.desc and "'format'" in e.desc
    with open(out, "rb") as f:
        assert f.read(4) == b"QFI\xfb"
    run(q, out, "l", mode="existing", format="raw")
    compare(path, out)


@pytest.mark.rows("drive.uri")
@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("kw", [{"mode": "existing", "format": "raw"},
                                {"format": "raw"}], ids=str)
def test_address_is_a_target(q, dir, disks, make_target, unix, kw):
    path = disks.add(data=((0, 4 * M),))
    t = make_target(unix=unix)
    t.file(os.path.join(dir, "t.raw"), disks.size)
    run(q, t.uri(), **kw)
    compare(path, t.path)
    assert anonymous(q) == []


@pytest.mark.rows("drive.uri")
@pytest.mark.parametrize("unix", [False, True])
def test_old_form_of_an_address_is_a_target(q, dir, disks, make_target,
                                            unix):
    path = disks.add(data=((0, 4 * M),))
    t = make_target(unix=unix)
    t.file(os.path.join(dir, "t.raw"), disks.size)
    name = ("nbd:unix:%s" % t.unix if unix else
            "nbd:127.0.0.1:%d:exportname=" % t.port)
    run(q, name, mode="existing", format="raw")
    compare(path, t.path)


REFUSED = [
    ({"device": "zz"}, "Cannot find device='zz' nor node-name='zz'"),
    ({"format": "qcow9"}, "Unknown file format 'qcow9'"),
    ({"format": "qcow9", "mode": "existing"}, "Unknown driver: 'qcow9'"),
    ({"format": "nbd"},
     "Format driver 'nbd' does not support image creation"),
    ({"sync": "none"}, "Backing file not supported for file format 'raw'"),
    ({"target": "http://h/x"}, "Unknown protocol 'http'"),
    ({"target": "nbds://h/x"}, "Unknown protocol 'nbds'"),
    ({"target": "nbd://h:0/x"}, "No valid URL specified"),
    ({"target": "nbd+unix:///x"}, "No valid URL specified"),
    ({"sync": "bitmap"},
     "must provide a valid bitmap name for 'bitmap' sync mode"),
    ({"sync": "incremental", "bitmap": "zz"},
     "Bitmap 'zz' could not be found"),
    ({"compress": True}, "Compression is not supported for this drive "),
    ({"x-perf": {"max-workers": 0}},
     "max-workers must be between 1 and 2147483647"),
    ({"x-perf": {"max-chunk": 5}},
     "Required max-chunk (5) is less than backup cluster size (65536)"),
    ({"job-id": "1x"}, "Invalid job ID '1x'"),
    ({"speed": -1}, "Parameter 'speed' expects a non-negative value"),
]


@pytest.mark.needs("stillpoint")            # QEMU leaves the file behind
@pytest.mark.rows("drive.validate-first", "drive.format", "error.62.format",
                  "error.62.backing")
@pytest.mark.parametrize("change, desc", REFUSED,
                         ids=[str(c) for c, _ in REFUSED])
def test_refused_command_makes_no_file(q, disks, dir, out, change, desc):
    disks.add()
    before = set(os.listdir(dir))
    e = q.error("drive-backup", dict(drive(out, format="raw"), **change))
    assert (e.cls, e.desc) == ("GenericError", desc)
    assert set(os.listdir(dir)) == before
    assert q.cmd("query-jobs") == [] and anonymous(q) == []


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("drive.validate-first")
def test_refused_command_cuts_no_file(q, disks, out):
    disks.add()
    guest.make_image(out, M, [(0, M)])
    before = guest.digest(out)
    e = q.error("drive-backup", drive(out, format="raw", compress=True))
    assert e.desc == "Compression is not supported for this drive "
    assert guest.digest(out) == before


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("drive.format")
def test_existing_target_without_a_backing_format_cannot_follow(q, disks,
                                                                out):
    disks.add()
    guest.make_image(out, 16 * M)
    e = q.error("drive-backup", drive(out, sync="none", mode="existing",
                                      format="raw"))
    assert e.desc.startswith("Driver 'raw' of node '#block")
    assert e.desc.endswith("' does not support backing files")


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("drive.validate-first")
def test_target_of_another_size_is_refused_and_stays(q, disks, out):
    disks.add()
    guest.make_image(out, 15 * M, [(0, M)])
    before = guest.digest(out)
    e = q.error("drive-backup", drive(out, mode="existing", format="raw"))
    assert e.desc == "Source and target image have different sizes"
    assert guest.digest(out) == before
    assert q.cmd("query-jobs") == [] and anonymous(q) == []


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("drive.allowed")
def test_path_outside_the_allowed_directories_is_refused(make_server, dir):
    inside = os.path.join(dir, "inside")
    os.mkdir(inside)
    server = make_server(allow=[inside])
    server.start()
    q = server.qmp()
    guest.make_image(os.path.join(inside, "a"), M)
    q.cmd("blockdev-add", driver="file", node_name="disk0",
          filename=os.path.join(inside, "a"))
    for name in ("out", "inside/../out", "inside/link"):
        if name.endswith("link"):
            os.symlink("../out", os.path.join(inside, "link"))
        e = q.error("drive-backup", drive(os.path.join(dir, name),
                                          format="raw"))
        assert "allowed" in e.desc or "exists" in e.desc, e.desc
        assert not os.path.exists(os.path.join(dir, "out"))
    e = q.error("drive-backup", drive(os.path.join(inside, "no", "x"),
                                      format="raw"))
    assert e.desc == ("Could not open '%s': No such file or directory" %
                      os.path.join(inside, "no", "x"))


def test_source_s_own_file_is_not_a_target(q, disks):
    path = disks.add(data=((0, M),))
    before = guest.digest(path)
    e = q.error("drive-backup", drive(path, format="raw"))
    assert 'Failed to get "write" lock' in e.desc
    assert guest.digest(path) == before


@pytest.mark.needs("stillpoint")
def test_image_in_use_by_another_process_is_not_cut(q, disks, out):
    disks.add()
    guest.make_image(out, M, [(0, M)])
    before = guest.digest(out)
    held = guest.lock_like_a_machine(out)
    e = q.error("drive-backup", drive(out, format="raw"))
    assert 'Failed to get "write" lock' in e.desc
    assert guest.digest(out) == before
    held.close()


@pytest.mark.rows("transaction.drive-backup")
@pytest.mark.parametrize("properties", [{}, GROUPED], ids=str)
def test_actions_of_a_transaction(q, dir, disks, properties):
    outs, before = [], []
    for i in range(3):
        path = disks.add("d%d" % i, data=((i * M, 4 * M),))
        before.append(guest.sparse_copy(path, os.path.join(dir, "b%d" % i)))
        outs.append(os.path.join(dir, "o%d" % i))
    q.cmd("transaction", actions=[
        action("drive-backup", drive(outs[i], "j%d" % i, device="d%d" % i,
                                     format="raw"))
        for i in range(3)], properties=properties)
    q.jobs_succeed("j0", "j1", "j2")
    for i in range(3):
        compare(before[i], outs[i])
    assert anonymous(q) == []


@pytest.mark.needs("stillpoint")            # QEMU leaves the files behind
@pytest.mark.rows("transaction.drive-backup-undone", "drive.rollback")
def test_rolled_back_transaction_removes_what_it_made(q, dir, disks):
    disks.add("d0")
    disks.add("d1")
    old = os.path.join(dir, "old")
    guest.make_image(old, 16 * M)
    before = set(os.listdir(dir))
    new = os.path.join(dir, "new")
    held_name = os.path.join(dir, "held")
    guest.make_image(held_name, 16 * M)
    held = guest.lock_like_a_machine(held_name)
    before.add("held")
    e = q.error("transaction", actions=[
        action("drive-backup", drive(new, "j0", device="d0", format="raw")),
        action("drive-backup", drive(old, "j1", device="d1", format="raw")),
        action("drive-backup", drive(held_name, "j2", device="d1",
                                     format="raw"))])
    assert 'Failed to get "write" lock' in e.desc
    assert set(os.listdir(dir)) == before
    q.drain_events()
    assert q.choreography("j0") == ["created", "aborting", "concluded",
                                    "null"]
    assert q.cmd("query-jobs") == [] and anonymous(q) == []
    held.close()
    # nothing holds on to anything
    run(q, new, "k", device="d0", format="raw")
    run(q, old, "l", device="d1", format="raw")


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("drive.rollback")
def test_abort_behind_it_leaves_nothing(q, dir, disks, out):
    disks.add()
    before = set(os.listdir(dir))
    e = q.error("transaction", actions=[
        action("drive-backup", drive(out, format="raw")), action("abort")])
    assert e.desc == "Transaction aborted using Abort action"
    assert set(os.listdir(dir)) == before


def test_file_can_be_used_when_the_job_is_over(q, disks, out):
    path = disks.add(data=((0, 4 * M),))
    run(q, out, format="raw")
    r = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512", out],
                       capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert os.path.exists(path)


@pytest.mark.needs("device-names")
@pytest.mark.rows("backup.job-id")
def test_device_names_the_job(q, disks, out):
    path = disks.node("disk0")
    disks.export("disk0", id="virtio0")
    q.cmd("drive-backup", device="virtio0", target=out, sync="full",
          format="raw")
    q.jobs_succeed("virtio0")
    compare(path, out)


@pytest.mark.rows("drive.top")
def test_top_without_a_backing_file_is_full(q, disks, out):
    path = disks.add(data=((0, 4 * M),))
    run(q, out, sync="top", format="raw")
    compare(path, out)


@pytest.mark.needs("restart")
def test_killed_daemon_leaves_the_file_and_the_bitmap(server, q, disks, out,
                                                      connect):
    path = disks.add(data=((0, 16 * M),))
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    connect(disks.uri()).pwrite(b"x" * M, 3 * M)
    count = q.bitmap("disk0", "b")["count"]
    q.cmd("drive-backup", drive(out, "lost", speed=65536, format="raw",
                                bitmap="b", bitmap_mode="on-success"))
    time.sleep(0.3)
    server.kill9()
    server.start()
    q = server.qmp()
    (job,) = q.cmd("query-jobs")
    assert job["id"] == "lost" and job["status"] == "concluded"
    assert q.bitmap("disk0", "b")["count"] >= count
    assert anonymous(q) == []
    run(q, out, format="raw", bitmap="b", bitmap_mode="on-success")
    compare(path, out)
    assert q.bitmap("disk0", "b")["count"] == 0


@pytest.mark.needs("stillpoint")
def test_block_device_is_not_cut(q, dir, disks):
    path = disks.add(data=((0, 4 * M),))
    image = guest.make_image(os.path.join(dir, "t"), 16 * M, [(0, 16 * M)],
                             seed=9)
    r = subprocess.run(["losetup", "--find", "--show", image],
                       capture_output=True, text=True)
    if r.returncode or not shutil.which("losetup"):
        pytest.skip("no loop device: " + r.stderr.strip())
    device = r.stdout.strip()
    name = os.path.join(dir, "dev")
    try:
        os.mknod(name, 0o600 | 0o060000, os.stat(device).st_rdev)
        run(q, name, format="raw")
        compare(path, device)
    finally:
        procs.wait_until(lambda: subprocess.run(
            ["losetup", "--detach", device]).returncode == 0, "detached")
