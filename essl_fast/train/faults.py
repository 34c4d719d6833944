"""What goes wrong in a run without ending it: pairs that do not decode, and steps that were not finite."""

import math
from collections.abc import Callable
from pathlib import Path

from essl_fast import checkpoints, config
from essl_fast.common.errors import InputError, in_shell
from essl_fast.data.shards import SPLITS, Manifest
from essl_fast.runtime import distributed
from essl_fast.runtime.distributed import World
from essl_fast.train.data import training_splits
from essl_fast.train.events import Fault
from essl_fast.train.observers import Observers

KEPT = 3  # the first steps of a run that were not finite are kept for a replay


class Faults:
    """The faults of a run so far, on this rank. Each new one is reported to the observers.

    Attributes:
        skipped: pairs that are left out because they do not decode: row in the manifest -> reason.
        not_finite: steps that were not finite, as plain dicts of :class:`Fault`.
    """

    def __init__(self, settings: config.Config, manifest: Manifest, world: World, observers: Observers) -> None:
        self._settings, self._manifest, self._world, self._observers = settings, manifest, world, observers
        self.skipped: dict[int, str] = {}
        self.not_finite: list[dict] = []
        self._folder: Path | None = None
        self._state: Callable[[], dict] = dict

    def keep_in(self, folder: Path, state: Callable[[], dict]) -> None:
        """Keep the first steps that are not finite in ``folder`` for `python -m essl_fast.replay`.

        Args:
            folder: the run directory.
            state: returns what a replay needs besides the fault.
        """
        self._folder, self._state = folder, state

    def skip(self, row: int, reason: str, epoch: int) -> None:
        """Note that the pair at ``row`` of the manifest does not decode, which was found in ``epoch`` (from 1)."""
        if row not in self.skipped:
            self.skipped[row] = reason
            self._observers.on_skipped(self._manifest.key(row), reason, epoch)

    def share(self, epoch: int) -> None:
        """Tell every rank which pairs the other ranks skipped. All ranks call it together.

        Raises:
            InputError: together they skipped more than `max_errors` allows. A rank's loader counts what itself found.
        """
        for theirs in distributed.gather(self.skipped, self._world):
            for row, reason in theirs.items():
                self.skip(row, reason, epoch)
        if self._world.size > 1 and self.skipped:
            self._refuse_too_many()

    def _refuse_too_many(self) -> None:
        """InputError if more pairs of the splits that one loader reads are skipped than `max_errors` allows."""
        data, trained = self._settings.data, training_splits(self._settings, self._manifest)
        of_each = {row: SPLITS[self._manifest.split[row]] for row in sorted(self.skipped)}
        for splits in (trained, *([split] for split in SPLITS if split not in trained)):
            lost = [row for row, split in of_each.items() if split in splits]
            pairs = sum(map(self._manifest.pairs, splits))
            if len(lost) > data.max_errors * pairs:
                raise InputError(
                    f"{len(lost)} of {pairs} pairs ({' and '.join(splits)}) do not decode, as the processes found "
                    f"together, more than data.max_errors = {data.max_errors:g} allows; the last is "
                    f"{self._manifest.key(lost[-1])} ({self.skipped[lost[-1]]}): allow more, or run `python -m "
                    f"essl_fast.prepare --verify --out {in_shell(self._manifest.place)}` and leave out what it lists "
                    "with --data.exclude_quarantined bad"
                )

    def count_in(self, epoch: int) -> int:
        """How many steps of an epoch (from 0) were not finite."""
        return sum(fault["epoch"] == epoch for fault in self.not_finite)

    def pass_over(self, fault: Fault, steps_per_epoch: int, latched: bool) -> None:
        """Count a step that was not finite and keep it for a replay.

        Args:
            fault: the step.
            steps_per_epoch: `max_nonfinite` is a share of it.
            latched: the run stops at the first such step, whatever `max_nonfinite` says.

        Raises:
            FloatingPointError: the settings do not let the run go on.
        """
        self.not_finite.append(fault._asdict())
        skips = self._settings.on_nonfinite == "skip"
        file = self._keep(fault)
        self._observers.on_not_finite(fault, file, skips)
        most = max(1, int(self._settings.max_nonfinite * steps_per_epoch))
        if not skips or self.count_in(fault.epoch) > most:
            raise FloatingPointError(describe(fault, file, None if latched else most))

    def _keep(self, fault: Fault) -> Path | None:
        """Write a step for a replay, and return its file; None if the step is not kept."""
        if self._folder is None or len(self.not_finite) > KEPT:
            return None
        file = fault.file(self._folder)
        if self._world.leads:
            try:
                checkpoints.save(file, self._state() | {"kind": "nonfinite", "fault": fault._asdict()})
            except OSError as error:  # the fault itself must be reported even if the disk is full
                self._observers.on_message(f"cannot write {file}: {error.strerror}")
                return None
        return file


def describe(fault: Fault, file: Path | None, most: int | None) -> str:
    """A line that says what a fault means and what to do. ``most``: how many of them an epoch may have, if any."""
    value = fault.losses["loss"]
    what = "a gradient is not finite" if math.isfinite(value) else f"the loss is {value}"
    text = f"{what} in epoch {fault.epoch + 1}, step {fault.step + 1}"
    text += f", and max_nonfinite allows {most} such step{'s' * (most != 1)} an epoch" if most is not None else ""
    text += "; lower the learning rates or use --precision fp32"
    text += "" if most is not None else ", or go on without such steps with --on_nonfinite skip"
    text += f". `python -m essl_fast.replay {in_shell(file)}` shows where it begins" if file else ""
    return f"{text}. The batch's pairs: {', '.join(fault.keys)}"
