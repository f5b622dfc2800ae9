# SPDX-License-Identifier: BSD-3-Clause
"""The request object and argument validation: texts that clients match."""
import pytest

DICT = "QMP input must be a JSON object"
ADD = "block-dirty-bitmap-add"


def reply_to(q, message):
    q.send(message)
    return q.receive()


@pytest.mark.parametrize("value", [1, "text", True, None, [1, 2]])
@pytest.mark.rows("protocol.request-object")
def test_value_that_is_not_an_object_is_refused(q, value):
    reply = reply_to(q, value)
    assert reply["error"] == {"class": "GenericError", "desc": DICT}
    assert "id" not in reply


@pytest.mark.parametrize("message, desc", [
    ({"execute": 5}, "QMP input member 'execute' must be a string"),
    ({"execute": "query-version", "arguments": 5},
     "QMP input member 'arguments' must be an object"),
    ({"execute": "query-version", "arguments": None},
     "QMP input member 'arguments' must be an object"),
    ({"execute": "query-version", "extra": 1},
     "QMP input member 'extra' is unexpected"),
    ({"arguments": {}}, "QMP input lacks member 'execute'"),
    ({}, "QMP input lacks member 'execute'"),
])
@pytest.mark.rows("protocol.request-execute-type",
                  "protocol.request-arguments-type",
                  "protocol.request-unexpected", "protocol.request-lacks")
def test_malformed_request_is_refused_with_its_id(q, message, desc):
    reply = reply_to(q, dict(message, id="x"))
    assert reply["error"] == {"class": "GenericError", "desc": desc}
    assert reply["id"] == "x"


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("protocol.request-oob-off")
def test_out_of_band_request_is_unexpected_when_not_enabled(q):
    reply = reply_to(q, {"exec-oob": "query-version"})
    assert reply["error"]["desc"] == "QMP input member 'exec-oob' is unexpected"


@pytest.mark.rows("protocol.request-clash")
def test_both_kinds_of_execution_clash(q):
    desc = reply_to(q, {"execute": "query-version",
                        "exec-oob": "query-version"})["error"]["desc"]
    assert desc in (
        "QMP input member 'execute' clashes with 'exec-oob'",
        "QMP input member 'exec-oob' clashes with 'execute'",
        "QMP input member 'exec-oob' is unexpected")


@pytest.mark.rows("protocol.request-unknown", "error.2",
                  "protocol.class-command-not-found")
def test_unknown_command_is_named(q):
    e = q.error("no-such-thing")
    assert e.cls == "CommandNotFound"
    assert e.desc == "The command no-such-thing has not been found"


@pytest.mark.parametrize("value", [
    0, -1, "text", None, True, [1, [2, {"a": None}]], {"a": {"b": []}},
    1.5, 1 << 62, "\u20ac\U0001f600"])
@pytest.mark.rows("protocol.id-echo")
def test_id_is_echoed_whatever_it_is(q, value):
    reply = reply_to(q, {"execute": "query-version", "id": value})
    assert reply["id"] == value and "id" in reply
    reply = reply_to(q, {"execute": "no-such-thing", "id": value})
    assert reply["id"] == value and "error" in reply


@pytest.mark.rows("protocol.id-absent", "protocol.members")
def test_answer_without_id_has_none(q):
    assert set(reply_to(q, {"execute": "query-version"})) == {"return"}
    reply = reply_to(q, {"execute": "no-such-thing"})
    assert set(reply) == {"error"}
    assert set(reply["error"]) == {"class", "desc"}


@pytest.mark.parametrize("arguments, desc", [
    ({"node": "n"}, "Parameter 'name' is missing"),
    ({"node": "n", "name": "b", "zz": 1}, "Parameter 'zz' is unexpected"),
    ({"node": 5, "name": "b"},
     "Invalid parameter type for 'node', expected: string"),
    ({"node": None, "name": "b"},
     "Invalid parameter type for 'node', expected: string"),
    ({"node": "n", "name": "b", "persistent": 1},
     "Invalid parameter type for 'persistent', expected: boolean"),
    ({"node": "n", "name": "b", "granularity": "64k"},
     "Parameter 'granularity' expects uint64"),
    ({"node": "n", "name": "b", "granularity": 1.0},
     "Parameter 'granularity' expects uint64"),
    ({"node": "n", "name": "b", "granularity": 1 << 33},
     "Parameter 'granularity' expects uint32_t"),
])
@pytest.mark.rows("protocol.args-missing", "protocol.args-unexpected",
                  "protocol.args-type", "protocol.args-null",
                  "protocol.args-double", "error.3", "error.4", "error.5")
def test_bad_argument_is_named(q, arguments, desc):
    e = q.error(ADD, arguments)
    assert e.cls == "GenericError"
    assert same_text(e.desc, desc), e.desc


def same_text(got, want):
    """QEMU 7.2 words the integer rows otherwise."""
    return got == want or ("expects uint" in want and (
        "'granularity'" in got and ("integer" in got or "uint" in got)))


@pytest.mark.needs("qemu-10")
@pytest.mark.parametrize("value, desc", [
    ("64k", "Parameter 'granularity' expects uint64"),
    (1 << 33, "Parameter 'granularity' expects uint32_t"),
])
@pytest.mark.rows("protocol.args-uint", "protocol.args-uint-width")
def test_integer_texts_are_those_of_qemu_10(q, value, desc):
    e = q.error(ADD, node="n", name="b", granularity=value)
    assert e.desc == desc


@pytest.mark.rows("protocol.args-enum", "error.6")
def test_bad_enum_value_is_quoted_with_the_bare_name(q):
    e = q.error("transaction", actions=[{
        "type": "blockdev-backup",
        "data": {"device": "d", "target": "t", "sync": "zzz"}}])
    assert e.desc.endswith("'sync' does not accept value 'zzz'")


