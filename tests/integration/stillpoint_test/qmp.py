# SPDX-License-Identifier: BSD-3-Clause
"""A QMP client for tests: small, synchronous, and willing to misbehave.

Events are kept in the order of arrival, none is ever thrown away;
wait_event() looks from a position on, so a test can ask for an event that
came before it asked.
"""
import json
import socket
import time

from .procs import patience


class QmpError(Exception):
    """An error response of the server."""

    def __init__(self, error):
        super().__init__("%s: %s" % (error.get("class"), error.get("desc")))
        self.cls = error.get("class")
        self.desc = error.get("desc")


class QmpClosed(Exception):
    """The server closed the connection."""


def connect_socket(address, timeout=10.0):
    """address: "unix:PATH" or "tcp:HOST:PORT"."""
    kind, _, rest = address.partition(":")
    if kind == "unix":
        s = socket.socket(socket.AF_UNIX)
        where = rest
    elif kind == "tcp":
        host, _, port = rest.rpartition(":")
        s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        where = (host.strip("[]"), int(port))
    else:
        raise ValueError(address)
    s.settimeout(patience(timeout))
    try:
        s.connect(where)
    except OSError:
        s.close()
        raise
    return s


class Qmp:
    """One connection.  With negotiate=False it stays in negotiation mode."""

    def __init__(self, address, negotiate=True, timeout=10.0):
        self.timeout = timeout
        self.events = []        # all events, oldest first
        self.lines = []         # every line as it came, for format tests
        self.ids = 0
        self._replies = []
        self._buffer = b""
        self.socket = connect_socket(address, timeout)
        try:
            self.greeting = self.receive()
            if "QMP" not in self.greeting:
                raise AssertionError("no greeting: %r" % self.greeting)
            if negotiate:
                self.cmd("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    # --- bytes and messages -------------------------------------------

    def send_bytes(self, data):
        self.socket.sendall(data)

    def send(self, message):
        self.send_bytes(json.dumps(message).encode() + b"\n")

    def _read_line(self, timeout):
        end = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError("no message within %.1f s" % timeout)
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise QmpClosed("connection closed by the server")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        self.lines.append(line)
        return json.loads(line)

    def receive(self, timeout=None):
        """The next message that is not an event."""
        if self._replies:
            return self._replies.pop(0)
        while True:
            message = self._read_line(patience(
                self.timeout if timeout is None else timeout))
            if "event" not in message:
                return message
            self.events.append(message)

    def silent(self, seconds):
        """Does nothing but events come for so long?"""
        end = time.monotonic() + seconds
        while not self._replies and time.monotonic() < end:
            self._receive_event(end - time.monotonic())
        return not self._replies

    # --- commands -------------------------------------------------------

    def exchange(self, name, arguments=None, **more):
        """Send a command and return the whole response."""
        self.ids += 1
        message = {"execute": name, "id": self.ids}
        if arguments is not None:
            message["arguments"] = arguments
        message.update(more)
        self.send(message)
        reply = self.receive()
        if reply.get("id") != message["id"]:
            raise AssertionError("answer to another request: %r" % reply)
        return reply

    def cmd(self, name, arguments=None, /, **kw):
        """Run a command; keywords become arguments with - for _."""
        args = dict(arguments or {})
        args.update({k.replace("_", "-"): v for k, v in kw.items()})
        reply = self.exchange(name, args if args else None)
        if "error" in reply:
            raise QmpError(reply["error"])
        return reply["return"]

    def error(self, name, arguments=None, /, **kw):
        """Run a command that must fail; returns the QmpError."""
        try:
            value = self.cmd(name, arguments, **kw)
        except QmpError as e:
            return e
        raise AssertionError("%s succeeded with %r" % (name, value))

    # --- events -----------------------------------------------------------

    def wait_event(self, name, match=None, start=0, timeout=None):
        """The first event called name at or after position start whose data
        has all members of match."""
        end = time.monotonic() + patience(
            self.timeout if timeout is None else timeout)
        while True:
            while start < len(self.events):
                event = self.events[start]
                start += 1
                if event["event"] == name and all(
                        event.get("data", {}).get(k) == v
                        for k, v in (match or {}).items()):
                    return event
            left = end - time.monotonic()
            if left <= 0:
                raise AssertionError(
                    "no event %s %r; seen: %s" % (name, match or {}, [
                        (e["event"], e.get("data")) for e in self.events]))
            self._receive_event(left)

    def _receive_event(self, timeout):
        try:
            message = self._read_line(timeout)
        except TimeoutError:
            return
        if "event" in message:
            self.events.append(message)
        else:
            self._replies.append(message)

    def drain_events(self, quiet=None):
        """Collect events until none came for so long; returns all."""
        quiet = patience(0.2) if quiet is None else quiet
        while True:
            n = len(self.events)
            self._receive_event(quiet)
            if len(self.events) == n:
                return self.events

    def choreography(self, job, start=0):
        """What happened to a job: statuses, and names of other events."""
        out = []
        for e in self.events[start:]:
            data = e.get("data", {})
            if e["event"] == "JOB_STATUS_CHANGE" and data["id"] == job:
                out.append(data["status"])
            elif data.get("device") == job or (
                    e["event"] == "BLOCK_JOB_PENDING" and data["id"] == job):
                out.append(e["event"])
        return out

    # --- jobs ---------------------------------------------------------------

    def wait_job(self, job, start=0, timeout=30):
        """Wait until a job is gone; returns its BLOCK_JOB_COMPLETED or
        BLOCK_JOB_CANCELLED event (None when it was rolled back)."""
        self.wait_event("JOB_STATUS_CHANGE", {"id": job, "status": "null"},
                        start, timeout)
        for e in self.events[start:]:
            if e["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED") \
                    and e["data"]["device"] == job:
                return e
        return None

    def jobs_succeed(self, *jobs, start=0, timeout=30):
        """Wait for all these jobs; every one must complete without error."""
        for job in jobs:
            event = self.wait_job(job, start, timeout)
            assert event and event["event"] == "BLOCK_JOB_COMPLETED", event
            assert "error" not in event["data"], event

    def bitmap(self, node, name):
        """The BlockDirtyInfo of a bitmap, None when there is none."""
        for info in self.cmd("query-named-block-nodes"):
            if info["node-name"] == node:
                for b in info.get("dirty-bitmaps", []):
                    if b.get("name") == name:
                        return b
        return None


def backup(device, target, job=None, sync="full", **kw):
    """Arguments of blockdev-backup."""
    args = {"job-id": job or "job-" + device, "device": device,
            "target": target, "sync": sync}
    args.update({k.replace("_", "-"): v for k, v in kw.items()})
    return args


def action(kind, data=None, **kw):
    """One action of a transaction."""
    args = dict(data or {})
    args.update({k.replace("_", "-"): v for k, v in kw.items()})
    return {"type": kind, "data": args}
