"""Progress of passes over things that are counted: moments of a video, pairs of a split."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from essl_fast.common.pulse import Pulse


class PassProgress:
    """A bar for each pass on a terminal, a line every 30 s elsewhere; a line at the end of each. Use it with `with`."""

    def __init__(self, console: Console) -> None:
        self._console, self._begun = console, 0.0
        self._open = contextlib.ExitStack()  # the bar, or what says a line every 30 s

    def __enter__(self) -> PassProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def over(self, what: str, total: int) -> Callable[[int], None]:
        """Start a bar for `total` things; returns what to call with the number of things done since the last call."""
        self._close()
        columns = (
            TextColumn(what, markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._begun = time.perf_counter()
        if not self._console.is_terminal:
            return self._open.enter_context(Pulse(self.print, what, total)).step
        bar = self._open.enter_context(Progress(*columns, console=self._console))
        task = bar.add_task(what, total=total)
        return lambda count: bar.update(task, advance=count)

    def finish(self, text: str) -> None:
        """End the bar, and print a line that says what was done and in how many seconds."""
        seconds = time.perf_counter() - self._begun
        self._close()
        self.print(f"{text} in {seconds:.1f} s")

    def print(self, line: str) -> None:
        """Print a line as it is."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _close(self) -> None:
        self._open.close()
