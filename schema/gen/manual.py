# SPDX-License-Identifier: BSD-3-Clause
"""PREFIX-reference.md: the manual, from the documentation comments."""

import re

from parser import Doc

TITLES = {"enum": "Enumeration", "struct": "Object", "union": "Object",
          "alternate": "Alternate"}


def anchor(name):
    return name.lower()


def type_text(t):
    if t.kind == "builtin":
        return f"`{t.name}`"
    if t.kind == "list":
        return "list of " + type_text(t.element)
    return f"[{t.name}](#{anchor(t.name)})"


def para(lines, first=True):
    """Documentation lines to Markdown.  Lines that continue are indented, but
    for the first one unless not @first; lists keep what is beyond that."""
    rows = Doc.text(lines).split("\n")
    rest = [r for r in rows[1 if first else 0:] if r.strip()]
    indent = min((len(r) - len(r.lstrip()) for r in rest), default=0)
    if first:
        rows = [rows[0].strip()] + [r[indent:] for r in rows[1:]]
    else:
        rows = [r[indent:] for r in rows]
    return re.sub(r"@([A-Za-z][\w-]*)", r"`\1`", "\n".join(rows))


def member_rows(members, doc):
    for m in members:
        kind = ", optional" if m.optional else ""
        text = para(doc.members[m.name]).replace("\n", "\n  ")
        yield f"- `{m.name}` ({type_text(m.type)}{kind}): {text}"
        for f in m.features:
            yield f"  Feature `{f}`."


def object_rows(t):
    """All members of an object, its base's first, and where more are."""
    if t.base:
        yield from object_rows(t.base)
    yield from member_rows(t.own, t.doc)
    for value, b in t.branches.items():
        yield f"- when `{t.tag.name}` is `{value}`: the members of " + \
            type_text(b)


def features(x):
    for name, lines in x.doc.features.items():
        yield f"- Feature `{name}`: {para(lines)}"


def section(doc, tag, title=None):
    if tag not in doc.sections:
        return
    yield ""
    if doc.sections[tag][0].lstrip().startswith("- "):
        yield f"**{title or tag}:**"
        yield ""
        yield para(doc.sections[tag], first=False)
    else:
        yield f"**{title or tag}:** " + para(doc.sections[tag])


def arguments(x, title):
    if not x.arg:
        yield f"No {title.lower()}."
    elif x.arg.implicit:
        yield f"**{title}:**"
        yield ""
        yield from member_rows(x.arg.own, x.doc)
    else:
        yield f"**{title}** ({type_text(x.arg)}):"
        yield ""
        yield from object_rows(x.arg)


def command_text(c):
    yield f"### {c.name}"
    yield ""
    yield para(c.doc.body)
    yield ""
    yield from arguments(c, "Arguments")
    if c.doc.features:
        yield ""
    yield from features(c)
    if c.ret:
        yield ""
        yield f"**Returns** {type_text(c.ret)}: " + \
            para(c.doc.sections["Returns"])
    yield from section(c.doc, "Errors")
    yield from section(c.doc, "Differs", "Differs from QEMU")
    yield ""


def event_text(v):
    yield f"### {v.name}"
    yield ""
    yield para(v.doc.body)
    yield ""
    yield from arguments(v, "Data")
    yield from section(v.doc, "Differs", "Differs from QEMU")
    yield ""


def type_section(t):
    yield f"### {t.name}"
    yield ""
    yield f"{TITLES[t.kind]}. {para(t.doc.body)}"
    yield ""
    if t.kind == "enum":
        for v, _ in t.values:
            yield f"- `{v}`: " + para(t.doc.members[v]).replace("\n", "\n  ")
    else:
        yield from object_rows(t)
    if t.doc.features:
        yield ""
    yield from features(t)
    yield from section(t.doc, "Differs", "Differs from QEMU")
    yield ""


def differences(schema, everything):
    yield "## Where Stillpoint differs from QEMU"
    yield ""
    for x in everything:
        if "Differs" in x.doc.sections:
            text = para(x.doc.sections["Differs"]).replace("\n", "\n  ")
            yield f"- [{x.name}](#{anchor(x.name)}): {text}"
    yield ""


NO_EFFECT = re.compile(r"\bwithout effect: (.*)", re.DOTALL)


def without_effect(types):
    """Members that are taken and change nothing; their text says why."""
    yield "## Accepted without effect"
    yield ""
    yield "So that what works against QEMU works here; nothing depends on " \
        "them."
    yield ""
    for t in types:
        for m in getattr(t, "own", ()):
            found = NO_EFFECT.search(para(t.doc.members[m.name]))
            if found:
                why = " ".join(found.group(1).split())
                yield f"- `{m.name}` of [{t.name}](#{anchor(t.name)}): {why}"
    yield ""


def text(schema):
    types = [t for t in schema.local("enum", "struct", "union", "alternate")
             if not t.implicit]
    types.sort(key=lambda t: t.name.lower())
    commands = sorted(schema.local_commands(), key=lambda c: c.name)
    events = sorted(schema.local_events(), key=lambda v: v.name)
    lines = ["# QMP reference", "",
             "Every command, event and type that stillpointd offers to "
             "clients. Generated from the schema.", ""]
    lines += differences(schema, commands + events + types)
    lines += without_effect([c.arg for c in commands if c.arg and
                             c.arg.implicit] + types)
    lines += ["## Commands", ""]
    for c in commands:
        lines += command_text(c)
    lines += ["## Events", ""]
    for v in events:
        lines += event_text(v)
    lines += ["## Types", ""]
    for t in types:
        lines += type_section(t)
    return "\n".join(lines)
