"""The order of training: the pairs of every batch, as a pure function of seed, epoch, rank and number of ranks.

An epoch is one permutation of *all* pairs, and each rank takes every `world_size`-th of it. Three things follow:

* Streaming and pools give the same batches, since neither chooses the order.
* A checkpoint needs only (epoch, step) to continue exactly.
* A full step over all ranks holds the same pairs, however many ranks share them. With a `global_batch` each step does,
  also where the number of ranks does not divide it: step s is a cut of the permutation, and a rank takes of it what is
  its own. With `turns`, one rank takes a step whole, and it is empty for the others.

Pairs are named here by their position, 0 to `pairs` - 1, among the pairs that the loader uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeVar

import numpy as np

from essl_fast.common.errors import InputError

LastBatch = Literal["keep", "drop"]
T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """Which pairs one rank sees at which step of which epoch.

    Attributes:
        pairs: number of pairs that all ranks share.
        batch_size: most pairs of a rank's batch.
        seed: of the permutations, at least 0.
        shuffle: whether each epoch has a permutation of its own; else every epoch is 0, 1, 2, ...
        last_batch: "keep" gives every pair once in an epoch, so last batches may be smaller; "drop" gives full
            batches only.
        rank: this rank, from 0.
        world_size: number of ranks.
        global_batch: pairs of a step over all ranks, whatever their number; 0: `batch_size` of each.
        turns: with a global batch, so many steps are one update, and the ranks take them whole, one rank after another;
            0: each step is shared. As many as there are ranks at least, and "drop", so that no rank is left without a
            step of an update.
    """

    pairs: int
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    last_batch: LastBatch = "keep"
    rank: int = 0
    world_size: int = 1
    global_batch: int = 0
    turns: int = 0

    @property
    def steps(self) -> int:
        """Steps of an epoch, the same on every rank.

        Raises:
            InputError: some rank would have a step without any pair.
        """
        if self.global_batch:
            return self._global_steps()
        if self.last_batch == "drop":
            steps = self.pairs // (self.batch_size * self.world_size)
            if steps == 0:
                raise InputError(
                    f"{self.pairs} pairs do not fill one batch of {self.batch_size} on each of {self.world_size} "
                    "ranks: choose a smaller --data.batch_size, or --data.last_batch keep"
                )
            return steps
        most, least = -(-self.pairs // self.world_size), self.pairs // self.world_size
        steps = -(-most // self.batch_size)
        if least < max(steps, 1):
            raise InputError(
                f"{self.pairs} pairs cannot be shared out over {self.world_size} ranks in batches of up to "
                f"{self.batch_size} without an empty batch: use fewer ranks (--nproc-per-node)"
                + (" or a larger --data.batch_size" if least else "")
            )
        return steps

    def _global_steps(self) -> int:
        """`steps` of a global batch: the same for any number of ranks."""
        whole, rest = divmod(self.pairs, self.global_batch)
        if self.global_batch < self.world_size and not self.turns:
            raise InputError(
                f"{self.world_size} ranks cannot share batches of {self.global_batch} pairs (data.global_batch, over "
                "optim.accumulate): use fewer ranks (--nproc-per-node)"
            )
        if self.last_batch == "drop":
            if not whole:
                raise InputError(
                    f"{self.pairs} pairs do not fill one batch of {self.global_batch} over all ranks: choose a smaller "
                    "--data.global_batch, or --data.last_batch keep"
                )
            return whole
        if 0 < rest < self.world_size:
            raise InputError(
                f"{self.pairs} pairs leave a last batch of {rest}, which {self.world_size} ranks cannot share: use "
                f"{rest} rank{'s' * (rest > 1)} at most, or begin anew with --data.last_batch drop or another "
                "--data.global_batch"
            )
        return whole + (rest > 0)

    def permutation(self, epoch: int) -> np.ndarray:
        """All ranks' positions in the order of `epoch`: (pairs,) int64.

        It sorts the generator's raw output. NumPy promises to keep that output the same in all its versions; it does
        not promise so for `Generator.permutation`.
        """
        if not self.shuffle:
            return np.arange(self.pairs, dtype=np.int64)
        raw = np.random.PCG64(np.random.SeedSequence([self.seed, epoch])).random_raw(self.pairs)
        return np.argsort(raw, kind="stable").astype(np.int64, copy=False)

    def batches(self, epoch: int) -> list[np.ndarray]:
        """This rank's batches of `epoch`: `steps` arrays (b,) int64 with 1 <= b <= batch_size.

        With "keep", a rank may have one pair less than the others, and would then run out one step before them. It
        makes an earlier batch smaller, so that one pair is left for the last step. With a global batch, the rank has
        those of the step's places in the permutation that are its own: the ranks' batches differ by one pair at most.
        With `turns`, a step is the rank's or empty.
        """
        return self._cut(self.permutation(epoch), self.steps, self.rank)

    def all_batches(self, epoch: int) -> list[list[np.ndarray]]:
        """`batches` of every rank: [step][rank]."""
        steps, order = self.steps, self.permutation(epoch)
        ranks = (self._cut(order, steps, rank) for rank in range(self.world_size))
        return [list(step) for step in zip(*ranks, strict=True)]

    def batches_from(self, epoch: int, step: int, epochs: int | None = None) -> Iterator[np.ndarray]:
        """`batches` from `step` of `epoch` on, over all later epochs, see `over_epochs`."""
        return over_epochs(self.batches, epoch, step, epochs)

    def _cut(self, order: np.ndarray, steps: int, rank: int) -> list[np.ndarray]:
        """Of all positions of an epoch those of a rank, cut into its batches."""
        if self.turns:
            every = enumerate(order[: steps * self.global_batch].reshape(steps, self.global_batch))
            return [batch if step % self.turns % self.world_size == rank else batch[:0] for step, batch in every]
        order = order[rank :: self.world_size]
        if self.global_batch:
            ends = [min((step + 1) * self.global_batch, self.pairs) for step in range(steps)]
            ends = [-(-(end - rank) // self.world_size) for end in ends]  # of the places before it, those of the rank
            return np.split(order[: ends[-1]], ends[:-1])
        if self.last_batch == "drop":
            order = order[: steps * self.batch_size]
        ends = [min((step + 1) * self.batch_size, len(order) - (steps - 1 - step)) for step in range(steps)]
        return np.split(order, ends[:-1])


def over_epochs(of_epoch: Callable[[int], Iterable[T]], epoch: int, step: int, epochs: int | None) -> Iterator[T]:
    """The items of `of_epoch(epoch)` from number `step` on, then those of all later epochs, without a pause between.

    Args:
        of_epoch: the items of an epoch, one for each step.
        epochs: number of epochs, after which it ends; None: it never ends.
    """
    while epochs is None or epoch < epochs:
        yield from islice(of_epoch(epoch), step, None)
        epoch, step = epoch + 1, 0


def only_new(
    batches: Iterator[np.ndarray], known: np.ndarray, shuffled: bool, most: int | None = None
) -> Iterator[np.ndarray]:
    """The positions of each batch that were neither known before nor in an earlier batch: what a pool must decode.

    It ends when all positions are known. Where every epoch has the same order it may end earlier: "drop" then leaves
    out the same pairs in each epoch, and they never come.

    Args:
        batches: positions (b,) int64 of each batch.
        known: (n,) bool, the positions that are known at the beginning. It is not changed.
        shuffled: whether epochs differ in their order.
        most: if given, larger arrays are cut into parts of at most this length.

    Yields:
        (k,) int64 with k >= 1, in the order of the batches.
    """
    known, total = known.copy(), len(known)
    left = total - int(known.sum())
    without_new = 0  # positions since the last new one
    while left:
        batch = next(batches, None)
        if batch is None:
            return
        new = batch[~known[batch]]
        if len(new):
            known[new] = True
            left, without_new = left - len(new), 0
            for at in range(0, len(new), most or len(new)):
                yield new[at : at + (most or len(new))]
        else:
            without_new += max(len(batch), 1)
        if not shuffled and without_new > total:
            return
