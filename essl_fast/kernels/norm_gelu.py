"""The PCM's chains of blend, batch norm, GELU and mix as four launches: norm_gelu_kernels.py has the mathematics.

Every launch is an op of its own, so that a graph shows what it launches.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from essl_fast.kernels import norm_gelu_kernels, reference, tuning
from essl_fast.kernels.norm_gelu_kernels import FEWER, MIX, NONE, RESIDUAL, ROWS, WIDTH

CHUNKS = 32, 8  # programs along the rows of a view: of 4,096 rows and more, and of fewer
SUMS = 6  # see sums_kernel
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class Tiling(NamedTuple):
    """How a view's rows are divided."""

    rows: int  # of a view
    span: int  # rows of a program
    chunks: int  # programs; a power of 2

    @classmethod
    def of(cls, x: Tensor, views: int) -> "Tiling":
        rows = x.numel() // (x.shape[1] * views)
        chunks = CHUNKS[rows < 4096]
        return cls(rows, triton.cdiv(triton.cdiv(rows, chunks), ROWS) * ROWS, chunks)

    def grid(self, views: int, channels: int) -> tuple[int, int, int]:
        return self.chunks, views, triton.cdiv(channels, WIDTH)

    def blocks(self, most: int = ROWS) -> dict:
        """The arguments that every launch has, for tiles of ``most`` rows at most."""
        rows = min(ROWS, most)
        return {"SPAN": self.span, "CHUNKS": self.chunks, "ROWS": rows, "WIDTH": WIDTH, "num_warps": 4, **tuning.FUSED}


def rows_of_norm(u: Tensor, *others: Tensor | None) -> int:
    """Rows of a tile of the second launch: fewer where 32 bits a value and a second map would spill registers."""
    return FEWER if u.dtype == torch.float32 and any(x is not None for x in others) else ROWS


def _like(x: Tensor) -> Tensor:
    """A channels_last map like x. Tests replace this, and _table, to poison what a kernel fails to write."""
    return torch.empty_like(x, memory_format=torch.channels_last)


def _table(x: Tensor, *shape: int) -> Tensor:
    """A float32 table."""
    return x.new_empty(shape, dtype=torch.float32)


def _maps(*maps: Any) -> list[Any]:
    """The maps in channels_last, which they are already unless the compiler has decided otherwise."""
    return [None if x is None else x.contiguous(memory_format=torch.channels_last) for x in maps]


# ------------------------------------------------------------------------------------------------------- custom ops


@torch.library.custom_op("essl_fast::blend", mutates_args=())
def _blend(x: Tensor, y: Tensor | None, rate: Tensor | None, views: int) -> tuple[Tensor, Tensor]:
    x, y = _maps(x, y)
    tiling, channels = Tiling.of(x, views), x.shape[1]
    u = x.new_empty(0) if y is None else _like(x)
    partial = _table(x, views, tiling.chunks, 2, channels)
    with torch.cuda.device_of(x):  # Triton launches on the current GPU
        norm_gelu_kernels.blend_kernel[tiling.grid(views, channels)](
            x,
            y,
            rate,
            u,
            partial,
            tiling.rows,
            channels,
            BLEND=NONE if y is None else RESIDUAL if rate is None else MIX,
            **tiling.blocks(),
        )
    return u, partial


@_blend.register_fake
def _(x, y, rate, views):
    partial = _table(x, views, Tiling.of(x, views).chunks, 2, x.shape[1])
    return x.new_empty(0) if y is None else _like(x), partial


