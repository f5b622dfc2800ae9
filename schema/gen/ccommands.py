# SPDX-License-Identifier: BSD-3-Clause
"""PREFIX-commands.[ch]: dispatch and events, for the side that serves.
PREFIX-client.[ch]: requests and results, for the side that calls."""

from ctypes_gen import NOTE, guard


def ret_by_value(c):
    """Is the result handed over in place (lists, scalars)?"""
    return not c.ret.is_pointer()


def handler(p, c):
    """The prototype of the function that implements a command."""
    if c.is_async:
        arg = f", {c.arg.c_type()}arg" if c.arg else ""
        return f"void {p}_{c.c}(struct {p}_call *call{arg})"
    arg = f", const {c.arg.c_type()}arg" if c.arg else ""
    ret = f", {c.ret.c_type()}*ret" if c.ret else ""
    return (f"bool {p}_{c.c}(struct {p}_call *call{arg}{ret}, "
            "struct err *e)")


def returner(p, c):
    ret = ""
    if c.ret and ret_by_value(c):
        ret = f", {c.ret.c_type()}" + ("" if c.ret.kind != "list" else "*") \
            + "ret"
        if c.ret.kind == "list":
            ret = f", const {c.ret.c_type()}*ret"
    elif c.ret:
        ret = f", const {c.ret.c_type()}ret"
    return f"void {p}_{c.c}_return(struct {p}_call *call{ret})"


def event_proto(p, v):
    args = ""
    for m in v.arg.members() if v.arg else []:
        if m.optional and not m.type.is_pointer() and m.type.kind != "list":
            args += f", bool has_{m.c}"
        if m.type.is_pointer():
            args += f", const {m.type.c_type()}{m.c}"
        elif m.type.kind == "list":
            args += f", const {m.type.c_type()}*{m.c}"
        else:
            args += f", {m.type.c_type()}{m.c}"
    return f"void {p}_event_{v.c}(struct {p}_events *sink{args})"


def header(schema, src, folder):
    p = schema.prefix
    g = guard(f"{p}-commands.h")
    lines = [NOTE.format(src=src), f"#ifndef {g}", f"#define {g}", "",
             '#include "json/envelope.h"',
             f'#include "{folder}/{p}-types.h"', "",
             f"struct {p}_call;", f"struct {p}_events;", "",
             "/* Provided by the server.  begin: where the result is to be "
             "written, NULL to",
             " * have nothing written.  done: it is written.  fail: there "
             "is none. */",
             f"struct json_out *{p}_call_begin(struct {p}_call *call);",
             f"void {p}_call_done(struct {p}_call *call);",
             f"void {p}_call_fail(struct {p}_call *call, "
             "const struct err *e);", "",
             f"struct {p}_command_info {{", "\tconst char *name;",
             "\tbool is_async;", "\tbool is_query;", "};", "",
             f"const struct {p}_command_info *{p}_command_lookup("
             "const char *name);", "",
             "/* Run a command.  True: it is answered or will be.  False: "
             "it is not and",
             " * will not be, *e says why.  @args may be NULL. */",
             f"bool {p}_dispatch(struct {p}_call *call, const char *name,",
             "\t\tconst struct json *args, struct err *e) MUST_CHECK;", ""]
    lines += ["/* To be implemented by hand. */"]
    for c in schema.local_commands():
        if c.is_builtin:
            continue
        lines.append(handler(p, c) + (";" if c.is_async else " MUST_CHECK;"))
    lines += ["", "/* An async command's success, exactly once. */"]
    lines += [returner(p, c) + ";" for c in schema.local_commands()
              if c.is_async]
    if schema.local_events():
        lines += ["", "/* Provided by the server; @text is borrowed, and "
                  "NULL when memory is gone. */",
                  f"void {p}_event_emit(struct {p}_events *sink, "
                  "const char *name,", "\t\tconst struct json_out *text);",
                  "", "/* Emit an event. */"]
        lines += [event_proto(p, v) + ";" for v in schema.local_events()]
    return "\n".join(lines + ["", "#endif", ""])


