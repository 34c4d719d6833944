"""Several batches in one update (`optim.accumulate`): their gradients are added up before the weights change.

    loader: b0 b1 b2 b3 │ b4 b5 b6 b7 │ b8            accumulate 4
    updates:     0      │      1      │ 2, or none where data.last_batch drops what is not full

The order cuts one permutation of the pairs into batches, so k batches of B pairs are the pairs of one batch of k·B: the
same updates see the same pairs in the same views. The losses are weighted as means over all pairs of the update (L_S:
over all labelled pairs). What is left of the small batches are statistics that are taken over a batch: those of batch
norms, and LSS's negative, which is another pair of the same batch.

Several processes that share a global batch take such batches by turns, each of them whole, or share each
(`config.turns`). Both give the same numbers.

A group of batches is one step of the run: checkpoints, signals, schedules and the check for values that are not finite
see updates, never half of one.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from essl_fast.common.errors import InputError
from essl_fast.data.loading import Loader, RawBatch
from essl_fast.train.collapse import SPREAD
from essl_fast.train.graphs import Inputs


class Group(NamedTuple):
    """The batches of one update, joined: as RawBatch, with how many pairs are of each batch."""

    frames: Tensor  # (N, S, S, 3) uint8
    rows: Tensor  # (B,) int64, which of `frames` are the group's
    sound: Tensor  # (B, ...)
    # (B,) int64: the pairs' rows in the manifest
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    sizes: tuple[int, ...]  # their sum is B


def updates_of(batches: int, every: int, last_batch: str, shared: bool = False) -> int:
    """How many updates an epoch of so many batches has.

    shared: an update has `data.global_batch` pairs, however many batches these are.

    Raises:
        InputError: the batches do not fill one update, and what is not full is dropped.
    """
    updates = batches // every if last_batch == "drop" else -(-batches // every)
    if not updates:
        smaller = "--data.global_batch" if shared else "--optim.accumulate or --data.batch_size"
        raise InputError(
            f"optim.accumulate: an epoch has {batches} batches, which do not fill one update of {every}: choose a "
            f"smaller {smaller}, or --data.last_batch keep"
        )
    return updates


def grouped(loader: Loader, every: int, last_batch: str) -> Iterator[RawBatch | Group]:
    """The rest of the loader's epoch, in groups of ``every`` batches.

    The last group may have fewer batches; it is dropped where ``last_batch`` says "drop". When a group comes out, the
    loader stands behind its last batch.
    """
    waiting: list[RawBatch] = []
    for raw in loader.each_step():
        if raw is not None:  # with `data.global_batch`, some batches may be other ranks'
            waiting.append(raw)
        if loader.step % every == 0 or (last_batch == "keep" and loader.step == len(loader)):
            yield joined(waiting)
            waiting = []


def joined(batches: Sequence[RawBatch]) -> RawBatch | Group:
    """Batches as one group; a single batch as it is."""
    if len(batches) == 1:
        return batches[0]
    frames, rows = [raw.frames for raw in batches], [raw.rows for raw in batches]
    if len({each.data_ptr() for each in frames}) == 1:  # a pool, which every batch names as a whole
        frames = frames[:1]
    else:
        begins = [sum(len(each) for each in frames[:number]) for number in range(len(frames))]
        rows = [each + begin for each, begin in zip(rows, begins, strict=True)]
    return Group(
        frames[0] if len(frames) == 1 else torch.cat(frames),
        torch.cat(rows),
        torch.cat([raw.sound for raw in batches]),
        torch.cat([raw.index for raw in batches]),
        tuple(len(raw.index) for raw in batches),
    )


def sizes_of(raw: RawBatch | Group) -> tuple[int, ...]:
    """How many pairs each batch of an update has."""
    return raw.sizes if isinstance(raw, Group) else (len(raw.index),)


def parts_of(inputs: Inputs, sizes: tuple[int, ...]) -> list[Inputs]:
    """The inputs of an update as those of its batches, which share the frames."""
    if len(sizes) == 1:
        return [inputs]
    by_pair = (each.split(sizes) for each in (inputs.rows, inputs.sound, inputs.index))
    by_view = (each.split(sizes, dim=1) for each in (inputs.top, inputs.left, inputs.flip))
    return [Inputs(inputs.frames, *each) for each in zip(*by_pair, *by_view, strict=True)]


def losses_of(parts: list[dict[str, Tensor]], batches: float) -> dict[str, Tensor]:
    """The losses of an update from those of its batches, which are weighted already; spreads are averaged.

    Args:
        parts: of this rank's batches.
        batches: of the update, for each rank: where ranks have different numbers of them, the mean.
    """
    if len(parts) == batches == 1:
        return parts[0]
    sums = {name: torch.stack([part[name].detach() for part in parts]).sum() for name in parts[0]}
    return {name: value / batches if name in SPREAD else value for name, value in sums.items()}
