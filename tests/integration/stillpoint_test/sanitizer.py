# SPDX-License-Identifier: BSD-3-Clause
"""What sanitizers wrote down; see tests/sanitize."""
import glob
import os
import re


def reports(log):
    """The files LOG.PID in which something was found."""
    return sorted(path for path in glob.glob(glob.escape(log) + ".*")
                  if says_something(path))


def forget(log):
    for path in glob.glob(glob.escape(log) + ".*"):
        os.unlink(path)


def says_something(path):
    """Is there anything but what nbdkit has for its connections and does not
    give back when it ends?  (valgrind makes empty files.)"""
    with open(path, errors="replace") as f:
        text = f.read()
    if text.count("ERROR: ") != 1 or "ERROR: LeakSanitizer: " not in text or \
            "runtime error: " in text:
        return text != ""
    direct = re.findall(r"^Direct leak ", text, re.M)
    its_own = re.findall(r"^Direct leak .*\n +#0 .*\n +#1 .*/nbdkit\+0x",
                         text, re.M)
    return not direct or len(its_own) < len(direct)
