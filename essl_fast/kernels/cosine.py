"""SSPL's loss L_U and the gradients of both predictions in one launch (Song et al., CVPR 2022, equation 3).

    L_U = -(mean_b cos(p1_b, z2_b) + mean_b cos(p2_b, z1_b)) / 2,    z constant

The paper's equation lacks the minus sign that the name of the function has.

For one row, with |x|_e = max(|x|, 1e-8) as in torch.nn.functional.cosine_similarity:

    c     = sum (p / |p|_e) (z / |z|_e)
    dc/dp = (z / |z|_e - c p / |p|) / |p|_e

PyTorch clamps the norms outside autograd. So the gradient of |p| is p / |p| with the true norm even where the clamp
acts, and 0 for a zero vector: there dc/dp = 1e8 z / |z|_e. A zero z gives c = 0 and no gradient. The norms come first
and the product is of the scaled vectors, so that only what overflows or vanishes in PyTorch does so here.

**One launch.** A program loads ROWS complete rows of one of the two pairs into registers. Two sums give the norms and
one gives c. Then the row's gradient for an upstream gradient of 1 is known and written, with -c / 2B as the row's part
of the loss. The program that finishes last adds the 2B parts. Which one that is changes from run to run, but the order
of the sum does not: no float is ever added atomically, so two runs give the same bits. The backward multiplies both
gradients by the upstream scalar, on the device, in one launch.

**Which program is last** is told by an integer counter: each program adds 1 when its part is written. In PTX's memory
model the parts are visible to the reader since (1) the barrier orders every thread's store before the one thread that
counts; (2) the count is an acquire and a release at the scope of the GPU: it sees what came before the earlier counts
and passes it on, so the last one sees everything; (3) Triton gives the count to the other threads through shared memory
and a barrier, which puts their loads after the acquire. The machine code has the barrier, MEMBAR, the atomic, an
invalidation of the L1 cache, and the barrier.

**Cost at B = 128, D = 2048, bf16.** The forward reads 2.1 MB and writes 1.0 MB, the backward reads and writes 1.0 MB
each: 5.2 MB or 1.2 us at an H200's 4.3 TB/s, estimated, not measured. A loss this small costs as much as its launches:
3 here (the counter's zero, the forward, the backward), about 60 in eager PyTorch, which touches 81 MB.

**Types.** Sums are float32. For bfloat16 p, the unit gradient waits for the backward in bfloat16, so it is rounded
twice; otherwise in float32. float16 would lose a gradient of about 1 / (B |p|) before a loss scale could save it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from essl_fast.kernels import reference, tuning
from essl_fast.kernels.tuning import AotCase, Config

OP = "negative_cosine_similarity"
MAX_WIDTH = 16384  # of a row, which one program holds in registers; wider ones use the reference


# ---------------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _cosine_kernel(
    p1,  # (B, D) any float, rows stride_p1 apart
    p2,  # (B, D) of p1's dtype
    z1,  # (B, D) any float
    z2,  # (B, D) of z1's dtype
    unit1,  # out (B, D): gradient of p1 for an upstream gradient of 1
    unit2,  # out (B, D): gradient of p2
    parts,  # out (2 B,) float32: each row's part of the loss
    loss,  # out () float32
    counter,  # () int32, zero
    stride_p1,
    stride_p2,
    stride_z1,
    stride_z2,
    B,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,  # D, up to a power of 2
    GRADIENT: tl.constexpr,
):
    pair = tl.program_id(1)
    p, stride_p, unit = p1, stride_p1, unit1
    z, stride_z = z2, stride_z2
    if pair == 1:
        p, stride_p, unit = p2, stride_p2, unit2
        z, stride_z = z1, stride_z1

    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)[None, :]
    there = (row < B)[:, None] & (column < D)
    at = row.to(tl.int64)[:, None]
    pv = tl.load(p + at * stride_p + column, mask=there, other=0.0).to(tl.float32)  # [ROWS, WIDTH]
    zv = tl.load(z + at * stride_z + column, mask=there, other=0.0).to(tl.float32)

    p_norm, z_norm = tl.sqrt_rn(tl.sum(pv * pv, 1)), tl.sqrt_rn(tl.sum(zv * zv, 1))
    p_scale, z_scale = tl.div_rn(1.0, tl.maximum(p_norm, 1e-8)), tl.div_rn(1.0, tl.maximum(z_norm, 1e-8))
    zv *= z_scale[:, None]
    cosine = tl.sum(pv * p_scale[:, None] * zv, 1)
    share = -0.5 / B
    tl.store(parts + pair * B + row, share * cosine, mask=row < B)
    if GRADIENT:
        along = tl.where(p_norm > 0, tl.div_rn(cosine, p_norm), 0.0)
        gradient = (zv - along[:, None] * pv) * (share * p_scale)[:, None]
        tl.store(unit + at * D + column, gradient.to(unit.dtype.element_ty), mask=there)

    tl.debug_barrier()
    arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    if arrived == tl.num_programs(0) * 2 - 1:
        CHUNK: tl.constexpr = 1024
        total = tl.zeros((CHUNK,), tl.float32)
        start = 0
        while start < 2 * B:  # with NumPy 2.4, Triton's interpreter has no range() over an argument
            index = start + tl.arange(0, CHUNK)
            total += tl.load(parts + index, mask=index < 2 * B, other=0.0)
            start += CHUNK
        tl.store(loss, tl.sum(total))


@triton.jit
def _scale_kernel(
    unit1,  # (N,) bfloat16 or float32
    unit2,  # (N,)
    grad1,  # out (N,) of p's dtype
    grad2,  # out (N,)
    upstream,  # () float32
    N,
    BLOCK: tl.constexpr,
):
    unit, grad = unit1, grad1
    if tl.program_id(1) == 1:
        unit, grad = unit2, grad2
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    scaled = tl.load(unit + at, mask=at < N).to(tl.float32) * tl.load(upstream)
    tl.store(grad + at, scaled.to(grad.dtype.element_ty), mask=at < N)


# -------------------------------------------------------------------------------------------------------- launchers


def shape_class(width: int, bits: int) -> str:
    """What the best launch depends on: D, and the bits of p's elements."""
    return f"d{width}-{bits}bit"


