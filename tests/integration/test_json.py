# SPDX-License-Identifier: BSD-3-Clause
"""Bytes on the QMP socket that are not what they should be."""
import pytest

GOOD = b'{"execute": "query-version", "id": "good"}\n'


def error_of(q, data):
    q.send_bytes(data)
    reply = q.receive()
    assert reply["error"]["class"] == "GenericError", reply
    return reply


def still_works(q):
    """The connection answers a good request, perhaps after more errors."""
    q.send_bytes(b"\n" + GOOD)
    for _ in range(50):
        reply = q.receive()
        if reply.get("id") == "good":
            return "return" in reply
    return False


@pytest.mark.parametrize("data, desc", [
    (b"foo ", "JSON parse error, invalid keyword 'foo'"),
    (b'{"a" 1}', "JSON parse error, missing : in object pair"),
    (b'{"a":1,"a":2}', "JSON parse error, duplicate key"),
    (b"{1:2}", "JSON parse error, key is not a string in object"),
    (b'{"a":1 "b":2}', "JSON parse error, expected separator in dict"),
    (b"[1 2]", "JSON parse error, expected separator in list"),
    pytest.param(b'{"a":}', "JSON parse error, Missing value in dict",
                 marks=pytest.mark.needs("qemu-10")),
    (b'{"a":"\\q"}', "JSON parse error, invalid escape sequence in string"),
    (b'{"a":"\xc3("}',
     "JSON parse error, invalid UTF-8 sequence in string"),
    (b'{"a":"\\uD800"}',
     "JSON parse error, \\uD800 is not a valid Unicode character"),
])
@pytest.mark.rows("protocol.json-usable", "protocol.json-keyword",
                  "protocol.json-colon", "protocol.json-duplicate-key",
                  "protocol.json-key", "protocol.json-separator-dict",
                  "protocol.json-separator-list",
                  "protocol.json-missing-value", "protocol.json-escape",
                  "protocol.json-utf8", "protocol.json-surrogate", "error.7")
def test_syntax_error_says_what_is_wrong(q, data, desc):
    reply = error_of(q, data + b"\n")
    got = reply["error"]["desc"]
    assert "id" not in reply
    assert got.startswith(desc), got
    assert still_works(q)


@pytest.mark.rows("protocol.json-stray")
def test_lexical_garbage_is_reported_as_stray(q):
    reply = error_of(q, b"@\n")
    assert reply["error"]["desc"].startswith("JSON parse error, stray '@")
    assert still_works(q)


@pytest.mark.rows("protocol.json-recovery")
def test_text_after_garbage_is_skipped_up_to_a_control_character(q):
    error_of(q, b"@ nothing of this line is a second error\n")
    q.send_bytes(GOOD)
    assert q.receive()["id"] == "good"


def test_number_with_a_leading_zero_gives_errors_and_no_loss_of_sync(q):
    error_of(q, b"01\n")
    assert still_works(q)


@pytest.mark.rows("protocol.json-single-quotes")
def test_single_quotes_are_accepted(q):
    q.send_bytes(b"{'execute':'query-version','id':'it\\'s'}")
    assert q.receive()["id"] == "it's"


@pytest.mark.rows("protocol.input-blank")
def test_white_space_and_blank_lines_are_ignored(q):
    q.send_bytes(b"\r\n\r\n \t \n" + GOOD)
    assert q.receive()["id"] == "good"


@pytest.mark.rows("protocol.json-resync")
def test_byte_ff_brings_the_parser_back(q):
    q.send_bytes(b'{"execute": "query-ver\xff')
    assert still_works(q)


@pytest.mark.rows("protocol.json-brackets")
def test_mismatched_brackets_wait_for_their_partner(q):
    q.send_bytes(b'{"a":[1}')
    with pytest.raises(TimeoutError):
        q.receive(timeout=0.3)
    q.send_bytes(b"]}")
    assert "JSON parse error" in q.receive()["error"]["desc"]
    assert still_works(q)


@pytest.mark.rows("protocol.json-nesting")
def test_nesting_of_1024_is_read(q):
    q.send_bytes(b"[" * 1024 + b"]" * 1024)
    assert q.receive()["error"]["desc"] == "QMP input must be a JSON object"


@pytest.mark.rows("protocol.json-nesting")
def test_nesting_of_1025_is_refused(q):
    reply = error_of(q, b"[" * 1025)
    assert reply["error"]["desc"] == "JSON nesting depth limit exceeded"
    q.send_bytes(b"\xff")
    assert still_works(q)


def test_endless_nesting_does_not_end_the_server(server, q):
    try:
        for _ in range(100):
            q.send_bytes(b"[{" * 5000)
    except OSError:
        pass                    # the server may drop such a client
    q.close()
    assert "qemu" in server.qmp().cmd("query-version")


def test_binary_noise_does_not_end_the_server(server, q):
    noise = bytes((i * 193 + i // 7) & 0xff for i in range(20000))
    try:
        q.send_bytes(noise)
    except OSError:
        pass
    q.close()
    assert "qemu" in server.qmp().cmd("query-version")


def test_embedded_nul_in_a_string_argument_is_survived(q):
    e = q.error("blockdev-del", node_name="a\0b")
    assert e.cls == "GenericError"


@pytest.mark.parametrize("number", [
    # QEMU answers the first two with "inf", which is not JSON.
    pytest.param("1" * 400, marks=pytest.mark.needs("stillpoint"),
                 id="400 digits"),
    pytest.param("1e999", marks=pytest.mark.needs("stillpoint")),
    "-0", "18446744073709551616"])
def test_odd_numbers_come_back_or_are_refused(q, number):
    q.send_bytes(b'{"execute": "query-version", "id": [%s]}\n'
                 % number.encode())
    reply = q.receive()
    assert "return" in reply or "error" in reply
    assert still_works(q)
