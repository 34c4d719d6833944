"""A sweep: runs over a grid of settings, planned, trained and resumed as the paper's rows are."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Protocol
from urllib.parse import quote

from essl_fast import config
from essl_fast.common.errors import InputError, short
from essl_fast.common.nearest import did_you_mean
from essl_fast.reproduce.plan import Plan
from essl_fast.reproduce.rows import Row


class Found(Protocol):
    """What the results of a sweep's runs know: see `results.Results`."""

    plan: Plan

    def selected(self, row: Row) -> list[list[float]]:
        """[success, AUC] on the selection split in the best epoch, for each seed."""


LONGEST = 150  # characters of a run's name
SWEEP = "sweep"  # the part of a plan that is a sweep
MOST = 1000  # runs of a sweep, by which a mistyped one is noticed
OWN = {  # settings that a sweep cannot have -> what to use instead
    "seed": "--seeds",
    "data.root": "--data",
    "select_on": "--protocol",
    "device": "--device",
    "out": "--out",
    "name": "nothing: each run is named after its values",
    "baselines": "essl_fast.train",
}


def read_sweep(texts: Iterable[str]) -> dict[str, list[str]]:
    """Settings and their values from texts such as "optim.lr_head=3e-5,5e-5".

    Raises:
        InputError: a text is no setting with values, or a setting is there twice or belongs to another option.
    """
    found: dict[str, list[str]] = {}
    known = config.leaves()
    for text in texts:
        name, equals, values = text.partition("=")
        each = [value.strip() for value in values.split(",")]
        if not equals or not all(each):
            raise InputError(f"--sweep: write SETTING=VALUE,VALUE, such as optim.lr_head=3e-5,5e-5, got {short(text)}")
        if name not in known:
            raise InputError(f"--sweep: there is no setting {short(name)}{did_you_mean(name, known)}")
        if name in OWN:
            raise InputError(f"--sweep: {name} cannot be swept; use {OWN[name]}")
        if name in found:
            raise InputError(f"--sweep: {name} is there twice; give all its values at once")
        found[name] = each
    return found


def rows_of_sweep(sweep: dict[str, list[str]], recipe: str) -> tuple[Row, ...]:
    """A row for each point of the grid.

    Args:
        sweep: settings and their values.
        recipe: the config that every run begins with.

    Raises:
        InputError: a value is none of its setting, two values of one setting are the same, or the grid is too large.
    """
    count = math.prod(map(len, sweep.values()))
    if count > MOST:
        raise InputError(f"--sweep: the grid has {count:,} points, and at most {MOST:,} are trained")
    for name, values in sweep.items():
        meant = [config.value_of(config.load(recipe, [f"--{name}={value}"]), name) for value in values]
        for at, value in enumerate(meant):
            if value in meant[:at]:
                first = values[meant.index(value)]
                raise InputError(f"--sweep: {name} has {first} and {values[at]}, which are the same")
    points = itertools.product(*([(name, value) for value in values] for name, values in sweep.items()))
    return tuple(_row(point, recipe) for point in points)


def _row(point: Sequence[tuple[str, str]], recipe: str) -> Row:
    label = ", ".join(f"{name} {value}" for name, value in point)
    name = ",".join(f"{name}={quote(value, safe='+ ')}" for name, value in point)
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 20]}-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"
    return Row(name, label, recipe, settings=tuple(point))


def heads_of(results: Found) -> tuple[str, ...]:
    """The columns of a sweep's table."""
    split = "test" if results.plan.protocol == "published" else "val"
    chosen = f"{split}: success, %", f"{split}: AUC, %"
    return ("", *chosen, "test: success, %", "test: AUC, %", "best epoch", "")


def best_of(results: Found) -> Row | None:
    """The row with the best result on the selection split, mean over seeds: by success, then by AUC."""
    done = [row for row in results.plan.swept if results.selected(row)]
    return max(done, key=lambda row: _mean_score(results, row), default=None)


def _mean_score(results: Found, row: Row) -> list[float]:
    scores = results.selected(row)
    return [sum(score[at] for score in scores) / len(scores) for at in (0, 1)]


def finding_of(results: Found) -> str:
    """What the sweep shows, in words."""
    best = best_of(results)
    if best is None:
        return "No run of the sweep has ended."
    split = "test" if results.plan.protocol == "published" else "val"
    success, auc = (100 * value for value in _mean_score(results, best))
    text = f"Best on {split}: {best.label} (success {success:.1f}%, AUC {auc:.1f}%"
    text += ", mean over the seeds)" if len(results.plan.seeds) > 1 else ")"
    return text if split == "test" else f"{text}. Choose by {split}; the test split is for the result of that choice."
