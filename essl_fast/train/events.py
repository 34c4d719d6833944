"""The events that are reported to the observers of a run."""

from pathlib import Path
from typing import NamedTuple


class Reading(NamedTuple):
    """What the host learned when it last read the losses from the device."""

    loss: float  # of the last step
    pairs_per_second: float  # of all ranks, in the epoch so far
    waiting: float  # share of the epoch's time in which the host waited for data


class Preparation(NamedTuple):
    """A step that did more than compute: its time does not count as training time."""

    # "compile": the first of its batch size, where the step is compiled; "failed compile": it then ran uncompiled;
    # "warm-up"; "capture"
    phase: str
    batch: int  # pairs
    seconds: float  # of the whole step, until the device was done


class Fault(NamedTuple):
    """A step whose loss or gradient was not finite."""

    epoch: int  # from 0
    step: int  # of the epoch, from 0
    rows: list[int]  # of the batch's pairs in the manifest, rank after rank
    keys: list[str]
    losses: dict[str, float]  # means over the ranks
    later: int  # steps that changed the model after this one, before the host knew of it
    ranks: int

    def file(self, folder: Path) -> Path:
        """Where it is kept for a replay."""
        return folder / f"nonfinite-{self.epoch + 1}-{self.step + 1}.pt"
