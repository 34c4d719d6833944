"""Which part of how many: `--part 2/8`. Nothing heavy is imported, so that --help is fast."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import NamedTuple

SETTINGS = "settings.json"
_FOLDER = re.compile(r"(\d+)-of-(\d+)")
_MOST = 100_000
_DIGITS = 100  # Python refuses to read numbers of some thousand


class Slice(NamedTuple):
    """Part `number`, from 1, of `total`."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{self.number}-of-{self.total}"


def parse_slice(text: str) -> Slice:
    """`2/8`, or `slurm` in a job of an array 1-N or 0-(N-1). ArgumentTypeError if it is neither."""
    if text == "slurm":
        return _of_slurm()
    number, slash, count = text.partition("/")
    if (
        slash
        and text.isascii()
        and len(text) <= _DIGITS
        and number.isdecimal()
        and count.isdecimal()
        and 1 <= int(number) <= int(count) <= _MOST
    ):
        return Slice(int(number), int(count))
    raise argparse.ArgumentTypeError(
        f"{text[:40]!r} is not a part such as 2/8: number/count, numbers from 1 on; or slurm"
    )


def _of_slurm() -> Slice:
    """The part of this job of a Slurm array. An array of some tasks only does not tell how many parts there are."""
    names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "COUNT")]
    held = [os.environ.get(name, "") for name in names]
    if not held[0]:
        raise argparse.ArgumentTypeError("slurm: this is no job of a Slurm array (SLURM_ARRAY_TASK_ID); give 2/8")
    for name, value in zip(names, held, strict=True):
        if not (value.isascii() and value.isdecimal() and len(value) <= _DIGITS):
            state = f"is {value[:_DIGITS]!r}" if value else "is not set"
            raise argparse.ArgumentTypeError(f"slurm: {name} {state}, and must be a number; give 2/8")
    at, first, last, count = map(int, held)
    if not first <= at <= last or count > _MOST:
        raise argparse.ArgumentTypeError(
            f"slurm: SLURM_ARRAY_TASK_ID is {at}, in an array of {count} tasks from {first} to {last}; give 2/8"
        )
    if first > 1 or last - first + 1 != count:
        raise argparse.ArgumentTypeError(
            f"slurm: the array's {count} tasks are not 1 to N or 0 to N-1 (they go from {first} to {last}); "
            "give $SLURM_ARRAY_TASK_ID/N, N the number of all parts"
        )
    return Slice(at - first + 1, count)


def slices_in(parts: Path) -> dict[Slice, Path]:
    """The folders of parts in a folder, in order."""
    found = {}
    for path in parts.iterdir() if parts.is_dir() else ():
        if (name := _FOLDER.fullmatch(path.name)) and path.is_dir():
            found[Slice(int(name[1]), int(name[2]))] = path
    return dict(sorted(found.items()))
