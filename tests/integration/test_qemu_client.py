# SPDX-License-Identifier: BSD-3-Clause
"""A client that was written for QEMU: Python's qemu.qmp and qmp-shell.

No distribution that we support packages that library, so the first part does
what it does on the wire: greeting, negotiation with "oob" only if offered,
compact JSON, ids like __qmp#00001, answers found by their ids, events at any
time, lines of up to 10 MiB.  The last part uses the library itself where it
can be imported (STILLPOINT_QEMU_PYTHON names a directory for sys.path).
"""
import json
import os
import re
import subprocess
import sys
import threading

import pytest

from stillpoint_test import guest
from stillpoint_test.daemon import build_dir
from stillpoint_test.qmp import connect_socket
from stillpoint_test.target import slow_target

LIMIT = 10 << 20
SIZE = 8 << 20


class Client:
    """Behaves as the library does: a reader of its own, answers by id."""

    def __init__(self, address):
        self.socket = connect_socket(address, 20)
        self.file = self.socket.makefile("rb")
        self.counter = 0
        self.answers, self.events, self.longest = {}, [], 0
        self.changed = threading.Condition()
        greeting = json.loads(self.line())
        assert set(greeting) == {"QMP"}
        assert set(greeting["QMP"]) == {"version", "capabilities"}
        offered = greeting["QMP"]["capabilities"]
        self.send({"execute": "qmp_capabilities", **(
            {"arguments": {"enable": ["oob"]}} if "oob" in offered else {})})
        assert json.loads(self.line()) == {"return": {}}
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def line(self):
        line = self.file.readline(LIMIT + 1)
        self.longest = max(self.longest, len(line))
        assert len(line) <= LIMIT
        return line

    def send(self, message):
        self.socket.sendall(json.dumps(message, separators=(",", ":"))
                            .encode("utf-8"))

    def read(self):
        try:
            while True:
                line = self.line()
                if not line:
                    break
                message = json.loads(line)
                with self.changed:
                    if "event" in message:
                        self.events.append(message)
                    else:
                        self.answers[message["id"]] = message
                    self.changed.notify_all()
        except (OSError, ValueError):
            pass

    def ask(self, command, arguments=None):
        """Send without waiting: the id."""
        self.counter += 1
        message = {"execute": command, "id": "__qmp#%05d" % self.counter}
        if arguments is not None:
            message["arguments"] = arguments
        self.send(message)
        return message["id"]

    def answer(self, id, timeout=20):
        with self.changed:
            assert self.changed.wait_for(lambda: id in self.answers, timeout)
            return self.answers.pop(id)

    def execute(self, command, arguments=None):
        reply = self.answer(self.ask(command, arguments))
        assert "return" in reply, reply
        return reply["return"]

    def wait_event(self, name, timeout=20, **data):
        def found():
            return [e for e in self.events if e["event"] == name and
                    all(e["data"].get(k) == v for k, v in data.items())]
        with self.changed:
            assert self.changed.wait_for(found, timeout), self.events
            return found()[0]

    def close(self):
        self.socket.shutdown(2)
        self.reader.join(5)
        self.socket.close()


@pytest.fixture
def client(server):
    made = []

    def make(tcp=False):
        made.append(Client("tcp:127.0.0.1:%d" % server.qmp_port if tcp
                           else "unix:" + server.qmp_unix))
        return made[-1]
    yield make
    for c in made:
        c.close()


@pytest.mark.needs("several-clients")
def test_answers_are_found_by_their_ids(client):
    clients = [client(), client(tcp=True), client()]
    ids = [[c.ask(name) for name in (
        "query-version", "query-jobs", "query-named-block-nodes",
        "no-such-command") * 25] for c in clients]
    for c, mine in zip(clients, ids):
        assert [i for i in mine] == ["__qmp#%05d" % n for n in range(1, 101)]
        for n, i in enumerate(mine):
            reply = c.answer(i)
            assert ("error" in reply) == (n % 4 == 3)


