"""A resident pool in shares: each rank keeps the pairs that are its own, and a batch gets the others by exchange.

    first epoch    the ranks' batches are their own pairs     each rank decodes and keeps what it trains on
    later epochs   new permutation ──▶ who needs whose rows ──▶ all-to-all, a step ahead ──▶ batch

A pair belongs to the rank that meets it in the epoch with which the pool begins. So all ranks together decode each pair
once, the first epoch needs no exchange, and where the order is the same in every epoch (evaluation) none ever does. A
pair that was passed over (a run resumed within an epoch, last batches that were dropped) is decoded by the rank that it
belongs to, when any rank's batch needs it.

Who needs which row when is a function of (seed, epoch, number of ranks): each rank computes it for all, and no message
says it. The rows of the next step travel while this one is computed, but for the first step of an epoch and for steps
of which something has still to be decoded. On average (world - 1) / world of a batch comes from other ranks: at B = 128
and side 246, 20 MB a step with 8 ranks.

The one thing that no rank can know by itself is what another one has lost (`data.on_error: skip`). Ranks tell each
other before the first exchange that follows the decoding of anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from essl_fast.data.loading.exchange import Exchange, Swap, on_device
from essl_fast.data.loading.order import Step, all_batches, epoch_order
from essl_fast.data.loading.pool import Kept, Lost, Pool, gather


class SharedPool(Pool):
    """The share that `rank` of `world_size` holds of n pairs: frames (k, side, side, 3) uint8 and sound (k, ...), k = n
    / world_size, rounded up. there (n,) bool: which pairs are in this share by now.

    exchange: needed where the order changes from epoch to epoch, else None.
    """

    def __init__(
        self,
        n: int,
        side: int,
        kept: Kept,
        device: torch.device | str,
        rank: int,
        world_size: int,
        exchange: Exchange | None,
    ):
        super().__init__(n, side, kept, device, rows=-(-n // world_size))
        self.rank, self.world_size, self.exchange, self.held = rank, world_size, exchange, exchange is None
        self._owner = self._slot = None  # (n,) int64: the rank that a pair belongs to, and its row there
        self._seen = np.zeros(n, bool)  # by any rank: in the share that it belongs to, or lost
        self._untold = False  # something was decoded since the ranks told each other what they lost
        self._ahead: tuple[Step, Swap, np.ndarray] | None = None
        self._written: torch.cuda.Event | None = None

    def begin(self, epoch: int, order: dict[str, Any]) -> None:
        """Before anything else, with the epoch that comes first: it decides which pairs belong to whom."""
        if self._owner is not None:
            return
        whole = epoch_order(order["n"], seed=order["seed"], epoch=epoch, shuffle=order["shuffle"])
        self._owner, self._slot = np.empty_like(whole), np.empty_like(whole)
        self._owner[whole] = np.arange(len(whole)) % self.world_size
        self._slot[whole] = np.arange(len(whole)) // self.world_size

    def elsewhere(self) -> np.ndarray:
        return self._owner != self.rank

    def steps(self, epoch: int, order: dict[str, Any]) -> Iterator[Step]:
        settings = {name: value for name, value in order.items() if name != "rank"}
        for batches in all_batches(epoch=epoch, **settings):
            everything = np.concatenate(batches)
            owners = self._owner[everything]
            crosses = bool((owners != np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])).any())
            yield Step(batches[self.rank], everything[owners == self.rank], batches, crosses)

    def put(self, positions: np.ndarray, frames: torch.Tensor, sound: torch.Tensor) -> None:
        super().put(positions, frames, sound)
        if frames.is_cuda:
            self._written = torch.cuda.current_stream(frames.device).record_event()

    def settle(self, step: Step, lost: Lost) -> Lost:
        everything = np.concatenate(step.batches)
        if not self._seen[everything].all():
            self._seen[everything] = self._untold = True
        if not (self._untold and step.crosses):
            return []
        self._untold = False
        return [entry for told in self.exchange.tell(lost) for entry in told]

    def batch(self, step: Step, lost: np.ndarray, following: Step | None) -> tuple[torch.Tensor, ...]:
        if step.crosses:
            if self._ahead is None or self._ahead[0] is not step:
                self._send_for(step, lost)
            _, swap, places = self._ahead
            frames, sound = swap.wait()
            (rows,) = on_device(self.frames.device, places)
            found = frames, rows, gather(sound, rows)
        else:
            found = super().batch(step, lost, following)
            if not self.held:
                frames, rows, sound = found
                found = gather(frames, rows), torch.arange(len(rows), device=rows.device), sound
        self._ahead = None
        if following is not None and following.crosses and not self._untold:
            if self._seen[np.concatenate(following.batches)].all():
                self._send_for(following, lost)
        return found

    def _rows(self, positions: np.ndarray) -> np.ndarray:
        return self._slot[positions]

    def _send_for(self, step: Step, lost: np.ndarray) -> None:
        """Send what the others' batches need of this share, and let come what this rank's batch needs of theirs."""
        left = [batch[~lost[batch]] for batch in step.batches]
        mine = self._owner[left[self.rank]]
        going = [self._slot[batch[self._owner[batch] == self.rank]] for batch in left]
        coming = np.bincount(mine, minlength=self.world_size).tolist()
        places = np.empty(len(mine), np.int64)  # of the batch's pairs among the rows that come, rank by rank
        places[np.argsort(mine, kind="stable")] = np.arange(len(mine))
        self._ahead = step, self.exchange.swap([self.frames, self.sound], going, coming, self._written), places
