# SPDX-License-Identifier: BSD-3-Clause
"""Memory that runs out in the plugin when a test says so: the other side of
tests/tools/oom-preload.c."""
import mmap
import os
import struct

from . import daemon

LIBRARY = "oom-preload.so"


class Shortage:
    """Which allocations of the plugin fail.  Give arguments() to the server
    before it starts."""

    FIELDS = ["left", "period", "seen", "failed"]

    def __init__(self, directory):
        self.path = os.path.join(directory, "oom-control")
        self.wrapper = os.path.join(directory, "oom-nbdkit")
        with open(self.path, "wb") as f:
            f.truncate(4096)
        with open(self.path, "r+b") as f:
            self.map = mmap.mmap(f.fileno(), 4096)
        with open(self.wrapper, "w") as f:
            f.write('#!/bin/sh\nOOM_CONTROL="%s" LD_PRELOAD="%s" '
                    'exec nbdkit "$@"\n' % (self.path, os.path.join(
                        daemon.build_dir(), "tests", "tools", LIBRARY)))
        os.chmod(self.wrapper, 0o755)

    def arguments(self):
        return ["--nbdkit", self.wrapper]

    def _set(self, name, value):
        struct.pack_into("=Q", self.map, 8 * self.FIELDS.index(name), value)

    def _get(self, name):
        return struct.unpack_from("=Q", self.map,
                                  8 * self.FIELDS.index(name))[0]

    def begin(self, first, period=0):
        """The first-th allocation from now on fails, and then about one of
        period."""
        for name in ("seen", "failed"):
            self._set(name, 0)
        self._set("period", period)
        self._set("left", first)

    def end(self):
        """Returns how many failed, and how many there were."""
        self._set("period", 0)
        self._set("left", 0)
        return self._get("failed"), self._get("seen")