@pytest.mark.rows("protocol.args-enum-case", "transaction.unknown-action")
def test_unknown_transaction_action_is_quoted(q):
    e = q.error("transaction", actions=[{"type": "Abort", "data": {}}])
    assert e.desc.endswith("'type' does not accept value 'Abort'")


@pytest.mark.rows("protocol.args-unexpected")
def test_path_of_a_nested_member_is_given_in_full(q):
    e = q.error("transaction", actions=[
        {"type": "abort", "data": {}},
        {"type": "block-dirty-bitmap-clear",
         "data": {"node": "n", "name": "b", "zz": 1}}])
    assert e.desc == "Parameter 'actions[1].data.zz' is unexpected"


@pytest.mark.rows("transaction.abort-data", "protocol.args-missing")
def test_abort_needs_its_empty_data(q):
    e = q.error("transaction", actions=[{"type": "abort"}])
    assert e.desc == "Parameter 'actions[0].data' is missing"


def test_list_where_an_object_belongs_is_refused(q):
    e = q.error("transaction", actions={})
    assert e.desc == "Invalid parameter type for 'actions', expected: array"


@pytest.mark.rows("transaction.properties", "protocol.args-null")
def test_null_for_an_optional_enum_is_a_type_error(q):
    e = q.error("transaction", actions=[],
                properties={"completion-mode": None})
    assert e.desc.startswith("Invalid parameter type for ")


@pytest.mark.rows("protocol.args-before-effect", "transaction.checked-first")
def test_all_arguments_are_checked_before_anything_is_done(q, disks):
    disks.node()
    q.error("transaction", actions=[
        {"type": ADD, "data": {"node": "disk0", "name": "b"}},
        {"type": ADD, "data": {"node": "disk0", "name": 5}}])
    assert q.bitmap("disk0", "b") is None


@pytest.mark.rows("protocol.query-commands")
def test_query_commands_lists_what_this_release_promises(q):
    have = {c["name"] for c in q.cmd("query-commands")}
    need = """qmp_capabilities query-version query-commands query-qmp-schema
        quit blockdev-add blockdev-del query-named-block-nodes
        block-export-add block-export-del query-block-exports
        block-dirty-bitmap-add block-dirty-bitmap-remove
        block-dirty-bitmap-clear block-dirty-bitmap-enable
        block-dirty-bitmap-disable block-dirty-bitmap-merge blockdev-backup
        transaction query-jobs query-block-jobs job-cancel block-job-cancel
        block-job-set-speed""".split()
    assert set(need) - have == set()


@pytest.mark.needs("stillpoint")
@pytest.mark.rows("protocol.query-status")
def test_status_and_block_queries_exist(q):
    have = {c["name"] for c in q.cmd("query-commands")}
    assert {"query-status", "query-block"} <= have


@pytest.mark.rows("protocol.query-schema")
def test_schema_describes_every_command_and_is_closed(q):
    schema = {s["name"]: s for s in q.cmd("query-qmp-schema")}
    for c in q.cmd("query-commands"):
        entry = schema[c["name"]]
        assert entry["meta-type"] == "command"
        assert entry["arg-type"] in schema and entry["ret-type"] in schema
    for s in schema.values():
        for member in s.get("members", []):
            if isinstance(member, dict) and "type" in member:
                assert member["type"] in schema


@pytest.mark.rows("protocol.args-type-alternate")
def test_value_that_fits_no_alternative_names_the_alternate(q):
    e = q.error("block-dirty-bitmap-merge", node="n", target="t", bitmaps=[5])
    assert e.desc == ("Invalid parameter type for 'null', expected: "
                      "BlockDirtyBitmapOrStr")
    e = q.error("blockdev-add", {"driver": "raw", "node-name": "n",
                                 "file": 5})
    assert e.desc == "Invalid parameter type for 'file', expected: BlockdevRef"


@pytest.mark.rows("protocol.args-element")
def test_bad_element_of_a_list_is_called_null(q):
    e = q.error("block-dirty-bitmap-merge", node="n", target="t",
                bitmaps=[None])
    assert e.desc.startswith("Invalid parameter type for 'null', expected: ")


@pytest.mark.rows("protocol.args-negative")
def test_negative_number_wraps_for_64_bits_and_not_for_fewer(q):
    e = q.error("blockdev-add", {"driver": "null-co", "node-name": "n",
                                 "latency-ns": -1})
    assert e.desc == "latency-ns is invalid"    # as the driver sees it
    e = q.error(ADD, node="n", name="b", granularity=-1)
    assert e.cls == "GenericError" and "granularity" in e.desc


@pytest.mark.rows("protocol.args-hyphen")
def test_hyphen_and_underscore_are_different(q):
    e = q.error("blockdev-add", {"driver": "null-co", "node_name": "n"})
    assert e.desc in ("Parameter 'node_name' is unexpected",
                      "'node-name' must be specified for the root node")


@pytest.mark.rows("protocol.line-limit")
def test_answer_about_many_nodes_stays_below_what_clients_read(q):
    """Python's library and libvirt give up on a line of 10 MiB."""
    for i in range(64):
        q.cmd("blockdev-add", {"driver": "null-co", "node-name": "n%d" % i})
        q.cmd("transaction", actions=[
            {"type": ADD, "data": {"node": "n%d" % i, "disabled": True,
                                   "name": "bitmap-%03d" % k}}
            for k in range(100)])
    nodes = q.cmd("query-named-block-nodes", flat=True)
    assert sum(len(n["dirty-bitmaps"]) for n in nodes) == 6400
    assert len(q.lines[-1]) < 10 << 20
