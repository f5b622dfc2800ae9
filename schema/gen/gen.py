#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Make C and the manual from a schema; see the modules for what they make.

usage: gen.py --prefix NAME --output DIR [--folder NAME] [--types]
              [--commands] [--client] [--manual] SCHEMA
"""

import argparse
import os
import sys

sys.dont_write_bytecode = True

import ccommands            # noqa: E402
import ctypes_gen           # noqa: E402
import introspect           # noqa: E402
import manual               # noqa: E402
from model import Schema    # noqa: E402
from parser import SchemaError  # noqa: E402


def outputs(schema, src, args):
    p = schema.prefix
    if args.types:
        yield f"{p}-types.h", ctypes_gen.header(schema, src, args.folder)
        yield f"{p}-types.c", ctypes_gen.source(schema, src, args.folder)
    if args.commands:
        builtin = any(c.is_builtin for c in schema.local_commands())
        texts = introspect.texts(schema) if builtin else {}
        yield f"{p}-commands.h", ccommands.header(schema, src, args.folder)
        yield f"{p}-commands.c", ccommands.source(schema, src,
                                                      args.folder, texts)
    if args.client:
        yield f"{p}-client.h", ccommands.client_header(schema, src, args.folder)
        yield f"{p}-client.c", ccommands.client_source(schema, src, args.folder)
    if args.manual:
        yield f"{p}-reference.md", manual.text(schema)


def main(argv):
    ap = argparse.ArgumentParser()
    ap.add_argument("--prefix", required=True)
    ap.add_argument("--output", default=".")
    ap.add_argument("--folder", default="schema",
                    help="how #include finds what is made here")
    for what in ("types", "commands", "client", "manual"):
        ap.add_argument("--" + what, action="store_true")
    ap.add_argument("schema")
    args = ap.parse_args(argv)
    try:
        schema = Schema(args.schema, args.prefix, args.manual)
        files = list(outputs(schema, os.path.basename(args.schema), args))
    except SchemaError as e:
        print(e, file=sys.stderr)
        return 1
    for name, text in files:
        with open(os.path.join(args.output, name), "w",
                  encoding="utf-8") as f:
            f.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
