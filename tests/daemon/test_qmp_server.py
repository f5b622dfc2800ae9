# SPDX-License-Identifier: BSD-3-Clause
"""The rules at the head of src/daemon/qmp-server.h, and how sessions begin
and end.  The server is the real one, in the program tests/daemon/stand-in
(environment variable STAND_IN), whose commands end when a test says so, and
answer as much as it asks for.
"""
import array
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time

import pytest

MIB = 1 << 20
MAX_SESSIONS = 64
OUT_HARD = 64 * MIB
EVENT = 1000 * 1000     # bytes, of a large event
STAND_IN = os.environ["STAND_IN"]
SHUTTING_DOWN = "stillpointd is shutting down"
# what waiting is multiplied with: tests/sanitize
PATIENCE = float(os.environ.get("STILLPOINT_PATIENCE", "1"))


class Client:
    def __init__(self, path, negotiate=True):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20 * PATIENCE)
        self.sock.connect(path)
        self.buffer = b""
        self.events = []
        self.greeting = self.message()
        if negotiate:
            assert self.cmd("qmp_capabilities") == {}

    def wait_read(self):
        """Until the server has read everything that was sent."""
        left = array.array("i", [1])
        while left[0]:
            fcntl.ioctl(self.sock, termios.TIOCOUTQ, left)

    def line(self):
        """One line with its end; b"" at the end of the stream."""
        chunks = [self.buffer]
        while b"\n" not in chunks[-1]:
            data = self.sock.recv(1 << 20)
            if not data:
                break
            chunks.append(data)
        whole = b"".join(chunks)
        line, end, self.buffer = whole.partition(b"\n")
        return line + end

    def message(self):
        line = self.line()
        if not line:
            return None
        assert line.endswith(b"\r\n"), line
        return json.loads(line)

    def reply(self):
        while True:
            m = self.message()
            if m is None or "event" not in m:
                return m
            self.events.append(m)

    def send(self, command, id=None, **args):
        request = {"execute": command}
        if args:
            request["arguments"] = args
        if id is not None:
            request["id"] = id
        self.sock.sendall(json.dumps(request).encode() + b"\n")

    def cmd(self, command, **args):
        self.send(command, **args)
        m = self.reply()
        assert m is not None, "the connection was closed"
        return m["return"] if "return" in m else m

    def closed(self):
        """Is the stream at its end, whatever was sent before?"""
        try:
            while self.line():
                pass
        except ConnectionResetError:
            pass
        return True

    def is_silent(self):
        """Nothing of what the server has sent is unread."""
        return not self.buffer and not select.select([self.sock], [], [], 0)[0]

    def hold(self, command, tag, watcher, **args):
        """Send a command and see it begin; it ends by watcher.release()."""
        self.send(command, tag=tag, **args)
        watcher.wait_held(tag)

    def wait_held(self, tag):
        until(lambda: tag in self.cmd("test-held"))

    def wait_waiting(self, n):
        """Until @n commands wait for their turn."""
        until(lambda: self.cmd("test-waiting")["value"] == n)

    def release(self, tag):
        assert self.cmd("test-release", tag=tag) == {}

    def close(self):
        self.sock.close()


def until(what):
    """Look until it is so."""
    end = time.monotonic() + 20 * PATIENCE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.002)


class Server:
    def __init__(self, directory, *args):
        self.path = str(directory / "qmp.sock")
        self.log_path = directory / "log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [STAND_IN, *args, "unix:" + self.path], stderr=log)
        self.wait_log("ready")

    def log(self):
        return self.log_path.read_text()

    def wait_log(self, text, timeout=10):
        end = time.monotonic() + timeout * PATIENCE
        while text not in self.log():
            assert time.monotonic() < end, "no %r in: %s" % (text, self.log())
            assert self.process.poll() is None or text in self.log(), \
                self.log()
            time.sleep(0.005)

    def client(self, **kw):
        return Client(self.path, **kw)

    def wait_end(self):
        return self.process.wait(timeout=20 * PATIENCE)

    def assert_memory_below(self, limit):
        """Resident memory; a sanitizer's own is too much to tell."""
        with open("/proc/%d/maps" % self.process.pid) as f:
            if "san.so" in f.read():
                return
        with open("/proc/%d/status" % self.process.pid) as f:
            kib = [int(line.split()[1]) for line in f
                   if line.startswith("VmRSS:")]
        assert kib[0] * 1024 < limit

    def cpu(self):
        with open("/proc/%d/stat" % self.process.pid) as f:
            fields = f.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stop(server):
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
    try:
        code = server.process.wait(timeout=20 * PATIENCE)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
        raise
    assert code == 0, server.log()
    assert not os.path.exists(server.path)


