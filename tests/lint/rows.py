#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Every row of tests/rows has a test, or stands in tests/rows/open.txt with
the reason why it has none; every mark names a row.  Open rows are printed, so
that they are seen.
"""

import os
import sys

import common

sys.path.insert(0, os.path.join(os.path.dirname(common.HERE), 'rows'))
import rowtable  # noqa: E402


def check(root):
    rows, found = rowtable.load(root)
    for r in rows.values():
        if r.tests and r.open:
            found.append(f"tests/rows/open.txt: row '{r.id}' has a test: "
                         f'{r.tests[0]}')
        elif not r.tests and not r.open:
            found.append(f"tests/rows/{r.area}.txt: row '{r.id}' has no test")
    return found


def print_open(root):
    rows = [r for r in rowtable.load(root)[0].values() if r.open]
    for r in rows:
        print(f'open: {r.area:<12} {r.id:<34} {r.open}')
    print(f'{len(rows)} open rows')


TABLE = {'tests/rows/a.txt': '# comment\na.one\tone\na.two\ttwo\n'}
ONE = ('import pytest\n\n\n@pytest.mark.rows("a.one")\n'
       'def test_one():\n    pass\n')
OPEN = {'tests/rows/open.txt': 'a.two\tnot built yet\n'}


def tree(test, *more, **other):
    out = {'tests/integration/test_x.py': test}
    for m in more + (other,):
        out.update(m)
    return out


GOOD = [
    tree(ONE, TABLE, OPEN),
    tree(ONE + '\n\npytestmark = pytest.mark.rows("a.two")\n', TABLE),
    tree(ONE + '\n\nBAD = [pytest.param(1, '
         'marks=pytest.mark.rows("a.two"))]\n', TABLE),
    tree(ONE.replace('"a.one"', '"a.one", "a.two"'), TABLE),
]
BAD = [
    (tree(ONE, TABLE), "row 'a.two' has no test"),
    (tree(ONE.replace('a.one', 'a.three'), TABLE, OPEN),
     "test_x.py:4: there is no row 'a.three'"),
    (tree(ONE, {'tests/rows/a.txt': 'a.one\tx\na.one\ty\n'}),
     "a.txt:2: row 'a.one' is there twice"),
    (tree(ONE, {'tests/rows/a.txt': 'a.one\tx\n',
                'tests/rows/b.txt': 'a.one\ty\n'}),
     "b.txt:1: row 'a.one' is there twice"),
    (tree(ONE, {'tests/rows/a.txt': 'a.one no tab\n'}), 'a.txt:1: a row is'),
    (tree(ONE, {'tests/rows/a.txt': 'one\tx\n'}), 'a.txt:1: a row is'),
    (tree(ONE, TABLE, {'tests/rows/open.txt':
                       'a.one\tno\na.two\tno\n'}),
     "row 'a.one' has a test: test_x.py::test_one"),
    (tree(ONE, TABLE, {'tests/rows/open.txt': 'a.two\t\n'}),
     'open.txt:1: an open row is'),
    (tree(ONE, TABLE, {'tests/rows/open.txt': 'a.ten\tx\n'}),
     "open.txt:1: there is no row 'a.ten'"),
    (tree(ONE.replace('"a.one"', 'name'), TABLE, OPEN),
     'test_x.py:4: rows are written as strings'),
    (tree(ONE.replace('"a.one"', ''), TABLE, OPEN),
     'test_x.py:4: rows are written as strings'),
]

if __name__ == '__main__':
    if sys.argv[1:] != ['--self-test']:
        print_open(sys.argv[1] if len(sys.argv) > 1 else common.ROOT)
    common.run(check, GOOD, BAD)
