"""Which pairs a rank sees at which step of which epoch: pure functions of the seed, whatever delivers the pairs.

A permutation of *all* pairs, of which each rank takes every `world_size`-th. So a resident pool follows the order that
streaming has, a checkpoint is (epoch, step) and nothing else, and the pairs of a full step over all ranks do not depend
on how many ranks share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from essl_fast.common.errors import InputError

LastBatch = Literal["keep", "drop"]


class Step(NamedTuple):
    """A step of a rank. asked: the positions of its batch; needs: those that it must have decoded before. Where ranks
    share a pool: batches, all ranks' `asked`; crosses: some rank needs another's pairs."""

    asked: np.ndarray
    needs: np.ndarray
    batches: list[np.ndarray]
    crosses: bool


def epoch_order(
    n: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1, shuffle: bool = True
) -> np.ndarray:
    """Positions in 0..n-1 that `rank` visits in `epoch`, in order: int64, n // world_size of them or one more.

    The ranks' orders are disjoint and make up all n. The permutation sorts raw generator output, which NumPy promises
    to keep the same over its versions (not so that of `permutation`).
    """
    if not shuffle:
        return np.arange(rank, n, world_size, dtype=np.int64)
    raw = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n)
    return np.argsort(raw, kind="stable")[rank::world_size].astype(np.int64, copy=False)


def steps_per_epoch(n: int, *, batch_size: int, world_size: int = 1, last_batch: LastBatch = "keep") -> int:
    """Steps of an epoch, the same on every rank. InputError if some rank would have a step without a pair."""
    if last_batch == "drop":
        steps = n // (batch_size * world_size)
        if steps == 0:
            raise InputError(
                f"{n} pairs do not fill one batch of {batch_size} on each of {world_size} ranks: "
                "make the batch smaller or keep the last batch"
            )
        return steps
    most, least = -(-n // world_size), n // world_size
    steps = -(-most // batch_size)
    if least < max(steps, 1):
        raise InputError(
            f"{n} pairs cannot be shared out over {world_size} ranks in batches of up to {batch_size} "
            "without an empty batch: use fewer ranks" + (" or a larger batch" if least else "")
        )
    return steps


def epoch_batches(
    n: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    shuffle: bool = True,
    last_batch: LastBatch = "keep",
) -> list[np.ndarray]:
    """`epoch_order` cut into `steps_per_epoch` batches of at most `batch_size`, none empty.

    "drop": full batches only. "keep": every pair; a rank that has one pair less than the others and would run out one
    step before them leaves a pair for that step.
    """
    steps = steps_per_epoch(n, batch_size=batch_size, world_size=world_size, last_batch=last_batch)
    order = epoch_order(n, seed=seed, epoch=epoch, rank=rank, world_size=world_size, shuffle=shuffle)
    return _cut(order, steps, batch_size, last_batch)


def all_batches(
    n: int, *, batch_size: int, seed: int, epoch: int, world_size: int, shuffle: bool, last_batch: LastBatch
) -> list[list[np.ndarray]]:
    """`epoch_batches` of every rank, step by step: [step][rank]."""
    steps = steps_per_epoch(n, batch_size=batch_size, world_size=world_size, last_batch=last_batch)
    order = epoch_order(n, seed=seed, epoch=epoch, shuffle=shuffle)
    ranks = (_cut(order[rank::world_size], steps, batch_size, last_batch) for rank in range(world_size))
    return [list(step) for step in zip(*ranks, strict=True)]


def _cut(order: np.ndarray, steps: int, batch_size: int, last_batch: LastBatch) -> list[np.ndarray]:
    if last_batch == "drop":
        order = order[: steps * batch_size]
    ends = [min((step + 1) * batch_size, len(order) - (steps - 1 - step)) for step in range(steps)]
    return np.split(order, ends[:-1])


def batches_from(epoch: int, step: int, *, epochs: int | None = None, **settings: Any) -> Iterator[np.ndarray]:
    """The batches from `step` of `epoch` on, over all later epochs (or those before `epochs`): whoever decodes ahead
    along them does not pause where an epoch ends. `settings` are those of `epoch_batches`."""
    while epochs is None or epoch < epochs:
        yield from epoch_batches(epoch=epoch, **settings)[step:]
        epoch, step = epoch + 1, 0


def needs_from(
    epoch: int, step: int, steps: Callable[[int], Iterator[Step]], epochs: int | None
) -> Iterator[np.ndarray]:
    """What `steps` of each epoch needs, from `step` of `epoch` on, like `batches_from`."""
    while epochs is None or epoch < epochs:
        yield from (one.needs for one in islice(steps(epoch), step, None))
        epoch, step = epoch + 1, 0


def not_yet(
    batches: Iterator[np.ndarray], seen: np.ndarray, shuffled: bool, most: int | None = None
) -> Iterator[np.ndarray]:
    """Of each batch what was in no batch before it and is not marked in `seen` (n,) bool, which is left as it is; only
    where that is anything, and in parts of `most` at most.

    Ends when all n were seen: a resident pool decodes what this yields and no more. Where every epoch is the same, it
    may end before that, since last batches that are dropped drop the same pairs each time.
    """
    seen, idle, total = seen.copy(), 0, len(seen)
    left = total - int(seen.sum())
    while left:
        batch = next(batches, None)
        if batch is None:
            return
        new = batch[~seen[batch]]
        if len(new):
            seen[new] = True
            left, idle = left - len(new), 0
            yield from (new[at : at + most] for at in range(0, len(new), most or len(new))) if most else (new,)
        else:
            idle += max(len(batch), 1)
        if not shuffled and idle > total:
            return
