# SPDX-License-Identifier: BSD-3-Clause
"""The answers to query-qmp-schema and query-commands, as JSON text.

Names of types are not part of the protocol, so they are numbers here, in the
order in which they are met; all integers are "int".
"""

import json

INTEGERS = ("int", "int8", "int16", "int32", "int64", "uint8", "uint16",
            "uint32", "uint64", "size")
JSON_TYPES = {"str": "string", "int": "int", "number": "number",
              "bool": "boolean", "null": "null", "any": "value"}
EMPTY = object()                # the type of a command without arguments


class Introspection:
    def __init__(self, schema):
        self.names, self.queue, self.out = {}, [], []
        for c in schema.local_commands():
            self.add(c.name, "command", {"arg-type": self.use(c.arg or EMPTY),
                                         "ret-type": self.use(c.ret or EMPTY)},
                     c.features)
        for v in schema.local_events():
            self.add(v.name, "event", {"arg-type": self.use(v.arg or EMPTY)},
                     v.features)
        while self.queue:
            self.define(self.queue.pop(0))

    def add(self, name, meta, fields, features=()):
        entry = {"name": name, "meta-type": meta, **fields}
        if features:
            entry["features"] = list(features)
        self.out.append(entry)

    def use(self, t):
        key = t if t is EMPTY else \
            "int" if t.name in INTEGERS else \
            t.name if t.kind == "builtin" else t
        if key not in self.names:
            numbers = sum(1 for k in self.names
                          if k is EMPTY or not isinstance(k, str)
                          and k.kind != "list")
            if isinstance(key, str):
                self.names[key] = key
            elif key is not EMPTY and t.kind == "list":
                self.names[key] = f"[{self.use(t.element)}]"
            else:
                self.names[key] = str(numbers)
            self.queue.append(key)
        return self.names[key]

    def member(self, m):
        out = {"name": m.name, "type": self.use(m.type)}
        if m.optional:
            out["default"] = None
        if m.features:
            out["features"] = list(m.features)
        return out

    def define(self, t):
        name = self.names[t]
        if t is EMPTY:
            self.add(name, "object", {"members": []})
        elif isinstance(t, str):
            self.add(name, "builtin", {"json-type": JSON_TYPES[t]})
        elif t.kind == "list":
            self.add(name, "array", {"element-type": self.use(t.element)})
        elif t.kind == "enum":
            members = [{"name": v, **({"features": f} if f else {})}
                       for v, f in t.values]
            self.add(name, "enum", {"members": members,
                                    "values": [v for v, _ in t.values]},
                     t.features)
        elif t.kind == "alternate":
            self.add(name, "alternate", {"members": [
                {"type": self.use(m.type)} for m in t.own]}, t.features)
        else:
            fields = {"members": [self.member(m) for m in t.members()]}
            if t.kind == "union":
                fields["tag"] = t.tag.name
                fields["variants"] = [
                    {"case": v, "type": self.use(t.branches.get(v, EMPTY))}
                    for v, _ in t.tag.type.values]
            self.add(name, "object", fields, t.features)


def texts(schema):
    return {
        "schema": json.dumps(Introspection(schema).out),
        "commands": json.dumps([{"name": c.name}
                                for c in schema.local_commands()]),
    }
