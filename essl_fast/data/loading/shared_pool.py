"""A resident pool in shares: each rank keeps some of the pairs, and a batch gets the others from their ranks.

    first epoch    the ranks' batches are their own pairs     each rank decodes and keeps what it trains on
    later epochs   new permutation ──▶ who needs whose rows ──▶ all-to-all, a step ahead ──▶ batch

A pair belongs to the rank that meets it in the epoch with which the pool begins. So all ranks together decode each pair
once, the first epoch needs no exchange, and where the order is the same in every epoch (evaluation) there never is one.
A run may pass over a pair: it was resumed within an epoch, or last batches were dropped. Then the rank that the pair
belongs to decodes it as soon as any rank's batch needs it.

Who needs which row when is a function of (seed, epoch, number of ranks): each rank computes it for all, so no message
says it. The rows of the next step travel while this step is computed. The exceptions are the first step of an epoch,
and steps for which something still has to be decoded. On average (world - 1) / world of a batch come from other ranks:
at B = 128 and side 246, 20 MB a step with 8 ranks.

Only one thing is unknown to the other ranks: which pairs a rank could not decode (`data.on_error: skip`). Ranks tell
each other before the first exchange after anything was decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from essl_fast.data.loading.exchange import Exchange, Transfer
from essl_fast.data.loading.order import Order
from essl_fast.data.loading.resident import Resident
from essl_fast.data.loading.rows import gather_rows, index_tensor
from essl_fast.data.loading.skipped import SkippedPairs
from essl_fast.data.loading.sounds import SoundLayout
from essl_fast.data.loading.source import Contents, StepPlan

if TYPE_CHECKING:
    from essl_fast.data.loading.decode_queue import DecodeQueue


class _Expected(NamedTuple):
    """The rows of a step that are on their way. places (b,) int64: each pair of the batch among the rows that come."""

    step: StepPlan
    transfer: Transfer
    places: np.ndarray


class SharedPool(Resident):
    """The pairs that `rank` of `world_size` keeps of n: n / world_size of them, rounded up.

    `present` (n,) bool tells which pairs are in this rank's share by now.
    """

    def __init__(
        self,
        n: int,
        side: int,
        layout: SoundLayout,
        device: torch.device | str,
        rank: int,
        world_size: int,
        exchange: Exchange | None,
    ):
        """exchange: needed where the order changes from epoch to epoch, else None."""
        super().__init__(n, -(-n // world_size), side, layout, device)
        self.rank, self.world_size, self.exchange, self.held = rank, world_size, exchange, exchange is None
        self._owner: np.ndarray | None = None  # (n,) int64: the rank that a pair belongs to
        self._row: np.ndarray | None = None  # (n,) int64: its row there
        self._met = np.zeros(n, bool)  # pairs that some rank's step had by now: kept by their rank, or skipped
        self._faults_unshared = False  # something was decoded since ranks told each other what does not decode
        self._expected: _Expected | None = None
        self._written: torch.cuda.Event | None = None

    def assign(self, order: Order, epoch: int) -> None:
        """Decide which pair belongs to which rank, by the order of `epoch`. Only the first call has an effect."""
        if self._owner is not None:
            return
        positions = order.permutation(epoch)
        self._owner, self._row = np.empty_like(positions), np.empty_like(positions)
        self._owner[positions] = np.arange(len(positions)) % self.world_size
        self._row[positions] = np.arange(len(positions)) // self.world_size

    def rows_of(self, positions: np.ndarray) -> np.ndarray:
        assert self._row is not None  # `assign` was called
        return self._row[positions]

    def kept_elsewhere(self) -> np.ndarray:
        assert self._owner is not None  # `assign` was called
        return self._owner != self.rank

    def steps(self, order: Order, epoch: int) -> Iterator[StepPlan]:
        """The steps of `epoch`. The first call decides which pair belongs to which rank."""
        self.assign(order, epoch)
        assert self._owner is not None
        for number, batches in enumerate(order.all_batches(epoch)):
            positions = np.concatenate(batches)
            owners = self._owner[positions]
            askers = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
            exchanges = bool((owners != askers).any())
            yield StepPlan(epoch, number, batches[self.rank], positions[owners == self.rank], batches, exchanges)

    def put(self, positions: np.ndarray, frames: torch.Tensor, sound: torch.Tensor) -> None:
        super().put(positions, frames, sound)
        if frames.is_cuda:
            self._written = torch.cuda.current_stream(frames.device).record_event()

    def contents(self, step: StepPlan, following: StepPlan | None, decoded: DecodeQueue) -> Contents:
        self.fill(step, decoded)
        self._share_faults(step, decoded)
        found = self._exchanged(step, decoded.skipped) if step.exchanges else self._own(step, decoded.skipped)
        self._expected = None
        if following is not None and following.exchanges and not self._faults_unshared:
            if self._met[following.all_positions].all():
                self._expected = self._send(following, decoded.skipped)
        return found

    def _share_faults(self, step: StepPlan, decoded: DecodeQueue) -> None:
        """After `fill`: before an exchange, ranks tell each other what does not decode, if anything was decoded."""
        positions = step.all_positions
        if not self._met[positions].all():
            self._met[positions] = self._faults_unshared = True
        if not (self._faults_unshared and step.exchanges):
            return
        self._faults_unshared = False
        assert self.exchange is not None  # or no step exchanges
        faults = [fault for of_rank in self.exchange.gather(decoded.skipped.unshared) for fault in of_rank]
        if faults:
            decoded.skipped.unshared = []
            decoded.skip(faults)

    def _own(self, step: StepPlan, skipped: SkippedPairs) -> Contents:
        """A batch of pairs that are all in this share."""
        rows = index_tensor(self.frames.device, self.rows_of(skipped.left_of(step.batch)))
        sound = gather_rows(self.sound, rows)
        if self.held:
            return Contents(self.frames, rows, sound)
        return Contents(gather_rows(self.frames, rows), torch.arange(len(rows), device=rows.device), sound)

    def _exchanged(self, step: StepPlan, skipped: SkippedPairs) -> Contents:
        """A batch of pairs that come from several ranks, this one included."""
        if self._expected is None or self._expected.step is not step:
            self._expected = self._send(step, skipped)
        frames, sound = self._expected.transfer.wait()
        rows = index_tensor(self.frames.device, self._expected.places)
        return Contents(frames, rows, gather_rows(sound, rows))

    def _send(self, step: StepPlan, skipped: SkippedPairs) -> _Expected:
        """Send what the ranks' batches need of this share, and receive what this rank's batch needs of theirs."""
        batches = [skipped.left_of(batch) for batch in step.all_batches]
        assert self._owner is not None and self._row is not None and self.exchange is not None
        owners = self._owner[batches[self.rank]]
        going = [self._row[batch[self._owner[batch] == self.rank]] for batch in batches]
        coming = np.bincount(owners, minlength=self.world_size).tolist()
        places = np.empty(len(owners), np.int64)
        places[np.argsort(owners, kind="stable")] = np.arange(len(owners))
        transfer = self.exchange.send_rows([self.frames, self.sound], going, coming, self._written)
        return _Expected(step, transfer, places)
