"""Gradients of several processes, averaged after the backward pass instead of within it.

    backward ──▶ gradients ──copy──▶ flat ──all-reduce──▶ flat, whose views are the gradients ──▶ update
                 in the CUDA graph │ outside of it

DistributedDataParallel sends gradients while the backward pass computes the next ones, so a graph of that pass would
hold collectives: NCCL's watchdog does not see those when they are replayed, and all ranks would have to replay them
together. Here the graph ends with a copy, and one collective follows that is launched as any other: the watchdog sees
it, and ranks may come to it from a replay or from a plain step. Nothing of it overlaps with the backward pass.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from essl_fast.runtime.distributed import World

ALIGNED = 64  # elements between the beginnings of two gradients: the fused update reads 16 bytes at once


class SharedGradients:
    """The gradients of a model's trained parameters on all ranks, in one tensor of each dtype.

    Call :meth:`pack` after the backward pass of an update, :meth:`exchange` before the update. Nothing waits for the
    device, and all tensors keep their addresses, so a CUDA graph can hold :meth:`pack`.

    Args:
        parameters: on the device. Those of rank 0 are given to all ranks.
        world: the ranks. Each makes this object at the same place of its program, of the same parameters.
        rounded: gradients are rounded to bf16 before they are sent.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], world: World, rounded: bool) -> None:
        self._world, self._rounded = world, rounded
        self._flat: list[Tensor] = []
        self._views: dict[nn.Parameter, Tensor] = {}  # of each parameter's form
        trained = [each for each in parameters if each.requires_grad]
        for kind in dict.fromkeys(each.dtype for each in trained):
            mine = [each for each in trained if each.dtype == kind]
            sizes = [-(-each.numel() // ALIGNED) * ALIGNED for each in mine]
            flat = torch.zeros(sum(sizes), dtype=kind, device=mine[0].device)
            for each, part in zip(mine, flat.split(sizes), strict=True):
                self._views[each] = part.as_strided(each.shape, each.stride())
            self._flat.append(flat)
        self._begin_alike()

    @torch.no_grad()
    def _begin_alike(self) -> None:
        """Give rank 0's parameters to all ranks."""
        mine, views = [each.detach() for each in self._views], list(self._views.values())
        torch._foreach_copy_(views, mine)
        for flat in self._flat:
            dist.broadcast(flat, 0)
        torch._foreach_copy_(mine, views)
        for flat in self._flat:
            flat.zero_()  # a parameter that no loss depends on adds nothing, and stays without a gradient

    @torch.no_grad()
    def pack(self) -> None:
        """Copy this rank's gradients to where they are exchanged. From then on the parameters have them there."""
        found = {each: each.grad for each in self._views if each.grad is not None}
        torch._foreach_copy_([self._views[each] for each in found], list(found.values()))
        for each in found:
            each.grad = self._views[each]

    @torch.no_grad()
    def exchange(self) -> None:
        """Make them the mean over all ranks, on every rank, by one collective for each dtype."""
        size = self._world.size
        for flat in self._flat:
            sent = flat.bfloat16().div_(size) if self._rounded else flat.mul_(1 / size)
            dist.all_reduce(sent)
            if self._rounded:
                flat.copy_(sent)
