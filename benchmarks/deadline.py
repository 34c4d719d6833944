"""A pytest plugin (`-p benchmarks.deadline --deadline SECONDS`): end the session in time, with a report of what ran.

A process that is killed at its limit writes no report; this stops between two tests.
"""

import time

import pytest

BEGUN = time.monotonic()  # nearly the start of the process: plugins are imported first


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--deadline", type=float, help="seconds after which no further test is begun")


def pytest_runtest_teardown(item: pytest.Item) -> None:
    limit = item.config.getoption("--deadline")
    if limit is not None and time.monotonic() - BEGUN > limit:
        item.session.shouldstop = f"the deadline of {limit:.0f} s has passed"
