"""Where a loader gets the frames and the sound of its batches: the interface of streaming and of both pools.

    Source ──┬── Stream                 every batch is decoded when it comes
             └── Resident ──┬── Pool        each pair is decoded once and kept by every rank that meets it
                            └── SharedPool  each pair is decoded once and kept by one rank, which sends it to the others

A source answers three questions: what the steps of an epoch are, which pairs have to be decoded for them, and what
their batches hold. It keeps nothing that belongs to one loader: loaders of the same pairs may share a pool. So a loader
hands in its `Order` and its `DecodeQueue` with each question.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from essl_fast.data.loading.order import Order

if TYPE_CHECKING:  # it imports DALI, which takes a second
    from essl_fast.data.loading.decode_queue import DecodeQueue


@dataclass(frozen=True, eq=False)
class StepPlan:
    """One step of a rank, known before anything is read.

    Attributes:
        epoch, number: which step, both from 0.
        batch: (b,) int64, positions of this rank's batch.
        required: (k,) int64, positions that this rank must have decoded before any rank can take the step. Where ranks
            share a pool they are the pairs of all ranks' batches that this rank keeps, else `batch`.
        all_batches: `batch` of every rank that takes part in an exchange, or of this one alone.
        exchanges: whether some rank needs a pair that another one keeps.
    """

    epoch: int
    number: int
    batch: np.ndarray
    required: np.ndarray
    all_batches: list[np.ndarray]
    exchanges: bool = False

    @property
    def all_positions(self) -> np.ndarray:
        """The positions of `all_batches`, one after another."""
        return np.concatenate(self.all_batches)


class Contents(NamedTuple):
    """What a batch holds, on the loader's device: frames (N, S, S, 3) uint8, whose rows (b,) int64 are the batch's;
    sound (b, ...)."""

    frames: torch.Tensor
    rows: torch.Tensor
    sound: torch.Tensor


class Source(ABC):
    """Gives the contents of batches.

    Attributes:
        held: whether `frames` of every batch are one and the same tensor, so that a CUDA graph can read from it.
        streams: whether every epoch decodes its pairs again.
    """

    held: bool
    streams: bool

    def steps(self, order: Order, epoch: int) -> Iterator[StepPlan]:
        """The steps of `epoch`. After the first call, any thread may call it."""
        for number, batch in enumerate(order.batches(epoch)):
            yield StepPlan(epoch, number, batch, batch, [batch])

    @abstractmethod
    def to_decode(
        self, order: Order, epochs: int | None, epoch: int, step: int, skipped: np.ndarray
    ) -> Iterator[np.ndarray]:
        """What this rank has to decode from `step` of `epoch` on.

        The iterator runs in another thread and must not refer to a loader, which it would keep alive.

        Args:
            epochs: how many there are, see `over_epochs`.
            skipped: (n,) bool, pairs that need not be decoded, since they are left out.

        Yields:
            positions (b,) int64 with b >= 1.
        """

    @abstractmethod
    def contents(self, step: StepPlan, following: StepPlan | None, decoded: DecodeQueue) -> Contents | None:
        """What the batch of `step` holds, without the pairs that `decoded.skipped` has by the end of the call.

        It takes from `decoded` what is missing. All ranks call it for every step, in order. `following`: the next step
        of the epoch, if there is one. Returns None only if nothing is left of the batch.

        Raises:
            InputError: something does not decode or cannot be read, see `LoaderSettings.on_error`.
        """


class Stream(Source):
    """Batches as they are decoded: frames (b, side, side, 3) are the batch's own."""

    held = False
    streams = True

    def to_decode(
        self, order: Order, epochs: int | None, epoch: int, step: int, skipped: np.ndarray
    ) -> Iterator[np.ndarray]:
        return order.batches_from(epoch, step, epochs)

    def contents(self, step: StepPlan, following: StepPlan | None, decoded: DecodeQueue) -> Contents | None:
        pairs = decoded.next(step.epoch, step.number)
        if not len(pairs.positions):
            return None
        return Contents(pairs.frames, torch.arange(len(pairs.positions), device=pairs.frames.device), pairs.sound)
