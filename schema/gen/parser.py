# SPDX-License-Identifier: BSD-3-Clause
"""Text of a schema file to expressions, each with its documentation.

The language is QEMU's QAPI: JSON-like values with single-quoted strings,
'#' comments, and a '##' documentation block in front of every definition.
Nothing here knows what the definitions mean; see model.py for that.
"""

import os
import re

SECTIONS = ("Features", "Returns", "Errors", "Differs", "Since")
TOKEN = re.compile(r"[ \t\r]*(?:(?P<nl>\n)|(?P<doc>##[^\n]*)|(?P<com>#[^\n]*)"
                   r"|(?P<str>'[^'\n]*')|(?P<op>[{}\[\]:,])"
                   r"|(?P<word>[a-zA-Z0-9]+)|(?P<end>$))")


class SchemaError(Exception):
    """What is wrong, and where; its text is "file:line: message"."""

    def __init__(self, where, message):
        super().__init__(f"{where[0]}:{where[1]}: {message}")


class Str(str):
    """A string of the schema that remembers where it stands."""

    where = ("", 0)


class Map(dict):
    """An object of the schema that remembers where it stands."""

    where = ("", 0)


class Doc:
    """A documentation block: body, members and tagged sections."""

    def __init__(self, where, name):
        self.where = where
        self.name = name
        self.body = []          # lines
        self.members = {}       # name -> lines
        self.features = {}
        self.sections = {}      # tag -> lines
        self.lines_of = {}      # ("member", name) or tag -> line number

    @staticmethod
    def text(lines):
        """Lines to paragraphs without blank ends."""
        return "\n".join(lines).strip("\n")


class DocParser:
    """Collects the lines between two '##'."""

    def __init__(self, file, line):
        self.file, self.start = file, line
        self.doc = None
        self.target = None      # the list of lines that text goes to
        self.in_features = False

    def feed(self, line, raw):
        where = (self.file, line)
        if not raw.startswith("#"):
            raise SchemaError(where, "documentation block is not closed")
        if raw not in ("#",) and not raw.startswith("# "):
            raise SchemaError(where, "documentation needs a blank behind '#'")
        text = raw[2:].rstrip()
        if self.doc is None:
            self.first(where, text)
        elif self.doc.name is None:
            self.target.append(text)
        elif text.startswith("@"):
            self.member(where, text)
        elif re.match(r"[A-Z][a-z]+:( |$)", text) and \
                text.split(":")[0] in SECTIONS:
            self.section(where, text)
        else:
            self.target.append(text)

    def first(self, where, text):
        if not text:
            return
        if text.startswith("= "):       # a heading, for readers only
            self.doc, self.target = Doc(where, None), []
            return
        m = re.fullmatch(r"@([A-Za-z0-9_.-]+):\s*(.*)", text)
        if not m:
            raise SchemaError(where, "documentation must begin with '@NAME:'")
        self.doc = Doc(where, m[1])
        self.target = self.doc.body
        if m[2]:
            self.target.append(m[2])

    def member(self, where, text):
        m = re.fullmatch(r"@([A-Za-z0-9_.-]+):\s*(.*)", text)
        if not m:
            raise SchemaError(where, "bad line in documentation, expected "
                              "'@NAME: text'")
        table = self.doc.features if self.in_features else self.doc.members
        kind = "feature" if self.in_features else "member"
        if m[1] in table:
            raise SchemaError(where, f"{kind} '{m[1]}' is documented twice")
        self.target = table[m[1]] = [m[2]] if m[2] else []
        self.doc.lines_of[(kind, m[1])] = where

    def section(self, where, text):
        tag, rest = text.split(":", 1)
        if tag in self.doc.sections:
            raise SchemaError(where, f"section '{tag}' appears twice")
        self.in_features = tag == "Features"
        self.target = self.doc.sections[tag] = []
        self.doc.lines_of[tag] = where
        if rest.strip():
            self.target.append(rest.strip())

    def finish(self):
        if self.doc is None:
            raise SchemaError((self.file, self.start),
                              "documentation block is empty")
        for tag, lines in self.doc.sections.items():
            if tag != "Features" and not Doc.text(lines).strip():
                raise SchemaError(self.doc.lines_of[tag],
                                  f"section '{tag}' is empty")
        return self.doc


