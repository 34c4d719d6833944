"""Signs of life of long work whose output goes into a file, where a progress bar would be of no use."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Self

EVERY = 30.0  # seconds between two lines


class Heartbeat:
    """Says what goes on whenever nothing was said for 30 s, also while a single step takes minutes. Use it with `with`.

    Args:
        say: prints a line. It is called from a thread.
        doing: what goes on now, as a line; "" says nothing.
    """

    def __init__(self, say: Callable[[str], None], doing: Callable[[], str]) -> None:
        self._say, self._doing = say, doing
        self._last, self._lock, self._end = time.monotonic(), threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.heard()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def heard(self) -> None:
        """Something else was said: the next line is due in 30 s."""
        with self._lock:
            self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for a line; the next one is then due in 30 s."""
        with self._lock:
            now = time.monotonic()
            if now - self._last < EVERY:
                return False
            self._last = now
            return True

    def _beat(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the stream is gone: nobody listens any more
            while not self._end.wait(min(max(EVERY / 30, 0.02), 1.0)):
                if self.due() and (line := self._doing()):
                    self._say(line)


class Pulse(Heartbeat):
    """Says a line every 30 s while work goes on; within `with` also where a single step takes longer.

    Args:
        say: prints a line.
        what: the work, for the user: "drawing".
        total: how many things there are to do.
        unit: what is counted: "frames".
    """

    def __init__(self, say: Callable[[str], None], what: str, total: int, unit: str = "") -> None:
        super().__init__(say, self.line)
        self._what, self._total, self._unit = what, total, unit and f" {unit}"
        self.done = 0
        self._began = time.monotonic()

    def step(self, count: int = 1) -> None:
        """Count things that are done, and say a line if it is time."""
        self.done += count
        if self.due():
            self._say(self.line())

    def line(self) -> str:
        """How much is done, and how long the rest will take."""
        share = f"{self.done} of {self._total}{self._unit} ({100 * self.done // max(self._total, 1)}%)"
        if not self.done:
            return f"{self._what}: {share}"
        left = (time.monotonic() - self._began) * (self._total - self.done) / self.done
        return f"{self._what}: {share}, about {max(left, 0):.0f} s left"
