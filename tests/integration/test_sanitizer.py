# SPDX-License-Identifier: BSD-3-Clause
"""Which reports of sanitizers count (stillpoint_test/sanitizer.py)."""
import pytest

from stillpoint_test import sanitizer

HEAD = "=====\n==7==ERROR: LeakSanitizer: detected memory leaks\n\n"
BY_NBDKIT = """Direct leak of 280 byte(s) in 1 object(s) allocated from:
    #0 0x7f00 in __interceptor_malloc ../asan_malloc_linux.cpp:69
    #1 0x5600  (/usr/bin/nbdkit+0x9800)

"""
BELOW_IT = """Indirect leak of 16 byte(s) in 1 object(s) allocated from:
    #0 0x7f00 in __interceptor_calloc ../asan_malloc_linux.cpp:77
    #1 0x7f01 in on_open ../plugins/stillpoint/plugin.c:300
    #2 0x5600  (/usr/bin/nbdkit+0xefac)

"""
BY_THE_PLUGIN = BELOW_IT.replace("Indirect", "Direct")
OF_NO_FRAME = """Direct leak of 9 byte(s) in 1 object(s) allocated from:
    #0 0x7f00 in __interceptor_malloc ../asan_malloc_linux.cpp:69

"""


@pytest.mark.parametrize("text, counts", [
    ("", False),
    (HEAD + BY_NBDKIT, False),
    (HEAD + BY_NBDKIT + BELOW_IT, False),
    (HEAD + BELOW_IT, True),
    (HEAD + BY_THE_PLUGIN, True),
    (HEAD + BY_NBDKIT + BY_THE_PLUGIN, True),
    (HEAD + OF_NO_FRAME, True),
    (HEAD + BY_NBDKIT + OF_NO_FRAME, True),
    (HEAD + BY_NBDKIT + "==7==ERROR: AddressSanitizer: SEGV on x\n", True),
    ("../x.c:3:2: runtime error: signed integer overflow\n" + HEAD +
     BY_NBDKIT, True),
    ("WARNING: ThreadSanitizer: data race (pid=7)\n", True),
    ("==7==ERROR: AddressSanitizer: heap-use-after-free\n", True)])
def test_what_is_not_nbdkits_own_leak_counts(tmp_path, text, counts):
    log = str(tmp_path / "report")
    with open(log + ".7", "w") as f:
        f.write(text)
    assert sanitizer.reports(log) == ([log + ".7"] if counts else [])
    sanitizer.forget(log)
    assert not (tmp_path / "report.7").exists()
