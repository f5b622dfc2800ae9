#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Delete a rule; a named test must fail.

Works in a copy of the tree: applies each mutation of mutations*.py by itself,
rebuilds what its test needs and runs the one test.  Prints "killed" for a
test that failed, SURVIVED for one that did not, and exits 1 when anything
survived, did not apply or did not compile.

  mutate.py [--jobs N] [--only REGEX] [--keep] [ROOT]

table.py prints which mutation and which test a rule has.

A test is of a program of tests/unit ("epoch"), or of a file for pytest:
"integration/NAME" runs the whole system, "daemon/NAME" the QMP server.
"""

import argparse
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from table import MUTATIONS, test_file

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))

# A test that a mutation makes hang has failed.
LIMIT_S = 12
LIMIT_SYSTEM_S = 90

SYSTEM = ['src/daemon/stillpointd', 'tests/tools/counter-writer',
          'tests/tools/load-writer',
          'plugins/stillpoint/nbdkit-stillpoint-plugin.so']


PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans():
    """What outlives a test becomes a child of ours."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_orphans():
    """Processes that a mutated program has left behind; each may leave
    others.
    """
    path = f'/proc/self/task/{os.getpid()}/children'
    while True:
        with open(path, encoding='ascii') as f:
            children = [int(word) for word in f.read().split()]
        if not children:
            return
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def targets_of(program):
    """What ninja is to make for a test."""
    if program.startswith('integration/'):
        return SYSTEM
    if program.startswith('daemon/'):
        return ['tests/daemon/stand-in']
    if program.startswith('qcow2/'):
        return [f'tests/tools/{t}'
                for t in ('block-io', 'qcow2-bitmaps', 'qcow2-image')]
    return [f'tests/unit/test-{program}']


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
        targets = sorted({t for p in programs for t in targets_of(p)})
        r = subprocess.run(['ninja', f'-j{self.jobs}', '-C', self.build,
                            *targets], capture_output=True, text=True,
                           check=False)
        return r.returncode == 0, r.stdout

    def command(self, program, test):
        """How one test is run: arguments, environment, seconds, and what a
        run that passed prints.
        """
        if '/' not in program:
            return ([os.path.join(self.build, f'tests/unit/test-{program}')],
                    {'UNIT_ONLY': test}, LIMIT_S, f'[       OK ] {test}')
        return (['/usr/bin/python3', '-m', 'pytest', '-q', '--tb=no',
                 '-p', 'no:cacheprovider', '-rs',
                 os.path.join(self.tree, test_file(program)) + '::' + test],
                {'STILLPOINT_BUILD': self.build,
                 'STAND_IN': os.path.join(self.build,
                                          'tests/daemon/stand-in'),
                 'PYTHONDONTWRITEBYTECODE': '1'},
                LIMIT_SYSTEM_S, '1 passed')

    def run(self, program, test):
        """'passed', 'failed', 'skipped' or 'absent'."""
        argv, more, limit, ok = self.command(program, test)
        # a file and not a pipe: nobody waits for who inherits it
        with tempfile.TemporaryFile() as out:
            p = subprocess.Popen(argv, env=dict(os.environ, **more),
                                 stdin=subprocess.DEVNULL, stdout=out,
                                 stderr=subprocess.STDOUT,
                                 start_new_session=True)
            try:
                p.wait(limit)
                in_time = True
            except subprocess.TimeoutExpired:
                in_time = False
                p.terminate()
                self.wait_or_kill(p)
            end_orphans()
            out.seek(0)
            said = out.read().decode(errors='replace')
        if not in_time:
            return 'failed'
        if ok in said and p.returncode == 0:
            return 'passed'
        if 'SKIPPED' in said or '1 skipped' in said:
            return 'skipped'
        absent = p.returncode in (4, 5) if '/' in program \
            else p.returncode == 0
        return 'absent' if absent else 'failed'

    @staticmethod
    def wait_or_kill(p):
        try:
            p.wait(20)
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()

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
        return 'killed' if copy.run(program, test) == 'failed' else 'SURVIVED'
    finally:
        copy.write(path, before)


def run_alone(copy, program, test):
    """Without a mutation.  One failure on a busy machine does not end it."""
    what = copy.run(program, test)
    if what == 'failed':
        print(f'again     {program}: {test}', flush=True)
        what = copy.run(program, test)
    return what


def baseline(copy, mutations):
    """All named tests exist and pass without a mutation; those that are
    skipped here cannot be used.
    """
    ok, said = copy.make([m[3] for m in mutations])
    if not ok:
        sys.exit(f'the tree does not build:\n{said[-3000:]}')
    usable, result = [], {}
    for m in mutations:
        if m[3:] not in result:
            result[m[3:]] = run_alone(copy, m[3], m[4])
        if result[m[3:]] == 'skipped':
            print(f'skipped   {m[0]}: {m[4]} is skipped on this machine')
        elif result[m[3:]] == 'passed':
            usable.append(m)
        else:
            sys.exit(f'{m[3]}: {m[4]} without a mutation: {result[m[3:]]}')
    return usable


def main():
    args = argparse.ArgumentParser()
    args.add_argument('--jobs', type=int, default=os.cpu_count())
    args.add_argument('--only', default='', help='names that this expression matches')
    args.add_argument('--keep', action='store_true', help='keep the copy')
    args.add_argument('root', nargs='?', default=ROOT)
    a = args.parse_args()
    mutations = [m for m in MUTATIONS if re.search(a.only, m[0])]
    adopt_orphans()
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
