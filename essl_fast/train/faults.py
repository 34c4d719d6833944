"""What keeps a run safe: numbers that are not finite change nothing, collapse is seen, a run directory has one owner.

A step whose loss or gradient is not finite must not reach the weights, even where the host reads losses only now and
then. So the decision stays on the device: :class:`Guard` gives AdamW the flag that gradient scaling uses too
(``found_inf``: the fused kernels then leave weights and moments as they are), and puts batch norm's running statistics
back, which the forward pass had already moved. Nothing in it waits for the device, and all its tensors keep their
places, so that it can be part of a CUDA graph.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

LEAST_SCALE = 2.0**-14  # fp16's loss scale begins at 2^16 and halves at each overflow: 30 in a row are no accident
KEPT = 3  # steps that were not finite: as many of a run are kept for a replay


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm over all gradients (0-d, float32 on their device), in one read of each.

    It is finite exactly if all gradients are and their squares do not overflow, as AdamW's second moment would.
    """
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


class Fault(NamedTuple):
    """A step that was not finite."""

    epoch: int  # from 0
    step: int  # of the epoch, from 0
    rows: list[int]  # of the batch's pairs in the manifest, rank after rank
    keys: list[str]
    losses: dict[str, float]  # means over the ranks
    later: int  # steps that changed the model between this one and when the host heard of it
    ranks: int

    def file(self, folder: Path) -> Path:
        """Where it is kept for a replay."""
        return folder / f"nonfinite-{self.epoch + 1}-{self.step + 1}.pt"


def describe(fault: Fault, file: Path | None, most: int | None) -> str:
    """What a fault means and what to do about it, in a line. most: how many an epoch may pass over, if any may."""
    value = fault.losses["loss"]
    what = "a gradient is not finite" if math.isfinite(value) else f"the loss is {value}"
    text = f"{what} in epoch {fault.epoch + 1}, step {fault.step + 1}"
    text += f", and max_nonfinite allows {most} such step{'s' * (most != 1)} an epoch" if most is not None else ""
    text += "; lower the learning rates or use --precision fp32"
    text += "" if most is not None else ", or go on without such steps with --on_nonfinite skip"
    text += f". `python -m essl_fast.replay {file}` shows where it begins" if file else ""
    return f"{text}. The batch's pairs: {', '.join(fault.keys)}"


class Guard:
    """Keeps a step that is not finite from changing the model; its ``flag`` (0-d float32, 1 or 0) says whether it was.

    :meth:`begin` before the forward pass, :meth:`judge` between backward and update, :meth:`settle` after the update.
    latch: after the first such step no other changes the model either, so that when the host hears of it, the weights
    are those that the step began with.
    """

    def __init__(self, model: nn.Module, device: torch.device, latch: bool) -> None:
        self.latch = latch
        self.flag = torch.zeros((), device=device)  # of the last step
        self.gate = torch.zeros((), device=device)  # whether the model is left as it is
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            by_type.setdefault(buffer.dtype, []).append(buffer)
        self._groups = []
        for buffers in by_type.values():
            before, chosen = (
                torch.empty(sum(b.numel() for b in buffers), dtype=buffers[0].dtype, device=device) for _ in range(2)
            )
            parts = chosen.split([b.numel() for b in buffers])
            views = [part.view(b.shape) for part, b in zip(parts, buffers, strict=True)]
            self._groups.append((buffers, before, chosen, views))

    @torch.no_grad()
    def begin(self) -> None:
        """Remember the buffers: batch norm's running statistics."""
        for buffers, before, _, _ in self._groups:
            torch.cat([b.reshape(-1) for b in buffers], out=before)

    @torch.no_grad()
    def judge(self, loss: Tensor, norm: Tensor | None) -> Tensor:
        """From the loss and the gradients' norm (None: something else watches them) the flag for the optimizer."""
        finite = loss.detach().isfinite() if norm is None else loss.detach().isfinite() & norm.isfinite()
        self.flag.copy_(finite.logical_not())
        if self.latch:
            self.gate.copy_(torch.maximum(self.gate, self.flag))
        else:
            self.gate.copy_(self.flag)
        return self.gate

    @torch.no_grad()
    def settle(self) -> None:
        """Put the buffers back if the step was not to change the model."""
        closed = self.gate > 0
        for buffers, before, chosen, views in self._groups:
            torch.cat([b.reshape(-1) for b in buffers], out=chosen)
            torch.where(closed, before, chosen, out=chosen)
            torch._foreach_copy_(buffers, views)

    def reset(self) -> None:
        """Let updates through again."""
        self.gate.zero_()
