# SPDX-License-Identifier: BSD-3-Clause
"""Targets that fail: a clear error, the bitmap as it was, guests at ease."""
import os
import time

import pytest

from stillpoint_test import guest, procs
from stillpoint_test.qmp import QmpError, backup
from stillpoint_test.target import slow_target

K = 65536
DIRTY = 8 << 20


@pytest.fixture
def disk(q, disks, connect):
    """disk0 with bitmap b that counts DIRTY bytes; a guest's handle."""
    disks.add(data=((0, 16 << 20),))
    q.cmd("block-dirty-bitmap-add", node="disk0", name="b")
    h = connect(disks.uri())
    h.pwrite(b"d" * DIRTY, 0)
    return h


def run(q, target="target0", **kw):
    """Run an incremental that is expected to fail; its error text."""
    q.cmd("blockdev-backup", backup("disk0", target, "j", sync="incremental",
                                    bitmap="b", **kw))
    event = q.wait_job("j")
    assert event["event"] == "BLOCK_JOB_COMPLETED"
    return event["data"]["error"]


def unharmed(q, h):
    """The bitmap holds everything and the guest writes and reads."""
    info = q.bitmap("disk0", "b")
    assert info["count"] == DIRTY and not info["busy"]
    assert info["recording"] is True
    h.pwrite(b"e" * 4096, 0)
    assert bytes(h.pread(4096, 0)) == b"e" * 4096
    assert q.cmd("query-jobs") == []


@pytest.mark.parametrize("errno, text", [
    ("EIO", "Input/output error"), ("ENOSPC", "No space left on device")])
@pytest.mark.rows("error.73")
def test_error_of_the_target_is_the_error_of_the_job(q, disk, backup_node,
                                                     errno, text):
    backup_node(filters=["error"], parameters=["error-pwrite=" + errno,
                                               "error-pwrite-rate=100%"])
    assert run(q) == text
    unharmed(q, disk)


def test_error_in_the_middle_of_the_disk_fails_the_job(q, dir, disk,
                                                       make_target):
    script = ("[ $4 -ge $((5 * 1048576)) ] && { echo 'EIO bad sector' >&2; "
              "exit 1; }; dd of=%s/part.raw bs=65536 conv=notrunc "
              "oflag=seek_bytes seek=$4 status=none" % dir)
    guest.make_image(os.path.join(dir, "part.raw"), 16 << 20)
    t = make_target().nbdkit(
        "eval", "get_size=echo %d" % (16 << 20),
        "pread=dd if=%s/part.raw iflag=skip_bytes,count_bytes skip=$4 "
        "count=$3 status=none" % dir,
        "can_write=exit 0", "pwrite=" + script)
    q.cmd("blockdev-add", t.blockdev("target0"))
    assert run(q) == "Input/output error"
    unharmed(q, disk)


def test_failing_flush_of_the_target_fails_the_job(q, dir, disk,
                                                   make_target):
    t = make_target().nbdkit(
        "eval", "get_size=echo %d" % (16 << 20), "can_write=exit 0",
        "can_flush=exit 0", "pread=dd if=/dev/zero count=$3 "
        "iflag=count_bytes status=none", "pwrite=cat >/dev/null",
        "flush=echo 'EIO disk full of lies' >&2; exit 1")
    q.cmd("blockdev-add", t.blockdev("target0"))
    try:
        assert run(q) == "Input/output error"
    except KeyError:
        if q.cmd("query-commands") and os.environ.get(
                "STILLPOINT_PEER") == "qsd":
            pytest.skip("QEMU's backup ends without a flush")
        raise
    unharmed(q, disk)


def test_target_that_closes_the_connection_fails_the_job(q, disk,
                                                         backup_node):
    target = backup_node(**slow_target(4))
    q.cmd("blockdev-backup", backup("disk0", "target0", "j",
                                    sync="incremental", bitmap="b"))
    time.sleep(0.3)
    target.kill9()
    event = q.wait_job("j")
    assert event["data"]["error"]
    unharmed(q, disk)


def test_target_gone_before_the_backup_fails_command_or_job(q, disk,
                                                            backup_node):
    backup_node().kill9()
    try:
        assert run(q)
    except QmpError as e:
        assert e.cls == "GenericError" and e.desc
    unharmed(q, disk)


