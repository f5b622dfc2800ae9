# SPDX-License-Identifier: BSD-3-Clause
"""What the integration tests, the benchmark and contrib/quickstart share.

procs    processes that never outlive the test that started them
qmp      a QMP client for tests: commands, events, and raw bytes
daemon   stillpointd under test, or qemu-storage-daemon in its place
target   NBD servers that backups go to, willing or failing
guest    the writers of tests/tools, and disk images
"""
