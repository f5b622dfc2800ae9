# SPDX-License-Identifier: BSD-3-Clause
"""What operators and the world get wrong: each error names the thing."""
import json
import os
import shutil
import signal
import subprocess
import tempfile

import pytest

from stillpoint_test import daemon, guest, procs
from stillpoint_test.qmp import backup

pytestmark = pytest.mark.needs("stillpoint")


def add_file(q, path, node="n"):
    return q.error("blockdev-add", driver="file", node_name=node,
                   filename=path).desc


@pytest.fixture
def outside(tmp_path):
    """An image outside of every allowed directory."""
    return guest.make_image(str(tmp_path / "outside.img"), 1 << 20)


def test_file_outside_the_allowed_directories_is_refused(q, outside):
    desc = add_file(q, outside)
    assert outside in desc and "allow" in desc.lower()


def test_dots_do_not_lead_out_of_the_allowed_directories(q, dir, outside):
    path = os.path.join(dir, "x", "..", "..", "..", outside.lstrip("/"))
    os.mkdir(os.path.join(dir, "x"))
    assert "allow" in add_file(q, os.path.join(
        dir, os.path.relpath(outside, os.path.realpath(dir)))).lower()
    assert path in add_file(q, path) or outside in add_file(q, path)


@pytest.mark.parametrize("where", ["file", "directory"])
def test_links_do_not_lead_out_of_the_allowed_directories(q, dir, outside,
                                                          where):
    if where == "file":
        path = os.path.join(dir, "link.img")
        os.symlink(outside, path)
    else:
        os.symlink(os.path.dirname(outside), os.path.join(dir, "sub"))
        path = os.path.join(dir, "sub", os.path.basename(outside))
    desc = add_file(q, path)
    assert path in desc and "allow" in desc.lower()


def test_link_within_the_allowed_directories_works(q, dir):
    guest.make_image(os.path.join(dir, "real.img"), 1 << 20)
    os.symlink("real.img", os.path.join(dir, "link.img"))
    q.cmd("blockdev-add", driver="file", node_name="n",
          filename=os.path.join(dir, "link.img"))


def test_directory_with_a_similar_name_is_not_allowed(q, dir):
    sibling = dir + "x"
    os.mkdir(sibling)
    try:
        path = guest.make_image(os.path.join(sibling, "a.img"), 1 << 20)
        assert "allow" in add_file(q, path).lower()
    finally:
        os.unlink(path)
        os.rmdir(sibling)


def test_relative_file_name_does_not_escape(q):
    assert add_file(q, "../../../../etc/passwd")


def test_existence_outside_is_not_told(q, tmp_path):
    """The same answer for a file that is there and one that is not."""
    there = guest.make_image(str(tmp_path / "there"), 4096)
    gone = str(tmp_path / "gone")
    assert add_file(q, there).replace("there", "X") == \
        add_file(q, gone).replace("gone", "X")


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "device"])
def test_what_is_no_regular_file_is_refused(q, dir, kind, server):
    path = os.path.join(dir, "thing")
    if kind == "directory":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        path = server.qmp_unix
    else:
        os.symlink("/dev/zero", path)
    desc = add_file(q, path)
    assert path in desc or os.path.basename(path) in desc
    assert "qemu" in q.cmd("query-version")     # a fifo must not block


def test_file_without_permission_is_named(q, dir):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = guest.make_image(os.path.join(dir, "a.img"), 4096)
    os.chmod(path, 0)
    assert "Permission denied" in add_file(q, path)


def test_empty_file_name_and_very_long_one_are_refused(q, dir):
    assert add_file(q, "")
    assert "too long" in add_file(q, os.path.join(dir, "a" * 300)).lower()
    assert add_file(q, dir + "/a" * 3000)


def test_image_that_shrinks_gives_errors_and_harms_no_other(q, disks,
                                                            connect):
    import nbd
    path = disks.add("disk0")
    disks.add("disk1")
    h, other = connect(disks.uri("disk0")), connect(disks.uri("disk1"))
    os.truncate(path, 1 << 20)
    try:
        h.pread(4096, 8 << 20)      # zeroes or an error, never a crash
    except nbd.Error:
        pass
    other.pwrite(b"x" * 4096, 0)
    assert bytes(other.pread(4096, 0)) == b"x" * 4096


def test_backup_of_an_image_that_shrank_ends_with_an_answer(
        q, disks, backup_node):
    path = disks.add("disk0", data=((0, 16 << 20),))
    backup_node()
    os.truncate(path, 1 << 20)
    q.cmd("blockdev-backup", backup("disk0", "target0", "j"))
    event = q.wait_job("j")
    assert event["event"] == "BLOCK_JOB_COMPLETED"


def test_image_that_vanished_goes_on_for_its_guest(q, disks, connect):
    path = disks.add("disk0")
    h = connect(disks.uri())
    os.unlink(path)
    h.pwrite(b"x" * 4096, 0)
    h.flush()
    assert bytes(h.pread(4096, 0)) == b"x" * 4096


@pytest.mark.parametrize("size", [0, 1, 511, 513])
def test_image_of_odd_size_is_refused_or_rounded(q, dir, size):
    path = guest.make_image(os.path.join(dir, "odd.img"), size)
    r = q.exchange("blockdev-add", {"driver": "file", "node-name": "n",
                                    "filename": path})
    if "return" in r:
        info = q.cmd("query-named-block-nodes")[0]["image"]
        assert info["virtual-size"] == (size + 511) // 512 * 512
    else:
        assert path in r["error"]["desc"]


# --- starting the daemon ------------------------------------------------