@pytest.fixture
def make_server(tmp_path):
    """Makes servers; each must end well."""
    made = []

    def make(*args):
        made.append(Server(tmp_path, *args))
        return made[-1]
    yield make
    for s in made:
        stop(s)


@pytest.fixture
def server(make_server):
    return make_server()


@pytest.fixture
def held_end_server(make_server):
    """It ends when "end" is released."""
    return make_server("--hold-end")


# How sessions begin

def test_the_greeting_comes_first_and_offers_no_capability(server):
    c = server.client(negotiate=False)
    assert c.greeting["QMP"]["capabilities"] == []
    version = c.greeting["QMP"]["version"]
    assert version["qemu"]["major"] >= 10
    assert version["package"].startswith("stillpoint-")
    assert c.cmd("qmp_capabilities") == {}
    assert c.cmd("query-version") == version


def test_nothing_but_qmp_capabilities_comes_before_negotiation(server):
    c = server.client(negotiate=False)
    for command in "test-log", "query-commands", "no-such-command", "quit":
        c.send(command, id=command)
        assert c.reply() == {
            "error": {"class": "CommandNotFound",
                      "desc": "Expecting capabilities negotiation with "
                              "'qmp_capabilities'"},
            "id": command}
    assert c.cmd("qmp_capabilities", enable=[]) == {}
    assert c.cmd("test-log") == []


def test_negotiation_happens_once(server):
    c = server.client()
    assert c.cmd("qmp_capabilities")["error"] == {
        "class": "CommandNotFound",
        "desc": "Capabilities negotiation is already complete, "
                "command ignored"}


def test_capabilities_that_were_not_offered_are_refused(server):
    c = server.client(negotiate=False)
    assert c.cmd("qmp_capabilities", enable=["oob"])["error"] == {
        "class": "GenericError", "desc": "Capability oob not available"}
    assert c.cmd("qmp_capabilities", enable=["nope"])["error"]["desc"] == \
        "Parameter 'null' does not accept value 'nope'"
    assert c.cmd("qmp_capabilities") == {}


@pytest.mark.parametrize("id", [0, -1, 1.5, "a\u00e9", None, True, [1, [2]],
                                {"a": {"b": []}}])
def test_an_id_of_any_type_is_echoed(server, id):
    c, watcher = server.client(), server.client()
    for request in (b'{"execute": "test-log", "id": %s}',
                    b'{"execute": "no-such-command", "id": %s}',
                    b'{"execute": "test-held-query", '
                    b'"arguments": {"tag": "q"}, "id": %s}',
                    b'{"execute": 1, "id": %s}'):
        c.sock.sendall(request % json.dumps(id).encode())
        if b"held" in request:
            watcher.wait_held("q")
            watcher.release("q")
        m = c.reply()
        assert "id" in m and m["id"] == id


def test_requests_may_come_byte_by_byte_or_many_in_one_packet(server):
    c = server.client()
    for byte in b'{"execute": "test-echo", "arguments": {"value": 7}}':
        c.sock.sendall(bytes([byte]))
    assert c.reply() == {"return": {"value": 7}}
    c.sock.sendall(b'{"execute":"test-echo","arguments":{"value":1}}'
                   b'{"execute":"test-echo","arguments":{"value":2}}\n\n')
    assert [c.reply()["return"]["value"] for _ in range(2)] == [1, 2]


def test_errors_leave_the_session_usable(server):
    c = server.client()
    c.sock.sendall(b'{"execute": }')
    assert "JSON parse error" in c.reply()["error"]["desc"]
    c.sock.sendall(b"[1]")
    assert c.reply()["error"]["desc"] == "QMP input must be a JSON object"
    watcher = server.client()
    c.hold("test-held-change", "x", watcher, fail=True)
    watcher.release("x")
    assert c.reply()["error"] == {
        "class": "GenericError", "desc": "asked to fail"}
    assert c.cmd("test-echo")["error"]["desc"] == "Parameter 'value' is missing"
    assert c.cmd("test-echo", value=3) == {"value": 3}


