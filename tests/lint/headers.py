#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Every header compiles alone, and twice in one file.

BUILD in the environment is a build directory with the generated headers
(schema/...); headers that include them are left out without it.
"""

import concurrent.futures
import os
import re
import subprocess

import common

FLAGS = ['-std=gnu17', '-fsyntax-only', '-Wall', '-Wextra', '-Werror',
         '-Wstrict-prototypes', '-D_GNU_SOURCE', '-D_FILE_OFFSET_BITS=64',
         '-DSTILLPOINT_VERSION="0"', '-x', 'c', '-']
GENERATED = re.compile(r'#include "schema/')
# cmocka is where the tests are
BELOW = ('src', 'plugins', 'tests/unit')


def compile_twice(root, path, build):
    text = f'#include "{path}"\n#include "{path}"\n'
    folders = [root, os.path.join(root, 'src'),
               os.path.dirname(os.path.join(root, path))]
    if build:
        folders += [build, os.path.join(build, 'tests/unit')]
    r = subprocess.run(
        [os.environ.get('CC', 'cc').split()[0],
         *[f'-I{f}' for f in folders], *FLAGS],
        input=text, capture_output=True, text=True, check=False)
    if r.returncode == 0:
        return []
    lines = [x for x in r.stderr.splitlines() if 'error' in x]
    return [f'{path}:1: does not compile alone: {(lines or ["?"])[0]}']


def uses_generated(root, path, seen):
    """Does it include a generated header, itself or through another?"""
    text = common.text_of(root, path)
    if GENERATED.search(text):
        return True
    for name in re.findall(r'#include "([^"]+)"', text):
        for base in ('src', os.path.dirname(path)):
            p = os.path.join(base, name)
            if p not in seen and os.path.exists(os.path.join(root, p)):
                seen.add(p)
                if uses_generated(root, p, seen):
                    return True
    return False


def check(root):
    build = os.environ.get('BUILD')
    paths = [p for p in common.files(root, '.h', below=BELOW)
             if build or not uses_generated(root, p, set())]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda p: compile_twice(root, p, build), paths)
        return [f for r in results for f in r]


GOOD = [
    {'src/base/a.h': '#ifndef A_H\n#define A_H\nstruct a { int x; };\n'
                     '#endif\n'},
    {'src/base/a.h': '#ifndef A_H\n#define A_H\n#include <stdint.h>\n'
                     '#include "base/b.h"\n'
                     'static inline uint8_t f(struct b b) { return b.x; }\n'
                     '#endif\n',
     'src/base/b.h': '#ifndef B_H\n#define B_H\n#include <stdint.h>\n'
                     'struct b { uint8_t x; };\n#endif\n'},
]
BAD = [
    ({'src/base/a.h': 'struct a { int x; };\n'}, 'redefinition'),
    ({'src/base/a.h': '#ifndef A_H\n#define A_H\nuint64_t f(void);\n#endif\n'},
     'uint64_t'),
    ({'src/base/a.h': '#ifndef A_H\n#define A_H\nvoid f();\n#endif\n'},
     'prototype'),
]

if __name__ == '__main__':
    common.run(check, GOOD, BAD)
