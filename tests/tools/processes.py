"""Processes that tests begin."""

import os


def measured() -> dict[str, str]:
    """What a process with an environment made from nothing needs to be measured by coverage.py; {} without that."""
    return {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_PROCESS")}