# Rule 1

@pytest.mark.rows("protocol.order")
def test_rule_1_pipelined_requests_are_answered_in_order(server):
    c = server.client()
    n = 2000
    sender = threading.Thread(target=lambda: [
        c.send("test-echo", id=i, value=i) for i in range(n)])
    sender.start()
    assert [c.reply()["id"] for _ in range(n)] == list(range(n))
    sender.join()


def test_rule_1_fast_requests_wait_behind_a_slow_one(server):
    c, watcher = server.client(), server.client()
    c.send("test-held-query", id="slow", tag="q")
    c.send("test-echo", id="fast", value=1)
    c.send("test-held-change", id="slow too", tag="a")
    c.send("test-change", id="fast too", tag="b")
    watcher.wait_held("q")
    assert c.is_silent()
    watcher.release("q")
    assert [c.reply()["id"] for _ in range(2)] == ["slow", "fast"]
    watcher.wait_held("a")
    assert c.is_silent()
    watcher.release("a")
    assert [c.reply()["id"] for _ in range(2)] == ["slow too", "fast too"]
    assert c.cmd("test-log") == ["a", "b"]


@pytest.mark.rows("protocol.order-not-read")
def test_rule_1_input_is_not_read_while_a_command_is_executed(server):
    c, watcher = server.client(), server.client()
    c.hold("test-held-query", "q", watcher)
    c.sock.setblocking(False)
    sent = 0
    # What the kernel buffers, and no more, however often the server looks.
    for _ in range(200):
        try:
            while sent < 16 * MIB:
                sent += c.sock.send(b" " * 65536)
        except BlockingIOError:
            pass
        assert watcher.cmd("test-echo", value=1) == {"value": 1}
    assert sent < 4 * MIB
    c.sock.setblocking(True)
    c.sock.settimeout(20 * PATIENCE)
    watcher.release("q")
    assert c.reply() == {"return": {}}


def test_rule_1_sessions_do_not_wait_for_each_other(server):
    a, b = server.client(), server.client()
    a.hold("test-held-query", "q", b)
    assert b.cmd("test-echo", value=1) == {"value": 1}
    assert a.is_silent()
    b.release("q")
    assert a.reply() == {"return": {}}


# Rule 2

def test_rule_2_changes_of_other_sessions_wait_their_turn(server):
    a, b, c, watcher = (server.client() for _ in range(4))
    a.hold("test-held-change", "a", watcher)
    b.send("test-change", tag="b")
    watcher.wait_waiting(1)
    c.send("test-held-change", tag="c")
    watcher.wait_waiting(2)
    assert watcher.cmd("test-log") == []
    watcher.release("a")
    watcher.wait_held("c")
    assert watcher.cmd("test-log") == ["a", "b"]
    watcher.release("c")
    assert [x.reply() for x in (a, b, c)] == [{"return": {}}] * 3
    assert watcher.cmd("test-log") == ["a", "b", "c"]


def test_rule_2_queries_run_at_once(server):
    a, b, c, watcher = (server.client() for _ in range(4))
    a.hold("test-held-change", "a", watcher)
    b.send("test-change", tag="b")
    watcher.wait_waiting(1)
    assert c.cmd("test-echo", value=1) == {"value": 1}
    c.hold("test-held-query", "q", watcher)
    watcher.release("q")
    assert c.reply() == {"return": {}}
    assert c.cmd("no-such-command")["error"]["class"] == "CommandNotFound"
    assert a.is_silent() and b.is_silent()
    watcher.release("a")
    assert a.reply() == b.reply() == {"return": {}}


def test_rule_2_a_failed_change_lets_the_next_one_run(server):
    a, b, watcher = (server.client() for _ in range(3))
    a.hold("test-held-change", "a", watcher, fail=True)
    b.send("test-change", tag="b")
    watcher.wait_waiting(1)
    watcher.release("a")
    assert "error" in a.reply()
    assert b.reply() == {"return": {}}


def test_rule_2_many_waiting_changes_are_all_done(server):
    clients = [server.client() for _ in range(50)]
    watcher = server.client()
    clients[0].hold("test-held-change", "0", watcher)
    for i, c in enumerate(clients[1:], 1):
        c.send("test-change", tag=str(i))
        watcher.wait_waiting(i)
    watcher.release("0")
    assert all(c.reply() == {"return": {}} for c in clients)
    assert clients[0].cmd("test-log") == [str(i) for i in range(50)]


