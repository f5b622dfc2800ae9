#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Every schema in bad/ is refused, with the message that its third line says.

"# EXPECT 10: text" stands for "FILE:10: text" as all that the generator
prints; with PUBLIC behind EXPECT the schema has a manual.  The schemas of the
project itself must pass, and give the same bytes whatever Python's hash seed.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
GENERATOR = os.path.join(ROOT, "schema", "gen", "gen.py")
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(GENERATOR))

import gen                      # noqa: E402

ALL = ["--types", "--commands", "--client"]
UNITS = {"qmp": "schema/qmp/qmp.json", "link": "schema/link.json",
         "registry": "schema/registry.json", "config": "schema/config.json"}


def expectation(path):
    with open(path, encoding="utf-8") as f:
        line = f.readlines()[2]
    m = re.fullmatch(r"# EXPECT( PUBLIC)? (\d+: .*)\n", line)
    if not m:
        raise ValueError(f"{path}: third line is no expectation")
    return bool(m[1]), m[2]


def check_bad(name):
    path = os.path.join("bad", name)
    public, text = expectation(path)
    with tempfile.TemporaryDirectory() as out:
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed):
            code = gen.main(["--prefix", "bad", *ALL, "--output", out,
                             *(["--manual"] if public else []), path])
        left = os.listdir(out)
    expected = f"{path}:{text}\n"
    if code != 1 or printed.getvalue() != expected:
        return f"exit {code}\n  want {expected}  got  {printed.getvalue()}"
    return f"left files behind: {left}" if left else None


def read_all(folder):
    out = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as f:
            out[name] = f.read()
    return out


def check_unit(prefix):
    made = []
    for seed in ("1", "2"):
        with tempfile.TemporaryDirectory() as out:
            flags = ALL + (["--manual"] if prefix == "qmp" else [])
            r = subprocess.run(
                [sys.executable, GENERATOR, "--prefix", prefix, *flags,
                 "--output", out, os.path.join(ROOT, UNITS[prefix])],
                env=dict(os.environ, PYTHONHASHSEED=seed),
                capture_output=True, text=True, check=False)
            if r.returncode:
                return r.stderr
            made.append(read_all(out))
    return None if made[0] == made[1] else "output depends on the hash seed"


def main():
    os.chdir(HERE)
    checks = [(n, check_bad) for n in sorted(os.listdir("bad"))]
    checks += [(p, check_unit) for p in UNITS]
    failed = 0
    for name, check in checks:
        why = check(name)
        if why:
            failed += 1
            print(f"FAIL {name}: {why}")
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
