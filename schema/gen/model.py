# SPDX-License-Identifier: BSD-3-Clause
"""What a schema defines, checked.

Schema(file, prefix) reads a file and what it includes.  Everything that the
code generators may rely on is checked here, so they check nothing.  A public
schema, one with a manual, must also document results and defaults.
"""

import re

from parser import Doc, Map, Parser, SchemaError, Str, include_path

# QAPI name -> (descriptor in json/qapi.h, C type, pointer?, JSON type)
BUILTINS = {
    "str": ("qapi_str", "char *", True, "string"),
    "int": ("qapi_int", "int64_t", False, "integer"),
    "int8": ("qapi_int8", "int8_t", False, "integer"),
    "int16": ("qapi_int16", "int16_t", False, "integer"),
    "int32": ("qapi_int32", "int32_t", False, "integer"),
    "int64": ("qapi_int64", "int64_t", False, "integer"),
    "uint8": ("qapi_uint8", "uint8_t", False, "integer"),
    "uint16": ("qapi_uint16", "uint16_t", False, "integer"),
    "uint32": ("qapi_uint32", "uint32_t", False, "integer"),
    "uint64": ("qapi_uint64", "uint64_t", False, "integer"),
    "size": ("qapi_size", "uint64_t", False, "integer"),
    "number": ("qapi_number", "double", False, "number"),
    "bool": ("qapi_bool", "bool", False, "boolean"),
    "null": ("qapi_null", "bool", False, "null"),
    "any": ("qapi_any", "struct json *", True, "any"),
}
BUILTIN_LISTS = set(BUILTINS) - {"any", "null"}

C_WORDS = set("""auto break case char const continue default do double else
enum extern float for goto if inline int long register restrict return short
signed sizeof static struct switch typedef union unsigned void volatile while
asm typeof unix linux i386 errno bool true false u""".split())

KEYS = {
    "include": ({"include"}, {"prefix"}),
    "enum": ({"enum", "data"}, {"features"}),
    "struct": ({"struct", "data"}, {"base", "features"}),
    "union": ({"union", "base", "discriminator", "data"}, {"features"}),
    "alternate": ({"alternate", "data"}, {"features"}),
    "command": ({"command"}, {"data", "returns", "async", "query", "builtin",
                              "boxed", "features"}),
    "event": ({"event"}, {"data", "boxed", "features"}),
}
MEMBER = re.compile(r"[a-z][a-z0-9_-]*$")
TYPE = re.compile(r"[A-Z][A-Za-z0-9]*$")
ENUM_VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*$")
COMMAND = re.compile(r"[a-z][a-z0-9_-]*$")
EVENT = re.compile(r"[A-Z][A-Z0-9_]*$")


def snake(name):
    """CamelCase to camel_case."""
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return name.lower().replace("-", "_").replace(".", "_")


def c_member(name):
    c = name.replace("-", "_").replace(".", "_")
    return "q_" + c if c in C_WORDS or c[0].isdigit() else c


class Member:
    def __init__(self, name, type_, optional, where, features=()):
        self.name, self.type_name, self.optional = name, type_, optional
        self.where, self.features = where, features
        self.type = None        # resolved
        self.c = c_member(name)


class Type:
    """A named type; kind: builtin enum struct union alternate list."""

    def __init__(self, kind, name, where, doc=None):
        self.kind, self.name, self.where, self.doc = kind, name, where, doc
        self.c = snake(name)
        self.prefix = None      # of the unit that it belongs to
        self.features = []
        self.implicit = False   # arguments of a command, data of an event
        self.values = []        # enum: [(name, features)]
        self.base = None        # struct, union: Type
        self.own = []           # struct, union, alternate: [Member]
        self.tag = None         # union: Member
        self.branches = {}      # union: value -> Type
        self.element = None     # list: Type
        self.base_name = self.tag_name = self.branch_names = None

    def members(self):
        """All that are in line, the base's first."""
        return (self.base.members() if self.base else []) + self.own

    def c_type(self):
        """How a slot is declared, up to and with the blank or star."""
        if self.kind == "builtin":
            t = BUILTINS[self.name][1]
            return t if t.endswith("*") else t + " "
        if self.kind == "enum":
            return f"enum {self.c} "
        return f"struct {self.c} " + ("" if self.kind == "list" else "*")

    def is_pointer(self):
        if self.kind == "builtin":
            return BUILTINS[self.name][2]
        return self.kind in ("struct", "union", "alternate")

    def descriptor(self):
        if self.kind == "builtin":
            return BUILTINS[self.name][0] + "_type"
        return self.c + "_type"

    def json_kind(self):
        if self.kind == "builtin":
            return BUILTINS[self.name][3]
        return {"enum": "string", "list": "array"}.get(self.kind, "object")