def encode(t, expr):
    """Statement that writes a result; @expr is its slot's address."""
    return f"qapi_encode(&{t.descriptor()}, o, {expr});"


def return_code(p, c):
    address = "ret" if c.ret and c.ret.kind == "list" else "&ret"
    put = [f"\t\t{encode(c.ret, address)}"] if c.ret else \
        ["\t\tjson_out_text(o, \"{}\", 2);"]
    return [returner(p, c).replace("void ", "void\n", 1), "{",
            f"\tstruct json_out *o = {p}_call_begin(call);", "",
            "\tif (o) {", *put, f"\t\t{p}_call_done(call);", "\t}", "}", ""]


def run_head(p, c):
    return ["static bool",
            f"run_{c.c}(struct {p}_call *call, const struct json *args,",
            "\t\tstruct err *e)", "{"]


def run_builtin(p, c):
    text = {"query-qmp-schema": "schema", "query-commands": "commands"}
    if c.name not in text:
        from model import SchemaError
        raise SchemaError(c.where, f"no builtin is called '{c.name}'")
    var = f"{p}_text_{text[c.name]}"
    return run_head(p, c) + [
        "\tstruct json_out *o;", "",
        "\tif (!qapi_no_args(args, e))", "\t\treturn false;",
        f"\to = {p}_call_begin(call);", "\tif (o) {",
        f"\t\tjson_out_text(o, {var}, {var}_len);",
        f"\t\t{p}_call_done(call);", "\t}", "\treturn true;", "}", ""]


def run_async(p, c):
    if not c.arg:
        return run_head(p, c) + [
            "\tif (!qapi_no_args(args, e))", "\t\treturn false;",
            f"\t{p}_{c.c}(call);", "\treturn true;", "}", ""]
    return run_head(p, c) + [
        f"\t{c.arg.c_type()}arg;", "",
        f"\tif (!qapi_decode_args(&{c.arg.c}_type, args, &arg, e))",
        "\t\treturn false;", f"\t{p}_{c.c}(call, arg);", "\treturn true;",
        "}", ""]


def run_sync(p, c):
    lines = run_head(p, c)
    params = "call"
    if c.arg:
        lines += [f"\tAUTO({c.arg.c}_free) {c.arg.c_type()}arg = NULL;"]
        params += ", arg"
    if c.ret:
        init = "{ 0 }" if c.ret.kind == "list" else "0"
        lines += [f"\t{c.ret.c_type()}ret = {init};"]
        params += ", &ret"
    lines += ["\tstruct json_out *o;", ""]
    if c.arg:
        lines += [f"\tif (!qapi_decode_args(&{c.arg.c}_type, args, &arg, e))",
                  "\t\treturn false;"]
    else:
        lines += ["\tif (!qapi_no_args(args, e))", "\t\treturn false;"]
    clear = [f"qapi_clear(&{c.ret.descriptor()}, &ret);"] if c.ret else []
    put = encode(c.ret, "&ret") if c.ret else 'json_out_text(o, "{}", 2);'
    lines += [f"\tif (!{p}_{c.c}({params}, e)) {{",
              *["\t\t" + x for x in clear], "\t\treturn false;", "\t}",
              f"\to = {p}_call_begin(call);", "\tif (o) {", f"\t\t{put}",
              f"\t\t{p}_call_done(call);", "\t}",
              *["\t" + x for x in clear], "\treturn true;", "}", ""]
    return lines


