# SPDX-License-Identifier: BSD-3-Clause
"""What the lints have in common: the tree, its files, how results are told.

A lint is a program: `lint.py [ROOT]` checks the tree, prints one line
"file:line: what is wrong" for each finding and exits 1 when there is one;
`lint.py --self-test` runs itself on good and bad examples and exits 1 unless
every bad one is found and no good one is.
"""

import os
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
OURS = ('src', 'plugins', 'tests')


def files(root, *endings, below=OURS):
    """Paths relative to @root, sorted, of files with one of @endings."""
    found = []
    for top in below:
        for folder, folders, names in os.walk(os.path.join(root, top)):
            folders[:] = sorted(f for f in folders if not f.startswith('.'))
            found += [os.path.relpath(os.path.join(folder, n), root)
                      for n in names if n.endswith(endings)]
    return sorted(found)


def text_of(root, path):
    with open(os.path.join(root, path), encoding='utf-8') as f:
        return f.read()


def without_comments(text):
    """The same text with comments and the inside of strings blanked; line
    numbers stay.
    """
    out = []
    i, n = 0, len(text)
    while i < n:
        c = text[i]
        if text.startswith('/*', i):
            end = text.find('*/', i + 2)
            end = n if end < 0 else end + 2
            out.append(''.join('\n' if x == '\n' else ' '
                               for x in text[i:end]))
            i = end
        elif text.startswith('//', i):
            end = text.find('\n', i)
            end = n if end < 0 else end
            out.append(' ' * (end - i))
            i = end
        elif c in '"\'':
            end = i + 1
            while end < n and text[end] != c and text[end] != '\n':
                end += 2 if text[end] == '\\' else 1
            end = min(end + 1, n)
            out.append(c + ' ' * (end - i - 2) + c if end - i >= 2 else c)
            i = end
        else:
            out.append(c)
            i += 1
    return ''.join(out)


def run(check, good, bad):
    """The main program of a lint.  @check(root) returns findings.  @good and
    @bad are lists of trees: {path: text}; each bad one goes with a piece of
    the finding that it must cause.
    """
    if sys.argv[1:] == ['--self-test']:
        sys.exit(self_test(check, good, bad))
    findings = check(sys.argv[1] if len(sys.argv) > 1 else ROOT)
    for f in findings:
        print(f)
    print(f'{len(findings)} findings')
    sys.exit(1 if findings else 0)


def in_tree(check, tree):
    with tempfile.TemporaryDirectory(prefix='stillpoint-lint-') as root:
        for path, text in tree.items():
            path = os.path.join(root, path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, 'w', encoding='utf-8') as f:
                f.write(text)
        return check(root)


def self_test(check, good, bad):
    wrong = 0
    for tree in good:
        for f in in_tree(check, tree):
            print(f'found in a good example: {f}')
            wrong += 1
    for tree, want in bad:
        found = in_tree(check, tree)
        if not any(want in f for f in found):
            print(f"not found: '{want}' in {sorted(tree)}; but: {found}")
            wrong += 1
    print(f'{len(good)} good and {len(bad)} bad examples, {wrong} wrong')
    return 1 if wrong else 0
