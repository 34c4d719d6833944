"""Progress of the two passes over a video."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from essl_fast.common.pulse import Pulse


class PassProgress:
    """A bar for each pass on a terminal, a line every 30 s elsewhere; a line at the end of each. Use it with `with`."""

    def __init__(self, console: Console) -> None:
        self._console, self._begun = console, 0.0
        self._bar: Progress | None = None

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
        bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        bar.start()
        task, self._begun, self._bar = bar.add_task(what, total=total), time.perf_counter(), bar
        pulse = Pulse(self.print, what, total)

        def step(count: int) -> None:
            bar.update(task, advance=count)
            if bar.disable:
                pulse.step(count)

        return step

    def finish(self, text: str) -> None:
        """End the bar, and print a line that says what was done and in how many seconds."""
        seconds = time.perf_counter() - self._begun
        self._close()
        self.print(f"{text} in {seconds:.1f} s")

    def print(self, line: str) -> None:
        """Print a line as it is."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