def dispatch_code(p, commands):
    lines = ["static const struct command {",
             f"\tstruct {p}_command_info info;",
             f"\tbool (*run)(struct {p}_call *call, const struct json *args,",
             "\t\t\tstruct err *e);",
             "} commands[] = { /* sorted by name */"]
    for c in sorted(commands, key=lambda c: c.name):
        flags = ", ".join(str(x).lower() for x in (c.is_async, c.is_query))
        lines.append(f'\t{{ {{ "{c.name}", {flags} }}, run_{c.c} }},')
    return lines + [
        "};", "",
        "static int", "compare(const void *name, const void *command)", "{",
        "\tconst struct command *c = command;", "",
        "\treturn strcmp(name, c->info.name);", "}", "",
        "static const struct command *", "find(const char *name)", "{",
        "\treturn bsearch(name, commands, ARRAY_SIZE(commands),",
        "\t\t\tsizeof commands[0], compare);", "}", "",
        f"const struct {p}_command_info *",
        f"{p}_command_lookup(const char *name)", "{",
        "\tconst struct command *c = find(name);", "",
        "\treturn c ? &c->info : NULL;", "}", "",
        "bool", f"{p}_dispatch(struct {p}_call *call, const char *name,",
        "\t\tconst struct json *args, struct err *e)", "{",
        "\tconst struct command *c = find(name);", "",
        "\tif (!c)",
        "\t\treturn err_set(e, ERR_COMMAND_NOT_FOUND, 0,",
        '\t\t\t"The command %s has not been found", name);',
        "\treturn c->run(call, args, e);", "}", ""]


def event_code(p, v):
    lines = [event_proto(p, v).replace("void ", "void\n", 1), "{"]
    if not v.arg:
        return lines + [f'\temit(sink, "{v.name}", NULL, NULL);', "}", ""]
    lines += [f"\tstruct {v.arg.c} d = {{"]
    for m in v.arg.members():
        if m.optional and m.type.kind == "list":
            lines.append(f"\t\t.has_{m.c} = {m.c} != NULL,")
        elif m.optional and not m.type.is_pointer():
            lines.append(f"\t\t.has_{m.c} = has_{m.c},")
        if m.type.is_pointer():
            lines.append(f"\t\t.{m.c} = (void *)(uintptr_t){m.c},")
        elif m.type.kind == "list" and m.optional:
            lines.append(f"\t\t.{m.c} = {m.c} ? *{m.c} : "
                         f"(struct {m.type.c}){{ 0 }},")
        elif m.type.kind == "list":
            lines.append(f"\t\t.{m.c} = *{m.c},")
        else:
            lines.append(f"\t\t.{m.c} = {m.c},")
    return lines + ["\t};", f"\tstruct {v.arg.c} *slot = &d;", "",
                    f'\temit(sink, "{v.name}", &{v.arg.c}_type, &slot);',
                    "}", ""]


def emit_code(p):
    return ["#define EVENT_MAX (1024 * 1024)", "",
            "static void",
            f"emit(struct {p}_events *sink, const char *name,",
            "\tconst struct qapi_type *t, const void *slot)", "{",
            "\tAUTO(json_out_destroy) struct json_out o;", "",
            "\tjson_out_init(&o, EVENT_MAX);",
            "\tjson_out_object_begin(&o);",
            "\tqmp_event_put(&o, name);",
            "\tif (t) {", '\t\tjson_out_key(&o, "data");',
            "\t\tqapi_encode(t, &o, slot);", "\t}",
            "\tjson_out_object_end(&o);",
            f"\t{p}_event_emit(sink, name, json_out_check(&o, NULL) "
            "? &o : NULL);", "}", ""]


def c_text(name, text):
    """A C string in pieces that stay readable."""
    lines = [f"static const char {name}[] ="]
    for i in range(0, len(text), 60):
        piece = text[i:i + 60].replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'\t"{piece}"')
    lines[-1] += ";"
    return lines + [f"#define {name}_len (sizeof {name} - 1)", ""]


