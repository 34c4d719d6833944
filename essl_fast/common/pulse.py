"""Signs of life of long work whose output goes into a file, where a progress bar would be of no use."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY = 30.0  # seconds between two lines


class Pulse:
    """Says a line every 30 s while work goes on.

    Args:
        say: prints a line.
        what: the work, for the user: "drawing".
        total: how many things there are to do.
        unit: what is counted: "frames".
    """

    def __init__(self, say: Callable[[str], None], what: str, total: int, unit: str = "") -> None:
        self._say, self._what, self._total, self._unit = say, what, total, unit and f" {unit}"
        self.done = 0
        self._began = self._last = time.monotonic()

    def step(self, count: int = 1) -> None:
        """Count things that are done, and say a line if it is time."""
        self.done += count
        if self.due():
            left = (time.monotonic() - self._began) * (self._total - self.done) / max(self.done, 1)
            share = f"{self.done} of {self._total}{self._unit} ({100 * self.done // max(self._total, 1)}%)"
            self._say(f"{self._what}: {share}, about {max(left, 0):.0f} s left")

    def due(self) -> bool:
        """Whether it is time for a line; the next one is then due in 30 s."""
        now = time.monotonic()
        if now - self._last < EVERY:
            return False
        self._last = now
        return True
