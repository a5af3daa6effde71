"""Settings of all tests."""

from __future__ import annotations

import gc
import os
import signal

import pytest
from hypothesis import settings

SLOWEST_TEST_FILES = {
    "test_benchmarks.py",
    "test_otlp_against_scrapes.py",
    "test_real_prometheus.py",
}
"""Files that take more than a minute."""

# Real schedulers run inside properties, on machines that are busy: slow is not wrong.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


def pytest_configure() -> None:
    # nox ends sessions that run beside each other with SIGTERM. As after Ctrl-C, tests shall stop
    # the servers that they have started. Forked children of tests die of it, as always.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Workers get files in this order, and would wait at the end for one that takes long.
    items.sort(key=lambda item: item.path.name not in SLOWEST_TEST_FILES)


def pytest_collection_finish() -> None:
    # What is imported by now stays; it need not be looked at in each gc.collect() of a test.
    gc.collect()
    gc.freeze()
