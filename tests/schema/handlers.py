#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A command without an implementation does not link, and only that one is
missed: the generated code of two commands, one of them implemented.

usage: handlers.py CC...
"""

import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))

SCHEMA = """
##
# @come:
#
# Implemented below.
##
{ 'command': 'come' }

##
# @go:
#
# Implemented nowhere.
#
# @far: how far
##
{ 'command': 'go', 'data': { 'far': 'int' } }
"""

PROGRAM = """
#include "folder/t-commands.h"
struct json_out *t_call_begin(struct t_call *c) { (void)c; return 0; }
void t_call_done(struct t_call *c) { (void)c; }
bool t_come(struct t_call *c, struct err *e) { (void)c; (void)e; return true; }
int main(void) { return t_dispatch(0, "come", 0, 0) ? 0 : 1; }
"""


def main(cc):
    with tempfile.TemporaryDirectory() as tmp:
        folder = os.path.join(tmp, "folder")
        os.mkdir(folder)
        schema = os.path.join(tmp, "t.json")
        program = os.path.join(tmp, "t.c")
        with open(schema, "w", encoding="utf-8") as f:
            f.write(SCHEMA)
        with open(program, "w", encoding="utf-8") as f:
            f.write(PROGRAM)
        subprocess.run(
            [sys.executable, os.path.join(ROOT, "schema/gen/gen.py"),
             "--prefix", "t", "--types", "--commands", "--folder", "folder",
             "--output", folder, schema], check=True)
        r = subprocess.run(
            [*cc, "-std=gnu17", "-D_GNU_SOURCE", "-I" + tmp,
             "-I" + os.path.join(ROOT, "src"), "-o",
             os.path.join(tmp, "t"), program,
             os.path.join(folder, "t-commands.c")],
            env=dict(os.environ, LC_ALL="C"), capture_output=True, text=True,
            check=False)
    missed = set(re.findall(r"undefined (?:reference to|symbol:) [`']?(t_\w+)",
                            r.stderr))
    missed -= {"t_go_args_type"}        # in t-types.c, left out on purpose
    if r.returncode == 0 or "error: " in r.stderr.split("undefined")[0] or \
            missed != {"t_go", "t_go_args_free"}:
        print(f"exit {r.returncode}, missed {sorted(missed)}\n{r.stderr}")
        return 1
    print("t_go is missed, t_come is not")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["cc"]))