def candidates(shape_class: str) -> tuple[Config, ...]:
    """Launches worth measuring, the default first: 16, 8 or 32 elements of p per thread.

    Up to 32 short rows share a program of 1,024 elements.
    """
    width = triton.next_power_of_2(int(shape_class.partition("-")[0].removeprefix("d")))
    rows = min(max(1024 // width, 1), 32)
    found = [Config({"ROWS": rows}, num_warps=min(max(rows * width // each, 32) // 32, 16)) for each in (16, 8, 32)]
    return tuple(config for i, config in enumerate(found) if config not in found[:i])


def unit_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the gradients that wait for the backward of p's dtype; float16 lacks the range."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def _empty(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An output or workspace. Tests replace this to poison what a kernel fails to write."""
    return torch.empty(shape, dtype=dtype, device=device)


def _launch(
    p1: Tensor,  # (B, D)
    p2: Tensor,  # (B, D)
    z1: Tensor,  # (B, D)
    z2: Tensor,  # (B, D)
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss () float32 and the unit gradients (B, D), or (0,), of p1 and p2."""
    batch, width = p1.shape
    p1, p2, z1, z2 = (x if x.stride(1) == 1 else x.contiguous() for x in (p1, p2, z1, z2))
    kind, device = unit_dtype(p1.dtype), p1.device
    name = shape_class(width, 8 * p1.element_size())
    config = tuning.pick(OP, name, device, lambda name: candidates(name)[0])
    shape = (batch, width) if gradient else (0,)
    unit1, unit2 = (_empty(*shape, dtype=kind, device=device) for _ in range(2))
    parts, loss = (_empty(*shape, dtype=torch.float32, device=device) for shape in ((2 * batch,), ()))
    counter = torch.zeros((), dtype=torch.int32, device=device)
    _cosine_kernel[(triton.cdiv(batch, config.blocks["ROWS"]), 2)](
        p1,
        p2,
        z1,
        z2,
        unit1,
        unit2,
        parts,
        loss,
        counter,
        p1.stride(0),
        p2.stride(0),
        z1.stride(0),
        z2.stride(0),
        batch,
        D=width,
        WIDTH=triton.next_power_of_2(width),
        GRADIENT=gradient,
        **config.arguments(),
    )
    return loss, unit1, unit2


def _scale(unit1: Tensor, unit2: Tensor, upstream: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both unit gradients (B, D) times upstream (), as ``dtype``."""
    grad1, grad2 = (_empty(*unit1.shape, dtype=dtype, device=unit1.device) for _ in range(2))
    block = 2048
    grid = (triton.cdiv(unit1.numel(), block), 2)
    _scale_kernel[grid](unit1, unit2, grad1, grad2, upstream, unit1.numel(), BLOCK=block, num_warps=4, **tuning.FUSED)
    return grad1, grad2


# ------------------------------------------------------------------------------------------------------- custom ops


@torch.library.custom_op("essl_fast::negative_cosine_similarity", mutates_args=())
def _op(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor, gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    with torch.cuda.device_of(p1):  # Triton launches on the current GPU
        return _launch(p1, p2, z1, z2, gradient)


@_op.register_fake
def _(p1, p2, z1, z2, gradient):
    shape, kind = p1.shape if gradient else (0,), unit_dtype(p1.dtype)
    loss = p1.new_empty((), dtype=torch.float32)
    return loss, p1.new_empty(shape, dtype=kind), p1.new_empty(shape, dtype=kind)


@torch.library.custom_op("essl_fast::negative_cosine_similarity_backward", mutates_args=())
def _backward_op(unit1: Tensor, unit2: Tensor, upstream: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(unit1):
        return _scale(unit1, unit2, upstream, dtype)


@_backward_op.register_fake
def _(unit1, unit2, upstream, dtype):
    return torch.empty_like(unit1, dtype=dtype), torch.empty_like(unit2, dtype=dtype)


def _save(ctx, inputs, output):
    if not inputs[-1]:
        raise RuntimeError(f"essl_fast::{OP}: p1 or p2 needs a gradient, so call it with gradient=True")
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(*output[1:])


def _backward(ctx, upstream, *_):
    if torch.is_grad_enabled():  # create_graph=True, but autograd takes what was saved for a constant
        raise RuntimeError(f"essl_fast::{OP} has no second derivative; essl_fast.kernels.reference has one")
    return *_backward_op(*ctx.saved_tensors, upstream, ctx.dtype), None, None, None


_op.register_autograd(_backward, setup_context=_save)


# --------------------------------------------------------------------------------------------------- public function


def negative_cosine_similarity(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """SSPL's L_U (Song et al., CVPR 2022): -(mean cos(p1, z2) + mean cos(p2, z1)) / 2; z1 and z2 get no gradient.

    One Triton launch on a GPU, and one more for the backward; plain PyTorch (reference.py) on a CPU, in float64, and
    for D above 16,384. Autocast has no effect: sums are always float32.

    Args:
        p1, p2, z1, z2: (B, D), floating point, any strides; only a tensor whose rows have gaps is copied.

    Returns:
        Scalar, float32 (float64 if an input is float64). The cosine of a zero vector is 0, as in F.cosine_similarity.

    Raises:
        ValueError: shapes that differ, dtypes that are not floating point, or several devices.
    """
    inputs = (p1, p2, z1, z2)
    if p1.ndim != 2 or any(x.shape != p1.shape for x in inputs):
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ValueError(f"{OP}: p1, p2, z1 and z2 must share one shape (B, D), got {shapes}")
    if any(not x.is_floating_point() for x in inputs) or any(x.device != p1.device for x in inputs):
        kinds = ", ".join(f"{x.dtype} on {x.device}" for x in inputs)
        raise ValueError(f"{OP}: p1, p2, z1 and z2 must be floating point and on one device, got {kinds}")
    double = any(x.dtype == torch.float64 for x in inputs)
    if not tuning.runs_here(p1) or double or p1.numel() == 0 or p1.shape[1] > MAX_WIDTH:
        return reference.negative_cosine_similarity(p1, p2, z1, z2)
    z1, z2 = z1.detach(), z2.detach()
    if p1.dtype != p2.dtype:
        p1, p2 = p1.float(), p2.float()
    if z1.dtype != z2.dtype:
        z1, z2 = z1.float(), z2.float()
    gradient = torch.is_grad_enabled() and (p1.requires_grad or p2.requires_grad)
    return _op(p1, p2, z1, z2, gradient)[0]


# ---------------------------------------------------------------------------------------- ahead-of-time compilation


def _case(width: int, kind: str, gradient: bool, registers: int) -> AotCase:
    bits = int(kind[-2:])
    config = candidates(shape_class(width, bits))[0]
    unit = "bf16" if kind == "bf16" else "fp32"
    pointers = {
        "p1": kind,
        "p2": kind,
        "z1": kind,
        "z2": kind,
        "unit1": unit,
        "unit2": unit,
        "parts": "fp32",
        "loss": "fp32",
        "counter": "i32",
    }
    strides = ("stride_p1", "stride_p2", "stride_z1", "stride_z2")
    constexprs = {"D": width, "WIDTH": triton.next_power_of_2(width), "GRADIENT": gradient, **config.blocks}
    return AotCase(
        f"d{width} {kind}{'' if gradient else ', loss only'}",
        _cosine_kernel,
        {**{name: f"*{of}" for name, of in pointers.items()}, **dict.fromkeys((*strides, "B"), "i32")},
        constexprs,
        num_warps=config.num_warps,
        max_registers=registers,
        multiples_of_16=(*strides, "B"),
        min_load_bytes=16,
        min_store_bytes=16 if gradient else 0,
    )


def aot_cases() -> list[AotCase]:
    """The projector's 2,048 columns in each dtype, a loss without gradients, short rows, and the backward."""
    scale = [
        AotCase(
            f"{unit} to {kind}",
            _scale_kernel,
            {
                "unit1": f"*{unit}",
                "unit2": f"*{unit}",
                "grad1": f"*{kind}",
                "grad2": f"*{kind}",
                "upstream": "*fp32",
                "N": "i32",
            },
            {"BLOCK": 2048},
            multiples_of_16=("N",),
            max_registers=40,
            min_load_bytes=16,
            min_store_bytes=16 if unit == kind else 8,
        )
        for unit, kind in (("bf16", "bf16"), ("fp32", "fp16"), ("fp32", "fp32"))
    ]
    return [
        _case(2048, "bf16", True, 64),
        _case(2048, "fp16", True, 64),
        _case(2048, "fp32", True, 64),
        _case(2048, "bf16", False, 64),
        _case(128, "bf16", True, 72),
        *scale,
    ]
