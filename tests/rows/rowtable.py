# SPDX-License-Identifier: BSD-3-Clause
"""The table of what QEMU's clients expect, and which test shows it.

tests/rows/AREA.txt   one line for each row: id, a tab, what holds
tests/rows/open.txt   rows that have no test: id, a tab, why
a test                says @pytest.mark.rows("id", ...)

Marks are read from the tests' text; no test is imported.
"""
import ast
import glob
import os
import re

OPEN = 'open.txt'
ID = re.compile(r'(error|event|[a-z]+)\.[A-Za-z0-9_.-]+$')
TESTS = ('tests/integration', 'tests/daemon')


class Row:
    def __init__(self, area, id, text):
        self.area, self.id, self.text = area, id, text
        self.tests = []         # "test_file.py::test_name", sorted
        self.open = None        # why it has no test


def lines(path):
    """(number, id, text) of each line that is not empty and no comment; text
    is None where there is no tab."""
    with open(path, encoding='utf-8') as f:
        for number, line in enumerate(f, 1):
            line = line.rstrip('\n')
            if line and not line.startswith('#'):
                id, tab, text = line.partition('\t')
                yield number, id, text.strip() if tab else None


def is_rows_mark(node):
    return (isinstance(node, ast.Call) and
            isinstance(node.func, ast.Attribute) and node.func.attr == 'rows'
            and isinstance(node.func.value, ast.Attribute) and
            node.func.value.attr == 'mark')


def marks(text):
    """(line, id or None, name of the test or None) for each argument of each
    mark; None for an id that is not written as a string, and for a mark that
    belongs to more than one test."""
    tree = ast.parse(text)
    owner = {}
    for f in ast.walk(tree):
        if isinstance(f, (ast.FunctionDef, ast.ClassDef)):
            for decorator in f.decorator_list:
                for node in ast.walk(decorator):
                    owner[node] = f.name
    for node in ast.walk(tree):
        if not is_rows_mark(node):
            continue
        if not node.args or node.keywords:
            yield node.lineno, None, owner.get(node)
        for a in node.args:
            known = isinstance(a, ast.Constant) and isinstance(a.value, str)
            yield a.lineno, a.value if known else None, owner.get(node)


def load(root):
    """({id: Row}, findings) of the tree at @root."""
    rows, found = load_areas(root)
    for top in TESTS:
        for path in sorted(glob.glob(os.path.join(root, top, '*.py'))):
            read_marks(root, path, rows, found)
    path = os.path.join(root, 'tests', 'rows', OPEN)
    if os.path.exists(path):
        read_open(root, path, rows, found)
    return rows, found


def load_areas(root):
    """The same without tests."""
    rows, found = {}, []
    for path in sorted(glob.glob(os.path.join(root, 'tests', 'rows',
                                              '*.txt'))):
        if os.path.basename(path) != OPEN:
            read_area(root, path, rows, found)
    return rows, found


def read_area(root, path, rows, found):
    area = os.path.basename(path)[:-len('.txt')]
    for number, id, text in lines(path):
        where = '%s:%d' % (os.path.relpath(path, root), number)
        if not ID.match(id) or not text:
            found.append('%s: a row is an id, a tab and a text' % where)
        elif id in rows:
            found.append("%s: row '%s' is there twice" % (where, id))
        else:
            rows[id] = Row(area, id, text)


def read_marks(root, path, rows, found):
    with open(path, encoding='utf-8') as f:
        text = f.read()
    for number, id, test in marks(text):
        where = '%s:%d' % (os.path.relpath(path, root), number)
        if id is None:
            found.append('%s: rows are written as strings' % where)
        elif id not in rows:
            found.append("%s: there is no row '%s'" % (where, id))
        else:
            name = os.path.basename(path) + ('::' + test if test else '')
            if name not in rows[id].tests:
                rows[id].tests.append(name)


def read_open(root, path, rows, found):
    for number, id, text in lines(path):
        where = '%s:%d' % (os.path.relpath(path, root), number)
        if not text:
            found.append('%s: an open row is an id, a tab and the reason'
                         % where)
        elif id not in rows:
            found.append("%s: there is no row '%s'" % (where, id))
        elif rows[id].open:
            found.append("%s: row '%s' is there twice" % (where, id))
        else:
            rows[id].open = text
