# SPDX-License-Identifier: BSD-3-Clause
"""PREFIX-types.h and PREFIX-types.c: C structs and the tables about them."""

from model import snake

NOTE = "/* Generated from {src} by schema/gen; do not edit. */\n"


def guard(name):
    return "SCHEMA_" + name.upper().replace("-", "_").replace(".", "_")


def enum_const(t, value):
    return f"{t.c}_{value}".upper().replace("-", "_").replace(".", "_")


def enum_decl(t):
    lines = [f"enum {t.c} {{"]
    lines += [f"\t{enum_const(t, v)}," for v, _ in t.values]
    lines += [f"\t{t.c.upper()}_N,", "};", "",
              "/* The name on the wire. */",
              f"const char *{t.c}_str(enum {t.c} v);", "",
              "/* False: no value has this name. */",
              f"bool {t.c}_find(const char *name, enum {t.c} *out);", ""]
    return lines


def member_lines(members):
    out = []
    for m in members:
        if m.optional and not m.type.is_pointer():
            out.append(f"\tbool has_{m.c};")
        note = ""
        if m.type.is_pointer():
            note = " /* owned; NULL when absent */" if m.optional \
                else " /* owned */"
        elif m.type.kind == "list":
            note = " /* owned */"
        out.append(f"\t{m.type.c_type()}{m.c};{note}")
    return out


def branch_c(value):
    from model import c_member
    return c_member(value)


def struct_decl(t):
    lines = [f"struct {t.c} {{"]
    if t.kind == "alternate":
        lines += ["\tenum json_type type;", "\tunion {"]
        lines += ["\t" + x for x in member_lines(
            [m for m in t.own if m.type.name != "null"])]
        lines += ["\t} u;"]
    else:
        lines += member_lines(t.members())
        if t.kind == "union":
            lines += ["\tunion {"]
            lines += [f"\t\tstruct {b.c} *{branch_c(v)};"
                      for v, b in t.branches.items()]
            lines += ["\t} u; /* owned; NULL where there is no branch */"]
        elif not t.members():
            lines += ["\tchar nothing;"]
    return lines + ["};", ""]


def list_struct(t):
    return [f"struct {t.c} {{", "\tsize_t n;",
            f"\t{t.element.c_type()}*v; /* owned */", "};", ""]


def list_functions(t):
    e = t.element.c_type()
    return [
        f"extern const struct qapi_type {t.c}_type;",
        f"bool {t.c}_decode(const struct json *j, const char *path,",
        f"\t\tstruct {t.c} *out, struct err *e) MUST_CHECK;",
        f"void {t.c}_encode(struct json_out *o, const struct {t.c} *l);",
        f"void {t.c}_clear(struct {t.c} *l);",
        f"bool {t.c}_clone(struct {t.c} *to, const struct {t.c} *from) "
        "MUST_CHECK;",
        f"bool {t.c}_append(struct {t.c} *l, {e}item) MUST_CHECK;",
        ""]


def struct_functions(t):
    c = t.c
    return [
        f"extern const struct qapi_type {c}_type;",
        f"bool {c}_decode(const struct json *j, const char *path,",
        f"\t\tstruct {c} **out, struct err *e) MUST_CHECK;",
        f"void {c}_encode(struct json_out *o, const struct {c} *v);",
        f"struct {c} *{c}_clone(const struct {c} *v);",
        f"void {c}_free(struct {c} *v);",
        f"DEFINE_CLEANUP(struct {c}, {c}_free);",
        ""]


def header(schema, src, folder):
    name = f"{schema.prefix}-types.h"
    g = guard(name)
    enums = schema.local("enum")
    lists = schema.local("list")
    structs = schema.local("struct", "union", "alternate")
    lines = [NOTE.format(src=src), f"#ifndef {g}", f"#define {g}", "",
             '#include "json/qapi.h"']
    lines += [f'#include "schema/{p}-types.h"' for p in schema.foreign]
    lines += [""]
    for t in enums:
        lines += enum_decl(t)
        lines += [f"extern const struct qapi_type {t.c}_type;", ""]
    lines += [f"struct {t.c};" for t in structs] + [""]
    for t in lists:
        lines += list_struct(t)
    for t in structs:
        lines += struct_decl(t)
    for t in structs:
        lines += struct_functions(t)
    for t in lists:
        lines += list_functions(t)
    return "\n".join(lines + ["#endif", ""])


def enum_code(t):
    lines = [f"static const char *const {t.c}_names[] = {{"]
    lines += [f'\t[{enum_const(t, v)}] = "{v}",' for v, _ in t.values]
    lines += ["};", "",
              f"const struct qapi_type {t.c}_type = {{",
              f'\t.kind = QAPI_ENUM, .name = "{t.name}",',
              f"\t.slot = sizeof(enum {t.c}), .n = {t.c.upper()}_N,",
              f"\t.values = {t.c}_names,", "};", "",
              "const char *", f"{t.c}_str(enum {t.c} v)", "{",
              f"\treturn {t.c}_names[v];", "}", "",
              "bool", f"{t.c}_find(const char *name, enum {t.c} *out)", "{",
              "\tunsigned v;", "",
              f"\tif (!qapi_enum_find(&{t.c}_type, name, &v))",
              "\t\treturn false;", f"\t*out = (enum {t.c})v;",
              "\treturn true;", "}", ""]
    return lines