# Rule 3

def test_rule_3_a_command_outlives_its_client(server):
    a, b, watcher = (server.client() for _ in range(3))
    a.hold("test-held-change", "a", watcher)
    a.close()
    b.send("test-change", tag="b")
    watcher.wait_waiting(1)
    watcher.release("a")
    assert b.reply() == {"return": {}}
    assert b.cmd("test-log") == ["a", "b"]


@pytest.mark.rows("protocol.disconnect")
def test_rule_3_a_session_may_end_while_its_command_runs(server):
    """The event is how the server learns that the client is gone."""
    a, b, c = (server.client() for _ in range(3))
    a.hold("test-held-change", "a", c)
    b.send("test-change", tag="b")
    c.wait_waiting(1)
    a.close()
    b.close()
    assert c.cmd("test-events", count=1) == {}
    assert c.cmd("test-events", count=1) == {}
    assert c.cmd("test-sessions") == {"value": 1}
    # a's command is finished; b's, which had not begun, is not done.
    c.release("a")
    assert c.cmd("test-change", tag="c") == {}
    assert c.cmd("test-log") == ["a", "c"]


def test_rule_3_the_place_of_a_client_that_went_away_is_free_again(server):
    for _ in range(3):
        clients = [server.client() for _ in range(MAX_SESSIONS)]
        for c in clients:
            c.close()
        watcher = wait_for_client(server)
        wait_sessions(watcher, 1)
        watcher.close()


def test_a_client_that_sends_no_more_still_gets_its_answers(server):
    c, watcher = server.client(), server.client()
    c.send("test-held-query", id=1, tag="q")
    c.send("test-echo", id=2, value=5)
    c.sock.shutdown(socket.SHUT_WR)
    watcher.wait_held("q")
    watcher.release("q")
    assert c.reply() == {"return": {}, "id": 1}
    assert c.reply() == {"return": {"value": 5}, "id": 2}
    assert c.message() is None


# Rule 4

def flood(path, stop, counts, index):
    c = Client(path)
    request = b'{"execute":"test-echo","arguments":{"value":1}}' * 1000
    c.sock.setblocking(False)
    pending = b""
    while not stop.is_set():
        readable, writable, _ = select.select([c.sock], [c.sock], [], 0.1)
        if readable:
            counts[index] += c.sock.recv(1 << 20).count(b"\n")
        if writable:
            pending = pending or request
            pending = pending[c.sock.send(pending):]
    c.close()


def test_rule_4_flooding_clients_do_not_keep_others_waiting(server):
    stop_now = threading.Event()
    counts = [0, 0]
    threads = [threading.Thread(target=flood,
                                args=(server.path, stop_now, counts, i))
               for i in range(2)]
    for t in threads:
        t.start()
    c = server.client()
    took = []
    try:
        until(lambda: min(counts) > 1000)
        for _ in range(51):
            begin = time.monotonic()
            assert c.cmd("test-echo", value=2) == {"value": 2}
            took.append(time.monotonic() - begin)
    finally:
        stop_now.set()
        for t in threads:
            t.join()
    # The middle one: the machine may stop us at any time.
    assert sorted(took)[25] < 0.5


def test_rule_4_one_wake_up_serves_sixteen_requests(server):
    """Two sessions with a pile of requests each: answers interleave."""
    a, b, blocker, watcher = (server.client() for _ in range(4))
    blocker.hold("test-held-change", "-", watcher)
    # Both begin at the same moment, when the blocker's change is done.
    for c, name in (a, "a"), (b, "b"):
        c.sock.sendall(b"".join(
            json.dumps({"execute": "test-change",
                        "arguments": {"tag": name}}).encode()
            for _ in range(200)))
    watcher.wait_waiting(2)
    watcher.release("-")
    for c in a, b:
        for _ in range(200):
            assert c.reply() == {"return": {}}
    log = blocker.cmd("test-log") if blocker.reply() else None
    log = "".join(log)[1:]
    longest = max(len(run) for run in
                  log.replace("ab", "a b").replace("ba", "b a").split())
    assert log.count("a") == log.count("b") == 200
    assert longest <= 17


