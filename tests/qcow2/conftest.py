# SPDX-License-Identifier: BSD-3-Clause
import os
import shutil
import sys
import tempfile

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture
def folder():
    path = tempfile.mkdtemp(prefix="stillpoint-qcow2-")
    yield path
    shutil.rmtree(path)