def source(schema, src, folder, texts):
    p = schema.prefix
    commands = schema.local_commands()
    lines = [NOTE.format(src=src), f'#include "{folder}/{p}-commands.h"', "",
             "#include <stdlib.h>", "#include <string.h>", ""]
    for name, text in texts.items():
        lines += c_text(f"{p}_text_{name}", text)
    for c in commands:
        if c.is_async:
            lines += return_code(p, c)
        run = run_builtin if c.is_builtin else \
            run_async if c.is_async else run_sync
        lines += run(p, c)
    lines += dispatch_code(p, commands)
    if schema.local_events():
        lines += emit_code(p)
    for v in schema.local_events():
        lines += event_code(p, v)
    return "\n".join(lines)


def put_proto(p, c):
    arg = f", const {c.arg.c_type()}arg" if c.arg else ""
    return f"void {p}_put_{c.c}(struct json_out *o{arg})"


def got_proto(p, c):
    ret = f", {c.ret.c_type()}*out" if c.ret else ""
    return f"bool {p}_got_{c.c}(const struct json *ret{ret}, struct err *e)"


def client_header(schema, src, folder):
    p = schema.prefix
    g = guard(f"{p}-client.h")
    lines = [NOTE.format(src=src), f"#ifndef {g}", f"#define {g}", "",
             '#include "json/envelope.h"',
             f'#include "{folder}/{p}-types.h"', "",
             "/* put: the members \"execute\" and \"arguments\" of a request, "
             "inside an open",
             " * object.  got: the value of a reply's \"return\"; *out is "
             "owned by the caller. */"]
    for c in schema.local_commands():
        lines += [put_proto(p, c) + ";", got_proto(p, c) + " MUST_CHECK;"]
    if schema.local_events():
        lines += ["", f"enum {p}_event {{"]
        lines += [f"\t{p.upper()}_EVENT_{v.c.upper()},"
                  for v in schema.local_events()]
        lines += [f"\t{p.upper()}_EVENT_N,", "};", "",
                  "/* Which event a message is; false: none that we know.  "
                  "Its data decodes with",
                  f" * struct {p}_<event>_data. */",
                  f"bool {p}_event_find(const char *name, "
                  f"enum {p}_event *out);"]
    return "\n".join(lines + ["", "#endif", ""])


def client_source(schema, src, folder):
    p = schema.prefix
    lines = [NOTE.format(src=src), f'#include "{folder}/{p}-client.h"', "",
             "#include <string.h>", ""]
    for c in schema.local_commands():
        lines += [put_proto(p, c).replace("void ", "void\n", 1), "{",
                  '\tjson_out_key(o, "execute");',
                  f'\tjson_out_string(o, "{c.name}");']
        if c.arg:
            lines += ['\tjson_out_key(o, "arguments");',
                      f"\t{c.arg.c}_encode(o, arg);"]
        lines += ["}", "", got_proto(p, c).replace("bool ", "bool\n", 1), "{"]
        if c.ret:
            lines += [f"\treturn qapi_decode(&{c.ret.descriptor()}, ret, "
                      '"return", out, e);']
        else:
            lines += ["\tif (json_type(ret) == JSON_OBJECT && "
                      "json_count(ret) == 0)", "\t\treturn true;",
                      '\treturn err_set(e, ERR_GENERIC, 0, '
                      f'"{c.name} returned something");']
        lines += ["}", ""]
    if schema.local_events():
        lines += ["bool", f"{p}_event_find(const char *name, "
                  f"enum {p}_event *out)", "{",
                  "\tstatic const char *const names[] = {"]
        lines += [f'\t\t"{v.name}",' for v in schema.local_events()]
        lines += ["\t};", "\tunsigned i;", "",
                  "\tfor (i = 0; i < ARRAY_SIZE(names); i++) {",
                  "\t\tif (strcmp(names[i], name) == 0) {",
                  f"\t\t\t*out = (enum {p}_event)i;", "\t\t\treturn true;",
                  "\t\t}", "\t}", "\treturn false;", "}", ""]
    return "\n".join(lines)
