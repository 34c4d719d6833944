"""Batch norm of a batch that holds several views, each normalised by its own statistics.

The published code passes the views through the networks one after the other. One pass over all views gives the same
result: every layer except batch norm treats each sample by itself, and here batch norm takes its statistics view by
view, and updates its running statistics by view 1, then by view 2. Convolutions and matrix products get twice the
batch, and half as many kernels are launched.

With several processes the statistics of a view are those of all ranks together (``synced``): each rank contributes
count, mean and variance, with one collective per layer forward and one backward, whatever the number of views.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives  # these can be part of a compiled graph
import torch.nn.functional as F
from torch import Tensor, nn


def _everyone() -> dist.ProcessGroup:
    """The group of all ranks, which there is where norms are synced."""
    return dist.group.WORLD  # type: ignore[return-value]  # None only before init_process_group


class _Gather(torch.autograd.Function):
    """(...) of each rank -> (ranks, ...) on every rank. The gradient of a rank's part is the sum over all ranks."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return collectives.wait_tensor(collectives.all_gather_tensor(x[None].contiguous(), 0, _everyone()))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        summed = collectives.wait_tensor(collectives.all_reduce(gradient.contiguous(), "sum", _everyone()))
        return summed[dist.get_rank()]


class ViewBatchNorm(nn.modules.batchnorm._BatchNorm):
    """``BatchNorm1d`` and ``BatchNorm2d`` over (V * B, C) or (V * B, C, H, W), view after view.

    In training ``forward(x, views=V)`` equals V calls of PyTorch's module on the chunks ``x.chunk(V)``, in outputs,
    gradients and running statistics. In evaluation, where batch statistics are not used, it equals one call on x.
    Parameters and buffers have PyTorch's names. ``synced``: batch statistics are taken over all ranks of
    ``torch.distributed``, which may hold different numbers of samples. ``tracking``: running statistics are updated;
    see :func:`untracked`.
    """

    synced, tracking = False, True
    # Not None, as PyTorch's class may have them: it is made with its defaults.
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim not in (2, 4):
            raise ValueError(f"ViewBatchNorm takes (V * B, C) or (V * B, C, H, W), got {tuple(x.shape)}")

    def forward(self, x: Tensor, views: int = 1, later: "list[Moments] | None" = None) -> Tensor:
        """Normalise x.

        Args:
            x: (V * B, C) or (V * B, C, H, W).
            views: V.
            later: if given, and the running statistics are to be updated by arithmetic of our own, they are not: the
                batch's moments are put into this list, for :func:`update_running`.

        Returns:
            Of x's shape and dtype.

        Raises:
            ValueError: the statistics of a view would come from fewer than two values.
        """
        self._check_input_dim(x)
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        count = x.numel() // (x.shape[1] * views)
        if len(x) % views or count < (1 if self.synced else 2):
            raise ValueError(
                f"batch norm: {tuple(x.shape)} holds {count} values a channel and view for {views} views; "
                "it needs two at least, and as many samples of each view"
            )
        if self.synced or torch.compiler.is_compiling():
            return self._in_one(x, views, count, later)
        if self.tracking:
            self.num_batches_tracked.add_(views)
        # Eager: PyTorch's own kernels take one launch for the statistics and one for the normalisation.
        running = self.running_mean, self.running_var
        if not self.tracking:  # copies: with None, autograd would save other tensors than the first forward pass did
            running = self.running_mean.clone(), self.running_var.clone()
        parts = [
            F.batch_norm(part, *running, self.weight, self.bias, True, self.momentum, self.eps)
            for part in x.chunk(views)
        ]
        return parts[0] if views == 1 else torch.cat(parts)

    def _in_one(self, x: Tensor, views: int, count: int, later: "list[Moments] | None") -> Tensor:
        """All views in one reduction and one element-wise pass, which the compiler fuses with the next layers."""
        grouped = x.unflatten(0, (views, -1))
        wide = grouped if grouped.dtype == torch.float64 else grouped.float()
        over = [dim for dim in range(1, grouped.ndim) if dim != 2]
        variance, mean = torch.var_mean(wide, dim=over, correction=0, keepdim=True)
        total = count
        if self.synced:
            stats = _Gather.apply(torch.stack([mean, variance, torch.full_like(mean, count)]))
            means, variances, weights = stats.unbind(1)  # each (ranks, V, 1, C, ...)
            total = weights.sum(0)
            mean = (weights * means).sum(0) / total
            variance = (weights * (variances + (means - mean).square())).sum(0) / total
        out = (wide - mean) * torch.rsqrt(variance + self.eps)
        if self.affine:
            shape = (-1, *[1] * (x.ndim - 2))
            out = out * self.weight.view(shape) + self.bias.view(shape)
        unbiased = variance.detach() * (total / (total - 1))
        self._track(mean.detach().view(views, -1), unbiased.view(views, -1), later)
        return out.to(x.dtype).flatten(0, 1)

    def note(self, moments: Tensor, count: int, later: "list[Moments] | None" = None) -> None:
        """Update the running statistics with moments that a kernel has computed.

        Args:
            moments: (2, V, C), means and variances of each view, divided by the count.
            count: values of a channel and view.
            later: as of :meth:`forward`.

        Raises:
            ValueError: the count is less than two.
        """
        if count < 2:
            raise ValueError(f"batch norm: {count} values a channel and view; it needs two at least")
        means, variances = moments.detach().unbind()
        self._track(means, variances * (count / (count - 1)), later)

    def _track(self, means: Tensor, unbiased: Tensor, later: "list[Moments] | None") -> None:
        """Update the running statistics with moments (V, C), or put them into a list for later."""
        if not self.tracking:
            return
        moments = Moments(self, means, unbiased)
        if later is None:
            update_running([moments])
        else:
            later.append(moments)


class Moments(NamedTuple):
    """What a batch adds to the running statistics of a norm."""

    norm: ViewBatchNorm
    means: Tensor  # (V, C)
    variances: Tensor  # (V, C), unbiased


@torch.no_grad()
def update_running(done: list[Moments]) -> None:
    """Update the running statistics of several norms, view by view.

    The compiler makes a few launches of it for all of them, instead of several launches each.

    Args:
        done: of norms that share one momentum.
    """
    if not done:
        return
    running = [buffer for each in done for buffer in (each.norm.running_mean, each.norm.running_var)]
    for view in range(len(done[0].means)):
        batch = [part[view] for each in done for part in (each.means, each.variances)]
        if torch.compiler.is_compiling():  # PyTorch 2.15 makes a tensor of lerp's weight, which it copies to the GPU
            torch._foreach_add_(running, torch._foreach_sub(batch, running), alpha=done[0].norm.momentum)
        else:
            torch._foreach_lerp_(running, batch, done[0].norm.momentum)
    torch._foreach_add_([each.norm.num_batches_tracked for each in done], len(done[0].means))


@contextlib.contextmanager
def untracked(model: nn.Module) -> Iterator[None]:
    """Within the context the model's batch norms do not update their running statistics.

    For a forward pass that is computed a second time, for its backward pass: the first one has updated them already.
    """
    norms = [module for module in model.modules() if isinstance(module, ViewBatchNorm)]
    for norm in norms:
        norm.tracking = False
    try:
        yield
    finally:
        for norm in norms:
            norm.tracking = True


def synchronize(model: nn.Module) -> None:
    """Make the model's batch norms take their statistics over all ranks from now on."""
    for module in model.modules():
        if isinstance(module, ViewBatchNorm):
            module.synced = True
