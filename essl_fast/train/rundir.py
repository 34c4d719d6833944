"""The run directory: its files, how a command finds it, and the lock that keeps a second training out.

config.yaml         the settings, all of them
log.jsonl           environment, every epoch, every evaluation
last.pt             the state that --resume continues from, exactly
last-1.pt           the one before it; --resume continues from it if last.pt is damaged
best.pt             the weights of the best epoch on the selection split
best-ema.pt         with optim.ema: the averaged weights of their best epoch
summary.json        results of the trained model and of the baselines; when the run goes on after its end, those that it
                    had become summary-1.json (so do report and pictures)
curves.png, overlays.png
test_pairs.jsonl, gallery.npz      cIoU of every test pair; frames and maps of some, for the report
report.html         all of it on one page; `python -m essl_fast.report` writes it again, also for several runs
tensorboard/        with --tensorboard true
metrics.csv         with --loggers '[csv]'; wandb/ and wandb_run.txt with wandb, mlflow_run.txt with mlflow
profile/            with --profile: trace.json, for Perfetto
nonfinite-E-S.pt    a step that was not finite, for `python -m essl_fast.replay`
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from essl_fast import checkpoints, config
from essl_fast.common.errors import InputError, in_shell
from essl_fast.common.files import atomic_file
from essl_fast.common.locks import locked
from essl_fast.runtime import distributed
from essl_fast.runtime.distributed import World
from essl_fast.runtime.runlog import read_log

LOCK = ".lock"
AUTO = "auto"  # what --resume takes in place of a directory


class RunDirectory:
    """The files of a run. Only the rank that leads writes them.

    Args:
        path: the directory.
        keep: how many of the last checkpoints to keep.
        leads: whether this rank writes.
    """

    def __init__(self, path: Path, keep: int, leads: bool) -> None:
        self.path, self._keep, self._leads = Path(path), keep, leads
        self.last, self.best = self.path / "last.pt", self.path / "best.pt"
        self.best_average = self.path / "best-ema.pt"
        self.config, self.log = self.path / "config.yaml", self.path / "log.jsonl"
        self.summary, self.report = self.path / "summary.json", self.path / "report.html"
        self.curves, self.overlays = self.path / "curves.png", self.path / "overlays.png"
        self.profile = self.path / "profile"

    @property
    def holds_a_run(self) -> bool:
        """Whether a run has left a checkpoint to go on from."""
        return bool(checkpoints.existing(self.last))

    def save_last(self, state: dict) -> None:
        """Write last.pt; the one before becomes last-1.pt."""
        if self._leads:
            checkpoints.save(self.last, state, self._keep)

    def save_best(self, state: dict, average: bool = False) -> None:
        """Write best.pt, or best-ema.pt."""
        if self._leads:
            checkpoints.save(self.best_average if average else self.best, state)

    def save_config(self, settings: config.Config) -> None:
        """Write config.yaml."""
        if self._leads:
            with atomic_file(self.config) as file:
                file.write(yaml.safe_dump(config.to_dict(settings), sort_keys=False).encode())

    def logged_baseline(self, name: str) -> dict | None:
        """The last result of a baseline that the log holds."""
        past = [e for e in read_log(self.log) if e.get("event") == "baseline" and e.get("name") == name]
        return past[-1].get("result") if past else None

    def set_aside(self) -> None:
        """Rename the results of an earlier end of the run, to summary-1.json and so on: the run goes on."""
        if self._leads:
            for file in (self.summary, self.report, self.curves, self.overlays):
                if file.is_file():
                    os.replace(file, checkpoints.numbered(file, 1))

    def best_fault(self, average: bool = False) -> str | None:
        """What is wrong with best.pt, or best-ema.pt, in words; None if nothing is."""
        file = self.best_average if average else self.best
        if not file.is_file():
            return "it is gone"
        wrong = checkpoints.damage(file)
        if wrong == checkpoints.UNSEALED and checkpoints.load(file):  # of version 1, which had no checksum
            return None
        return wrong


def find_run(settings: config.Config, resume: str, world: World) -> tuple[Path, Path | None]:
    """The run directory of a command, and the checkpoint to go on from, or None.

    Args:
        settings: of the command.
        resume: the directory to continue, "" to begin a run, AUTO to continue the one in `out` if there is one.
        world: the processes that train together; all of them get the same directory.

    Raises:
        InputError: the directory holds another run.
    """
    if resume and resume != AUTO:
        out = Path(resume)
        began = checkpoints.existing(out / "last.pt") or (out / "best.pt").exists()
        return out, out / "last.pt" if began else None  # one that ended before its first checkpoint begins again
    goes_on = resume == AUTO or world.restarts  # torchrun has started the group again: the command is the first one's
    if not settings.out:
        if goes_on:
            what = "--resume auto" if resume == AUTO else "torchrun's restart"
            raise InputError(f"out: {what} cannot tell which run to go on with; give --out DIR, or --resume DIR")
        return new_directory(settings.name, world), None
    out = Path(settings.out)
    if goes_on:
        return out, out / "last.pt" if checkpoints.existing(out / "last.pt") else None
    if checkpoints.existing(out / "last.pt"):
        raise InputError(
            f"out: {out} holds a run already; continue it with --resume {in_shell(out)}, or choose another directory"
        )
    return out, None


def new_directory(name: str, world: World) -> Path:
    """Make runs/NAME-DATE-TIME, with -2, -3, ... if another run has taken the name in the same second.

    The leading rank makes it; all of them get the same.
    """
    made = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    with distributed.leader_first(world):
        if world.leads:
            made.parent.mkdir(parents=True, exist_ok=True)
            first, number = made, 1
            while True:
                try:
                    made.mkdir()
                    break
                except FileExistsError:
                    number += 1
                    made = first.with_name(f"{first.name}-{number}")
    return Path(distributed.share(str(made), world))


@contextlib.contextmanager
def owned(folder: Path, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Own a run directory, which must exist, while the context lasts; InputError if another training owns it.

    The lock ends with the process, even if that is killed. ``say`` gets a warning if the file system has no locks.
    """

    def busy(who: str) -> None:
        raise InputError(
            f"out: another training is at work in {folder} ({who}): wait for it, or choose another directory with --out"
        )

    with locked(Path(folder) / LOCK, busy, say):
        yield