def test_rule_4_large_answers_use_up_a_turn(server):
    """Answers of 40 KiB: two of them are a turn, not sixteen."""
    a, b, blocker, watcher = (server.client() for _ in range(4))
    blocker.hold("test-held-change", "-", watcher)
    for c, name in (a, "a"), (b, "b"):
        c.sock.sendall(b"".join(
            json.dumps({"execute": "test-change",
                        "arguments": {"tag": name}}).encode() +
            b'{"execute": "test-big", "arguments": {"bytes": 40960}}'
            for _ in range(20)))
    watcher.wait_waiting(2)
    watcher.release("-")
    for c in a, b:
        for _ in range(40):
            assert "return" in c.reply()
    log = blocker.cmd("test-log") if blocker.reply() else None
    log = "".join(log)[1:]
    longest = max(len(run) for run in
                  log.replace("ab", "a b").replace("ba", "b a").split())
    assert log.count("a") == log.count("b") == 20
    assert longest <= 4


# Rule 5

def wait_for_client(server):
    """A session, as soon as there is room for one."""
    end = time.monotonic() + 10 * PATIENCE
    while True:
        c = server.client(negotiate=False)
        if "QMP" in c.greeting:
            assert c.cmd("qmp_capabilities") == {}
            return c
        c.close()
        assert time.monotonic() < end
        time.sleep(0.01)


def wait_sessions(watcher, n):
    until(lambda: watcher.cmd("test-sessions")["value"] == n)


def test_rule_5_there_are_sixty_four_sessions_and_not_one_more(server):
    clients = [server.client() for _ in range(MAX_SESSIONS)]
    assert clients[-1].cmd("test-sessions") == {"value": MAX_SESSIONS}
    refused = server.client(negotiate=False)
    assert refused.greeting == {"error": {
        "class": "GenericError",
        "desc": "Too many QMP sessions: the limit is 64"}}
    assert refused.message() is None
    server.wait_log("is refused: Too many QMP sessions")
    assert clients[0].cmd("test-echo", value=1) == {"value": 1}
    clients[5].close()
    again = wait_for_client(server)
    assert again.cmd("test-echo", value=1) == {"value": 1}


def test_rule_5_silent_clients_cost_nothing(server):
    clients = [server.client() for _ in range(MAX_SESSIONS - 1)]
    before = server.cpu()
    time.sleep(0.5)
    assert server.cpu() - before <= 0.02
    assert server.client().cmd("test-sessions") == {"value": MAX_SESSIONS}
    assert len(clients) == MAX_SESSIONS - 1


def test_rule_5_requests_of_a_slow_reader_are_not_read(server):
    """Answers pile up to the soft bound and no further."""
    slow = server.client()
    slow.sock.setblocking(False)
    request = json.dumps({"execute": "test-big",
                          "arguments": {"bytes": 100000}}).encode() * 100
    sent, pending = 0, b""
    end = time.monotonic() + 1
    while time.monotonic() < end:
        try:
            pending = pending or request
            n = slow.sock.send(pending)
            pending = pending[n:]
            sent += n
        except BlockingIOError:
            time.sleep(0.01)
    server.assert_memory_below(40 * MIB)
    other = server.client()
    assert other.cmd("test-echo", value=1) == {"value": 1}
    # It reads again and gets everything.
    slow.sock.setblocking(True)
    slow.sock.settimeout(20 * PATIENCE)
    for _ in range(50):
        assert len(slow.reply()["return"]["text"]) == 100000


def test_rule_5_a_reply_of_nearly_the_hard_bound_is_delivered(server):
    c = server.client()
    n = OUT_HARD - 1000
    assert len(c.cmd("test-big", bytes=n)["text"]) == n
    del c.buffer
    other = server.client()
    assert other.cmd("test-echo", value=1) == {"value": 1}


def test_rule_5_a_reply_beyond_the_hard_bound_becomes_an_error(server):
    c = server.client()
    m = c.cmd("test-big", bytes=OUT_HARD + 1)
    assert m["error"]["desc"].startswith(
        "the response to 'test-big' cannot be sent: ")
    assert c.cmd("test-echo", value=1) == {"value": 1}


