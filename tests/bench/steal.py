# SPDX-License-Identifier: BSD-3-Clause
"""Measurements on a machine that a hypervisor shares with others.

A virtual machine's processors are taken away at times ("steal" in
/proc/stat), and a figure taken in such a moment says nothing about a
program.  undisturbed() measures again when that happened, and of several
disturbed results returns the least disturbed one; it looks at the steal only,
never at the figure.
"""

MOST = 0.03     # of all processors' time while it was measured
TRIES = 3

repeated = 0    # how often something was measured again; for the summary


def _times():
    """(stolen, all) ticks of all processors since the start."""
    with open("/proc/stat") as f:
        fields = [int(v) for v in f.readline().split()[1:9]]
    return fields[7], sum(fields)


def undisturbed(measure):
    """What measure() returns, from a moment without steal if there is one."""
    global repeated
    best = None
    for turn in range(TRIES):
        repeated += turn > 0
        stolen, total = _times()
        result = measure()
        end_stolen, end_total = _times()
        share = (end_stolen - stolen) / max(1, end_total - total)
        if best is None or share < best[0]:
            best = share, result
        if share <= MOST:
            break
    return best[1]
