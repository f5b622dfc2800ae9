#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Every C file is formatted as .clang-format says.  Exits 77 (skipped)
where clang-format is not installed.
"""

import os
import shutil
import subprocess
import sys

import common


def check(root):
    paths = common.files(root, '.c', '.h')
    config = os.path.join(common.ROOT, '.clang-format')
    found = []
    for path in paths:
        r = subprocess.run(
            ['clang-format', '--dry-run', '--Werror', '--ferror-limit=1',
             f'--style=file:{config}', os.path.join(root, path)],
            capture_output=True, text=True, check=False)
        if r.returncode:
            first = r.stderr.splitlines()[0] if r.stderr else '?'
            line = first.split(':')[1] if first.count(':') > 1 else '1'
            found.append(f'{path}:{line}: not formatted (clang-format -i)')
    return found


GOOD = [{'src/base/a.c': 'int\nf(void)\n{\n\treturn 0;\n}\n'}]
BAD = [
    ({'src/base/a.c': 'int f(void)\n{\n\treturn 0;\n}\n'}, 'not formatted'),
    ({'src/base/a.c': 'int\nf(void)\n{\n  return 0;\n}\n'}, 'not formatted'),
    ({'plugins/x/a.h': 'int f( void );\n'}, 'not formatted'),
]

if __name__ == '__main__':
    if not shutil.which('clang-format'):
        print('clang-format is not installed')
        sys.exit(77)
    common.run(check, GOOD, BAD)
