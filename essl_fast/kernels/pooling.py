"""A maximum over 2 x 2 places whose gradient the compiler adds up as it spreads it: the PCM's pools between its levels.

PyTorch's compiler writes the gradient of a max pool's result before it spreads it over the places, since it reads it
four times. What is pooled in the PCM has two readers: so the sum of two maps is written and read once more. Here the
backward pass is element-wise: each place looks whether it was the largest of its four.

In bfloat16, for 256 samples of 512 channels, a pool from 14 x 14 to 7 x 7 moves 83 MB backward instead of 109, in one
launch instead of two. This is counted in generated code, not measured.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from essl_fast.kernels import ops


class _Pool(torch.autograd.Function):
    """F.max_pool2d(x, 2), which keeps a byte for each result: which of the four places it comes from."""

    @staticmethod
    def forward(ctx, x):
        height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
        corners = [x[:, :, down:height:2, right:width:2] for down in (0, 1) for right in (0, 1)]
        best, place = corners[0], torch.zeros_like(corners[0], dtype=torch.int8)
        for number, corner in enumerate(corners[1:], 1):
            better = (corner > best) | corner.isnan()  # of equals the first, of NaNs the last, as PyTorch does
            best, place = torch.where(better, corner, best), torch.where(better, number, place)
        ctx.save_for_backward(place)
        ctx.sides = x.shape[2:]
        return best

    @staticmethod
    def backward(ctx, gradient):
        (place,) = ctx.saved_tensors
        place, gradient = place.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)  # views of channels_last memory
        down, right = (torch.arange(2, dtype=torch.int8, device=place.device) for _ in range(2))
        number = 2 * down[:, None, None, None] + right[:, None]  # (2, 1, 2, 1)

        def spread(rows: Tensor) -> Tensor:
            return rows[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)  # (B, h, 2, w, 2, C)

        rows = torch.where(spread(place) == number, spread(gradient), 0)
        rows = rows.reshape(len(place), 2 * place.shape[1], 2 * place.shape[2], place.shape[3])
        below, beside = ctx.sides[0] - rows.shape[1], ctx.sides[1] - rows.shape[2]  # 1 for an odd side
        return F.pad(rows, (0, 0, 0, beside, 0, below)).permute(0, 3, 1, 2)


def halved(x: Tensor) -> Tensor:
    """F.max_pool2d(x, 2) for (B, C, H, W).

    On a GPU it costs fewer bytes in a compiled step with a gradient, and without a gradient where nothing is compiled.
    """
    if x.is_cuda and x.requires_grad and torch.compiler.is_compiling():
        return _Pool.apply(x)
    return ops.pool_at_rest(x) if ops.rests(x) else F.max_pool2d(x, 2)
