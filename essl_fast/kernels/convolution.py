"""A frozen 3x3 convolution with bias and ReLU in one pass over its output, for trunks that get no gradient.

PyTorch runs a convolution with a bias as a product and an element-wise pass, compiled or not: the compiler writes one
kernel for bias and ReLU, which reads and writes the map once more. VGG-16's maps of 2 x 128 views have 6.9 GB in bf16,
half of it in the first two layers. So the extra pass moves 13.8 GB, beside 7.9 TFLOP to compute: on an H200 (4.3 TB/s,
790 TFLOP/s) 3.2 ms beside 10 ms. cuDNN's fused engine adds the bias and applies the ReLU while the sums are still in
registers. This is arithmetic: the gain has not been measured on a GPU. It is smaller if the engine reads the old
content of the output, which PyTorch passes as a summand with the factor 0. It has none for an image's 3 channels: those
have a kernel of their own, image_convolution.py.

Where the engine is not used (deterministic algorithms, or there is none), a layer before a max pool is convolved
without its bias, and the pool comes first:

    max of relu(y + b) over 2 x 2 places  =  relu(max of y + b),  since both grow with y

so one generated kernel reads the map once and writes a quarter of it. Bias and ReLU before the pool read the map twice
and write it once more: for VGG-16's four such maps of 2 x 128 views 6.1 GB, 1.4 ms by the same arithmetic.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from essl_fast.kernels import reference
from essl_fast.kernels.pooling import halved

# cuDNN's fused engine and PyTorch's channels_last pooling count a map's elements with 32 bits; neither splits a batch.
MOST_ELEMENTS = 2**31 - 1
NEAR = {torch.float32: 1e-2, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # error allowed; float32 may run in TF32


def for_images(dtype: torch.dtype, channels: int, outputs: int) -> bool:
    """Whether image_convolution.py is for a layer: 16 bits, up to 3 channels, and 16, 32, 64 or 128 outputs."""
    return dtype in (torch.bfloat16, torch.float16) and channels <= 3 and outputs in (16, 32, 64, 128)


@functools.lru_cache
def conv_relu_fuses(device: torch.device, dtype: torch.dtype, channels: int = 64, outputs: int = 64) -> bool:
    """Whether one kernel computes such a layer, with a result that agrees with the reference.

    Our own one for images does. cuDNN may have no fused engine: it is tried once, on a small map, for which the host
    waits for the GPU.

    Args:
        device: where the convolution is to run.
        dtype: of the map and the weights.
        channels, outputs: of the convolution.
    """
    if device.type == "cuda" and for_images(dtype, channels, outputs):
        return True
    if device.type != "cuda" or dtype not in NEAR or not torch.backends.cudnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, channels, 16, 16), (outputs, channels, 3, 3), (outputs,))
    x, weight, bias = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight / (9 * channels) ** 0.5))
    try:
        # PyTorch passes the uninitialised output to cuDNN as a summand with the factor 0. An engine that multiplies it
        # turns NaN into NaN. To find that out, the output gets memory that is full of NaN.
        torch.full((2, outputs, 16, 16), float("nan"), device=device, dtype=dtype)  # freed at once
        found = _cudnn(x, weight, bias)
    except RuntimeError:  # there is no such engine: PyTorch's two passes do the work
        return False
    expected = reference.conv_relu(x.double(), weight.double(), bias.double())
    apart = (found.double() - expected).abs().max().item()
    return apart <= NEAR[dtype] * max(1.0, expected.max().item())


def _cudnn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    parts = [
        torch.cudnn_convolution_relu(part, weight, bias, (1, 1), (1, 1), (1, 1), 1).contiguous(
            memory_format=torch.channels_last
        )
        for part in batches(x, max(x[:1].numel(), len(weight) * x[0, 0].numel()))
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def batches(x: Tensor, elements: int) -> tuple[Tensor, ...]:
    """x (B, ...), or its parts along the batch, so that no map has more than MOST_ELEMENTS.

    Args:
        x: the batch.
        elements: of the largest map that one of its samples leads to.
    """
    if torch.compiler.is_exporting():  # a graph for batches of any size, which others run
        return (x,)
    return x.chunk(max(1, -(-len(x) // max(1, MOST_ELEMENTS // elements))))


@torch.library.custom_op("essl_fast::conv_relu", mutates_args=())
def _op(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if x.is_cuda and for_images(x.dtype, x.shape[1], len(weight)):
        from essl_fast.kernels.image_convolution import image_conv_relu  # needs Triton

        return image_conv_relu(x, weight, bias)
    if x.is_cuda:
        return _cudnn(x, weight, bias)
    return reference.conv_relu(x, weight, bias).contiguous(memory_format=torch.channels_last)


@_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def conv_relu(x: Tensor, weight: Tensor, bias: Tensor, fused: bool) -> Tensor:
    """max(0, x * weight + bias), a 3x3 convolution with padding 1, without gradient.

    Args:
        x: (B, C, H, W), floating point; channels_last is fastest.
        weight: (K, C, 3, 3), of the same dtype.
        bias: (K,), of the same dtype.
        fused: one call of cuDNN (see :func:`conv_relu_fuses`); otherwise PyTorch's ops, which the compiler can fuse.

    Returns:
        (B, K, H, W), of the same dtype.

    Raises:
        RuntimeError: an input needs a gradient.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
        raise RuntimeError("conv_relu has no gradient: use it under torch.no_grad()")
    return _op(x, weight, bias) if fused else reference.conv_relu(x, weight, bias)


def conv_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, fused: bool) -> Tensor:
    """The maximum of :func:`conv_relu` over 2 x 2 places, whose arguments it takes: (B, K, H/2, W/2), rounded down."""
    if fused or not x.is_cuda:  # oneDNN has bias and ReLU in its convolution
        return halved(conv_relu(x, weight, bias, fused))
    return pooled_first(x, weight, bias)


def pooled_first(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """:func:`conv_relu_pool` with the pool before bias and ReLU, on any device."""
    y = F.conv2d(x, weight, padding=1)
    height, width = y.shape[2] // 2 * 2, y.shape[3] // 2 * 2
    corners = [y[:, :, down:height:2, right:width:2] for down in (0, 1) for right in (0, 1)]
    most = torch.maximum(torch.maximum(corners[0], corners[1]), torch.maximum(corners[2], corners[3]))
    return F.relu(most + bias[:, None, None])
