"""Results that a kill cannot take back: one JSON line a row, written through to the disk when the row is finished.

A benchmark that is started again finds its rows and measures only what is missing. Several benchmarks may share a file,
one at a time; each has its own task name.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SHORT = 0.25  # of an equal share of the time: with less, a row is not begun


class Rows:
    """The rows of one task in a file of JSON lines: {"task": ..., "row": its key, "seconds": ..., "value": {...}}.

    Args:
        path: the file, which need not exist; None: rows are kept in memory alone.
        task: whose rows.
        budget: seconds for all rows of this run.
    """

    def __init__(self, path: Path | str | None, task: str, budget: float = float("inf")) -> None:
        self.path, self.task, self.budget = Path(path) if path else None, task, budget
        self.missed: list[str] = []  # keys for which no time was left
        self._begin = time.perf_counter()
        self._last = self._begin
        self._values = {line["row"]: line["value"] for line in read(self.path) if line["task"] == task}

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._values[key]

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - (time.perf_counter() - self._begin)

    def planned(self, keys: Sequence[str]) -> Iterator[tuple[str, float]]:
        """The keys that are not there yet, each with its seconds: an equal part of what is left at that time.

        Those for which too little is left go to :attr:`missed`.
        """
        missing = [key for key in keys if key not in self]
        for number, key in enumerate(missing):
            share = self.left() / (len(missing) - number)
            if share < SHORT * self.budget / len(missing) and self.budget < float("inf"):
                self.missed.append(key)
                continue
            self._last = time.perf_counter()
            yield key, share

    def add(self, key: str, value: dict[str, Any]) -> None:
        """Append a finished row; it is on the disk when this returns."""
        now = time.perf_counter()
        line = {"task": self.task, "row": key, "seconds": round(now - self._last, 3), "value": value}
        self._last, self._values[key] = now, value
        if self.path is None:
            return
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            torn = size and os.pread(handle, 1, size - 1) != b"\n"  # a kill in the middle of a line
            os.write(handle, b"\n" * bool(torn) + json.dumps(line).encode() + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)


def read(path: Path | None) -> list[dict[str, Any]]:
    """All finished rows of a file, the later one where a key came twice; a line that a kill has cut is left out."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    if path is None or not path.exists():
        return []
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:  # also UnicodeDecodeError
            continue
        if isinstance(row, dict) and {"task", "row", "value"} <= row.keys():
            found.pop((row["task"], row["row"]), None)
            found[row["task"], row["row"]] = row
    return list(found.values())


def not_reached(rows: Rows) -> str:
    """A line that names what there was no time for, "" if nothing."""
    if not rows.missed:
        return ""
    return f"not reached in {max(0, rows.budget):.0f} s: {', '.join(rows.missed)}; the same command goes on from here"