def test_rule_5_who_does_not_read_events_is_closed_at_the_hard_bound(server):
    deaf, other = server.client(), server.client()
    for _ in range(OUT_HARD // EVENT - 1):
        assert other.cmd("test-events", count=1, bytes=EVENT) == {}
    assert other.cmd("test-sessions") == {"value": 2}
    for _ in range(3):
        assert other.cmd("test-events", count=1, bytes=EVENT) == {}
    server.wait_log("is closed: it does not read what was sent")
    wait_sessions(other, 1)
    assert deaf.closed()
    # And its memory is given back.
    server.assert_memory_below(40 * MIB)


def test_rule_5_all_output_together_is_bounded(server):
    """Three deaf clients below their own bound: the worst one goes."""
    deaf = [server.client() for _ in range(3)]
    other = server.client()
    for _ in range(48):
        other.cmd("test-events", count=1, bytes=EVENT)
    server.wait_log("all clients together read too slowly")
    assert 2 <= other.cmd("test-sessions")["value"] <= 3
    server.assert_memory_below(170 * MIB)
    assert len(deaf) == 3


def test_rule_5_all_unfinished_input_together_is_bounded(server):
    clients = [server.client() for _ in range(2)]
    begin = b'{"execute": "' + b"x" * (60 * MIB)
    clients[0].sock.sendall(begin)
    try:
        clients[1].sock.sendall(begin)
    except OSError:
        pass
    server.wait_log("all clients together send too large requests")
    other = server.client()
    wait_sessions(other, 2)


@pytest.mark.rows("protocol.json-size")
def test_rule_5_an_oversized_request_is_an_error_and_no_more(server):
    c = server.client()
    c.sock.sendall(b'{"execute": "' + b"x" * (64 * MIB + 1) + b'"}')
    m = c.reply()
    assert m["error"] == {"class": "GenericError",
                          "desc": "JSON token size limit exceeded"}
    c.sock.sendall(b"\xff")
    while c.cmd("test-echo", value=1) != {"value": 1}:
        pass
    server.wait_log("ready")
    server.assert_memory_below(40 * MIB)


def test_rule_5_large_requests_that_wait_are_limited(server):
    running, first, second, third, watcher = (
        server.client() for _ in range(5))
    running.hold("test-held-change", "run", watcher)
    first.send("test-change", tag="a" * (5 * MIB))
    watcher.wait_waiting(1)
    second.send("test-change", tag="b" * (5 * MIB))
    assert "Too many large commands are waiting" in \
        second.reply()["error"]["desc"]
    third.send("test-change", tag="small")
    watcher.wait_waiting(2)
    watcher.release("run")
    assert [x.reply() for x in (running, first, third)] == [{"return": {}}] * 3


def test_rule_5_a_large_request_that_waits_alone_is_served(server):
    c = server.client()
    assert c.cmd("test-change", tag="a" * (20 * MIB)) == {}


# Rule 6

@pytest.mark.rows("protocol.several-clients", "protocol.negotiation-events")
def test_rule_6_events_go_to_all_who_negotiated_and_nobody_else(server):
    negotiating = server.client(negotiate=False)
    a, b = server.client(), server.client()
    assert a.cmd("test-events", count=3) == {}
    for c in a, b:
        while len(c.events) < 3:
            m = c.message()
            c.events.append(m)
        assert [e["data"]["number"] for e in c.events] == [0, 1, 2]
        stamp = c.events[0]["timestamp"]
        assert abs(stamp["seconds"] - time.time()) < 60
        assert 0 <= stamp["microseconds"] < 1000000
    assert negotiating.cmd("qmp_capabilities") == {}
    assert negotiating.cmd("test-log") == []
    assert negotiating.events == []
    assert a.cmd("test-events", count=1) == {}
    assert negotiating.message()["event"] == "TEST"


@pytest.mark.rows("protocol.event-before-return")
def test_rule_6_events_of_a_command_come_before_its_response(server):
    c = server.client()
    c.send("test-events", id="me", count=2)
    assert [c.message().get("event", "reply") for _ in range(3)] == \
        ["TEST", "TEST", "reply"]


# How it ends

def test_quit_is_answered_when_everything_is_down(held_end_server):
    c, watcher = held_end_server.client(), held_end_server.client()
    c.send("quit")
    watcher.wait_held("end")
    assert c.is_silent()
    watcher.release("end")
    assert c.reply() == {"return": {}}
    assert c.message() is None
    assert held_end_server.wait_end() == 0


def test_every_quit_is_answered(held_end_server):
    a, b, watcher = (held_end_server.client() for _ in range(3))
    a.send("quit", id="a")
    b.send("quit", id="b")
    watcher.wait_held("end")
    b.wait_read()
    watcher.release("end")
    assert a.reply() == {"return": {}, "id": "a"}
    assert b.reply() == {"return": {}, "id": "b"}
    assert a.closed() and b.closed()


def test_quit_works_while_changes_are_in_progress(server):
    a, b, c = (server.client() for _ in range(3))
    a.hold("test-held-change", "a", c)
    b.send("test-change", tag="b")
    c.wait_waiting(1)
    assert c.cmd("quit") == {}
    assert b.reply()["error"]["desc"] == SHUTTING_DOWN
    assert a.closed()
    assert server.wait_end() == 0


def test_while_it_shuts_down_queries_are_answered_and_changes_refused(
        held_end_server):
    a, b = held_end_server.client(), held_end_server.client()
    a.send("quit")
    b.wait_held("end")
    assert b.cmd("test-echo", value=1) == {"value": 1}
    assert b.cmd("test-change", tag="b")["error"]["desc"] == SHUTTING_DOWN
    b.release("end")
    assert a.reply() == {"return": {}}


def test_sigterm_closes_sessions_and_removes_the_socket(server):
    c = server.client()
    server.process.send_signal(signal.SIGTERM)
    assert server.wait_end() == 0
    assert c.closed()


def test_a_client_that_does_not_read_cannot_keep_it_from_ending(server):
    c = server.client()
    c.send("test-big", bytes=30 * MIB)
    until(lambda: not c.is_silent())
    server.process.send_signal(signal.SIGTERM)
    assert server.wait_end() == 0


def test_the_last_words_reach_a_client_that_pipelined_more(server):
    c = server.client()
    c.sock.sendall(b'{"execute": "quit", "id": 1}' +
                   b'{"execute": "test-log"}' * 100)
    assert c.reply() == {"return": {}, "id": 1}
    assert server.wait_end() == 0


# TCP

def test_a_port_is_chosen_and_named(make_server):
    s = make_server("tcp:127.0.0.1:0", "tcp:[::1]:0")
    ports = [line.rpartition(":")[2] for line in s.log().splitlines()
             if "QMP listens on tcp:" in line]
    assert len(ports) == 2
    with socket.create_connection(("127.0.0.1", int(ports[0])), 10) as c:
        assert c.recv(100).startswith(b'{"QMP": ')
    with socket.create_connection(("::1", int(ports[1])), 10) as c:
        assert c.recv(100).startswith(b'{"QMP": ')


def test_a_reset_connection_is_nothing_special(make_server):
    s = make_server("tcp:127.0.0.1:0")
    port = int([line.rpartition(":")[2] for line in s.log().splitlines()
                if "QMP listens on tcp:" in line][0])
    for _ in range(20):
        c = socket.create_connection(("127.0.0.1", port), 10)
        c.sendall(b'{"execute": "qmp_capabilities"}'
                  b'{"execute": "test-big", "arguments": {"bytes": 1000000}}')
        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                     struct.pack("ii", 1, 0))
        c.close()
    watcher = s.client()
    wait_sessions(watcher, 1)


@pytest.mark.parametrize("address", ["tcp:0.0.0.0:0", "tcp:[::]:0"])
def test_other_than_loopback_addresses_need_tls(address):
    p = subprocess.run([STAND_IN, address], capture_output=True, timeout=10)
    assert p.returncode == 1
    assert b"TLS is needed" in p.stderr


def test_clients_that_come_when_descriptors_are_used_up_wait(make_server):
    s = make_server()
    c = s.client()
    subprocess.run(["prlimit", "--pid", str(s.process.pid), "--nofile=16:"],
                   check=True)
    waiting = []
    for _ in range(20):
        w = socket.socket(socket.AF_UNIX)
        w.connect(s.path)
        waiting.append(w)
    s.wait_log("cannot accept QMP clients for a while")
    assert c.cmd("test-echo", value=1) == {"value": 1}
    subprocess.run(["prlimit", "--pid", str(s.process.pid),
                    "--nofile=1024:"], check=True)
    waiting[-1].settimeout(10)
    assert waiting[-1].recv(100).startswith(b'{"QMP": ')
