# SPDX-License-Identifier: BSD-3-Clause
import os
import shutil
import sys
import tempfile

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


def made(**where):
    path = tempfile.mkdtemp(prefix="stillpoint-qcow2-", **where)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def folder():
    yield from made()


@pytest.fixture
def fast_folder():
    """Where a flush costs nothing."""
    shm = "/dev/shm"
    yield from made(dir=shm if os.access(shm, os.W_OK) else None)
