# SPDX-License-Identifier: BSD-3-Clause
"""stillpointd as a program: options, exit codes, directories, signals, and
the nbdkit that it starts.
"""
import json
import os
import re
import signal
import socket
import subprocess
import time

import nbd
import pytest

from stillpoint_test.daemon import build_dir

PROGRAM = os.path.join(build_dir(), "src/daemon/stillpointd")
PLUGIN = os.path.join(build_dir(),
                      "plugins/stillpoint/nbdkit-stillpoint-plugin.so")


def alive(pid):
    """A process that runs: no zombie."""
    try:
        with open("/proc/%d/stat" % pid) as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(what, condition, timeout=15):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "no " + what
        time.sleep(0.01)


class Program:
    """A stillpointd that runs, with its state in @dir."""

    def __init__(self, dir, *args, state="state"):
        self.dir = dir
        self.log_path = os.path.join(dir, "log")
        nbdkit = os.environ.get("STILLPOINT_NBDKIT")        # tests/sanitize
        if nbdkit and "--nbdkit" not in args:
            args += ("--nbdkit", nbdkit)
        with open(self.log_path, "ab") as log:
            self.begin = log.tell()
            self.process = subprocess.Popen(
                [PROGRAM, "--state", os.path.join(dir, state), *args],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def log(self):
        with open(self.log_path) as f:
            f.seek(self.begin)
            return f.read()

    def wait_log(self, text):
        wait_until("%r in %s" % (text, self.log()),
                   lambda: text in self.log() or self.ended())
        assert text in self.log(), self.log()

    def ended(self):
        return self.process.poll() is not None

    def ready(self):
        self.wait_log("info: ready")
        return self

    def nbdkit_pid(self):
        found = re.findall(r"nbdkit (?:started, pid|with pid) (\d+)",
                           self.log())
        return int(found[-1]) if found else None

    def end(self, sig=signal.SIGTERM):
        self.process.send_signal(sig)
        return self.process.wait(timeout=20)

    def clean_up(self):
        if not self.ended():
            self.process.kill()
            self.process.wait()
        pid = self.nbdkit_pid()
        if pid and alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(dir):
    made = []

    def make(*args, **kw):
        made.append(Program(dir, *args, **kw))
        return made[-1]
    yield make
    for p in made:
        p.clean_up()


def run(*args, timeout=30):
    return subprocess.run([PROGRAM, *args], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=timeout)


def greet(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(10)
        s.connect(path)
        return json.loads(s.recv(1000))


def nbd_connect(uri):
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(uri)
    return h


# Options and exit codes

def test_help_and_version_are_answered_with_zero():
    p = run("--help")
    assert p.returncode == 0 and p.stdout.startswith("Usage: stillpointd")
    p = run("--version")
    assert p.returncode == 0
    assert re.fullmatch(r"stillpointd \d+\.\d+\.\d+\n", p.stdout)


@pytest.mark.parametrize("args, why", [
    ([], "--state DIR"),
    (["--no-such-option"], "--no-such-option"),
    (["--state", "x", "extra"], "extra"),
    (["--state", "x", "--qmp", "nonsense"], "nonsense"),
    (["--state", "x", "--config", "/nonexistent"], "/nonexistent"),
    (["--state", "x", "--blockdev", "{}"], "'blockdev[0].driver' is missing"),
])
def test_wrong_usage_exits_with_two_and_touches_nothing(dir, args, why):
    before = os.listdir(dir)
    p = subprocess.run([PROGRAM, *args], capture_output=True, text=True,
                       cwd=dir, timeout=30)
    assert p.returncode == 2
    assert why in p.stderr and "--help" in p.stderr
    assert os.listdir(dir) == before


def test_everything_may_stand_in_a_configuration_file(start, dir):
    with open(dir + "/disk", "wb") as f:
        f.truncate(1 << 20)
    with open(dir + "/config.json", "w") as f:
        json.dump({
            "qmp": ["unix:%s/q" % dir, "tcp:127.0.0.1:0"],
            "nbd": ["unix:%s/n" % dir, "tcp:127.0.0.1:0"],
            "allow": [dir], "threads": 2, "log-level": "debug",
            "blockdev": [{"driver": "file", "node-name": "d",
                          "filename": dir + "/disk"}],
            "export": [{"type": "nbd", "id": "e", "node-name": "d",
                        "name": "disk", "writable": True}]}, f)
    p = start("--config", dir + "/config.json").ready()
    assert "QMP" in greet(dir + "/q")
    h = nbd.NBD()
    h.connect_uri("nbd+unix:///disk?socket=%s/n" % dir)
    assert h.get_size() == 1 << 20 and not h.is_read_only()
    h.shutdown()
    port = re.search(r"guests connect to tcp:127.0.0.1:(\d+)",
                     p.log()).group(1)
    nbd_connect("nbd://127.0.0.1:%s/disk" % port).opt_abort()
    assert p.end() == 0


def test_without_addresses_qmp_has_a_socket_and_guests_have_none(start, dir):
    p = start().ready()
    assert "QMP" in greet(dir + "/state/qmp.sock")
    assert "guests connect" not in p.log()
    assert os.stat(dir + "/state").st_mode & 0o777 == 0o700
    assert os.stat(dir + "/state/qmp.sock").st_mode & 0o777 == 0o600
    assert os.stat(dir + "/state/idle.sock").st_mode & 0o777 == 0o600
    assert p.end() == 0
    assert not os.path.exists(dir + "/state/qmp.sock")
    assert not os.path.exists(dir + "/state/idle.sock")


def shm_directories():
    return {n for n in os.listdir("/dev/shm")
            if n.startswith("stillpoint-%d-" % os.geteuid())}


def test_nothing_stays_in_memory_when_there_is_nothing_to_keep(start):
    before = shm_directories()
    p = start().ready()
    mine = shm_directories() - before
    assert mine
    assert p.end() == 0
    # Others may come and go meanwhile, so only what was new is looked at.
    assert len(mine & shm_directories()) < len(mine)


@pytest.mark.parametrize("address", ["tcp:0.0.0.0:0", "tcp:[::]:0"])
def test_remote_control_needs_tls(dir, address):
    p = run("--state", dir + "/state", "--qmp", address)
    assert p.returncode == 1
    assert address in p.stderr and "TLS is needed" in p.stderr


# Directories

def test_two_daemons_cannot_have_one_state_directory(start, dir):
    first = start().ready()
    # By another name, too.
    os.symlink(dir + "/state", dir + "/alias")
    for name in "state", "alias":
        p = run("--state", dir + "/" + name)
        assert p.returncode == 1
        assert "is in use by another stillpointd (pid %d)" % \
            first.process.pid in p.stderr
    assert "QMP" in greet(dir + "/state/qmp.sock")


def test_the_state_directory_of_a_killed_daemon_can_be_used(start, dir):
    first = start().ready()
    first.end(signal.SIGKILL)
    second = start().ready()
    assert second.nbdkit_pid() == first.nbdkit_pid()
    assert second.end() == 0
    wait_until("end of nbdkit", lambda: not alive(first.nbdkit_pid()))


@pytest.mark.parametrize("option, what", [
    ("--state", "state directory"), ("--store", "store directory"),
    ("--shm", "shared memory directory")])
def test_a_file_is_no_directory(dir, option, what):
    with open(dir + "/file", "w"):
        pass
    args = ["--state", dir + "/state", option, dir + "/file"]
    p = run(*args)
    assert p.returncode == 1
    assert what in p.stderr and dir + "/file" in p.stderr


def test_a_directory_that_is_not_there_cannot_be_allowed(dir):
    p = run("--state", dir + "/state", "--allow", dir + "/none")
    assert p.returncode == 1
    assert "cannot allow the directory '%s/none'" % dir in p.stderr


# Signals

@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_zero_and_takes_nbdkit_along(start, sig):
    p = start().ready()
    pid = p.nbdkit_pid()
    assert alive(pid)
    assert p.end(sig) == 0
    assert not alive(pid)


def test_a_hangup_changes_nothing(start, dir):
    p = start().ready()
    p.process.send_signal(signal.SIGHUP)
    os.kill(p.nbdkit_pid(), 0)
    time.sleep(0.2)
    assert "QMP" in greet(dir + "/state/qmp.sock")
    assert p.end() == 0


def test_it_runs_with_standard_files_closed(dir):
    p = subprocess.Popen(
        ["sh", "-c", 'exec "$0" --state "$1" --nbdkit "$2" <&- >&- 2>&-',
         PROGRAM, dir + "/state",
         os.environ.get("STILLPOINT_NBDKIT", "nbdkit")])
    try:
        wait_until("greeting", lambda: greets(dir + "/state/qmp.sock"))
    finally:
        p.send_signal(signal.SIGTERM)
        assert p.wait(timeout=20) == 0


def greets(path):
    try:
        return "QMP" in greet(path)
    except (ConnectionRefusedError, FileNotFoundError):
        return False


# nbdkit

def test_a_plugin_that_is_missing_is_the_reason_for_the_end(dir):
    p = run("--state", dir + "/state", "--plugin", dir + "/none.so")
    assert p.returncode == 1
    assert "does not work" in p.stderr and dir + "/none.so" in p.stderr


def test_an_nbdkit_that_is_missing_is_the_reason_for_the_end(dir):
    p = run("--state", dir + "/state", "--nbdkit", dir + "/none")
    assert p.returncode == 1
    assert "cannot run '%s/none': No such file" % dir in p.stderr


def test_options_that_nbdkit_refuses_are_the_reason_for_the_end(dir):
    p = run("--state", dir + "/state", "--tls", "require",
            "--tls-certificates", dir + "/none")
    assert p.returncode == 1
    assert "does not work" in p.stderr
    assert not os.path.exists(dir + "/state/idle.sock")


def test_nbdkit_lives_in_a_session_of_its_own(start):
    p = start().ready()
    pid = p.nbdkit_pid()
    assert os.getsid(pid) == pid
    assert os.getsid(p.process.pid) != pid


def test_a_killed_nbdkit_is_back_on_the_same_sockets(start, dir):
    p = start("--nbd", "tcp:127.0.0.1:0").ready()
    port = re.search(r"guests connect to tcp:127.0.0.1:(\d+)",
                     p.log()).group(1)
    first = p.nbdkit_pid()
    os.kill(first, signal.SIGKILL)
    nbd_connect("nbd://127.0.0.1:" + port).opt_abort()
    wait_until("new nbdkit", lambda: p.nbdkit_pid() != first)
    assert p.end() == 0


def test_keep_nbdkit_leaves_it_for_the_next_daemon(start, dir):
    guests = ["--nbd", "unix:%s/state/nbd.sock" % dir]
    p = start("--keep-nbdkit", *guests).ready()
    pid = p.nbdkit_pid()
    assert p.end() == 0
    assert alive(pid)
    nbd_connect("nbd+unix://?socket=%s/state/nbd.sock" % dir).opt_abort()
    # The next one notices its death although it is no child of it, and has
    # the sockets that its predecessor made.
    p = start(*guests).ready()
    assert p.nbdkit_pid() == pid
    os.kill(pid, signal.SIGKILL)
    nbd_connect("nbd+unix://?socket=%s/state/nbd.sock" % dir).opt_abort()
    wait_until("new nbdkit", lambda: p.nbdkit_pid() != pid)
    assert p.end() == 0
    assert not os.path.exists(dir + "/state/nbd.sock")


def test_guests_can_be_asked_for_tls(start, dir):
    with open(dir + "/psk", "w") as f:
        os.fchmod(f.fileno(), 0o600)
        f.write("guest:%s\n" % ("ab" * 32))
    address = dir + "/state/nbd.sock"
    p = start("--tls", "require", "--tls-psk", dir + "/psk", "--nbd",
              "unix:" + address).ready()
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.set_tls(nbd.TLS_REQUIRE)
    h.set_tls_username("guest")
    h.set_tls_psk_file(dir + "/psk")
    h.connect_unix(address)
    assert h.get_tls_negotiated()
    h.opt_abort()
    plain = nbd.NBD()
    with pytest.raises(nbd.Error):
        plain.connect_unix(address)
    assert p.end() == 0
