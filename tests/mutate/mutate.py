#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Delete a rule; a named test must fail.

Works in a copy of the tree: applies each mutation of mutations.py by itself,
rebuilds the one test program and runs the one test.  Prints "killed" for a
test that failed, SURVIVED for one that did not, and exits 1 when anything
survived, did not apply or did not compile.

  mutate.py [--jobs N] [--only TEXT] [--keep] [ROOT]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile

from mutations import MUTATIONS

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))

# A test that a mutation makes hang has failed.
LIMIT_S = 12


class Copy:
    """A copy of the tree with a build directory of its own."""

    def __init__(self, root, jobs):
        self.jobs = jobs
        self.top = tempfile.mkdtemp(prefix='stillpoint-mutate-')
        self.tree = os.path.join(self.top, 'tree')
        self.build = os.path.join(self.top, 'build')
        # no old time stamps: a file must look newer than what was built
        shutil.copytree(root, self.tree, copy_function=shutil.copyfile,
                        symlinks=True, ignore=self.leave_out)
        for folder, _, names in os.walk(self.tree):
            for n in names:
                self.same_mode(root, os.path.join(folder, n))

    @staticmethod
    def leave_out(folder, names):
        return [n for n in names if n in ('.git', '__pycache__') or
                os.path.exists(os.path.join(folder, n, 'build.ninja'))]

    def same_mode(self, root, path):
        of = os.path.join(root, os.path.relpath(path, self.tree))
        if os.path.exists(of) and not os.path.islink(path):
            shutil.copymode(of, path)

    def setup(self):
        r = subprocess.run(['meson', 'setup', '--buildtype=debug',
                            '-Dwerror=false', '-Dwarning_level=0', self.build,
                            self.tree], check=False, capture_output=True,
                           text=True)
        if r.returncode:
            sys.exit(f'the tree does not configure:\n{r.stdout[-2000:]}')

    def make(self, programs):
        targets = [f'tests/unit/test-{p}' for p in sorted(set(programs))]
        r = subprocess.run(['ninja', f'-j{self.jobs}', '-C', self.build,
                            *targets], capture_output=True, text=True,
                           check=False)
        return r.returncode == 0, r.stdout

    def run(self, program, test):
        """Does the test pass?  None: there is no such test, or it was
        skipped.
        """
        env = dict(os.environ, UNIT_ONLY=test)
        try:
            r = subprocess.run(
                [os.path.join(self.build, f'tests/unit/test-{program}')],
                env=env, capture_output=True, text=True, check=False,
                timeout=LIMIT_S, errors='replace')
        except subprocess.TimeoutExpired:
            return False
        if r.returncode == 0 and f'[       OK ] {test}' not in \
                r.stdout + r.stderr:
            return None
        return r.returncode == 0

    def apply(self, path, edits):
        """The file's text as it was, or None when an edit does not apply."""
        path = os.path.join(self.tree, path)
        with open(path, encoding='utf-8') as f:
            before = text = f.read()
        for old, new in edits:
            if text.count(old) != 1:
                return None
            text = text.replace(old, new)
        self.write(path, text)
        return before

    def write(self, path, text):
        with open(os.path.join(self.tree, path), 'w', encoding='utf-8') as f:
            f.write(text)


def mutate(copy, mutation):
    """Returns what happened in a word."""
    _, path, edits, program, test = mutation
    before = copy.apply(path, edits)
    if before is None:
        return 'STALE'
    try:
        ok, said = copy.make([program])
        if not ok:
            print(said[-2000:])
            return 'BROKEN'
        return 'SURVIVED' if copy.run(program, test) is not False else 'killed'
    finally:
        copy.write(path, before)


def baseline(copy, mutations):
    """All named tests exist and pass without a mutation; those that are
    skipped here cannot be used.
    """
    ok, said = copy.make([m[3] for m in mutations])
    if not ok:
        sys.exit(f'the tree does not build:\n{said[-3000:]}')
    usable = []
    for m in mutations:
        passed = copy.run(m[3], m[4])
        if passed is None and 'SKIPPED' in run_text(copy, m):
            print(f'skipped   {m[0]}: {m[4]} is skipped on this machine')
            continue
        if not passed:
            sys.exit(f'{m[3]}: {m[4]} does not pass without a mutation')
        usable.append(m)
    return usable


def run_text(copy, m):
    r = subprocess.run([os.path.join(copy.build, f'tests/unit/test-{m[3]}')],
                       env=dict(os.environ, UNIT_ONLY=m[4]), check=False,
                       capture_output=True, text=True, timeout=LIMIT_S)
    return r.stdout + r.stderr


def main():
    args = argparse.ArgumentParser()
    args.add_argument('--jobs', type=int, default=os.cpu_count())
    args.add_argument('--only', default='', help='rules that contain this')
    args.add_argument('--keep', action='store_true', help='keep the copy')
    args.add_argument('root', nargs='?', default=ROOT)
    a = args.parse_args()
    mutations = [m for m in MUTATIONS if a.only in m[0]]
    copy = Copy(a.root, a.jobs)
    bad = 0
    try:
        copy.setup()
        mutations = baseline(copy, mutations)
        for m in mutations:
            what = mutate(copy, m)
            bad += what != 'killed'
            print(f'{what:9} {m[0]}: {m[4]}', flush=True)
    finally:
        if a.keep:
            print(copy.top)
        else:
            shutil.rmtree(copy.top)
    print(f'{len(mutations)} mutations, {bad} not killed')
    return 1 if bad or not mutations else 0


if __name__ == '__main__':
    sys.exit(main())