class Command:
    def __init__(self, name, where, doc):
        self.name, self.where, self.doc = name, where, doc
        self.c = snake(name)
        self.arg = self.ret = None
        self.is_async = self.is_query = self.is_builtin = False
        self.features = []


class Event:
    def __init__(self, name, where, doc):
        self.name, self.where, self.doc = name, where, doc
        self.c = name.lower()
        self.arg = None
        self.features = []


class Schema:
    def __init__(self, file, prefix, public=False):
        self.prefix, self.public = prefix, public
        self.types = {}         # name -> Type, lists included
        self.commands, self.events = [], []
        self.foreign = []       # prefixes of included units, in order
        self.seen = set()
        self.c_names = {}
        for name in BUILTINS:
            self.types[name] = Type("builtin", name, ("", 0))
            self.types[name].c = name
        self.read(file, prefix, (file, 0))
        self.resolve()
        self.check()

    # -- reading ----------------------------------------------------------

    def read(self, file, prefix, where):
        if file in self.seen:
            return
        self.seen.add(file)
        try:
            expressions = Parser(file).expressions()
        except SchemaError as e:
            if where[1] and str(e).startswith(f"{file}:0:"):
                raise SchemaError(where, f"cannot read '{file}'") from e
            raise
        for expr, doc in expressions:
            self.define(file, prefix, expr, doc)

    def define(self, file, prefix, expr, doc):
        where = expr.where
        kinds = [k for k in expr if k in KEYS]
        if len(kinds) != 1:
            raise SchemaError(where, "definition must have exactly one of "
                              + ", ".join(f"'{k}'" for k in KEYS))
        kind = kinds[0]
        need, may = KEYS[kind]
        for key in expr:
            if key not in need | may:
                raise SchemaError(key.where, f"unknown key '{key}' in {kind}")
        for key in sorted(need):
            if key not in expr:
                raise SchemaError(where, f"{kind} lacks key '{key}'")
        name = expr[kind]
        if not isinstance(name, str):
            raise SchemaError(where, f"'{kind}' must be a string")
        if kind == "include":
            self.include(file, prefix, expr, doc)
            return
        if doc is None:
            raise SchemaError(where, f"{kind} '{name}' is not documented")
        if doc.name != name:
            raise SchemaError(doc.where, f"documentation of '{doc.name}' "
                              f"stands before '{name}'")
        getattr(self, "define_" + kind)(prefix, expr, str(name), doc)

    def include(self, file, prefix, expr, doc):
        where = expr.where
        if doc:
            raise SchemaError(doc.where, "an include has no documentation")
        other = expr.get("prefix", prefix)
        if other != prefix and other not in self.foreign:
            self.foreign.append(other)
        self.read(include_path(file, expr["include"]), other, where)

    def add_type(self, prefix, t):
        if not t.implicit and not TYPE.match(t.name):
            raise SchemaError(t.where, f"type name '{t.name}' must be "
                              "CamelCase")
        if t.name in self.types:
            other = self.types[t.name].where
            raise SchemaError(t.where, f"type '{t.name}' is defined twice, "
                              f"first at {other[0]}:{other[1]}")
        if t.c in self.c_names:
            raise SchemaError(t.where, f"type '{t.name}' and type "
                              f"'{self.c_names[t.c]}' have the same C name")
        self.c_names[t.c] = t.name
        t.prefix = prefix
        self.types[t.name] = t
        return t

    def features_of(self, owner, value, where):
        out = []
        if not isinstance(value, list):
            raise SchemaError(where, "'features' must be a list")
        for f in value:
            if not isinstance(f, str) or not MEMBER.match(f):
                raise SchemaError(where, f"bad feature name in {owner}")
            if f in out:
                raise SchemaError(where, f"duplicate feature '{f}' in {owner}")
            out.append(str(f))
        return out

    def members_of(self, data, where, what, optional_ok=True):
        """[Member] from an object of the schema."""
        out = []
        if not isinstance(data, Map):
            raise SchemaError(where, f"{what}: 'data' must be an object")
        for key, value in data.items():
            optional, name = key.startswith("*"), key.lstrip("*")
            if optional and not optional_ok:
                raise SchemaError(key.where, f"{what}: '{key}' cannot be "
                                  "optional")
            if not MEMBER.match(name):
                raise SchemaError(key.where, f"{what}: bad member name "
                                  f"'{name}'")
            if any(m.name == name for m in out):
                raise SchemaError(key.where, f"{what}: duplicate member "
                                  f"'{name}'")
            features = []
            if isinstance(value, Map):
                if "type" not in value or set(value) - {"type", "features"}:
                    raise SchemaError(key.where, f"{what}: member '{name}' "
                                      "needs 'type' and may have 'features'")
                features = self.features_of(f"'{name}'",
                                            value.get("features", []),
                                            key.where)
                value = value["type"]
            out.append(Member(name, self.type_ref(value, key.where, what),
                              optional, key.where, features))
        return out

    def type_ref(self, value, where, what):
        if isinstance(value, list):
            if len(value) != 1 or not isinstance(value[0], str):
                raise SchemaError(where, f"{what}: a list type has exactly "
                                  "one element, a type name")
            return [str(value[0])]
        if not isinstance(value, str):
            raise SchemaError(where, f"{what}: expected a type name")
        return str(value)

    def define_enum(self, prefix, expr, name, doc):
        t = Type("enum", name, expr.where, doc)
        what = f"enum '{name}'"
        if not isinstance(expr["data"], list) or not expr["data"]:
            raise SchemaError(t.where, f"{what}: 'data' must be a list with "
                              "a value or more")
        seen_c = {"n"}
        for v in expr["data"]:
            features = []
            where = getattr(v, "where", t.where)
            if isinstance(v, Map):
                features = self.features_of(what, v.get("features", []), where)
                v = v.get("name")
            if not isinstance(v, str) or not ENUM_VALUE.match(v):
                raise SchemaError(where, f"{what}: bad value '{v}'")
            if v in [x for x, _ in t.values]:
                raise SchemaError(where, f"{what}: duplicate value '{v}'")
            if snake(v) in seen_c:
                raise SchemaError(where, f"{what}: value '{v}' has the C "
                                  "name of another")
            seen_c.add(snake(v))
            t.values.append((str(v), features))
        t.features = self.features_of(what, expr.get("features", []), t.where)
        self.add_type(prefix, t)

    def define_struct(self, prefix, expr, name, doc):
        t = Type("struct", name, expr.where, doc)
        what = f"struct '{name}'"
        t.own = self.members_of(expr["data"], t.where, what)
        t.base_name = expr.get("base")
        t.features = self.features_of(what, expr.get("features", []), t.where)
        self.add_type(prefix, t)

    def define_union(self, prefix, expr, name, doc):
        t = Type("union", name, expr.where, doc)
        what = f"union '{name}'"
        if isinstance(expr["base"], Map):
            t.own = self.members_of(expr["base"], t.where, what)
        else:
            t.base_name = expr["base"]
        t.tag_name = expr["discriminator"]
        if not isinstance(expr["data"], Map):
            raise SchemaError(t.where, f"{what}: 'data' must be an object")
        t.branch_names = {}
        for key, value in expr["data"].items():
            if key.startswith("*"):
                raise SchemaError(key.where, f"{what}: '{key}' cannot be "
                                  "optional")
            t.branch_names[key] = self.type_ref(value, key.where, what)
        t.features = self.features_of(what, expr.get("features", []), t.where)
        self.add_type(prefix, t)

    def define_alternate(self, prefix, expr, name, doc):
        t = Type("alternate", name, expr.where, doc)
        what = f"alternate '{name}'"
        t.own = self.members_of(expr["data"], t.where, what, False)
        if not t.own:
            raise SchemaError(t.where, f"{what} has no branch")
        t.features = self.features_of(what, expr.get("features", []), t.where)
        self.add_type(prefix, t)

    def implicit(self, prefix, expr, owner, suffix):
        """The type of 'data' of a command or event, or None."""
        data = expr.get("data")
        if data is None:
            return None
        if isinstance(data, str):
            return str(data)
        name = f"{prefix}-{owner.c}-{suffix}"
        t = Type("struct", name, expr.where, owner.doc)
        t.implicit = True
        t.own = self.members_of(data, expr.where, f"'{owner.name}'")
        if not t.own:
            return None
        return self.add_type(prefix, t).name

    def define_command(self, prefix, expr, name, doc):
        c = Command(name, expr.where, doc)
        what = f"command '{name}'"
        if not COMMAND.match(name):
            raise SchemaError(c.where, f"bad command name '{name}'")
        if any(o.c == c.c for o in self.commands):
            raise SchemaError(c.where, f"{what} is defined twice")
        for key in ("async", "query", "builtin", "boxed"):
            if not isinstance(expr.get(key, False), bool):
                raise SchemaError(c.where, f"{what}: '{key}' must be true or "
                                  "false")
        c.arg = self.implicit(prefix, expr, c, "args")
        if "returns" in expr:
            c.ret = self.type_ref(expr["returns"], c.where, what)
        c.is_async = expr.get("async", False)
        c.is_query = expr.get("query", False)
        c.is_builtin = expr.get("builtin", False)
        c.features = self.features_of(what, expr.get("features", []), c.where)
        c.prefix = prefix
        self.commands.append(c)

    def define_event(self, prefix, expr, name, doc):
        v = Event(name, expr.where, doc)
        if not EVENT.match(name):
            raise SchemaError(v.where, f"bad event name '{name}'")
        if any(o.name == name for o in self.events):
            raise SchemaError(v.where, f"event '{name}' is defined twice")
        v.arg = self.implicit(prefix, expr, v, "data")
        v.features = self.features_of(f"event '{name}'",
                                      expr.get("features", []), v.where)
        v.prefix = prefix
        self.events.append(v)

    # -- resolving --------------------------------------------------------

    def lookup(self, ref, where, what):
        if isinstance(ref, list):
            element = self.lookup(ref[0], where, what)
            name = f"[{ref[0]}]"
            if name not in self.types:
                t = Type("list", name, where)
                t.c = element.c + "_list"
                t.element = element
                if element.kind == "builtin":
                    if element.name not in BUILTIN_LISTS:
                        raise SchemaError(where, f"{what}: lists of "
                                          f"'{element.name}' are not "
                                          "supported")
                    t.prefix = ""       # in json/qapi.h
                else:
                    t.prefix = element.prefix
                self.types[name] = t
            return self.types[name]
        if ref not in self.types:
            raise SchemaError(where, f"{what}: unknown type '{ref}'")
        return self.types[ref]

    def resolve(self):
        """Names to types.  Every type of a unit has a list there, used or not,
        so that two units which use lists of a third one's types agree."""
        for t in list(self.types.values()):
            if t.kind != "builtin" and not t.implicit:
                self.lookup([t.name], t.where, "")
        for t in list(self.types.values()):
            self.resolve_type(t)
        for c in self.commands:
            self.resolve_command(c)
        for v in self.events:
            if v.arg is not None:
                v.arg = self.lookup(v.arg, v.where, f"event '{v.name}'")

    def resolve_type(self, t):
        what = f"{t.kind} '{t.name}'"
        for m in t.own:
            m.type = self.lookup(m.type_name, m.where, what)
        if t.base_name is not None:
            t.base = self.lookup(t.base_name, t.where, what)
            if t.base.kind != "struct":
                raise SchemaError(t.where, f"{what}: base '{t.base_name}' is "
                                  "no struct")
        for value, ref in (t.branch_names or {}).items():
            t.branches[value] = self.lookup(ref, value.where, what)

    def resolve_command(self, c):
        what = f"command '{c.name}'"
        if c.arg is not None:
            c.arg = self.lookup(c.arg, c.where, what)
        if c.ret is not None:
            c.ret = self.lookup(c.ret, c.where, what)

    # -- checking ---------------------------------------------------------

    def check(self):
        for t in self.types.values():
            self.check_base_loop(t)
        for t in self.types.values():
            if t.kind in ("struct", "union"):
                self.check_members(t)
            if t.kind == "union":
                self.check_union(t)
            if t.kind == "alternate":
                self.check_alternate(t)
        for t in self.types.values():
            self.check_endless(t)
            if t.doc and not t.implicit:
                self.check_doc(t, t.doc)
        for c in self.commands:
            self.check_command(c)
        for v in self.events:
            self.check_arg(v, f"event '{v.name}'")
            self.check_doc(v, v.doc)

    @staticmethod
    def check_base_loop(t):
        seen, b = [], t
        while b:
            if b in seen:
                raise SchemaError(t.where, f"struct '{t.name}' is its own "
                                  "base")
            seen.append(b)
            b = b.base

    @staticmethod
    def check_members(t):
        names, c_names = {}, {}
        what = "arguments" if t.implicit else f"{t.kind} '{t.name}'"
        for m in t.members():
            if m.name in names:
                raise SchemaError(m.where if m in t.own else t.where,
                                  f"{what}: member '{m.name}' is also in the "
                                  "base")
            names[m.name] = m
            for c in [m.c] + (["has_" + m.c] if m.optional else []):
                if c in c_names:
                    raise SchemaError(m.where, f"{what}: member '{m.name}' "
                                      f"has the C name of '{c_names[c]}'")
                c_names[c] = m.name

    @staticmethod
    def check_union(t):
        what = f"union '{t.name}'"
        t.tag = next((m for m in t.members() if m.name == t.tag_name), None)
        if t.tag is None:
            raise SchemaError(t.where, f"{what}: discriminator "
                              f"'{t.tag_name}' is not in the base")
        if t.tag.type.kind != "enum":
            raise SchemaError(t.where, f"{what}: discriminator "
                              f"'{t.tag_name}' is no enum")
        if t.tag.optional:
            raise SchemaError(t.where, f"{what}: discriminator "
                              f"'{t.tag_name}' cannot be optional")
        if not t.branches:
            raise SchemaError(t.where, f"{what} has no branch")
        values = [v for v, _ in t.tag.type.values]
        base = {m.name for m in t.members()}
        for value, b in t.branches.items():
            if value not in values:
                raise SchemaError(value.where, f"{what}: '{value}' is no "
                                  f"value of '{t.tag.type.name}'")
            if b.kind not in ("struct", "union"):
                raise SchemaError(value.where, f"{what}: branch '{value}' is "
                                  "no struct")
            for m in b.members():
                if m.name in base:
                    raise SchemaError(value.where, f"{what}: member "
                                      f"'{m.name}' of branch '{value}' is "
                                      "also in the base")

    @staticmethod
    def check_alternate(t):
        taken = {}
        for m in t.own:
            kind = m.type.json_kind()
            if kind == "any":
                raise SchemaError(m.where, f"alternate '{t.name}': branch "
                                  f"'{m.name}' cannot be of this type")
            if m.type.kind == "alternate":
                raise SchemaError(m.where, f"alternate '{t.name}': branch "
                                  f"'{m.name}' is an alternate itself")
            kind = "number" if kind == "integer" else kind
            if kind in taken:
                raise SchemaError(m.where, f"alternate '{t.name}': branch "
                                  f"'{m.name}' cannot be told from "
                                  f"'{taken[kind]}'")
            taken[kind] = m.name

    @staticmethod
    def check_endless(t):
        """A mandatory member must not need another value of the type."""
        def needs(x, seen):
            for m in x.members() if x.kind in ("struct", "union") else []:
                if m.optional or m.type.kind not in ("struct", "union"):
                    continue
                if m.type is t:
                    raise SchemaError(t.where, f"{t.kind} '{t.name}' "
                                      "contains itself without an end")
                if m.type not in seen:
                    needs(m.type, seen | {m.type})
        needs(t, frozenset())

    def check_arg(self, owner, what):
        a = owner.arg
        if a and a.kind not in ("struct", "union"):
            raise SchemaError(owner.where, f"{what}: 'data' must be a struct "
                              "or union")

    def check_command(self, c):
        what = f"command '{c.name}'"
        self.check_arg(c, what)
        self.check_doc(c, c.doc)
        if c.is_builtin and (c.is_async or c.arg):
            raise SchemaError(c.where, f"{what}: builtin commands are not "
                              "async and have no arguments")
        if c.ret and self.public and "Returns" not in c.doc.sections:
            raise SchemaError(c.where, f"{what}: what it returns is not "
                              "documented")
        if not c.ret and "Returns" in c.doc.sections:
            raise SchemaError(c.doc.lines_of["Returns"], f"{what} returns "
                              "nothing")

    def check_doc(self, x, doc):
        """Every member, value, branch and feature has a text; no others."""
        kind = x.kind if isinstance(x, Type) else \
            "command" if isinstance(x, Command) else "event"
        what = f"'{x.name}'"
        if not Doc.text(doc.body).strip():
            raise SchemaError(doc.where, f"{what} is not described")
        if isinstance(x, Type):
            names = [v for v, _ in x.values] or [m.name for m in x.own]
        else:
            names = [m.name for m in x.arg.own] \
                if x.arg and x.arg.implicit else []
        self.check_names(x, what, names, doc.members, "member")
        features = list(x.features)
        for _, f in x.values if isinstance(x, Type) else []:
            features += f
        own = x.own if isinstance(x, Type) else \
            x.arg.own if x.arg and x.arg.implicit else []
        for m in own:
            features += m.features
        self.check_names(x, what, list(dict.fromkeys(features)), doc.features,
                         "feature")
        for tag in doc.sections:
            if tag in ("Returns", "Errors") and kind != "command":
                raise SchemaError(doc.lines_of[tag], f"section '{tag}' is "
                                  "for commands only")
        for m in own if self.public else []:
            if m.optional and "default" not in Doc.text(doc.members[m.name]):
                raise SchemaError(doc.lines_of[("member", m.name)],
                                  f"{what}: documentation of optional "
                                  f"'{m.name}' must name its default")

    @staticmethod
    def check_names(x, what, names, documented, kind):
        for n in names:
            if n not in documented:
                raise SchemaError(x.where, f"{kind} '{n}' of {what} is not "
                                  "documented")
            if not Doc.text(documented[n]).strip():
                raise SchemaError(x.doc.lines_of[(kind, n)], f"{kind} '{n}' "
                                  f"of {what} has an empty documentation")
        for n in documented:
            if n not in names:
                raise SchemaError(x.doc.lines_of[(kind, n)], f"{what} has no "
                                  f"{kind} '{n}'")

    # -- for the generators -----------------------------------------------

    def local(self, *kinds):
        """This unit's types of these kinds, in order of definition."""
        return [t for t in self.types.values()
                if t.kind in kinds and t.prefix == self.prefix]

    def local_commands(self):
        return [c for c in self.commands if c.prefix == self.prefix]

    def local_events(self):
        return [v for v in self.events if v.prefix == self.prefix]


__all__ = ["Schema", "SchemaError", "Str", "Doc", "BUILTINS", "snake"]
