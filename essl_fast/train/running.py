"""Running statistics of batch norms where several ranks take the batches of an update by turns.

One process that sees all batches of an update, one after another, moves a running statistic r with momentum m by each:

    r <- (1 - m) r + m s_0,  then  r <- (1 - m) r + m s_1,  ...

After n batches that is (1 - m)^n r + sum_i (1 - m)^(n - 1 - i) m s_i. Each term of the sum needs one batch alone. So
the ranks compute those of their own batches, and one collective adds them up: every rank then has what the one process
has.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from essl_fast.runtime import distributed
from essl_fast.runtime.distributed import World


class Norm(Protocol):
    """What is used of a batch norm with running statistics."""

    num_features: int
    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor


def running_norms(model: nn.Module) -> list[Norm]:
    """The batch norms of a model whose running statistics move in training."""
    norms = (each for each in model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm))
    return cast(list[Norm], [each for each in norms if each.training and each.running_mean is not None])


class RunningStatistics:
    """Moves the running statistics of a model as if this rank had seen all batches of an update, in their order.

    Call :meth:`begin` before the rank's first batch, :meth:`keep` after the forward pass of each, :meth:`settle` after
    the last one. In between, the model's running statistics are not meant to be read. Nothing waits for the device, and
    all tensors keep their addresses, so a CUDA graph can hold what comes before :meth:`settle`.

    Args:
        model: its batch norms have a momentum; each moves as often in each batch.
        world: the ranks. Rank r takes the batches r, r + world.size, ... of an update.
        batches: of an update, over all ranks; 0 where they do not take turns: then nothing is done.

    Attributes:
        share: batches of an update, for each rank: the mean.
    """

    def __init__(self, model: nn.Module, world: World, batches: int) -> None:
        self._model, self._world, self._batches = model, world, batches
        self._own = range(world.rank, batches, world.size)
        self.share = batches / world.size
        self._norms: list[Norm] = []
        self._buffers: list[Tensor] = []  # mean and variance of each
        self._kept = 0  # batches of the update

    @torch.no_grad()
    def begin(self) -> None:
        """Remember the running statistics, and begin from 0."""
        self._kept = 0
        if self._batches and (norms := running_norms(self._model)) != self._norms:
            self._take(norms)
        if self._norms:
            self._flat(self._before)
            self._tracked(self._counts)
            torch._foreach_zero_(self._buffers)

    def _take(self, norms: list[Norm]) -> None:
        """From now on move the running statistics of these norms."""
        self._norms = norms
        self._buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
        if norms:
            device = self._buffers[0].device
            of_each = [number for number, norm in enumerate(norms) for _ in range(2 * norm.num_features)]
            self._norm_of = torch.tensor(of_each, device=device)  # the number of each statistic's norm
            self._left = torch.tensor([1.0 - norm.momentum for norm in norms], dtype=torch.float64, device=device)
            self._before, self._counts = self._flat(), self._tracked()
            # What each batch of this rank moves them by, from 0 on.
            self._found = self._before.new_empty(len(self._own), len(self._before))

    @torch.no_grad()
    def keep(self) -> None:
        """Take what a batch has moved the running statistics by, and begin from 0 again."""
        if self._norms:
            self._flat(self._found[self._kept])
            self._kept += 1
            torch._foreach_zero_(self._buffers)

    @torch.no_grad()
    def settle(self) -> None:
        """Add up what the batches of all ranks have moved."""
        if not self._norms:
            return
        if self._kept != len(self._own):
            raise ValueError(f"an update of {len(self._own)} batches on this rank had {self._kept}")
        moves = (self._tracked() - self._counts) // len(self._own)  # of each norm, in a batch
        left = self._left.pow(moves)[self._norm_of]  # of what was there before a batch
        moved = torch.zeros_like(self._before)
        for number, found in zip(self._own, self._found, strict=True):
            moved += left.pow(self._batches - 1 - number).to(found) * found
        moved = distributed.total(moved, self._world) + left.pow(self._batches).to(moved) * self._before
        parts = moved.split([buffer.numel() for buffer in self._buffers])
        torch._foreach_copy_(self._buffers, list(parts))
        torch._foreach_copy_(
            [norm.num_batches_tracked for norm in self._norms], list(self._counts + moves * self._batches)
        )

    def _flat(self, out: Tensor | None = None) -> Tensor:
        return torch.cat([buffer.reshape(-1) for buffer in self._buffers], out=out)

    def _tracked(self, out: Tensor | None = None) -> Tensor:
        return torch.stack([norm.num_batches_tracked for norm in self._norms], out=out)
