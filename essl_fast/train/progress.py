"""The progress of a training run on the terminal."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class EpochBars:
    """A bar over all epochs: loss, pairs/s, share of time waiting for data, time left. In a pipe, lines alone."""

    def __init__(self, console: Console, epochs: int, steps: int, done: int = 0) -> None:
        self.console, self.epochs, self.steps = console, epochs, steps
        columns = [
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        ]
        self._bar = Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("train", total=epochs * steps, completed=done, epoch="", text="")

    def __enter__(self) -> "EpochBars":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def step(self, epoch: int, text: str = "") -> None:
        """Advance by one step; ``text`` (kept when empty) is shown beside the bar."""
        fields = {"text": text} if text else {}
        self._bar.update(self._task, advance=1, epoch=f"{epoch + 1}/{self.epochs}", **fields)

    def line(self, text: str) -> None:
        """A line that stays."""
        self._bar.console.print(text, highlight=False, soft_wrap=True)