class Lexer:
    def __init__(self, file, text):
        self.file, self.text = file, text
        self.pos, self.line = 0, 1
        self.doc = None         # the last documentation block not yet used

    def where(self):
        return (self.file, self.line)

    def read_doc(self):
        parser = DocParser(self.file, self.line)
        while True:
            end = self.text.find("\n", self.pos)
            if end < 0:
                raise SchemaError((self.file, parser.start),
                                  "documentation block is not closed")
            raw, self.pos = self.text[self.pos:end], end + 1
            self.line += 1
            if raw.startswith("##"):
                return parser.finish()
            if parser.start != self.line - 1 or raw:
                parser.feed(self.line - 1, raw)

    def token(self):
        """(kind, value) of the next token; kind "end" at the end."""
        while True:
            m = TOKEN.match(self.text, self.pos)
            if not m:
                ch = self.text[self.pos:].lstrip(" \t\r")[:1]
                if ch == "'":
                    raise SchemaError(self.where(), "string is not closed")
                raise SchemaError(self.where(), f"unexpected '{ch}'")
            self.pos = m.end()
            kind = m.lastgroup
            if kind == "nl":
                self.line += 1
            elif kind == "doc":
                if self.doc:
                    raise SchemaError(self.doc.where, "documentation of "
                                      f"'{self.doc.name}' has no definition")
                self.skip_line()
                doc = self.read_doc()
                self.doc = doc if doc.name else None
            elif kind != "com":
                return kind, m[kind]

    def skip_line(self):
        if self.text[self.pos:self.pos + 1] == "\n":
            self.pos += 1
            self.line += 1


class Parser:
    """One file to a list of (expression, doc)."""

    def __init__(self, file):
        self.file = file
        try:
            with open(file, encoding="utf-8") as f:
                self.lex = Lexer(file, f.read())
        except OSError as e:
            raise SchemaError((file, 0), f"cannot read: {e.strerror}") from e

    def expressions(self):
        out = []
        while True:
            kind, value = self.lex.token()
            if kind == "end":
                break
            if value != "{":
                raise SchemaError(self.lex.where(), "expected '{'")
            doc, self.lex.doc = self.lex.doc, None
            out.append((self.map(), doc))
        if self.lex.doc:
            raise SchemaError(self.lex.doc.where, "documentation of "
                              f"'{self.lex.doc.name}' has no definition")
        return out

    def value(self, kind, value):
        if kind == "str":
            s = Str(value[1:-1])
            s.where = self.lex.where()
            return s
        if value == "{":
            return self.map()
        if value == "[":
            return self.list()
        if kind == "word" and value in ("true", "false"):
            return value == "true"
        shown = value if kind != "end" else "end of file"
        raise SchemaError(self.lex.where(), f"unexpected '{shown}'")

    def map(self):
        out = Map()
        out.where = self.lex.where()
        kind, value = self.lex.token()
        while value != "}" or kind != "op":
            if kind != "str":
                raise SchemaError(self.lex.where(), "expected a string")
            key, where = value[1:-1], self.lex.where()
            if key in out:
                raise SchemaError(where, f"duplicate key '{key}'")
            kind, value = self.lex.token()
            if value != ":":
                raise SchemaError(self.lex.where(), "expected ':'")
            s = Str(key)
            s.where = where
            out[s] = self.value(*self.lex.token())
            kind, value = self.lex.token()
            if value == ",":
                kind, value = self.lex.token()
                if value == "}":
                    raise SchemaError(self.lex.where(), "expected a string")
            elif value != "}":
                raise SchemaError(self.lex.where(), "expected ',' or '}'")
        return out

    def list(self):
        out = []
        kind, value = self.lex.token()
        while value != "]" or kind != "op":
            out.append(self.value(kind, value))
            kind, value = self.lex.token()
            if value == ",":
                kind, value = self.lex.token()
                if value == "]":
                    raise SchemaError(self.lex.where(), "unexpected ']'")
            elif value != "]":
                raise SchemaError(self.lex.where(), "expected ',' or ']'")
        return out


def include_path(file, name):
    return os.path.normpath(os.path.join(os.path.dirname(file), name))
