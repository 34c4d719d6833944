"""Processes that tests begin, and what this one holds."""

import contextlib
import os
from pathlib import Path


def measured() -> dict[str, str]:
    """What a process with an environment made from nothing needs to be measured by coverage.py; {} without that."""
    return {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_PROCESS")}


def open_files(place: Path) -> list[str]:
    """Files below a folder that this process has open. Of others, threads of other tests may open and close some."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(link))
    return sorted(path for path in found if path.startswith(f"{place}/"))
