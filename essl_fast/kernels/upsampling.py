"""Bilinear upsampling by two as a product with a constant matrix: the resize inside the PCM, 7 x 7 to 14 x 14.

With align_corners, output position o of 2n takes input position o (n - 1) / (2n - 1). So the weight of input i along
one axis is max(0, 1 - |o (n - 1) / (2n - 1) - i|), a multiple of 1 / (2n - 1), and the weight of a pair of axes is a
multiple of 1 / ((2h - 1) (2w - 1)). For one sample, with input x (h w, C) and output y (4 h w, C):

    y = A x / D,    dx = A' dy / D,    A integer (4 h w, h w),    D = (2h - 1) (2w - 1)

For 7 x 7, D is 169. Integers up to 256 are exact in bfloat16, and the product adds in float32 and divides by D before
it rounds, so the result is rounded once, as F.interpolate's is.

What this buys on a GPU: F.interpolate's backward adds into the input's gradient atomically, in an order that changes
from run to run, and as compiled code it spread a contiguous layout over the PCM's backward. The product has one order,
and both sides are channels_last. Bytes of a call for V B = 256, C = 512 in bf16: 12.8 MB and 51.4 MB each way, which
take 15 us at an H200's 4.3 TB/s; its 2.5 GFLOP take 3 us at the rate of large products. This is arithmetic, not a
measurement. A CPU keeps F.interpolate.
"""

import torch
from torch import Tensor

from essl_fast.kernels import reference


def doubling_weights(height: int, width: int) -> Tensor:
    """A (4 height width, height width) float32: integers, the weights of each output position times D."""
    return torch.kron(_along(height), _along(width))


def _along(n: int) -> Tensor:
    """(2n, n): 2n - 1 times the weight of each input, for each output."""
    at, scale = torch.arange(2 * n)[:, None] * (n - 1), 2 * n - 1
    return (scale - (at - scale * torch.arange(n)).abs()).clamp(min=0).float()


class _Product(torch.autograd.Function):
    """A x / D for x (B, P, C) and A (Q, P): (B, Q, C), in x's dtype."""

    @staticmethod
    def forward(ctx, x: Tensor, weights: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(weights)
        ctx.scale = scale
        return _scaled_product(weights, x, scale)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        return _Product.apply(gradient, weights.T, ctx.scale), None, None


def _scaled_product(weights: Tensor, x: Tensor, scale: float) -> Tensor:
    """scale * weights (Q, P) x (B, P, C), rounded once."""
    with torch.autocast(x.device.type, enabled=False):
        factors = weights.to(x.dtype).expand(len(x), -1, -1)
        return torch.baddbmm(x.new_empty(1, 1, 1), factors, x, beta=0, alpha=scale)


def by_product(x: Tensor, weights: Tensor) -> Tensor:
    """:func:`upsample_by_two` as the matrix product, on any device."""
    height, width = x.shape[2:]
    scale = 1 / ((2 * height - 1) * (2 * width - 1))
    positions = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, P, C), a view of channels_last features
    return _Product.apply(positions, weights, scale).unflatten(1, (2 * height, 2 * width)).permute(0, 3, 1, 2)


def upsample_by_two(x: Tensor, weights: Tensor) -> Tensor:
    """Bilinear upsampling by two with align_corners; the same inputs on the same GPU give the same bits, both ways.

    Args:
        x: (B, C, h, w) floating point.
        weights: ``doubling_weights(h, w)``, on x's device.

    Returns:
        (B, C, 2h, 2w) of x's dtype, channels_last on a GPU. It has gradients of any order.

    Raises:
        ValueError: the weights are those of another size.
    """
    if weights.shape != (4 * x.shape[2] * x.shape[3], x.shape[2] * x.shape[3]):
        raise ValueError(f"upsample_by_two: x is {tuple(x.shape)}, but the weights are {tuple(weights.shape)}")
    return by_product(x, weights) if x.is_cuda else reference.upsample_by_two(x)