def refused(server, *words):
    status, text = server.run_to_exit()
    assert status not in (0, None) and status > 0, (status, text)
    for word in words:
        assert word in text, text
    assert procs.marked_pids(server.mark) == []


@pytest.mark.parametrize("option, words", [
    (["--nonsense"], ["nonsense"]),
    (["--qmp"], ["qmp"]),
    (["--qmp", "http://x"], ["--qmp: ", "http://x", "unix:PATH or tcp:HOST:PORT"]),
    (["--qmp", "tcp:x"], ["--qmp: ", "tcp:x"]),
    (["--nbd", "unix:"], ["--nbd: ", "unix:", "path"]),
    (["--nbd", "tcp:127.0.0.1:99999"], ["--nbd: ", "99999", "port"]),
    (["--blockdev", "{"], ["blockdev", "JSON"]),
    (["--blockdev", '{"driver": "nonsense"}'], ["nonsense"]),
    (["--export", "[]"], ["export"]),
    (["--config", "/nonexistent.json"],
     ["/nonexistent.json", "No such file or directory"]),
    (["extra"], ["extra"])], ids=lambda v: " ".join(v))
def test_bad_option_ends_the_start_with_its_name(make_server, option, words):
    server = make_server()
    server.extra = option
    refused(server, *words)


def test_qmp_on_every_address_without_tls_is_refused(make_server):
    server = make_server()
    server.extra = ["--qmp", "tcp:0.0.0.0:%d" % procs.free_port()]
    refused(server, "0.0.0.0")


def test_blockdev_option_that_cannot_be_opened_is_named(make_server, dir):
    server = make_server()
    server.extra = ["--blockdev", json.dumps({
        "driver": "file", "node-name": "n",
        "filename": os.path.join(dir, "gone.img")})]
    refused(server, "gone.img", "No such file or directory")


def test_configuration_that_is_no_json_is_named_with_its_place(make_server,
                                                               dir):
    path = os.path.join(dir, "bad.json")
    with open(path, "w") as f:
        f.write('{"qmp": [')
    server = make_server()
    server.extra = ["--config", path]
    refused(server, path)


def test_second_daemon_with_one_state_directory_is_refused(server,
                                                           make_server):
    second = make_server(name="second", state=server.state)
    status, text = second.run_to_exit()
    assert status > 0 and server.state in text
    assert "qemu" in server.qmp().cmd("query-version")


def test_state_directory_that_is_a_file_is_named(make_server, dir):
    path = os.path.join(dir, "notadir")
    open(path, "w").close()
    server = make_server()
    server.argv = lambda a=server.argv: _with_state(a, server, path)
    refused(server, path)


def _with_state(argv, server, path):
    return [path if a == server.state else a for a in argv()]


def test_read_only_state_directory_is_named(make_server, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    path = tmp_path / "ro"
    path.mkdir()
    path.chmod(0o500)
    refused(make_server(state=str(path)), str(path))


def test_full_state_directory_is_an_error_and_no_crash(make_server):
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    path = tempfile.mkdtemp(prefix="sp-full-")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none",
                       path], capture_output=True).returncode:
        os.rmdir(path)
        pytest.skip("mounting is not possible here")
    try:
        server = make_server(state=path)
        with open(os.path.join(path, "fill"), "wb") as f:
            try:
                f.write(bytes(1 << 20))
            except OSError:
                pass
        try:
            server.start()
        except AssertionError as e:         # refused at start: by name
            assert path in str(e) or "No space" in str(e)
            return
        q = server.qmp()
        img = guest.make_image(os.path.join(server.dir, "a.img"), 1 << 20)
        r = q.exchange("blockdev-add", {"driver": "file", "node-name": "n",
                                        "filename": img})
        if "error" in r:
            assert "No space left on device" in r["error"]["desc"]
        assert "qemu" in q.cmd("query-version")
        server.cleanup()
    finally:
        procs.kill_marked(server.mark)
        subprocess.run(["umount", "-l", path], check=False)
        shutil.rmtree(path, ignore_errors=True)


def test_address_in_use_is_named(server, make_server):
    other = make_server(name="other")
    other.nbd_port = server.qmp_port
    status, text = other.run_to_exit()
    assert status > 0 and str(server.qmp_port) in text


def test_help_names_every_option():
    text = subprocess.run([daemon.Stillpoint.path(), "--help"],
                          capture_output=True, text=True, timeout=10)
    assert text.returncode == 0
    for option in ("qmp", "nbd", "state", "allow", "blockdev", "export",
                   "config", "keep-nbdkit", "help"):
        assert "--" + option in text.stdout


def test_hangup_and_pipe_signals_do_not_end_the_daemon(server, q):
    server.child.signal(signal.SIGPIPE)
    q.cmd("query-version")
    assert server.child.alive()


def test_daemon_finds_its_own_place_in_shared_memory(make_server):
    server = make_server()
    before = set(os.listdir("/dev/shm"))
    os.rmdir(server.shm)
    server.shm = None
    server.start()
    q = server.qmp()
    path = guest.make_image(os.path.join(server.dir, "a.img"), 1 << 20)
    q.cmd("blockdev-add", driver="file", node_name="n", filename=path)
    q.cmd("block-export-add", type="nbd", id="e", node_name="n",
          writable=True)
    q.cmd("block-dirty-bitmap-add", node="n", name="b")
    q.cmd("quit")
    assert server.child.wait(10) == 0
    for name in set(os.listdir("/dev/shm")) - before:
        if name.startswith("stillpoint-%d-" % os.getuid()):
            shutil.rmtree(os.path.join("/dev/shm", name))