@pytest.mark.needs("several-clients")
def test_events_come_while_a_command_waits(client, make_target, dir):
    """The command waits for a server that says nothing, while a job goes on
    to its end."""
    one, two = client(), client(tcp=True)
    path = guest.make_image(os.path.join(dir, "d.img"), SIZE, [(0, 4 << 20)])
    one.execute("blockdev-add", {"driver": "file", "node-name": "n0",
                                 "filename": path})
    t = make_target().file(os.path.join(dir, "t.raw"), SIZE,
                           **slow_target(8))
    one.execute("blockdev-add", t.blockdev("t0"))
    silent = make_target("silent").file(os.path.join(dir, "s.raw"), SIZE)
    silent.freeze()
    one.execute("blockdev-backup", {"device": "n0", "target": "t0",
                                    "sync": "full", "job-id": "j"})
    waiting = one.ask("blockdev-add", silent.blockdev("t1"))
    for c in (one, two):
        c.wait_event("JOB_STATUS_CHANGE", id="j", status="null")
        c.wait_event("BLOCK_JOB_COMPLETED", device="j")
    assert two.execute("query-jobs") == []
    assert waiting not in one.answers
    silent.thaw()
    assert "return" in one.answer(waiting)
    assert one.events == two.events


@pytest.mark.needs("stillpoint")        # QEMU takes minutes for it
def test_line_of_ten_mebibytes_is_read_and_none_longer_is_sent(client):
    c = client()
    reply = c.answer(c.ask("blockdev-del", {"node-name": "n" * (LIMIT - 200)}))
    assert reply["error"]["class"] == "GenericError"
    reply = c.answer(c.ask("x" * (LIMIT - 200)))
    assert reply["error"]["class"] == "CommandNotFound"
    c.execute("query-qmp-schema")
    assert c.longest < LIMIT


def test_a_backup_script_runs_from_end_to_end(client, server, dir,
                                              make_target):
    """Several commands in flight, as asyncio.gather sends them."""
    c = client()
    path = guest.make_image(os.path.join(dir, "d.img"), SIZE, [(0, 1 << 20)])
    t = make_target().file(os.path.join(dir, "t.raw"), SIZE,
                           **slow_target(40))
    ids = [
        c.ask("blockdev-add", {"driver": "file", "node-name": "n0",
                               "filename": path}),
        c.ask("block-export-add", {"type": "nbd", "id": "disk0",
                                   "node-name": "n0", "writable": True}),
        c.ask("blockdev-add", t.blockdev("t0")),
        c.ask("transaction", {"actions": [
            {"type": "block-dirty-bitmap-add",
             "data": {"node": "n0", "name": "b"}},
            {"type": "blockdev-backup", "data": {
                "device": "n0", "target": "t0", "sync": "full",
                "job-id": "j"}}]}),
        c.ask("query-block-jobs")]
    replies = [c.answer(i) for i in ids]
    assert all("return" in r for r in replies), replies
    assert [j["device"] for j in replies[-1]["return"]] == ["j"]
    done = c.wait_event("BLOCK_JOB_COMPLETED", device="j")
    assert "error" not in done["data"]
    guest.same(path, t.path)


@pytest.mark.rows("protocol.query-schema")
def test_schema_names_the_members_of_every_command_and_event(client):
    """From each command and event everything can be reached, and what is
    reached is well-formed: the walk that libvirt does."""
    c = client()
    entries = c.execute("query-qmp-schema")
    schema = {e["name"]: e for e in entries}
    assert len(schema) == len(entries)
    reached = set()

    def walk(name):
        if name in reached:
            return
        reached.add(name)
        e = schema[name]
        kind = e["meta-type"]
        if kind == "object":
            for m in e["members"]:
                assert set(m) <= {"name", "type", "default", "features"}
                walk(m["type"])
            assert ("tag" in e) == ("variants" in e)
            for v in e.get("variants", []):
                walk(v["type"])
            if "tag" in e:
                (tag,) = [m for m in e["members"] if m["name"] == e["tag"]]
                assert {v["case"] for v in e["variants"]} == set(
                    schema[tag["type"]]["values"])
        elif kind == "array":
            walk(e["element-type"])
        elif kind == "alternate":
            for m in e["members"]:
                walk(m["type"])
        elif kind == "enum":
            assert [m["name"] for m in e["members"]] == e["values"]
        else:
            assert kind == "builtin" and e["json-type"]
    commands = [e for e in entries if e["meta-type"] == "command"]
    events = [e for e in entries if e["meta-type"] == "event"]
    for e in commands:
        walk(e["arg-type"])
        walk(e["ret-type"])
    for e in events:
        walk(e["arg-type"])
    assert {e["name"] for e in commands} == {
        x["name"] for x in c.execute("query-commands")}
    assert {e["name"] for e in entries} - reached == {
        e["name"] for e in commands + events}
    assert {"JOB_STATUS_CHANGE", "BLOCK_JOB_COMPLETED",
            "BLOCK_EXPORT_DELETED"} <= {e["name"] for e in events}


