"""A pytest plugin for runs that a limit or a kill may end: `-p benchmarks.deadline --deadline SECONDS --rows FILE`.

The session ends in time, between two tests. Each test's outcome is a row of the file (see benchmarks/rows.py) when the
test ends; tests that have passed there are not run again.
"""

import time
from pathlib import Path

import pytest

from benchmarks.rows import Rows

BEGUN = time.monotonic()  # nearly the start of the process: plugins are imported first


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--deadline", type=float, help="seconds after which no further test is begun")
    parser.addoption("--rows", type=Path, help="file that gets a JSON line for each test")


class Recorder:
    """Keeps each test's outcome: the worst of its setup, call and teardown."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._now: dict[str, dict] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        there = [item for item in items if self._good(item.nodeid)]
        if there:
            config.hook.pytest_deselected(items=there)
            items[:] = [item for item in items if not self._good(item.nodeid)]

    def _good(self, test: str) -> bool:
        return test in self.rows and self.rows[test]["outcome"] in ("passed", "skipped")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        entry = self._now.setdefault(report.nodeid, {"outcome": "passed", "note": ""})
        if report.outcome != "passed" and entry["outcome"] != "failed":
            entry["outcome"] = report.outcome
            entry["note"] = str(report.longrepr).strip().splitlines()[-1][:300] if report.longrepr else ""
        if report.when == "teardown":
            self.rows.add(report.nodeid, self._now.pop(report.nodeid))


def pytest_configure(config: pytest.Config) -> None:
    if file := config.getoption("--rows"):
        config.pluginmanager.register(Recorder(Rows(file, "smoke")))


def pytest_runtest_teardown(item: pytest.Item) -> None:
    limit = item.config.getoption("--deadline")
    if limit is not None and time.monotonic() - BEGUN > limit:
        item.session.shouldstop = f"the deadline of {limit:.0f} s has passed"
