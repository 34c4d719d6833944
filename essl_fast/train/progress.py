"""The progress of a run on the terminal: lines that stay, and a bar over all epochs."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from essl_fast.common.pulse import Heartbeat
from essl_fast.train.events import Fault, Preparation, Reading
from essl_fast.train.observers import Observer


class TerminalProgress(Observer):
    """Prints what happens in a run: on a terminal with a bar over all epochs (loss, pairs/s, time left), elsewhere with
    a line about what goes on whenever nothing was printed for 30 s.

    Args:
        console: where to print.
        split: the split that epochs are evaluated on; the line of an epoch names it.
    """

    def __init__(self, console: Console, split: str = "val") -> None:
        self.console, self._split = console, split
        self._epochs = self._steps = self._done = 0
        self._text = ""  # the last reading of the losses
        self._doing = "opening the data and the model"
        self._evaluated = "", 0  # the split, and how many of its pairs
        self._heartbeat = Heartbeat(self.on_message, lambda: "" if self.console.is_terminal else self._doing)
        self._bar: Progress | None = None

    def heartbeat(self) -> Heartbeat:
        """A context in which lines are printed where there is no terminal."""
        return self._heartbeat

    def on_message(self, text: str) -> None:
        self._heartbeat.heard()
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def on_train_start(self, epochs: int, steps_per_epoch: int, steps_done: int) -> None:
        columns = [
            TextColumn("epoch {task.fields[epoch]}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        ]
        self._epochs, self._steps, self._done = epochs, steps_per_epoch, steps_done
        self._doing = "waiting for the first step, which decodes and, on a GPU, compiles"
        self._bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._task = self._bar.add_task(
            "train", total=epochs * steps_per_epoch, completed=steps_done, epoch="", text=""
        )
        self._bar.start()

    def on_step(self, epoch: int, reading: Reading | None) -> None:
        self._done += 1
        self._text = describe_reading(reading) if reading else self._text
        step = self._done - epoch * self._steps
        self._doing = f"epoch {epoch + 1:>3}, step {step} of {self._steps}: {self._text or 'no loss was read yet'}"
        if self._bar is not None:
            text: dict[str, Any] = {"text": describe_reading(reading)} if reading else {}
            self._bar.update(self._task, advance=1, epoch=f"{epoch + 1}/{self._epochs}", **text)

    def on_evaluation(self, split: str, pairs: int, count: int) -> None:
        before, done = self._evaluated
        done = count if before != split or done >= pairs else done + count
        self._evaluated = split, done
        self._doing = f"evaluating {split}: {done} of {pairs} pairs"

    def on_prepared(self, done: Preparation, step: int, graphs: dict[str, int]) -> None:
        if done.phase in ("compile", "capture"):
            self.on_message(describe_preparation(done, graphs))

    def on_skipped(self, key: str, reason: str, epoch: int) -> None:
        self.on_message(f"skipped {key}, which does not decode: {reason}")

    def on_not_finite(self, fault: Fault, file: Path | None, passed: bool) -> None:
        if passed:
            self.on_message(f"passed over step {fault.step + 1} of epoch {fault.epoch + 1}, which was not finite")

    def on_end(self, summary: dict) -> None:
        self._doing = "drawing the pictures and the report"

    def on_epoch(self, entry: dict) -> None:
        self.on_message(describe_epoch(entry, self._split))

    def on_warning(self, epoch: int, text: str) -> None:
        self.on_message(f"warning: {text}")

    def on_stop(self, signal: str, epoch: int, step: int, checkpoint: Path) -> None:
        self.on_message(f"stopped after step {step}, which {checkpoint} holds")

    def on_train_end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def describe_reading(reading: Reading) -> str:
    """The state of an epoch, beside the bar."""
    waiting = f"{100 * reading.waiting:.0f}% waiting for data"
    return f"loss {reading.loss:.4f}, {reading.pairs_per_second:.1f} pairs/s, {waiting}"


def describe_epoch(entry: dict, split: str) -> str:
    """An epoch's entry of the history as a line."""
    losses = ", ".join(f"{name} {value:.4f}" for name, value in entry["losses"].items())
    line = f"epoch {entry['epoch']:>3}: {losses}, {entry['pairs_per_second']:.1f} pairs/s"
    line += f", {100 * entry['waiting']:.0f}% waiting for data"
    if found := entry.get("selection"):
        line += f"; {split}: success {100 * found['success_at_half']:.1f}%, AUC {100 * found['auc']:.1f}%"
    return line


def describe_preparation(done: Preparation, graphs: dict[str, int]) -> str:
    """What a step did besides training, as a line."""
    verb = "compiled" if done.phase == "compile" else "captured as a CUDA graph"
    line = f"step of {done.batch} pairs {verb} in {done.seconds:.1f} s"
    if done.phase == "compile" and any(graphs.values()):
        line += f" ({graphs['hits']} of {sum(graphs.values())} graphs from the cache)"
    return f"{line}, which is not in the pairs/s"