@pytest.mark.needs("stillpoint")
def test_reference_manual_has_every_command_and_each_difference_in_one_place(
        client):
    c = client()
    entries = c.execute("query-qmp-schema")
    schema = {e["name"]: e for e in entries}
    with open(os.path.join(build_dir(), "schema", "qmp-reference.md")) as f:
        manual = f.read()
    sections = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##)", manual + "## ",
                               re.M | re.S))

    def members(section, seen=()):
        """Names of members, those of types that it refers to as well."""
        found = set(re.findall(r"^- `([\w-]+)` \(", section, re.M))
        for name in re.findall(r"\(\[(\w+)\]|members of \[(\w+)\]", section):
            name = name[0] or name[1]
            if name in sections and name not in seen:
                found |= members(sections[name], seen + (name,))
        return found
    for e in entries:
        if e["meta-type"] not in ("command", "event"):
            continue
        section = sections[e["name"]]
        for m in schema[e["arg-type"]]["members"]:
            assert m["name"] in members(section), (e["name"], m["name"])
    differences = manual.split("## Where Stillpoint differs from QEMU")[1]
    differences = differences.split("\n## ")[0]
    named = set(re.findall(r"^- \[(\S+)\]\(#", differences, re.M))
    assert named == {name for name, text in sections.items()
                     if "**Differs from QEMU:**" in text}
    assert {"nbd-server-start", "block-export-add", "blockdev-backup",
            "block-dirty-bitmap-merge", "qmp_capabilities"} <= named


# --- the library itself ----------------------------------------------------------


@pytest.fixture
def library(monkeypatch):
    where = os.environ.get("STILLPOINT_QEMU_PYTHON")
    if where:
        monkeypatch.syspath_prepend(where)
    return pytest.importorskip("qemu.qmp", reason="Python's qemu.qmp is not "
                               "installed")


@pytest.mark.needs("several-clients")
def test_the_library_works(library, server, dir):
    import asyncio
    path = guest.make_image(os.path.join(dir, "a.img"), SIZE, [(0, 1 << 20)])

    async def session():
        one, two = library.QMPClient("one"), library.QMPClient("two")
        await one.connect(server.qmp_unix)
        await two.connect(("127.0.0.1", server.qmp_port))
        await one.execute("blockdev-add", {
            "driver": "file", "node-name": "n0", "filename": path})
        await one.execute("blockdev-add", {
            "driver": "null-co", "node-name": "t0", "size": SIZE})
        statuses = []
        with two.listener("JOB_STATUS_CHANGE") as listener:
            await one.execute("blockdev-backup", {
                "device": "n0", "target": "t0", "sync": "full",
                "job-id": "j"})
            async for event in listener:
                statuses.append(event["data"]["status"])
                if statuses[-1] == "null":
                    break
        replies = await asyncio.gather(*(
            c.execute("query-named-block-nodes") for c in (one, two)
            for _ in range(50)))
        with pytest.raises(library.QMPError, match="has not been found"):
            await one.execute("no-such-command")
        await one.disconnect()
        await two.disconnect()
        return statuses, replies
    statuses, replies = asyncio.run(session())
    assert statuses == ["created", "running", "paused", "running", "waiting",
                        "pending", "concluded", "null"]
    assert all(r == replies[0] for r in replies)


def test_the_shell_works(library, server):
    r = subprocess.run(
        [sys.executable, "-m", "qemu.qmp.qmp_shell", server.qmp_unix],
        input="blockdev-add driver=null-co node-name=n0 size=1048576\n"
              "transaction(\n"
              "block-dirty-bitmap-add node=n0 name=b persistent=false\n"
              "block-dirty-bitmap-disable node=n0 name=b\n"
              ")\n"
              "query-block-exports\n"
              "nonsense\n",
        capture_output=True, text=True, timeout=60,
        env=dict(os.environ, PYTHONPATH=os.environ.get(
            "STILLPOINT_QEMU_PYTHON", "")))
    assert r.returncode == 0, r.stderr
    assert r.stdout.count('{"return": {}}') == 2
    assert '{"return": []}' in r.stdout
    assert "The command nonsense has not been found" in r.stdout
    q = server.qmp()
    assert q.bitmap("n0", "b")["recording"] is False
