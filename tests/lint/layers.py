#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The layer diagram as a table: which folder may include what.

Dependencies point down only.  A change of a table here is a change of the
architecture, and the commit says why.
"""

import os
import re

import common

MAY_USE = {
    'base': set(),
    'json': {'base'},
    'schema': {'base', 'json'},  # generated
    'block': {'base'},
    'tracking': {'base'},
    'view': {'base', 'block', 'tracking'},
    'link': {'base', 'json', 'schema', 'block'},
    'stream': {'base', 'block', 'tracking', 'view'},
    'pull': {'base', 'block', 'tracking', 'view'},
    'daemon': {'base', 'json', 'schema', 'block', 'tracking', 'view', 'link',
               'stream', 'pull'},
    'ctl': {'base', 'json', 'schema'},
    'plugins/stillpoint': {'base', 'json', 'schema', 'block', 'tracking',
                           'view', 'link'},
}

# Headers of other projects, and the folders that may include them.
OWNER = {
    'yajl/': {'json'},
    'gnutls/': {'daemon', 'pull'},
    'libnbd.h': {'block', 'stream'},
    'zlib.h': {'block'},
    'zstd.h': {'block'},
    'ev.h': {'base', 'stream', 'daemon', 'link'},
    'nbdkit-plugin.h': {'plugins/stillpoint'},
}

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', re.M)


def folder_of(path):
    parts = path.split(os.sep)
    return parts[1] if parts[0] == 'src' else '/'.join(parts[:2])


def check_include(where, folder, name):
    for prefix, owners in OWNER.items():
        if name == prefix or (prefix.endswith('/') and
                              name.startswith(prefix)):
            if folder not in owners:
                yield (f'{where}: {folder} may not include <{name}>, only '
                       f'{", ".join(sorted(owners))}')
            return
    top, slash, rest = name.partition('/')
    if not slash or top not in MAY_USE:
        return
    if top == folder:
        return
    if top not in MAY_USE[folder]:
        yield f'{where}: {folder} may not use {top} ({name})'
    elif rest.endswith('-priv.h'):
        yield f'{where}: {name} is private to {top}'


def check(root):
    found = []
    for path in common.files(root, '.c', '.h', below=('src', 'plugins')):
        folder = folder_of(path)
        if folder not in MAY_USE:
            found.append(f'{path}:1: the folder {folder} is not in the table')
            continue
        text = common.text_of(root, path)
        for m in INCLUDE.finditer(text):
            line = text.count('\n', 0, m.start()) + 1
            found += check_include(f'{path}:{line}', folder, m.group(1))
    return found


GOOD = [
    {'src/base/a.h': '#include <stdio.h>\n#include "base/b.h"\n'},
    {'src/view/a.c': '#include "block/block.h"\n#include "view/view-priv.h"\n'},
    {'src/json/a.c': '#include <yajl/yajl_parse.h>\n'},
    {'plugins/stillpoint/a.c': '#include <nbdkit-plugin.h>\n'
                               '#include "node.h"\n#include "link/link.h"\n'},
    {'src/block/nbd.c': '#include <libnbd.h>\n'},
]
BAD = [
    ({'src/base/a.c': '\n#include "json/json.h"\n'},
     'src/base/a.c:2: base may not use json'),
    ({'src/block/a.c': '#include "tracking/epoch.h"\n'},
     'block may not use tracking'),
    ({'src/view/a.h': '  #  include "stream/stream.h"\n'},
     'view may not use stream'),
    ({'src/daemon/a.c': '#include <yajl/yajl_gen.h>\n'},
     'daemon may not include <yajl/yajl_gen.h>'),
    ({'src/view/a.c': '#include <libnbd.h>\n'},
     'view may not include <libnbd.h>'),
    ({'src/json/a.c': '#include <ev.h>\n'}, 'json may not include <ev.h>'),
    ({'src/daemon/a.c': '#include <nbdkit-plugin.h>\n'},
     'daemon may not include <nbdkit-plugin.h>'),
    ({'plugins/stillpoint/a.c': '#include "stream/stream.h"\n'},
     'plugins/stillpoint may not use stream'),
    ({'plugins/stillpoint/a.c': '#include "daemon/daemon.h"\n'},
     'may not use daemon'),
    ({'src/daemon/a.c': '#include "stream/stream-priv.h"\n'},
     'private to stream'),
    ({'src/misc/a.c': 'int x;\n'}, 'not in the table'),
]

if __name__ == '__main__':
    common.run(check, GOOD, BAD)
