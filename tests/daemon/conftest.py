# SPDX-License-Identifier: BSD-3-Clause
"""The mark that ties a test to rows of tests/rows (tests/lint/rows.py checks
the ids)."""


def pytest_configure(config):
    config.addinivalue_line("markers", "rows(id, ...): of tests/rows")