def member_table(t):
    if not t.members():
        return []
    lines = [f"static const struct qapi_member {t.c}_members[] = {{"]
    for m in t.members():
        where = m.c
        if t.kind == "alternate":
            where = "u" if m.type.name == "null" else f"u.{m.c}"
        has = "QAPI_NO_HAS"
        if m.optional and not m.type.is_pointer():
            has = f"offsetof(struct {t.c}, has_{m.c})"
        lines.append(f'\t{{ "{m.name}", &{m.type.descriptor()},')
        lines.append(f"\t  offsetof(struct {t.c}, {where}), {has}, "
                     f"{'true' if m.optional else 'false'} }},")
    return lines + ["};", ""]


def variant_table(t):
    tag = t.tag
    lines = [f"static const struct qapi_type *const {t.c}_branches[] = {{"]
    for value, _ in tag.type.values:
        b = t.branches.get(value)
        ref = f"&{b.descriptor()}" if b else "NULL"
        lines.append(f"\t[{enum_const(tag.type, value)}] = {ref},")
    return lines + [
        "};", "",
        f"static const struct qapi_variants {t.c}_variants = {{",
        f"\t.tag = offsetof(struct {t.c}, {tag.c}),",
        f"\t.offset = offsetof(struct {t.c}, u),",
        f"\t.branch = {t.c}_branches,", "};", ""]


def struct_code(t):
    c = t.c
    kind = "QAPI_ALTERNATE" if t.kind == "alternate" else "QAPI_STRUCT"
    lines = member_table(t)
    if t.kind == "union":
        lines += variant_table(t)
    lines += [f"const struct qapi_type {c}_type = {{",
              f'\t.kind = {kind}, .name = "{t.name}",',
              f"\t.slot = sizeof(struct {c} *), .size = sizeof(struct {c}),"]
    if t.members():
        lines += [f"\t.n = ARRAY_SIZE({c}_members), .members = {c}_members,"]
    if t.kind == "union":
        lines += [f"\t.variants = &{c}_variants,"]
    return lines + [
        "};", "",
        "bool",
        f"{c}_decode(const struct json *j, const char *path,",
        f"\t\tstruct {c} **out, struct err *e)", "{",
        f"\treturn qapi_decode(&{c}_type, j, path, out, e);", "}", "",
        "void",
        f"{c}_encode(struct json_out *o, const struct {c} *v)", "{",
        f"\tqapi_encode(&{c}_type, o, &v);", "}", "",
        f"struct {c} *",
        f"{c}_clone(const struct {c} *v)", "{",
        f"\tstruct {c} *copy;", "",
        f"\treturn qapi_clone(&{c}_type, &copy, &v) ? copy : NULL;", "}", "",
        "void",
        f"{c}_free(struct {c} *v)", "{",
        f"\tqapi_clear(&{c}_type, &v);", "}", ""]


def list_code(t):
    c = t.c
    return [
        f"const struct qapi_type {c}_type = {{",
        '\t.kind = QAPI_LIST, .name = "list",',
        f"\t.slot = sizeof(struct {c}), "
        f".element = &{t.element.descriptor()},", "};", "",
        "bool",
        f"{c}_decode(const struct json *j, const char *path,",
        f"\t\tstruct {c} *out, struct err *e)", "{",
        f"\treturn qapi_decode(&{c}_type, j, path, out, e);", "}", "",
        "void",
        f"{c}_encode(struct json_out *o, const struct {c} *l)", "{",
        f"\tqapi_encode(&{c}_type, o, l);", "}", "",
        "void", f"{c}_clear(struct {c} *l)", "{",
        f"\tqapi_clear(&{c}_type, l);", "}", "",
        "bool",
        f"{c}_clone(struct {c} *to, const struct {c} *from)", "{",
        f"\treturn qapi_clone(&{c}_type, to, from);", "}", "",
        "bool",
        f"{c}_append(struct {c} *l, {t.element.c_type()}item)", "{",
        f"\treturn qapi_list_append(&{c}_type, l, &item);", "}", ""]


def source(schema, src, folder):
    lines = [NOTE.format(src=src),
             f'#include "{folder}/{schema.prefix}-types.h"', ""]
    for t in schema.local("enum"):
        lines += enum_code(t)
    for t in schema.local("struct", "union", "alternate"):
        lines += struct_code(t)
    for t in schema.local("list"):
        lines += list_code(t)
    return "\n".join(lines)


__all__ = ["header", "source", "enum_const", "guard", "NOTE", "snake"]
