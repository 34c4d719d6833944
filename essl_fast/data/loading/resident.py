"""Pairs in memory: what the pool and the pool in shares have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from essl_fast.common.errors import InputError
from essl_fast.data.loading.memory import as_gigabytes
from essl_fast.data.loading.order import Order, only_new, over_epochs
from essl_fast.data.loading.rows import index_tensor
from essl_fast.data.loading.sounds import SoundLayout
from essl_fast.data.loading.source import Source, StepPlan

if TYPE_CHECKING:
    from essl_fast.data.loading.decode_queue import DecodeQueue


class Resident(Source):
    """A source that keeps frames and sound of pairs, so that each is decoded once. It takes its memory at once.

    Attributes:
        frames: (rows, side, side, 3) uint8, on `device`.
        sound: (rows, ...), what the loaders' `sound` made of each pair's samples, on `device`.
        present: (n,) bool, on the host: by position, which pairs are in this memory by now.
    """

    streams = False

    def __init__(self, n: int, rows: int, side: int, layout: SoundLayout, device: torch.device | str):
        """n: pairs of all ranks. rows: pairs that this memory can hold.

        Raises:
            InputError: the device does not give that much memory.
        """
        try:
            with torch.inference_mode(False):  # an evaluation may make it first, and training writes to it later
                self.frames = torch.empty(rows, side, side, 3, dtype=torch.uint8, device=device)
                self.sound = torch.empty(rows, *layout.shape, dtype=layout.dtype, device=device)
        except RuntimeError as error:  # the budget was the user's
            size = as_gigabytes(rows * layout.pair_bytes(side))
            raise InputError(
                f"data.resident_budget_gb: {device} did not give {size} GB for a pool of {rows} pairs: make it smaller"
            ) from error
        self.present = np.zeros(n, bool)

    @abstractmethod
    def rows_of(self, positions: np.ndarray) -> np.ndarray:
        """The rows (b,) int64 of these pairs in `frames` and `sound`."""

    @abstractmethod
    def kept_elsewhere(self) -> np.ndarray:
        """(n,) bool: pairs that other ranks keep, and this one never."""

    def to_decode(
        self, order: Order, epochs: int | None, epoch: int, step: int, skipped: np.ndarray
    ) -> Iterator[np.ndarray]:
        plans = over_epochs(lambda epoch: self.steps(order, epoch), epoch, step, epochs)
        required = (plan.required for plan in plans)
        return only_new(required, self.present | skipped | self.kept_elsewhere(), order.shuffle, most=order.batch_size)

    def put(self, positions: np.ndarray, frames: torch.Tensor, sound: torch.Tensor) -> None:
        """Keep copies of the pairs at positions (b,) int64: frames (b, side, side, 3) uint8 and sound (b, ...)."""
        rows = index_tensor(self.frames.device, self.rows_of(positions))
        self.frames.index_copy_(0, rows, frames)
        self.sound.index_copy_(0, rows, sound)
        self.present[positions] = True

    def fill(self, step: StepPlan, decoded: DecodeQueue) -> None:
        """Decode and keep what `step` requires of this rank and is not present yet."""
        while not (self.present | decoded.skipped.mask)[step.required].all():
            pairs = decoded.next(step.epoch, step.number)
            if len(pairs.positions):
                self.put(pairs.positions, pairs.frames, pairs.sound)
