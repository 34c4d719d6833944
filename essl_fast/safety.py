"""What keeps a run safe: numbers that are not finite change nothing, collapse is seen, a run directory has one owner.

A step whose loss or gradient is not finite must not reach the weights, even where the host reads losses only now and
then. So the decision stays on the device: :class:`Guard` gives AdamW the flag that gradient scaling uses too
(``found_inf``: the fused kernels then leave weights and moments as they are), and puts batch norm's running statistics
back, which the forward pass had already moved. Nothing in it waits for the device, and all its tensors keep their
places, so that it can be part of a CUDA graph.
"""

import contextlib
import errno
import fcntl
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from essl_fast.config import InputError

COMPARING = ("sspl", "semipl")  # methods that compare the views' projections, which may collapse
COLLAPSED_BELOW = 0.1  # of projection_std; a healthy run is near 1
RANK_BELOW, RANKED_FROM = 1.5, 8  # of projection_rank, in steps of so many pairs
SPREAD = ("projection_std", "projection_rank")  # of :func:`projection_spread`
LEAST_SCALE = 2.0**-14  # fp16's loss scale begins at 2^16 and halves at each overflow: 30 in a row are no accident
LOCK = ".lock"
KEPT = 3  # steps that were not finite: as many of a run are kept for a replay


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm over all gradients (0-d, float32 on their device), in one read of each.

    It is finite exactly if all gradients are and their squares do not overflow, as AdamW's second moment would.
    """
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def projection_spread(z: Tensor) -> dict[str, Tensor]:
    """How far apart the pairs' projections are; z (V, B, D), as the projector's last batch norm, not affine, leaves it.

    projection_std: the standard deviation over the batch, averaged over channels and views (Chen & He, Exploring Simple
    Siamese Representation Learning, 2021, section 4.1, watch the same of z / |z|). The head's three batch norms amplify
    a small difference up to 316 times each (eps is 1e-5), so this stays near 1 until the features are equal to one part
    in 10^7, and is 0 where they are the same.

    projection_rank: in how many directions they differ, (tr K)^2 / tr(K^2) with K the (B, B) products of the centred
    projections: 1 where they lie on one line, B - 1 where all directions are alike. Averaged over views.

    Both 0-d float32, without gradient.
    """
    centred = z.detach().float()
    centred = centred - centred.mean(dim=1, keepdim=True)
    with torch.autocast(z.device.type, enabled=False):
        gram = centred @ centred.mT
    total, square = gram.diagonal(dim1=1, dim2=2).sum(dim=1), gram.square().sum(dim=(1, 2))
    return {
        "projection_std": centred.square().mean(dim=1).sqrt().mean(),
        "projection_rank": (total.square() / square.clamp(min=torch.finfo(torch.float32).tiny)).mean(),
    }


def _collapsed(entry: dict, batch: int) -> str | None:
    """How an epoch's projections have collapsed, in words."""
    if not entry.get("projection_std", 1.0) >= COLLAPSED_BELOW:
        return f"their spread, projection_std, is {entry['projection_std']:.3f} where a healthy run has about 1"
    if batch >= RANKED_FROM and not entry.get("projection_rank", RANK_BELOW) >= RANK_BELOW:
        return f"they lie on a line: projection_rank is {entry['projection_rank']:.2f}"
    return None


def collapse(history: list[dict], batch: int) -> str | None:
    """A warning for the first epoch of the history's end in which the projections have collapsed; else None.

    batch: pairs a step. A few pairs lie in few directions whatever they are, so that rank is judged from 8 pairs on.
    """
    found = [_collapsed(entry, batch) for entry in history[-2:]]
    if not found or found[-1] is None or (len(found) == 2 and found[0] is not None):
        return None
    return (
        f"the projections have collapsed, {found[-1]}: pairs look alike to L_U, which then teaches little. Lower "
        "optim.lr_head and optim.lr_sound, use a larger data.batch_size, or start anew with another seed"
    )


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
            before, chosen = (torch.empty(sum(b.numel() for b in buffers), dtype=buffers[0].dtype, device=device)
                              for _ in range(2))  # fmt: skip
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


@contextlib.contextmanager
def owned(folder: Path, say=lambda line: None) -> Iterator[None]:
    """Own a run directory, which is there, for the time of the context; InputError if another training does.

    The lock ends with the process, however that ends. ``say`` is told where the file system knows no locks.
    """
    path = Path(folder) / LOCK
    held = _lock(path, folder, say)
    try:
        yield
    finally:
        if held is not None:
            with contextlib.suppress(OSError):  # the folder is gone, or nobody may write to it any more
                os.unlink(path)  # while it is held: whoever waits sees that it is no longer the one at this path
            os.close(held)


def _lock(path: Path, folder: Path, say) -> int | None:
    while True:
        held = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(held), os.stat(path)):
                os.ftruncate(held, 0)
                os.write(held, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
                return held
            os.close(held)  # its owner removed it between our two calls: once more
        except BlockingIOError:
            who = os.read(held, 200).decode(errors="replace").strip() or "another process"
            os.close(held)
            raise InputError(
                f"out: another training is at work in {folder} ({who}): wait for it, or choose another --out"
            ) from None
        except OSError as error:
            os.close(held)
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            why = f"the file system of {folder} has no locks ({error.strerror})"
            say(f"warning: {why}: let no other training work there")
            return None
