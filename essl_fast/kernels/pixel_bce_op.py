"""SemiPL's pixel loss L_S as an op: the launches of `pixel_bce_kernels`, the custom op, and the public function."""

import torch
import triton
from torch import Tensor

from essl_fast.kernels import reference, tuning
from essl_fast.kernels.pixel_bce_kernels import candidates, finish_kernel, geometry, shape_class, tiles_kernel

OP = "pixel_bce"
MAX_CONSENSUS = 4  # one binary target for each; above it the reference runs


# -------------------------------------------------------------------------------------------------------- launchers


def _empty(*shape: int, device: torch.device) -> Tensor:
    """A float32 output or workspace. Tests replace this to poison what a kernel fails to write."""
    return torch.empty(shape, dtype=torch.float32, device=device)


def _launch(
    attention: Tensor,  # (B, h, w) floating point, any strides
    boxes: Tensor,  # (B, K, 4) int32 or int64, contiguous
    labelled: Tensor,  # (B,) bool, contiguous
    consensus: int,
    size: int,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The loss () and, for an upstream gradient of 1, the gradient (B, h, w) of the map, or (0,); both float32."""
    batch, h, w = attention.shape
    device = attention.device
    constants = geometry(h, w, size, consensus)
    config = tuning.pick(OP, shape_class(h, w, size, consensus), device, lambda name: candidates(name)[0])
    lanes = 2 * h * constants["TILES_Y"] * 2 * w
    programs = triton.cdiv(lanes, config.blocks["LANES"])
    losses, loss = _empty(batch, programs, device=device), _empty(device=device)
    parts = _empty(batch, 4, lanes, device=device) if gradient else losses  # not used without a gradient
    unit = _empty(batch, h, w, device=device) if gradient else _empty(0, device=device)
    tiles_kernel[(batch, programs)](
        attention,
        boxes,
        labelled,
        losses,
        parts,
        boxes.shape[1],
        *attention.stride(),
        GRADIENT=gradient,
        **constants,
        **config.arguments(),
    )
    nodes = min(triton.next_power_of_2(h * w), 256)
    pieces = batch * triton.cdiv(h * w, nodes) if gradient else 0
    finish_kernel[(1 + pieces,)](
        losses,
        parts,
        labelled,
        loss,
        unit,
        batch,
        losses.numel(),
        H=h,
        W=w,
        SIZE=size,
        CONSENSUS=consensus,
        TILES_Y=constants["TILES_Y"],
        NODES=nodes,
        num_warps=4,
        **tuning.FUSED,
    )
    return loss, unit


# -------------------------------------------------------------------------------------------------------- custom op


@torch.library.custom_op("essl_fast::pixel_bce", mutates_args=())
def _op(
    attention: Tensor, boxes: Tensor, labelled: Tensor, consensus: int, size: int, gradient: bool
) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(attention):  # Triton launches on the current GPU
        return _launch(attention, boxes.contiguous(), labelled.contiguous(), consensus, size, gradient)


@_op.register_fake
def _(attention, boxes, labelled, consensus, size, gradient):
    shape = attention.shape if gradient else (0,)
    return attention.new_empty((), dtype=torch.float32), attention.new_empty(shape, dtype=torch.float32)


def _save(ctx, inputs, output):
    if not inputs[-1]:
        raise RuntimeError("essl_fast::pixel_bce: the map needs a gradient, so call it with gradient=True")
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(output[1])


def _backward(ctx, upstream, _):
    if torch.is_grad_enabled():  # create_graph=True, but autograd takes what was saved for a constant
        raise RuntimeError(f"essl_fast::{OP} has no second derivative; essl_fast.kernels.reference has one")
    (unit,) = ctx.saved_tensors
    return (unit * upstream).to(ctx.dtype), None, None, None, None, None


_op.register_autograd(_backward, setup_context=_save)


# --------------------------------------------------------------------------------------------------- public function


def _check(attention: Tensor, boxes: Tensor, labelled: Tensor, consensus: int, size: int) -> None:
    batch = attention.shape[:1]
    if attention.ndim != 3 or boxes.shape != (*batch, *boxes.shape[1:2], 4) or labelled.shape != batch:
        shapes = f"{tuple(attention.shape)}, {tuple(boxes.shape)} and {tuple(labelled.shape)}"
        raise ValueError(f"pixel_bce: needs attention (B, h, w), boxes (B, K, 4) and labelled (B,), got {shapes}")
    if not attention.is_floating_point() or boxes.is_floating_point() or labelled.dtype != torch.bool:
        dtypes = f"{attention.dtype}, {boxes.dtype} and {labelled.dtype}"
        raise ValueError(f"pixel_bce: needs a floating-point map, integer boxes and bool labelled, got {dtypes}")
    if not attention.device == boxes.device == labelled.device:
        devices = f"{attention.device}, {boxes.device} and {labelled.device}"
        raise ValueError(f"pixel_bce: attention, boxes and labelled must be on one device, got {devices}")
    if consensus < 1 or size < 1:
        raise ValueError(f"pixel_bce: consensus and size must be at least 1, got {consensus} and {size}")


def pixel_bce(attention: Tensor, boxes: Tensor, labelled: Tensor, consensus: int = 1, size: int = 224) -> Tensor:
    """SemiPL's L_S (arXiv 2404.19615): cross-entropy of the attention map, resized to size x size, and the box weights.

    Two Triton launches on a GPU; plain PyTorch (reference.py) on a CPU, in float64, and for a consensus above 4.
    Autocast has no effect: sums are always float32.

    Args:
        attention: (B, h, w) in [0, 1], floating point, any strides. It alone gets a gradient.
        boxes: (B, K, 4) integer xyxy, half-open, in pixels of the size x size grid; a box without area covers nothing.
        labelled: (B,) bool, the samples whose boxes count. The maps of the others are not read.
        consensus: how many boxes must cover a pixel for the weight 1.
        size: side of the grid, pixels.

    Returns:
        Scalar, float32 (float64 for a float64 map): mean over pixels, then over the labelled samples; 0 if there are
        none. A NaN in a labelled sample's map makes it NaN.

    Raises:
        ValueError: wrong shapes, dtypes or devices.
    """
    _check(attention, boxes, labelled, consensus, size)
    fused = tuning.runs_here(attention) and attention.dtype != torch.float64 and attention.numel() > 0
    if not fused or consensus > MAX_CONSENSUS:
        return reference.pixel_bce(attention, boxes, labelled, consensus, size)
    if boxes.dtype not in (torch.int32, torch.int64):
        boxes = boxes.long()
    gradient = torch.is_grad_enabled() and attention.requires_grad
    return _op(attention, boxes, labelled, consensus, size, gradient)[0]
