"""Keeps steps whose loss or gradient is not finite from changing the model.

The host reads losses only now and then, so the decision stays on the device: :class:`Guard` gives AdamW the flag that
gradient scaling uses too (``found_inf``: the fused kernels then leave weights and moments as they are), and puts back
the running statistics of the batch norms, which the forward pass has already moved. Nothing here waits for the device,
and all tensors keep their addresses, so a CUDA graph can hold it.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

LEAST_SCALE = (
    2.0**-14
)  # fp16's loss scale begins at 2^16 and halves at each overflow; 30 overflows in a row are a real fault


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm over all gradients (0-d, float32 on their device), in one read of each.

    It is finite exactly if all gradients are finite and their squares do not overflow, as AdamW's second moment would.
    """
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


class Guard:
    """Keeps a step that is not finite from changing the model; its ``flag`` (0-d float32, 1 or 0) says whether it was.

    Call :meth:`begin` before the forward pass, :meth:`judge` between backward and update, :meth:`settle` after it.

    Args:
        model: its buffers (the running statistics) are put back after a step that is not finite.
        device: where the model is.
        latch: after the first such step no later step changes the model either. When the host hears of it, the weights
            are still those that the step began with.
    """

    def __init__(self, model: nn.Module, device: torch.device, latch: bool) -> None:
        self.latch = latch
        self.flag = torch.zeros((), device=device)  # of the last step
        self.gate = torch.zeros((), device=device)  # 1: the model is left as it is
        by_type: dict[torch.dtype, list[Tensor]] = {}
        kept = model.state_dict(keep_vars=True).values()  # without constants, which no step changes
        for buffer in (each for each in kept if not isinstance(each, nn.Parameter)):
            flat = buffer.detach().reshape(-1) if buffer.is_contiguous() else buffer.detach()
            if buffer.is_contiguous() and buffer.element_size() % 4 == 0:
                flat = flat.view(torch.int32)  # only bits are copied: so all types go together, in one launch each
            by_type.setdefault(flat.dtype, []).append(flat)
        self._groups = []
        for buffers in by_type.values():
            size = sum(b.numel() for b in buffers)
            before, chosen = (torch.empty(size, dtype=buffers[0].dtype, device=device) for _ in range(2))
            parts = chosen.split([b.numel() for b in buffers])
            views = [part.view(b.shape) for part, b in zip(parts, buffers, strict=True)]
            self._groups.append((buffers, before, chosen, views))

    @torch.no_grad()
    def begin(self) -> None:
        """Remember the buffers."""
        for buffers, before, _, _ in self._groups:
            torch.cat([b.reshape(-1) for b in buffers], out=before)

    @torch.no_grad()
    def judge(self, loss: Tensor, norm: Tensor | None) -> Tensor:
        """The flag for the optimizer, from the loss (0-d) and the gradients' norm (0-d).

        A norm of None means that gradient scaling checks the gradients itself.
        """
        nothing = loss.detach() - loss.detach()  # 0, or NaN if it is not finite
        if norm is not None:
            nothing = nothing + (norm - norm)
        torch.ne(nothing, 0, out=self.flag)
        if self.latch:
            torch.maximum(self.gate, self.flag, out=self.gate)
        else:
            self.gate.copy_(self.flag)
        return self.gate

    @torch.no_grad()
    def settle(self) -> None:
        """Put the buffers back if the step must not change the model."""
        closed = self.gate > 0
        for buffers, before, chosen, views in self._groups:
            torch.cat([b.reshape(-1) for b in buffers], out=chosen)
            torch.where(closed, before, chosen, out=chosen)
            torch._foreach_copy_(buffers, views)
