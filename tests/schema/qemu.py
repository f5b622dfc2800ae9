#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What we describe is what QEMU has: our answer to query-qmp-schema against
the one of the qemu-storage-daemon that is installed.

Every command and event that both have must agree: each of our members exists
there with the same JSON type and is as optional, and nothing that QEMU demands
of a client or promises to it is missing here.  ADDED lists what we have beyond
it, each with the reason.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(ROOT, "schema", "gen"))

import introspect               # noqa: E402
from model import Schema        # noqa: E402

# Ours alone, or newer than the oldest QEMU that we test with (7.2).
OUR_COMMANDS = {"x-query-cuts": "ours", "query-status": "emulator only",
                "block-job-change": "QEMU 8.2",
                "blockdev-set-active": "QEMU 10.0"}
ADDED = {
    "x-reason": "ours",
    "x-tls-certificates": "ours", "x-tls-psk-file": "ours",
    "x-tls-username": "ours",
    "min-cluster-size": "QEMU 9.2", "discard-source": "QEMU 9.1",
    "discard-no-unref": "QEMU 8.1",
    "on-cbw-error": "QEMU 10.1", "cbw-timeout": "QEMU 10.1",
    "active": "QEMU 10.0", "allow-inactive": "QEMU 10.0",
    "handshake-max-seconds": "QEMU 10.0", "qom-path": "QEMU 10.0",
    **{m: "QEMU 8.1" for m in (
        "zone_append_bytes", "zone_append_operations",
        "zone_append_total_time_ns", "zone_append_merged",
        "failed_zone_append_operations", "invalid_zone_append_operations")},
}
# QEMU 7.2 says "str" where 8.2 and we have the enum.
TYPES = {"query-block-jobs.ret[].type": ("str", "enum")}


class Side:
    """One schema and how to look around in it."""

    def __init__(self, entries):
        self.by_name = {e["name"]: e for e in entries}

    def kind(self, name):
        e = self.by_name[name]
        if e["meta-type"] == "builtin":
            return {"str": "str"}.get(name, e["json-type"])
        return e["meta-type"]

    def element(self, name):
        return self.by_name[name]["element-type"]

    def members(self, name):
        return {m["name"]: m for m in self.by_name[name]["members"]}

    def variants(self, name):
        return {v["case"]: v["type"]
                for v in self.by_name[name].get("variants", [])}

    def branches(self, name):
        out = {}
        for m in self.by_name[name]["members"]:
            kind = self.kind(m["type"])
            out["str" if kind == "enum" else kind] = m["type"]
        return out

    def values(self, name):
        return set(self.by_name[name]["values"])


class Comparison:
    def __init__(self, ours, qemu):
        self.ours, self.qemu = Side(ours), Side(qemu)
        self.wrong, self.seen, self.count = [], set(), 0

    def say(self, path, what):
        self.wrong.append(f"{path}: {what}")

    def types(self, path, a, b):
        if (a, b) in self.seen:
            return
        self.seen.add((a, b))
        self.count += 1
        ka, kb = self.ours.kind(a), self.qemu.kind(b)
        if ka != kb:
            if TYPES.get(path) != (kb, ka):
                self.say(path, f"is '{ka}' here and '{kb}' in QEMU")
        elif ka == "array":
            self.types(path + "[]", self.ours.element(a),
                       self.qemu.element(b))
        elif ka == "enum":
            extra = self.ours.values(a) - self.qemu.values(b)
            if extra:
                self.say(path, f"values {sorted(extra)} are not QEMU's")
        elif ka == "alternate":
            self.alternates(path, a, b)
        elif ka == "object":
            self.objects(path, a, b)

    def alternates(self, path, a, b):
        ours, qemus = self.ours.branches(a), self.qemu.branches(b)
        if set(ours) != set(qemus):
            self.say(path, f"takes {sorted(ours)}, QEMU {sorted(qemus)}")
        for kind in set(ours) & set(qemus):
            self.types(path, ours[kind], qemus[kind])

    def objects(self, path, a, b):
        ours, qemus = self.ours.members(a), self.qemu.members(b)
        for name, m in ours.items():
            where = f"{path}.{name}"
            if name not in qemus:
                if name not in ADDED:
                    self.say(where, "QEMU does not have it")
                continue
            if ("default" in m) != ("default" in qemus[name]):
                self.say(where, "is not as optional as QEMU's")
            self.types(where, m["type"], qemus[name]["type"])
        for name, m in qemus.items():
            if name not in ours and "default" not in m:
                self.say(f"{path}.{name}", "is mandatory in QEMU")
        theirs = self.qemu.variants(b)
        for case, t in self.ours.variants(a).items():
            if case not in theirs:
                self.say(path, f"variant '{case}' is not QEMU's")
            else:
                self.types(f"{path}<{case}>", t, theirs[case])

    def run(self):
        for name, e in self.ours.by_name.items():
            if e["meta-type"] not in ("command", "event"):
                continue
            other = self.qemu.by_name.get(name)
            if not other:
                if name not in OUR_COMMANDS:
                    self.say(name, "QEMU does not have it")
                continue
            self.types(f"{name}.arg", e["arg-type"], other["arg-type"])
            if e["meta-type"] == "command":
                self.types(f"{name}.ret", e["ret-type"], other["ret-type"])


def ask_qemu(program):
    """The storage daemon's schema, over its standard input and output."""
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(
            [program, "--chardev", "stdio,id=c,signal=off",
             "--monitor", "chardev=c"], cwd=folder, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write('{"execute": "qmp_capabilities"}\n'
                            '{"execute": "query-qmp-schema"}\n')
        process.stdin.flush()
        # not told to quit before all is read: it would not wait for us
        for line in process.stdout:
            reply = json.loads(line)
            if isinstance(reply.get("return"), list):
                process.terminate()
                return reply["return"]
    raise RuntimeError(f"no schema from {program}")


def main():
    program = shutil.which("qemu-storage-daemon")
    if not program:
        print("skipped: qemu-storage-daemon is not installed")
        return 77
    schema = Schema(os.path.join(ROOT, "schema/qmp/qmp.json"), "qmp", True)
    ours = json.loads(introspect.texts(schema)["schema"])
    text = json.dumps(ours)
    if not re.fullmatch(r"[\x20-\x7e]*", text):
        print("FAIL our schema is not ASCII")
        return 1
    c = Comparison(ours, ask_qemu(program))
    c.run()
    for line in c.wrong:
        print("FAIL", line)
    print(f"{c.count} types compared, {len(c.wrong)} differences")
    return 1 if c.wrong or c.count < 50 else 0


if __name__ == "__main__":
    sys.exit(main())
