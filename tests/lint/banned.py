#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Names and calls that we do not use.

* Definitions of ours do not begin with a library's prefix (nbd_, nbdkit_,
  ev_, yajl_) and no type of ours ends in _t.
* Nothing but main.c and base/mem.c ends the process; a child after fork()
  may (_exit).
* No header offers a variable that anybody can change.
* Every file begins with its licence.
"""

import re

import common

PREFIX = re.compile(r'^(?:static )?(?:[a-z_][\w ]*[ *]+)?'
                    r'((?:nbd|nbdkit|ev|yajl)_\w+)\([^;{]*\)\s*\n?\{', re.M)
TEST = re.compile(r'\(void \*\*\w+\)')
TAG = re.compile(r'^(?:struct|enum|union) ((?:nbd|nbdkit|ev|yajl)_\w+) \{',
                 re.M)
TYPEDEF_T = re.compile(r'\btypedef\b[^;]*\b(\w+_t);')
TYPEDEF_STRUCT = re.compile(r'\btypedef (?:struct|union|enum)\b')
ENDS = re.compile(r'(?<![\w.>])(exit|abort|quick_exit)\(')
MAY_END = ('/main.c', 'src/base/mem.c')
EXTERN = re.compile(r'^extern (?!const\b)[^();]*?(\w+)(?:\[\])?;', re.M)
# The hook of base/park.h is atomic and is for tests; no other exception.
EXTERN_OK = {'src/base/park.h': {'park_hook'}}
LICENCE = 'SPDX-License-Identifier: BSD-3-Clause'


def line_of(text, at):
    return text.count('\n', 0, at) + 1


def check_names(path, code):
    for pattern in (PREFIX, TAG):
        for m in pattern.finditer(code):
            if TEST.search(m.group()):
                continue  # a sentence may begin with a program's name
            yield (f'{path}:{line_of(code, m.start(1))}: {m.group(1)} begins '
                   'with the prefix of a library')
    for m in TYPEDEF_T.finditer(code):
        yield f'{path}:{line_of(code, m.start())}: {m.group(1)} ends in _t'
    for m in TYPEDEF_STRUCT.finditer(code):
        yield f'{path}:{line_of(code, m.start())}: a typedef of a structure'


def check_calls(path, code):
    if path.endswith(MAY_END) or not path.startswith(('src', 'plugins')):
        return
    for m in ENDS.finditer(code):
        yield f'{path}:{line_of(code, m.start())}: {m.group(1)}() is called'


def check_externs(path, code):
    for m in EXTERN.finditer(code):
        if m.group(1) not in EXTERN_OK.get(path, ()):
            yield (f'{path}:{line_of(code, m.start())}: {m.group(1)} can be '
                   'changed by anybody')


def check(root):
    found = []
    for path in common.files(root, '.c', '.h'):
        text = common.text_of(root, path)
        code = common.without_comments(text)
        if text and LICENCE not in text[:200]:
            found.append(f'{path}:1: no licence')
        found += check_names(path, code)
        found += check_calls(path, code)
        if path.endswith('.h'):
            found += check_externs(path, code)
    for path in common.files(root, '.py'):
        if text_is_unlicensed(common.text_of(root, path)):
            found.append(f'{path}:1: no licence')
    return found


def text_is_unlicensed(text):
    return bool(text) and LICENCE not in text[:300]


L = '/* ' + LICENCE + ' */\n'
GOOD = [
    {'src/block/a.c': L + 'int\nfile_open(void)\n{\n\tnbd_connect(h);\n}\n'},
    {'src/daemon/main.c': L + 'int\nmain(void)\n{\n\texit(1);\n}\n'},
    {'src/base/mem.c': L + 'void\nf(void)\n{\n\tabort();\n}\n'},
    {'src/daemon/spawn.c': L + 'void\nf(void)\n{\n\t_exit(1);\n}\n'},
    {'src/base/a.c': L + '/* do not exit() */\nchar *s = "abort()";\n'},
    {'src/base/a.h': L + 'extern const char names[];\nint f(void);\n'},
    {'src/base/park.h': L + 'extern park_fn *_Atomic park_hook;\n'},
    {'tests/unit/a.c': L + 'void\nf(void)\n{\n\tabort();\n}\n'},
    {'tests/unit/a.c': L + 'static void\nnbdkit_dies(void **s)\n{\n}\n'},
    {'src/base/a.h': L + 'void job_abort(int x);\ntypedef void park_fn(int);'},
]
BAD = [
    ({'src/block/a.c': L + 'int\nnbd_open(void)\n{\n}\n'}, 'nbd_open begins'),
    ({'src/block/a.c': L + 'static void\nev_thing(int a)\n{\n}\n'},
     'ev_thing begins'),
    ({'src/json/a.h': L + 'struct yajl_x {\n};\n'}, 'yajl_x begins'),
    ({'plugins/stillpoint/a.c': L + 'int nbdkit_x(void)\n{\n}\n'},
     'nbdkit_x begins'),
    ({'src/base/a.h': L + 'typedef struct x x_t;\n'}, 'x_t ends in _t'),
    ({'src/base/a.h': L + 'typedef struct x X;\n'}, 'typedef of a structure'),
    ({'src/block/a.c': L + 'void\nf(void)\n{\n\texit(1);\n}\n'},
     'src/block/a.c:5: exit() is called'),
    ({'plugins/stillpoint/a.c': L + 'void\nf(void)\n{\n\tabort();\n}\n'},
     'abort() is called'),
    ({'src/base/a.h': L + 'extern int counter;\n'}, 'counter can be changed'),
    ({'src/base/a.h': L + 'extern struct x *list;\n'}, 'list can be changed'),
    ({'src/base/a.h': 'int f(void);\n'}, 'no licence'),
    ({'tests/x/a.py': 'print(1)\n'}, 'no licence'),
]

if __name__ == '__main__':
    common.run(check, GOOD, BAD)
