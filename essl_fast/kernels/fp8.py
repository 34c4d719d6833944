"""An experiment: frozen 3x3 convolutions with 8-bit weights and activations (e4m3: 4 bits exponent, 3 bits mantissa).

PyTorch 2.11 has no FP8 convolution; its one FP8 product is ``torch._scaled_mm``. So the convolution is written as that
product: nine shifted copies of the map side by side, (B H W, 9 C) e4m3, times the weights (9 C, K). Each tensor has one
scale, max |x| / 448, computed for every activation. A GPU of sm_89 or later multiplies e4m3 at twice the rate of bf16,
but the nine copies have to be written and read. By arithmetic, that costs more than the product saves in the first
layers, and about as much in the last ones. So the gain is unproven, the option is off by default, and it has not run on
a GPU. On other devices the same rounding is emulated, which shows how large its error is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

E4M3 = torch.float8_e4m3fn
MOST = torch.finfo(E4M3).max  # 448
CHUNK = 16  # images whose nine copies are in memory at a time


def supported(device: torch.device) -> bool:
    """Whether the device multiplies e4m3 numbers."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions of this dtype run on the device: a CPU emulates them, a GPU needs FP8 products and bf16."""
    return device.type == "cpu" or (supported(device) and dtype == torch.bfloat16)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 values and a scale, () float32, so that values * scale is nearest to x. Nothing overflows; 0 stays 0."""
    scale = (x.abs().amax().float() / MOST).clamp(min=torch.finfo(torch.float32).tiny)
    return (x.float() / scale).clamp(-MOST, MOST).to(E4M3), scale


def conv(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution with padding 1 of x, which is rounded to e4m3, with e4m3 weights; sums are float32.

    Args:
        x: (B, C, H, W) floating point, C a multiple of 16.
        weight: (K, C, 3, 3) e4m3, K a multiple of 16.
        scale: () float32; the weights are weight * scale.
        bias: (K,), of x's dtype.

    Returns:
        (B, K, H, W) of x's dtype, channels_last.
    """
    if not supported(x.device):
        values, own = quantize(x)
        out = F.conv2d(values.float() * own, weight.float() * scale, bias.float(), padding=1)
        return out.to(x.dtype).contiguous(memory_format=torch.channels_last)
    return _by_products(x, weight, scale, bias)


def _by_products(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    values, own = quantize(x)
    factors = weight.permute(0, 2, 3, 1).reshape(len(weight), -1).t()  # (9 C, K), each column contiguous
    parts = [
        torch._scaled_mm(
            _nine(part), factors, scale_a=own, scale_b=scale, bias=bias, out_dtype=x.dtype, use_fast_accum=False
        )
        for part in values.split(CHUNK)
    ]
    return torch.cat(parts).view(batch, height, width, -1).permute(0, 3, 1, 2)


def _nine(x: Tensor) -> Tensor:
    """(B, C, H, W) e4m3 -> (B H W, 9 C): the 3x3 window of each output pixel, row by row, channels together."""
    bits = F.pad(x.view(torch.uint8).permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # the bits 0 are also zero in e4m3
    windows = bits.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3)  # (B, H, W, 3, 3, C)
    return windows.reshape(-1, 9 * x.shape[1]).view(E4M3)
