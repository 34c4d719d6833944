"""What a network at rest runs on a GPU: the PCM's chains with running statistics, and max pools, without gradients.

In evaluation a batch norm has fixed numbers, so a chain (norm_gelu_kernels.py has its mathematics) needs no sums over
the batch first. One launch reads its maps once and writes the result; PyTorch takes up to twelve, each of which reads
and writes a map, in float32 where a rate is involved. PyTorch's max pool also writes the place of each maximum in 64
bits, which only a backward pass reads: of 2 x 2 places in 16 bits it moves 18 bytes a result where 10 must be moved.

Counted for a batch of 128 pairs in bfloat16 (`python -m benchmarks.phantom --evaluation`), not measured: see
benchmarks/records/2026-11-30_evaluation. Nothing is compiled for a batch size: the last, smaller batch costs nothing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from essl_fast.kernels import reference, tuning
from essl_fast.kernels.norm_gelu_kernels import FEWER, MIX, NONE, RESIDUAL, ROWS, WIDTH, number_of, rate_of, store_end
from essl_fast.kernels.tuning import AotCase

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TILES = 2  # of a chain's program, one after the other


@triton.jit
def chain_kernel(
    x,  # (rows, C)
    y,  # (rows / EACH, C), unless BLEND is 0
    rate,  # (C,), if BLEND is 2
    mean,  # (C,) float32, running
    variance,  # (C,) float32, running
    weight,  # (C,)
    bias,  # (C,)
    top,  # (rows, C), if TOP
    top_rate,  # (C,), if TOP
    less,  # (rows, C), if LESS
    out,  # out (rows, C), if STORE
    apart,  # out (rows, C), if LESS: out - less
    rows,
    C,
    eps,
    BLEND: tl.constexpr,  # 0: u = x; 1: x + y; 2: mixed
    EACH: tl.constexpr,  # rows of x that share a row of y
    TOP: tl.constexpr,
    LESS: tl.constexpr,
    STORE: tl.constexpr,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One launch, because every part of the chain needs the values that the part before it computes."""
    begin = tl.program_id(0) * (TILES * ROWS)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    there, r, t = column < C, 0.0, 0.0
    middle = number_of(mean, column, there)
    scale = number_of(weight, column, there) / tl.sqrt(number_of(variance, column, there) + eps)
    b = number_of(bias, column, there)
    if BLEND == 2:
        r = rate_of(rate, column, there)
    if TOP:
        t = rate_of(top_rate, column, there)
    origin = begin.to(tl.int64) * C  # of the program; from there 32 bits are enough
    x += origin
    if TOP:
        top += origin
    if LESS:
        less += origin
        apart += origin
    if STORE:
        out += origin
    for tile in range(TILES):
        row = tile * ROWS + tl.arange(0, ROWS)
        mask = (begin + row < rows)[:, None] & there[None, :]
        at = row[:, None] * C + column[None, :]
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        if BLEND != 0:
            from_y = ((begin + row) // EACH).to(tl.int64) * C
            other = tl.load(y + from_y[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
            if BLEND == 1:
                value += other
            else:
                value = (1.0 - r) * value + r * other
            value = value.to(x.dtype.element_ty).to(tl.float32)  # as it is stored where a gradient needs it
        store_end((value - middle) * scale + b, top, t, less, out, apart, at, mask, TOP, LESS, STORE)


@triton.jit
def _value(at, mask):
    """The values at some places, float32."""
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _larger(one, other):
    """The larger value as PyTorch's pool takes it: of equals the first, and a NaN before all others."""
    return tl.where((other > one) | (other != other), other, one)


@triton.jit
def pool_kernel(
    x,  # (N, H, W, C)
    out,  # out (N, H / 2, W / 2, C), rounded down
    rows,  # N (H / 2) (W / 2)
    H,
    W,
    C,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    tall, wide = H // 2, W // 2
    image, place = row // (tall * wide), row % (tall * wide)
    corner = ((image.to(tl.int64) * H + place // wide * 2) * W + place % wide * 2) * C
    mask = (row < rows)[:, None] & (column < C)[None, :]
    at = x + corner[:, None] + column[None, :]
    upper = _larger(_value(at, mask), _value(at + C, mask))
    lower = _larger(_value(at + W * C, mask), _value(at + W * C + C, mask))
    best = _larger(upper, lower).to(out.dtype.element_ty)
    tl.store(out + row.to(tl.int64)[:, None] * C + column[None, :], best, mask=mask)


# ------------------------------------------------------------------------------------------------------- custom ops


def _empty(like: Tensor, height: int, width: int) -> Tensor:
    """A channels_last map. Tests replace this to poison what a kernel fails to write."""
    shape = *like.shape[:2], height, width
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _last(x: Tensor | None) -> Tensor | None:
    """x in channels_last."""
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("essl_fast::chain_at_rest", mutates_args=())
def _chain(
    x: Tensor,
    y: Tensor | None,
    rate: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    top: Tensor | None,
    top_rate: Tensor | None,
    less: Tensor | None,
    stores: bool,
) -> tuple[Tensor, Tensor]:
    given = [_last(each) for each in (x, y, top, less)]
    height, width = x.shape[2:]
    out = _empty(x, height, width) if stores else x.new_empty(0)
    apart = x.new_empty(0) if less is None else _empty(x, height, width)
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    tall = FEWER if x.dtype == torch.float32 else ROWS
    with torch.cuda.device_of(x):  # Triton launches on the current GPU
        chain_kernel[triton.cdiv(rows, TILES * tall), triton.cdiv(channels, WIDTH)](
            *(given[0], given[1], rate, mean, variance, weight, bias, given[2], top_rate, given[3], out, apart),
            *(rows, channels, eps),
            BLEND=NONE if y is None else RESIDUAL if rate is None else MIX,
            EACH=1 if y is None else height * width // (y.shape[2] * y.shape[3]),
            TOP=top is not None,
            LESS=less is not None,
            STORE=stores,
            TILES=TILES,
            ROWS=tall,
            WIDTH=WIDTH,
            num_warps=4,
            **tuning.FUSED,
        )
    return out, apart


@_chain.register_fake
def _(x, y, rate, mean, variance, weight, bias, eps, top, top_rate, less, stores):
    out = _empty(x, *x.shape[2:]) if stores else x.new_empty(0)
    return out, x.new_empty(0) if less is None else _empty(x, *x.shape[2:])


@torch.library.custom_op("essl_fast::pool_at_rest", mutates_args=())
def _pool(x: Tensor) -> Tensor:
    given, (count, channels, height, width) = _last(x), x.shape
    out = _empty(x, height // 2, width // 2)
    rows = count * (height // 2) * (width // 2)
    with torch.cuda.device_of(x):
        pool_kernel[triton.cdiv(rows, ROWS), triton.cdiv(channels, WIDTH)](
            *(given, out, rows, height, width, channels), ROWS=ROWS, WIDTH=WIDTH, num_warps=4, **tuning.FUSED
        )
    return out


@_pool.register_fake
def _(x):
    return _empty(x, x.shape[2] // 2, x.shape[3] // 2)


# -------------------------------------------------------------------------------------------------- public functions


def rests(x: Tensor) -> bool:
    """Whether these kernels take a map: on a GPU, where nothing asks for a gradient and nothing is compiled."""
    kernels = tuning.runs_here(x) and x.dtype in DTYPES and x.numel() > 0
    return kernels and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def blend_norm_gelu_at_rest(
    x: Tensor,
    y: Tensor | None,
    rate: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    top: Tensor | None = None,
    top_rate: Tensor | None = None,
    less: Tensor | None = None,
    twice: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`essl_fast.kernels.blend_norm_gelu` in evaluation: with running statistics, and without gradients.

    One launch on a GPU; plain PyTorch (reference.py) on a CPU and in float64.

    Args:
        x: (B, C, h, w), floating point; channels_last is fastest.
        y: of x's shape and dtype, or (B, C, 1, 1); or None.
        rate: (C,) for a mix of x and y with r = relu(rate); None for their sum.
        mean, variance: (C,), the running statistics.
        weight, bias, eps, top, top_rate, less, twice: as in blend_norm_gelu.

    Returns:
        For each reader a map of x's shape and dtype; without ``twice`` the second one is the first.
    """
    tables = mean, variance, weight, bias, eps
    if not rests(x):
        return reference.blend_norm_gelu_at_rest(x, y, rate, *tables, top, top_rate, less, twice)
    out, apart = _chain(x, y, rate, *tables, top, top_rate, less, twice or less is None)
    first = out if less is None else apart
    return first, out if twice else first


def pool_at_rest(x: Tensor) -> Tensor:
    """F.max_pool2d(x, 2) of a map that :func:`rests` takes, without a place for each maximum; the same bits."""
    return _pool(x)


# ---------------------------------------------------------------------------------------- ahead-of-time compilation


def _chain_case(name: str, kind: str, maps: str, blend: int, top: bool, less: bool, each: int = 1) -> AotCase:
    """A case for 128 maps of 512 channels, 14 x 14."""
    tables = "mean variance weight bias" + (" rate" if blend == MIX else "") + (" top_rate" if top else "")
    signature = {part: f"*{kind}" for part in f"x {maps} out".split()} | dict.fromkeys(tables.split(), "*fp32")
    signature |= {"rows": "i32", "C": "i32", "eps": "fp32"}
    takes = ("y", "rate", "top", "top_rate", "less", "apart")
    constants = {"BLEND": blend, "EACH": each, "TOP": top, "LESS": less, "STORE": True, "TILES": TILES, "WIDTH": WIDTH}
    return AotCase(
        f"{name} {kind}",
        chain_kernel,
        signature,
        {**constants, "ROWS": FEWER if kind == "fp32" else ROWS, **{n: None for n in takes if n not in signature}},
        multiples_of_16=("rows", "C"),
        max_registers=128,
        min_load_bytes=16,
        min_store_bytes=16,
    )


def _pool_case(kind: str) -> AotCase:
    """A case for VGG-16's first pool."""
    signature = {"x": f"*{kind}", "out": f"*{kind}", **dict.fromkeys(("rows", "H", "W", "C"), "i32")}
    return AotCase(
        f"pool {kind}",
        pool_kernel,
        signature,
        {"ROWS": ROWS, "WIDTH": WIDTH},
        multiples_of_16=("rows", "H", "W", "C"),
        max_registers=128,
        min_load_bytes=16,
        min_store_bytes=16,
    )


def aot_cases() -> list[AotCase]:
    """What an evaluated batch launches: the first predictions, a mix, a sum with its error, the highest level's sum."""
    found = [_pool_case(kind) for kind in ("bf16", "fp16", "fp32")]
    for kind in ("bf16", "fp16", "fp32"):
        found += [
            _chain_case("norm", kind, "", NONE, top=False, less=False),
            _chain_case("mix", kind, "y", MIX, top=False, less=False),
            _chain_case("sum, less", kind, "y less apart", RESIDUAL, top=False, less=True, each=9),
            _chain_case("sum, top", kind, "y top", RESIDUAL, top=True, less=False),
        ]
    return found
