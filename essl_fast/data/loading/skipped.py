"""The pairs of a loader that turned out not to decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from essl_fast.common.errors import InputError
from essl_fast.data.shards import Shards


class Fault(NamedTuple):
    """A pair that does not decode."""

    position: int
    reason: str


class SkippedPairs:
    """Which pairs do not decode and are left out from then on, and how many may be.

    Attributes:
        mask: (pairs,) bool, by position.
        unshared: faults that this rank found and has not told the other ranks yet; used by pools in shares only.
    """

    def __init__(self, shards: Shards, share: float, on_fault: Callable[[int, str], None] | None):
        """share: of all pairs, how many may be skipped. on_fault: called with (manifest row, reason), once a pair."""
        self._shards, self._share, self._on_fault = shards, share, on_fault
        self.mask = np.zeros(len(shards), bool)
        self.unshared: list[Fault] = []

    def __len__(self) -> int:
        return int(self.mask.sum())

    def left_of(self, positions: np.ndarray) -> np.ndarray:
        """positions (b,) without those that are skipped."""
        return positions[~self.mask[positions]]

    def add(self, faults: Sequence[Fault]) -> None:
        """Skip these pairs, one or more.

        Raises:
            InputError: too many pairs are skipped by now.
        """
        for position, reason in faults:
            if not self.mask[position]:
                self.mask[position] = True
                if self._on_fault is not None:
                    self._on_fault(int(self._shards.rows[position]), reason)
        if len(self) > self._share * len(self.mask):
            last, reason = faults[-1]
            raise InputError(
                f"{len(self)} of {len(self.mask)} pairs do not decode, more than data.max_errors = {self._share:g} "
                f"allows; the last is {self._shards.name(last)} ({reason}): {self._shards.remedy()}"
            )
