#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The rules, the ways in which they are deleted, and the tests that notice.

  table.py [--quiet]     print the table; exit 1 when something is missing

A rule is a numbered item (" * 1. ...") in the comment that opens a header of
src/ or plugins/.  Each has at least one mutation, whose name begins with
"HEADER rule N".  What can be seen without building is checked as well: every
mutation applies to the code as it is, and its test exists.

open.txt names the headers (header, tab, reason) whose rules have none yet; it
is printed, so that it is seen.
"""

import argparse
import os
import re
import sys

import mutations
import mutations_daemon
import mutations_qcow2
import mutations_qcow2_core

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
MUTATIONS = (mutations.MUTATIONS + mutations_daemon.MUTATIONS +
             mutations_qcow2.MUTATIONS + mutations_qcow2_core.MUTATIONS)


def headers(root):
    """Headers below src/ and plugins/, as paths from the root."""
    for top in ('src', 'plugins'):
        for folder, _, names in os.walk(os.path.join(root, top)):
            for n in sorted(names):
                if n.endswith('.h'):
                    yield os.path.relpath(os.path.join(folder, n), root)


def rules_of(path):
    """{number: first line} of the comment that opens a header."""
    with open(path, encoding='utf-8') as f:
        head = f.read().split('*/', 1)[0]
    return {int(n): text for n, text in re.findall(
        r'^ \* +(\d+)\. +(.*)$', head, re.M)}


def all_rules(root):
    """[(header, number, first line)]"""
    return [(h, n, text) for h in headers(root)
            for n, text in sorted(rules_of(os.path.join(root, h)).items())]


def parse_name(name):
    """('view.h', 3) of "view.h rule 3, for extents"; None: no rule."""
    m = re.match(r'(\S+\.h) rule (\d+)\b', name)
    return (m.group(1), int(m.group(2))) if m else None


def names_header(short, header):
    return header == short or header.endswith('/' + short)


def test_file(program):
    """Where the tests of a program stand."""
    folder, _, name = program.rpartition('/')
    if not folder:
        return f'tests/unit/test-{name}.c'
    return f'tests/{folder}/test_{name}.py'


def read(root, path):
    try:
        with open(os.path.join(root, path), encoding='utf-8') as f:
            return f.read()
    except FileNotFoundError:
        return None


def fault_of(root, mutation):
    """What is wrong with a mutation, or None."""
    name, path, edits, program, test = mutation
    text = read(root, path)
    if text is None:
        return f'{path} does not exist'
    for old, new in edits:
        if text.count(old) != 1:
            return (f'{path}: this is there {text.count(old)} times, not '
                    f'once: {old!r}')
        text = text.replace(old, new)
    tests = read(root, test_file(program))
    if tests is None:
        return f'{test_file(program)} does not exist'
    if not re.search(r'\b%s\b' % re.escape(test.split('[')[0]), tests):
        return f'{test_file(program)} has no test {test}'
    rule = parse_name(name)
    found = [h for h, n, _ in all_rules(root)
             if rule and names_header(rule[0], h) and n == rule[1]]
    if rule and len(found) != 1:
        return f'{len(found)} headers have such a rule: {found}'
    return None


def of_rule(header, number):
    return [m for m in MUTATIONS if (r := parse_name(m[0])) and
            names_header(r[0], header) and r[1] == number]


def still_open(root):
    """{header: why its rules have no mutations yet}"""
    lines = (read(root, 'tests/mutate/open.txt') or '').splitlines()
    return dict(line.split('\t', 1) for line in lines
                if line and not line.startswith('#'))


def faults_of(root):
    todo = still_open(root)
    missing = [(h, n, text) for h, n, text in all_rules(root)
               if not of_rule(h, n)]
    faults = [f'{m[0]}: {f}' for m in MUTATIONS if (f := fault_of(root, m))]
    faults += [f'{h} rule {n} has no mutation: {text}'
               for h, n, text in missing if h not in todo]
    faults += [f'open.txt: {h} has mutations for all of its rules'
               for h in todo if h not in [m[0] for m in missing]]
    return faults


def show(root):
    for header, number, text in all_rules(root):
        print(f'{header} rule {number}. {text}')
        for m in of_rule(header, number):
            print(f'    {m[1]:34} {m[3]}: {m[4]}')
    print('other mutations')
    for m in MUTATIONS:
        if not parse_name(m[0]):
            print(f'    {m[0]}\n        {m[1]:30} {m[3]}: {m[4]}')


def main():
    args = argparse.ArgumentParser()
    args.add_argument('--quiet', action='store_true', help='no table')
    args.add_argument('root', nargs='?', default=ROOT)
    a = args.parse_args()
    if not a.quiet:
        show(a.root)
    faults = faults_of(a.root)
    for header, why in sorted(still_open(a.root).items()):
        print(f'open: {header}: {why}')
    print(f'{len(all_rules(a.root))} rules, {len(MUTATIONS)} mutations, '
          f'{len(faults)} faults')
    for f in faults:
        print(f, file=sys.stderr)
    return 1 if faults else 0


if __name__ == '__main__':
    sys.exit(main())
