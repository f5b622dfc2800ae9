#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Size budgets without exceptions: functions of at most 80 lines, nesting of
at most 4, at most 7 parameters, files of at most 1000 lines.
"""

import re

import common

FUNCTION_LINES = 80
NESTING = 4
PARAMETERS = 7
FILE_LINES = 1000

# As we write it: the return type stands alone, the name begins its line, and
# the body's braces stand in the first column.
FUNCTION = re.compile(r'^([a-z_][a-z0-9_]*)\(((?:[^{};]|\n)*?)\)'
                      r'[^{};]*\n\{\n(.*?)^\}', re.M | re.S)


def parameters(text):
    depth = 0
    count = 1 if text.strip() not in ('', 'void') else 0
    for c in text:
        depth += (c == '(') - (c == ')')
        count += c == ',' and depth == 0
    return count


def nesting(body):
    """How deep blocks are inside of each other, braces of initialisers left
    out; 0 for a body without blocks.
    """
    deepest = 0
    stack = []
    for m in re.finditer(r'[{}]', body):
        if m.group() == '}':
            if stack:
                stack.pop()
            continue
        before = body[:m.start()].rstrip()
        is_block = not before or before[-1] in ');{}:' or \
            before.endswith(('else', 'do'))
        # "(struct x){" and "= {" are values
        if before.endswith(')') and re.search(
                r'\((?:const )?(?:struct|union|enum) \w+(?: \*)*\)$|'
                r'\([a-z_0-9 ]+\[\]\)$', before):
            is_block = False
        stack.append(is_block)
        deepest = max(deepest, sum(stack))
    return deepest


def check_file(path, text):
    lines = text.count('\n')
    if lines > FILE_LINES:
        yield f'{path}:{lines}: {lines} lines, at most {FILE_LINES}'
    code = common.without_comments(text)
    for m in FUNCTION.finditer(code):
        name, params, body = m.groups()
        line = code.count('\n', 0, m.start()) + 1
        length = m.group().count('\n') + 2  # and the line of its type
        if length > FUNCTION_LINES:
            yield (f'{path}:{line}: {name} has {length} lines, at most '
                   f'{FUNCTION_LINES}')
        if parameters(params) > PARAMETERS:
            yield (f'{path}:{line}: {name} has {parameters(params)} '
                   f'parameters, at most {PARAMETERS}')
        if nesting(body) > NESTING:
            yield (f'{path}:{line}: {name} is nested {nesting(body)} deep, at '
                   f'most {NESTING}')


def check(root):
    found = []
    for path in common.files(root, '.c', '.h'):
        found += check_file(path, common.text_of(root, path))
    return found


def function(lines, params='int a'):
    return (f'static int\nf({params})\n{{\n' + '\ta++;\n' * (lines - 4) +
            '}\n')


DEEP = 'int\nf(int a)\n{\n%s%s}\n'


def nested(n):
    return DEEP % ('\tif (a) {\n' * n, '\t}\n' * n)


GOOD = [
    {'src/base/a.c': function(80)},
    {'src/base/a.c': '/* x */\n' * 1000},
    {'src/base/a.c': nested(4)},
    {'src/base/a.c': function(9, 'int a, int b, int c, int d, int e, int f,'
                                 '\n  void (*g)(int, int)')},
    {'src/base/a.c': '/*\n * int\n * f(int a)\n */\n' + function(80)},
]
BAD = [
    ({'src/base/a.c': function(81)}, 'f has 81 lines'),
    ({'plugins/x/a.c': 'int x;\n' * 1001}, '1001 lines'),
    ({'tests/unit/a.c': nested(5)}, 'nested 5 deep'),
    ({'src/base/a.c': function(9, 'int a, int b, int c, int d, int e, int f,'
                                  ' int g, int h')}, '8 parameters'),
]

if __name__ == '__main__':
    common.run(check, GOOD, BAD)
