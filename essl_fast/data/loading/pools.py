"""The pools of a run: which loader gets one, whole or in shares, within one budget of memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Literal

import torch

from essl_fast.common.errors import InputError
from essl_fast.data.loading.exchange import Exchange
from essl_fast.data.loading.memory import Budget
from essl_fast.data.loading.order import Order
from essl_fast.data.loading.pool import Pool
from essl_fast.data.loading.resident import Resident
from essl_fast.data.loading.shared_pool import SharedPool
from essl_fast.data.loading.sounds import SoundLayout, SoundTransform, raw_samples

Wanted = Literal["auto", "always", "never"]


class Pools:
    """Gives out pools that share one budget. Loaders of the same pairs get the same pool.

    Args:
        resident: "auto" makes a pool where it fits the budget, "always" insists on one, "never" makes none.
        budget_gb: budget in units of 10^9 bytes; 0: see `memory.Budget.of`. The smallest budget of all ranks counts.
        device: where the pools are.
        shared: where several ranks train and have an `exchange`, whether each keeps a share of the pairs: "auto" does
            so where all pairs do not fit.
        exchange: between the ranks that train. Every rank asks for the same pools, in the same order.

    Attributes:
        notes: lines for the user that say what did not fit.
    """

    def __init__(
        self,
        resident: Wanted = "auto",
        budget_gb: float = 0,
        device: torch.device | str = "cpu",
        shared: Wanted = "auto",
        exchange: Exchange | None = None,
    ):
        self.resident, self.device = resident, torch.device(device)
        self.shared, self.exchange = shared, exchange
        self.notes: list[str] = []
        self._budget = Budget(0, False) if resident == "never" else Budget.of(budget_gb, self.device)
        if exchange is not None:  # else one rank might have a pool, and wait for another one that streams
            self._budget.left = exchange.smallest(self._budget.left)
        self._given: dict[Hashable, Resident | None] = {}
        self._reserved: set[Hashable] = set()

    def reserve(self, pairs: Hashable, size: Callable[[], int]) -> None:
        """Leave memory to the decoding of a loader, once, before its pool is taken.

        Args:
            pairs: as for `take`. Every rank reserves for the same pairs, in the same order.
            size: gives the bytes; called the first time only.
        """
        if self.resident == "never" or pairs in self._reserved:
            return
        self._reserved.add(pairs)
        self._budget.reserve(size())
        if self.exchange is not None:  # ranks may have GPUs with other numbers of decoders
            self._budget.left = self.exchange.smallest(self._budget.left)

    def take(
        self, what: str, pairs: Hashable, order: Order, side: int, sound: SoundTransform = raw_samples
    ) -> Resident | None:
        """A pool for the pairs of `order`, or None: stream them.

        Args:
            what: the pairs in words, for messages.
            pairs: the pairs as a key: equal for the same pairs only.
            order: who visits the pairs, and whether epochs differ. Its batch size and seed do not matter here.
            side: of the frames, pixels.
            sound: what batches carry of the sound.

        Raises:
            InputError: "always" was asked for, and it does not fit.
        """
        differs = order.shuffle or order.world_size == 1
        key = (pairs, order.pairs, side, sound, order.rank, order.world_size, differs)
        if key not in self._given:
            self._given[key] = None if self.resident == "never" else self._new(what, order, side, sound)
        return self._given[key]

    def _new(self, what: str, order: Order, side: int, sound: SoundTransform) -> Resident | None:
        layout = SoundLayout.of(sound, self.device)
        n, ranks, bytes_each = order.pairs, order.world_size, layout.pair_bytes(side)
        may_share = ranks > 1 and (not order.shuffle or (self.exchange is not None and self.shared != "never"))
        shortage = ""
        if not may_share or (order.shuffle and self.shared == "auto"):
            if self._budget.take(n * bytes_each):
                return Pool(n, side, layout, self.device)
            shortage = self._budget.shortage(n * bytes_each, f"{n} pairs")
        if may_share:
            share = -(-n // ranks)
            if self._budget.take(share * bytes_each):
                if shortage:
                    self.notes.append(
                        f"{what} is kept in shares, {share} pairs on each of {ranks} processes, which exchange them in "
                        f"every step: whole, it needs {shortage}"
                    )
                exchange = self.exchange if order.shuffle else None
                return SharedPool(n, side, layout, self.device, order.rank, ranks, exchange)
            shortage = self._budget.shortage(share * bytes_each, f"{share} pairs in each of {ranks} processes")
        if self.resident == "always":
            verb = "raise" if self._budget.given else "set"
            raise InputError(
                f"data.resident: always, but {what} needs {shortage.partition(' (')[0]}; {verb} "
                "data.resident_budget_gb, or use auto or never"
            )
        self.notes.append(f"{what} is streamed, not kept: that needs {shortage}")
        return None
