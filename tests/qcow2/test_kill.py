# SPDX-License-Identifier: BSD-3-Clause
"""Twenty kills of nbdkit amid allocating writes; kill-loop --count 1000 by
hand."""
import os
import subprocess

import pytest

LOOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kill-loop")


@pytest.mark.parametrize("options", [
    [], ["cluster_size=4k"], ["extended_l2=on", "cluster_size=128k"],
    ["refcount_bits=1"]], ids=lambda o: ",".join(o) or "default")
def test_kills(options):
    r = subprocess.run([LOOP, "--count", "5"] + ["--create=" + o
                                                 for o in options],
                       capture_output=True, text=True, timeout=240)
    assert r.returncode == 0, r.stdout + r.stderr
