# SPDX-License-Identifier: BSD-3-Clause
"""Greeting and capabilities negotiation (QMP specification)."""
import json

import pytest

from stillpoint_test.qmp import Qmp

EXPECTING = "Expecting capabilities negotiation with 'qmp_capabilities'"


@pytest.fixture
def raw(server):
    return server.qmp(negotiate=False)


@pytest.mark.rows("protocol.greeting")
def test_greeting_names_a_version(raw):
    version = raw.greeting["QMP"]["version"]
    assert set(version["qemu"]) == {"major", "minor", "micro"}
    assert isinstance(version["package"], str)
    assert isinstance(raw.greeting["QMP"]["capabilities"], list)


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("protocol.greeting-oob")
def test_out_of_band_execution_is_not_offered(raw):
    assert raw.greeting["QMP"]["capabilities"] == []


@pytest.mark.parametrize("command", [
    "query-version", "query-commands", "no-such-command"])
@pytest.mark.rows("protocol.negotiation-first", "error.1",
                  "protocol.class-command-not-found")
def test_every_command_before_negotiation_is_refused(raw, command):
    e = raw.error(command)
    assert (e.cls, e.desc) == ("CommandNotFound", EXPECTING)


@pytest.mark.parametrize("arguments", [None, {}, {"enable": []}])
@pytest.mark.rows("protocol.negotiation-forms")
def test_negotiation_accepts_every_form_of_nothing(raw, arguments):
    assert raw.exchange("qmp_capabilities", arguments)["return"] == {}
    assert "qemu" in raw.cmd("query-version")


@pytest.mark.rows("protocol.negotiation-unknown")
def test_unknown_capability_is_refused_by_value(raw):
    e = raw.error("qmp_capabilities", enable=["nope"])
    assert e.cls == "GenericError"
    assert e.desc.endswith("does not accept value 'nope'")


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("protocol.negotiation-not-offered")
def test_known_capability_that_is_not_offered_is_refused(raw):
    e = raw.error("qmp_capabilities", enable=["oob"])
    assert e.desc == "Capability oob not available"


def test_refused_negotiation_leaves_the_session_in_negotiation(raw):
    raw.error("qmp_capabilities", enable=["nope"])
    assert raw.error("query-version").desc == EXPECTING


@pytest.mark.rows("protocol.negotiation-twice")
def test_second_negotiation_is_refused(q):
    e = q.error("qmp_capabilities")
    assert e.cls == "CommandNotFound"
    assert e.desc == ("Capabilities negotiation is already complete, "
                      "command ignored")


@pytest.mark.rows("protocol.negotiation-again")
def test_new_connection_starts_in_negotiation_again(server, q):
    q.close()
    again = server.qmp(negotiate=False)
    assert again.error("query-version").desc == EXPECTING


@pytest.mark.rows("protocol.line", "protocol.ascii", "protocol.separators")
def test_messages_are_one_ascii_line_each_ending_in_crlf(q):
    q.exchange("query-version", id={"ä": "\u20ac\U0001f600\x7f"})
    line = q.lines[-1]
    assert line.endswith(b"\r")
    assert all(0x20 <= c < 0x7f for c in line[:-1])
    assert b"\\u20AC\\uD83D\\uDE00" in line and b"\\u007F" in line
    assert b'": ' in line and b'", "' in line or b', "' in line


@pytest.mark.needs("several-clients")
@pytest.mark.rows("protocol.query-version")
def test_tcp_and_unix_sockets_speak_the_same(server):
    with server.qmp(tcp=True) as a, server.qmp() as b:
        assert a.cmd("query-version") == b.cmd("query-version")
        assert a.greeting == b.greeting


def test_tcp_socket_greets(server):
    with server.qmp(tcp=True) as a:
        assert a.cmd("query-version")["qemu"]["major"] >= 0


@pytest.mark.needs("several-clients")
@pytest.mark.rows("protocol.negotiation-events")
def test_negotiating_client_gets_no_events(server, q, disks, backup_node):
    silent = server.qmp(negotiate=False)
    disks.add()
    backup_node()
    q.cmd("blockdev-backup", job_id="j", device="disk0", target="target0",
          sync="full")
    q.jobs_succeed("j")
    silent.cmd("qmp_capabilities")
    assert silent.drain_events() == []


@pytest.mark.rows("protocol.input-stream", "protocol.order")
def test_commands_in_one_packet_are_answered_in_order(q):
    text = b"".join(json.dumps({"execute": "query-version", "id": i}).encode()
                    for i in range(200))
    q.send_bytes(text)
    assert [q.receive()["id"] for _ in range(200)] == list(range(200))


@pytest.mark.rows("protocol.input-stream")
def test_one_command_over_many_packets_is_understood(q):
    for c in b'{"execute": "query-version", "id": 7}':
        q.send_bytes(bytes([c]))
    assert q.receive()["id"] == 7


@pytest.mark.rows("protocol.disconnect")
def test_connection_that_breaks_within_a_command_harms_nobody(server, q):
    q.send_bytes(b'{"execute": "query-ver')
    q.close()
    assert "qemu" in Qmp("unix:" + server.qmp_unix).cmd("query-version")
