"""log.jsonl: what happened in a run, a JSON object a line."""

import contextlib
from pathlib import Path

from essl_fast.runtime.runlog import RunLog
from essl_fast.train.events import Fault, Preparation
from essl_fast.train.observers import Observer


class LogFile(Observer):
    """Appends every event of a run to a file, which :func:`essl_fast.runtime.runlog.read_log` reads."""

    def __init__(self, path: Path) -> None:
        self._log = RunLog(path)

    def on_start(self, resumed: bool, facts: dict) -> None:
        self._log.write("resume" if resumed else "start", **facts)

    def on_prepared(self, done: Preparation, step: int, graphs: dict[str, int]) -> None:
        self._log.write("compiled", **done._asdict(), step=step, graphs=graphs)

    def on_skipped(self, key: str, reason: str, epoch: int) -> None:
        self._log.write("skipped", key=key, reason=reason, epoch=epoch)

    def on_not_finite(self, fault: Fault, file: Path | None, passed: bool) -> None:
        self._log.write("not_finite", **fault._asdict(), file=file and file.name)

    def on_baseline(self, name: str, result: dict) -> None:
        self._log.write("baseline", name=name, result=result)

    def on_epoch(self, entry: dict) -> None:
        self._log.write("epoch", **entry)

    def on_warning(self, epoch: int, text: str) -> None:
        with contextlib.suppress(OSError):  # the warning itself may be that the disk is full: the terminal has it, too
            self._log.write("warning", epoch=epoch, text=text)

    def on_stop(self, signal: str, epoch: int, step: int, checkpoint: Path) -> None:
        self._log.write("stop", signal=signal, epoch=epoch, step=step)

    def on_end(self, summary: dict) -> None:
        self._log.write("end", **{key: summary[key] for key in ("test", "selected", "seconds", "pairs_per_second")})

    def close(self) -> None:
        self._log.close()