@pytest.mark.needs("stillpoint")
def test_target_that_stops_answering_leaves_guest_and_qmp_alone(
        q, disk, backup_node):
    target = backup_node()
    target.freeze()
    q.cmd("blockdev-backup", backup("disk0", "target0", "j",
                                    sync="incremental", bitmap="b"))
    started = time.monotonic()
    for i in range(200):
        disk.pwrite(b"g" * 4096, i * K)
    for _ in range(20):
        q.cmd("query-jobs")
    assert time.monotonic() - started < 2
    q.cmd("job-cancel", id="j")
    assert q.wait_job("j")["event"] == "BLOCK_JOB_CANCELLED"
    assert q.bitmap("disk0", "b")["count"] == 200 * K   # covers DIRTY


@pytest.mark.needs("stillpoint")
def test_target_that_comes_back_within_the_reconnect_delay_is_resumed(
        q, disk, disks, backup_node):
    target = backup_node(**slow_target(4), reconnect_delay=10)
    guest.sparse_copy(disks.path("disk0"), target.path)
    with open(target.path, "r+b") as f:
        f.write(bytes(DIRTY))               # what the backup has to restore
    q.cmd("blockdev-backup", backup("disk0", "target0", "j",
                                    sync="incremental", bitmap="b"))
    time.sleep(0.5)
    target.kill9()
    time.sleep(0.3)
    target.restart()
    q.jobs_succeed("j")
    disk.flush()
    guest.same(disks.path("disk0"), target.path)


def test_nothing_listens_at_the_target(q):
    port = procs.free_port()
    e = q.error("blockdev-add", driver="nbd", node_name="t", server={
        "type": "inet", "host": "127.0.0.1", "port": str(port)})
    assert e.desc == "Failed to connect to '127.0.0.1:%d': Connection " \
        "refused" % port
    assert q.cmd("query-named-block-nodes") == []


def test_unix_target_that_does_not_exist_is_named(q, dir):
    path = os.path.join(dir, "gone.sock")
    e = q.error("blockdev-add", driver="nbd", node_name="t",
                server={"type": "unix", "path": path})
    assert e.desc == "Failed to connect to '%s': No such file or directory" \
        % path


def test_export_that_does_not_exist_is_refused(q, dir, make_target):
    guest.make_image(os.path.join(dir, "t.raw"), 1 << 20)
    t = make_target().nbdkit("file", "dir=" + dir)
    e = q.error("blockdev-add", t.blockdev("t", export="nonsense"))
    assert e.cls == "GenericError" and e.desc
    assert q.cmd("query-named-block-nodes") == []


def test_read_only_target_is_refused_before_the_job(q, dir, disk,
                                                    make_target):
    path = guest.make_image(os.path.join(dir, "ro.raw"), 16 << 20)
    t = make_target().file(path, options=["-r"])
    with pytest.raises(QmpError) as e:
        q.cmd("blockdev-add", t.blockdev("target0"))
        q.cmd("blockdev-backup", backup("disk0", "target0", "j",
                                        sync="incremental", bitmap="b"))
    desc = e.value.desc.lower()             # QEMU 7.2 says only the second
    assert ("read" in desc and "only" in desc) or "permission denied" in desc
    unharmed(q, disk)


@pytest.mark.parametrize("size", [1 << 20, 32 << 20])
def test_target_of_another_size_is_refused(q, disk, backup_node, size):
    backup_node(size=size)
    e = q.error("blockdev-backup", backup("disk0", "target0", "j",
                                          sync="incremental", bitmap="b"))
    assert e.desc == "Source and target image have different sizes"
    unharmed(q, disk)


def test_target_that_is_no_nbd_server_is_refused(q, dir):
    import socket
    import threading
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    s.listen(5)

    def talk():
        try:
            while True:
                c, _ = s.accept()
                c.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n" * 10)
                c.close()
        except OSError:
            pass
    threading.Thread(target=talk, daemon=True).start()
    e = q.error("blockdev-add", driver="nbd", node_name="t", server={
        "type": "inet", "host": "127.0.0.1",
        "port": str(s.getsockname()[1])})
    s.close()
    assert e.cls == "GenericError" and e.desc


@pytest.mark.needs("stillpoint")
def test_guest_errors_never_come_from_a_failing_target(
        q, disks, disk, backup_node, writers):
    backup_node(filters=["error"], parameters=["error-pwrite=EIO",
                                               "error-pwrite-rate=1%"])
    load = writers(guest.Load(guest.area(0, disks.size, disks.uri()),
                              "--depth", 8, "--zero", 10, "--trim", 10))
    for i in range(10):
        position = len(q.events)
        q.cmd("blockdev-backup", backup("disk0", "target0", "j%d" % i))
        q.wait_job("j%d" % i, position)
    assert load.quit()["errors"] == 0
