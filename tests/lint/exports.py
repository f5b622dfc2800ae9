#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The plugin exports plugin_init and nothing else: exports.py PLUGIN.

Every other function that it exported would be bound to a function of the
same name in nbdkit or libc where there is one.
"""

import subprocess
import sys

text = subprocess.run(['nm', '-D', '--defined-only', sys.argv[1]], check=True,
                      capture_output=True, text=True).stdout
names = [line.split()[-1].split('@')[0] for line in text.splitlines()]
if names != ['plugin_init']:
    print('%s exports %d symbols: %s' % (sys.argv[1], len(names),
                                         ' '.join(names[:20])))
    sys.exit(1)