@torch.library.custom_op("essl_fast::norm_gelu", mutates_args=())
def _norm(
    u: Tensor,
    partial: Tensor,
    weight: Tensor,
    bias: Tensor,
    top: Tensor | None,
    top_rate: Tensor | None,
    less: Tensor | None,
    views: int,
    eps: float,
    stores: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    u, top, less = _maps(u, top, less)
    tiling, channels = Tiling.of(u, views), u.shape[1]
    out = _like(u) if stores else u.new_empty(0)
    apart = u.new_empty(0) if less is None else _like(u)
    moments = _table(u, 2, views, channels)
    with torch.cuda.device_of(u):
        norm_gelu_kernels.norm_kernel[tiling.grid(views, channels)](
            u,
            partial,
            weight,
            bias,
            top,
            top_rate,
            less,
            out,
            apart,
            moments,
            tiling.rows,
            channels,
            eps,
            TOP=top is not None,
            LESS=less is not None,
            STORE=stores,
            **tiling.blocks(rows_of_norm(u, top, less)),
        )
    return out, apart, moments


@_norm.register_fake
def _(u, partial, weight, bias, top, top_rate, less, views, eps, stores):
    out = _like(u) if stores else u.new_empty(0)
    return out, u.new_empty(0) if less is None else _like(u), _table(u, 2, views, u.shape[1])


@torch.library.custom_op("essl_fast::norm_gelu_sums", mutates_args=())
def _sums(
    gradient: Tensor,
    again: Tensor | None,
    u: Tensor,
    moments: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor | None,
    y: Tensor | None,
    top: Tensor | None,
    top_rate: Tensor | None,
    eps: float,
) -> Tensor:
    gradient, again, u, x, y, top = _maps(gradient, again, u, x, y, top)
    views, channels = moments.shape[1:]
    tiling = Tiling.of(u, views)
    sums = _table(u, views, tiling.chunks, SUMS, channels)
    with torch.cuda.device_of(u):
        norm_gelu_kernels.sums_kernel[tiling.grid(views, channels)](
            gradient,
            again,
            u,
            moments,
            weight,
            bias,
            x,
            y,
            top,
            top_rate,
            sums,
            tiling.rows,
            channels,
            eps,
            TWICE=again is not None,
            MIX=x is not None,
            TOP=top is not None,
            **tiling.blocks(FEWER),
        )
    return sums


@_sums.register_fake
def _(gradient, again, u, moments, weight, bias, x, y, top, top_rate, eps):
    views, channels = moments.shape[1:]
    return _table(u, views, Tiling.of(u, views).chunks, SUMS, channels)


@torch.library.custom_op("essl_fast::norm_gelu_gradients", mutates_args=())
def _gradients(
    gradient: Tensor,
    again: Tensor | None,
    u: Tensor,
    moments: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor,
    rate: Tensor | None,
    top: Tensor | None,
    top_rate: Tensor | None,
    eps: float,
    to_top: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradient, again, u, top = _maps(gradient, again, u, top)
    views, channels = moments.shape[1:]
    tiling = Tiling.of(u, views)
    to_x = _like(u)
    to_y = u.new_empty(0) if rate is None else _like(u)
    at_top = _like(u) if to_top else u.new_empty(0)
    to_channels = _table(u, 4, channels)
    with torch.cuda.device_of(u):
        norm_gelu_kernels.gradient_kernel[tiling.grid(views, channels)](
            gradient,
            again,
            u,
            moments,
            weight,
            bias,
            sums,
            rate,
            top,
            top_rate,
            to_x,
            to_y,
            at_top,
            to_channels,
            tiling.rows,
            channels,
            eps,
            TWICE=again is not None,
            MIX=rate is not None,
            TOP=top is not None,
            TO_TOP=to_top,
            VIEWS=views,
            **tiling.blocks(FEWER),
        )
    return to_x, to_y, at_top, to_channels


@_gradients.register_fake
def _(gradient, again, u, moments, weight, bias, sums, rate, top, top_rate, eps, to_top):
    to_y = u.new_empty(0) if rate is None else _like(u)
    return _like(u), to_y, _like(u) if to_top else u.new_empty(0), _table(u, 4, u.shape[1])


class _Chain(torch.autograd.Function):
    """(out, or out - less; out again, if it is read twice; moments) of a chain."""

    @staticmethod
    def forward(ctx, x, y, rate, weight, bias, top, top_rate, less, views, eps, to_top, twice):
        u, partial = _blend(x, y, rate, views)
        u = x if y is None else u
        out, apart, moments = _norm(
            u, partial, weight, bias, top, top_rate, less, views, eps, stores=twice or less is None
        )
        ctx.mark_non_differentiable(moments)
        mixes, tops = rate is not None, top is not None
        ctx.about = y is not None, mixes, tops, less is not None, eps, to_top
        kept = [u, moments, weight, bias, *((x, y, rate) if mixes else ()), *((top, top_rate) if tops else ())]
        ctx.save_for_backward(*kept)
        readers = [out, out.view_as(out)] if less is None else [apart, out]
        return *readers[: 1 + twice], moments

    @staticmethod
    def backward(ctx, gradient, *others):
        if torch.is_grad_enabled():  # create_graph=True, but autograd takes what was saved for a constant
            raise RuntimeError("blend_norm_gelu has no second derivative; essl_fast.kernels.reference has one")
        blends, mixes, tops, lessened, eps, to_top = ctx.about
        again = others[0] if len(others) == 2 else None  # the last one is the moments'
        u, moments, weight, bias, *more = ctx.saved_tensors
        x, y, rate = more[:3] if mixes else (None, None, None)
        top, top_rate = more[-2:] if tops else (None, None)
        sums = _sums(gradient, again, u, moments, weight, bias, x, y, top, top_rate, eps)
        to_x, to_y, at_top, to_channels = _gradients(
            gradient, again, u, moments, weight, bias, sums, rate, top, top_rate, eps, to_top
        )
        to_weight, to_bias, to_rate, to_top_rate = to_channels.unbind()
        to_y = to_y if mixes else to_x if blends else None  # the gradients of a sum are the same
        return (
            *(to_x, to_y, to_rate if mixes else None, to_weight, to_bias),
            *(at_top if to_top else None, to_top_rate if tops else None, -gradient if lessened else None),
            *(None, None, None, None),
        )


# --------------------------------------------------------------------------------------------------- public function


def runs_chain(x: Tensor) -> bool:
    """Whether the kernels take a map; otherwise :func:`blend_norm_gelu` is plain PyTorch."""
    return tuning.runs_here(x) and x.dtype in DTYPES and x.numel() > 0


def blend_norm_gelu(
    x: Tensor,
    y: Tensor | None,
    rate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    views: int,
    eps: float,
    top: Tensor | None = None,
    top_rate: Tensor | None = None,
    less: Tensor | None = None,
    twice: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """gelu(batch norm of x, x + y or (1 - r) x + r y), with statistics of each view; then mixed with ``top`` if given.

    Two launches on a GPU and two for the backward; plain PyTorch (reference.py) on a CPU and in float64.

    Args:
        x: (V B, C, h, w), floating point; channels_last is fastest.
        y: of x's shape and dtype, or None.
        rate: (C,) for a mix of x and y with r = relu(rate); None for their sum.
        weight, bias: (C,), of the batch norm.
        views: V.
        eps: of the batch norm.
        top, top_rate: of x's shape and dtype, and (C,): out is then gelu((1 - t) out + t top), t = relu(top_rate).
        less: of x's shape and dtype: what the first reader gets is out less it.
        twice: there is a second reader. The kernels add the gradients of both.

    Returns:
        For each reader a map of x's shape and dtype, channels_last on a GPU (without ``twice`` the second one is the
        first); and (2, V, C) float32 without gradient: means and variances (divided by the count) of what was
        normalised.
    """
    if not runs_chain(x):
        return reference.blend_norm_gelu(x, y, rate, weight, bias, views, eps, top, top_rate, less, twice)
    x, y, top, less = _maps(x, y, top, less)
    # PyTorch 2.15's compiler refuses a Function that is given one tensor twice.
    y = y.view_as(y) if y is not None and y is x else y
    top = top.view_as(top) if top is not None and (top is x or top is y) else top
    less = less.view_as(less) if less is not None and (less is x or less is y or less is top) else less
    to_top = top is not None and top.requires_grad
    first, *second, moments = _Chain.apply(x, y, rate, weight, bias, top, top_rate, less, views, eps, to_top, twice)
    return first, second[0] if twice else first, moments
