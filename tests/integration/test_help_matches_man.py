# SPDX-License-Identifier: BSD-3-Clause
"""--help, the manual page and the schema of the configuration file name the
same options.
"""
import os
import re
import shutil
import subprocess

import pytest

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
BUILD = os.environ.get("STILLPOINT_BUILD", os.path.join(SOURCE, "build"))


def run(*args):
    return subprocess.run(args, check=True, capture_output=True,
                          text=True, timeout=30).stdout


@pytest.fixture(scope="module")
def help_text():
    return run(os.path.join(BUILD, "src/daemon/stillpointd"), "--help")


@pytest.fixture(scope="module")
def manual():
    """The manual page without its markup."""
    with open(os.path.join(BUILD, "src/daemon/stillpointd.8")) as f:
        page = f.read()
    return re.sub(r"\\f[IRB]", "", page).replace("\\-", "-")


def help_options(text):
    """name -> argument"""
    return dict(re.findall(r"^  --([a-z-]+)(?: (\S+))?", text, re.M))


def test_help_and_manual_have_the_same_options(help_text, manual):
    section = manual.split("\n.SH OPTIONS\n")[1].split("\n.SH ")[0]
    in_manual = dict(re.findall(r"^\.TP\n\.B --([a-z-]+)(?: (\S+))?", section,
                                re.M))
    assert help_options(help_text) == in_manual
    assert len(in_manual) > 15


def test_the_lines_of_help_stand_in_the_manual(help_text, manual):
    for text in re.findall(r"^  --[^\n]*?  +(.*)$", help_text, re.M):
        assert text[1:] + "." in manual


def test_the_configuration_file_has_the_same_options(help_text):
    with open(os.path.join(SOURCE, "schema/config.json")) as f:
        struct = f.read().split("'struct': 'ConfigOptions'")[1]
    in_file = set(re.findall(r"'\*([a-z-]+)':", struct))
    assert set(help_options(help_text)) - {"help", "version", "config"} == \
        in_file


def test_the_manual_gives_the_exit_codes_of_help(help_text, manual):
    assert "0 after quit or SIGTERM, 1 after a failure, 2 for wrong" in \
        " ".join(help_text.split())
    section = manual.split("\n.SH EXIT STATUS\n")[1].split("\n.SH ")[0]
    assert re.findall(r"^\.B (\d)$", section, re.M) == ["0", "1", "2"]


def test_nothing_is_left_to_fill_in(manual):
    assert "@" not in re.sub(r"\S+@\S+\.\S+", "", manual)


def test_the_plugin_page_has_the_parameters_of_the_plugin():
    with open(os.path.join(SOURCE, "man/nbdkit-stillpoint-plugin.1")) as f:
        page = f.read().replace("\\-", "-")
    in_manual = set(re.findall(r"^\.TP\n\.BI ([a-z-]+)=", page, re.M))
    help_text = run(os.environ.get("STILLPOINT_NBDKIT", "nbdkit"), "--help", os.path.join(
        BUILD, "plugins/stillpoint/nbdkit-stillpoint-plugin.so"))
    in_help = set(re.findall(r"^([a-z-]+)=[A-Z]", help_text, re.M))
    assert in_help == in_manual


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
def test_the_pages_have_no_mistakes_in_their_markup():
    for page in (os.path.join(BUILD, "src/daemon/stillpointd.8"),
                 os.path.join(SOURCE, "man/nbdkit-stillpoint-plugin.1")):
        p = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z", page],
                           capture_output=True, text=True, timeout=30)
        assert (p.returncode, p.stderr) == (0, "")
