"""The settings of a loader, and their checks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from essl_fast.common.errors import InputError
from essl_fast.config import STORED_SIDE
from essl_fast.data.loading.memory import processes_here
from essl_fast.data.loading.order import LastBatch, Order
from essl_fast.data.shards import Quarantined

OnError = Literal["stop", "skip"]


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """Settings of a `Loader`, each with its unit.

    Attributes:
        splits: names of one or more splits, or one name.
        batch_size: pairs in a step on this rank, at most.
        side: pixels; frames become (side, side, 3).
        shuffle: whether each epoch has a new permutation, made from `seed`.
        device: where batches are. "cuda" without a number is the current GPU.
        seed: of the permutations, at least 0.
        rank: this process among those that share the pairs, from 0.
        world_size: number of these processes.
        global_batch: pairs in a step over all ranks, whatever their number; 0: batch_size on each.
        turns: with a global batch, steps of an update, which the ranks take whole and by turns, see `Order`; 0: they
            share each.
        last_batch: "keep" gives each pair exactly once in an epoch over all ranks, "drop" gives full batches only.
        threads: CPU threads that read and decode; None: `pick_threads`.
        prefetch: batches that are ready ahead; as many again are being decoded. None: `pick_prefetch`.
        epochs: how many there are, where decoding ahead ends; None: not known.
        exclude: pairs listed by `prepare --verify` that are left out: "none", "bad" (corrupt, truncated, no audio) or
            "all".
        on_error: at a frame that does not decode, "stop" with an InputError; or "skip" the pair from then on, which
            makes its batch one pair smaller. Files that cannot be read always stop the loader, since that is not the
            fault of one pair.
        max_errors: share of all pairs, from 0 to 1; where more are skipped, the loader stops.
        least: pairs; a batch that lost a pair and has fewer left stops the loader.

    Raises:
        InputError: a value is impossible.
    """

    splits: Sequence[str] | str = "train"
    batch_size: int = 128
    side: int = STORED_SIDE
    shuffle: bool = True
    device: torch.device = "cpu"  # type: ignore[assignment]  # a string is completed
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    global_batch: int = 0
    turns: int = 0
    last_batch: LastBatch = "keep"
    threads: int = None  # type: ignore[assignment]  # None is completed
    prefetch: int = None  # type: ignore[assignment]  # None is completed
    epochs: int | None = None
    exclude: Quarantined = "none"
    on_error: OnError = "stop"
    max_errors: float = 0.01
    least: int = 1

    def __post_init__(self) -> None:
        self._set("splits", (self.splits,) if isinstance(self.splits, str) else tuple(self.splits))
        self._set("threads", pick_threads() if self.threads is None else self.threads)
        self._set("prefetch", pick_prefetch(max(1, self.batch_size)) if self.prefetch is None else self.prefetch)
        self._set("shuffle", bool(self.shuffle))
        for name, at_least in [
            ("batch_size", 1),
            ("side", 1),
            ("threads", 1),
            ("prefetch", 1),
            ("seed", 0),
            ("rank", 0),
            ("world_size", self.rank + 1),
            ("global_batch", 0),
            ("turns", 0),
            ("max_errors", 0),
        ]:
            if getattr(self, name) < at_least:
                raise InputError(f"{name} is at least {at_least} here, not {getattr(self, name)}")
        for name, choices in [
            ("last_batch", ("keep", "drop")),
            ("exclude", ("none", "bad", "all")),
            ("on_error", ("stop", "skip")),
        ]:
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is {' or '.join(choices)}, not {getattr(self, name)!r}")
        sharing = 1 if self.turns else self.world_size
        if self.global_batch > self.batch_size * sharing:
            raise InputError(
                f"a global_batch of {self.global_batch} is more than batch_size {self.batch_size} on each of "
                f"{sharing} rank{'s' * (sharing > 1)}"
            )
        if self.turns and not (self.global_batch and self.turns >= self.world_size and self.last_batch == "drop"):
            raise InputError(
                f"turns are of a global_batch with last_batch drop, and {self.world_size} at least for as many ranks"
            )
        if not self.splits or len(set(self.splits)) != len(self.splits):
            raise InputError(f"splits are one or more different names, not {self.splits}")
        device = torch.device(self.device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self._set("device", device)

    @property
    def larger_batches(self) -> str:
        """What gives a rank more pairs in a step, for people."""
        if not self.global_batch:
            return "choose a larger data.batch_size"
        fewer = "use fewer ranks (--nproc-per-node) or " if self.world_size > 1 else "choose "
        return f"{fewer}a larger data.global_batch"

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # frozen, but for the values that are completed here

    def order(self, pairs: int) -> Order:
        """The order of `pairs` pairs under these settings."""
        return Order(
            pairs,
            self.batch_size,
            self.seed,
            self.shuffle,
            self.last_batch,
            rank=self.rank,
            world_size=self.world_size,
            global_batch=self.global_batch,
            turns=self.turns,
        )


def pick_threads() -> int:
    """The default number of threads: this process's CPUs, divided among the processes that torchrun started on
    this host, 8 at most.

    At an estimated 0.5 ms for a small JPEG, 8 threads decode over 10,000 frames a second, more than any GPU trains on.
    """
    cores = len(os.sched_getaffinity(0))
    return min(8, max(1, cores // processes_here()))


def pick_prefetch(batch_size: int) -> int:
    """The default number of batches decoded ahead: 256 pairs, in 2 to 4 batches.

    That bridges a slow read or a long clip. More only takes memory.
    """
    return min(4, max(2, 256 // batch_size))
