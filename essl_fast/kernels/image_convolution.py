"""A trunk's first layer on a GPU: 3x3 convolution of an image of 3 channels, bias and ReLU, one read and one write.

cuDNN has no fused engine for 3 channels. Its convolution writes the map, and a second kernel reads and writes it again
for bias and ReLU. For VGG-16 and 256 views of 224 x 224 in bfloat16 the map has 1.64 GB: 4.9 GB move where 1.7 GB must.

    out[n, y, x, o] = max(0, b[o] + sum over dy, dx, c of in[n, y + dy, x + dx, c] w[o, dy, dx, c])

In channels_last memory the 27 weights of an output stand in a row, in the order (dy, dx, c). So the layer is a product
(pixels, 32) by (32, 64), with the 27 neighbouring values of each pixel gathered as a row; the last 5 are zero. A
program keeps the weights and takes BLOCKS times BLOCK pixels. A value is read 9 times, by programs that run at the same
time, so memory is read about once.

Cost at 256 views on an H200, estimated, not measured: 77 MB and 1.64 GB at 4.3 TB/s are 0.40 ms. The gathers are 32
loads of 2 bytes a thread for 128 pixels and 128 bytes written a thread; with addresses and masks about 10^8 warp
instructions, 0.15 ms on 132 multiprocessors. The product takes 0.05 ms.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from essl_fast.kernels import tuning
from essl_fast.kernels.tuning import AotCase

TAPS = 32  # 9 times the channels, up to a power of 2
BLOCK, BLOCKS = 128, 8  # pixels of a product; products of a program
WARPS, REGISTERS = 8, 128  # a multiprocessor holds two programs


@triton.jit
def _image_kernel(
    x,  # (N, H, W, C)
    weight,  # (K, 3, 3, C) of x's dtype
    bias,  # (K,) of x's dtype
    out,  # out (N, H, W, K)
    pixels,  # N H W
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    tap = tl.arange(0, TAPS)
    down, right = tap // (3 * C) - 1, tap // C % 3 - 1
    output = tl.arange(0, K)
    there = (tap < 9 * C)[:, None]
    factors = tl.load(weight + output[None, :] * (9 * C) + tap[:, None], mask=there, other=0.0)  # [TAPS, K]
    added = tl.load(bias + output).to(tl.float32)[None, :]
    # From a pixel to the value that a tap takes: its row and column, and c = tap % C.
    shift = ((down * W + right) * C + tap % C)[None, :]

    first = tl.program_id(0).to(tl.int64) * (BLOCK * BLOCKS)  # from there 32 bits are enough
    x += first * C
    out += first * K
    start, left = (first % (H * W)).to(tl.int32), tl.minimum(pixels - first, BLOCK * BLOCKS).to(tl.int32)
    for block in range(BLOCKS):
        pixel = block * BLOCK + tl.arange(0, BLOCK)
        inside = (pixel < left)[:, None]
        place = (start + pixel) % (H * W)
        row, column = (place // W)[:, None] + down[None, :], (place % W)[:, None] + right[None, :]
        mask = inside & (tap < 9 * C)[None, :] & (row >= 0) & (row < H) & (column >= 0) & (column < W)
        values = tl.load(x + (pixel * C)[:, None] + shift, mask=mask, other=0.0)  # [BLOCK, TAPS]
        found = tl.maximum(tl.dot(values, factors, input_precision="ieee") + added, 0.0)
        tl.store(out + (pixel * K)[:, None] + output[None, :], found.to(out.dtype.element_ty), mask=inside)


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The output, channels_last. Tests replace this to poison what the kernel fails to write."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def image_conv_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """max(0, x * weight + bias), padding 1: (N, C, H, W), (K, C, 3, 3), (K,) of one dtype -> (N, K, H, W).

    The result is channels_last and has no gradient. ``for_images`` of convolution.py says for which layers it is.
    """
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    count, channels, height, width = x.shape
    out = _empty((count, len(weight), height, width), x)
    pixels = count * height * width
    with torch.cuda.device_of(x):  # Triton launches on the current GPU
        _image_kernel[(triton.cdiv(pixels, BLOCK * BLOCKS),)](
            x,
            weight,
            bias.contiguous(),
            out,
            pixels,
            H=height,
            W=width,
            C=channels,
            K=len(weight),
            TAPS=TAPS,
            BLOCK=BLOCK,
            BLOCKS=BLOCKS,
            num_warps=WARPS,
            maxnreg=REGISTERS,
            **tuning.FUSED,
        )
    return out


def aot_cases() -> list[AotCase]:
    """VGG-16's first layer; and more pixels than 32 bits can count."""
    return [
        AotCase(
            f"3 to 64, 224x224 {kind}{', 64-bit counts' if count == 'i64' else ''}",
            _image_kernel,
            {**{name: f"*{kind}" for name in ("x", "weight", "bias", "out")}, "pixels": count},
            {"H": 224, "W": 224, "C": 3, "K": 64, "TAPS": TAPS, "BLOCK": BLOCK, "BLOCKS": BLOCKS},
            num_warps=WARPS,
            multiples_of_16=("pixels",),
            max_registers=REGISTERS,
            maxnreg=REGISTERS,
            min_store_bytes=8,
        )
        for kind, count in (("bf16", "i32"), ("fp16", "i32"), ("bf16", "i64"))
    ]
