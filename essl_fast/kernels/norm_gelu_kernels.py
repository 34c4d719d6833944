"""The PCM's chains between two convolutions: blend, batch norm view by view, GELU, and the mix of the next cycle.

    u   = x  or  x + y  or  (1 - r) x + r y,    r = relu(rate) per channel              stored in x's dtype
    n   = w (u - mean) / sqrt(variance + eps) + b,    mean and variance of each view and channel
    o   = gelu(n)
    out = o  or  gelu((1 - t) o + t top),    t = relu(top_rate) per channel             stored in x's dtype

Maps are channels_last, so they are tables of rows (V B h w, C). A program takes WIDTH channels of SPAN rows of a view.
Four launches, two forward and two backward; each reads its maps once:

    blend_kernel      x, y -> u        and, of its rows, mean and sum of squares around it
    norm_kernel       u, top -> out    every program first puts the rows' moments together (Chan et al., 1979)
                      and, where the level above is corrected by the error of out: out - less
    sums_kernel       gradient, u, top, and x and y if they were mixed -> sums over its rows
    gradient_kernel   gradient, u, top -> gradients of x and y; every program first adds the sums

Nothing but u is kept for the backward pass: n, o and the derivatives are computed again from u. So a chain moves 5 maps
forward and 5 backward, 7 of them at the top level with the visual map, where 14 x 14 maps of 256 samples and 512
channels in bfloat16 have 51 MB each. There are no atomics: sums have one order.

A representation has two readers, the prediction below it and its own correction, so two gradients come back. The two
backward launches read both and add them in float32: 4 reads, where a sum of its own costs 2 reads, a write and 2 reads
of what it wrote, a launch, and a rounding.

**Backward.** With d the gradient of n, h = (u - mean) / sqrt(variance + eps), and means over the view's rows,

    du = w / sqrt(variance + eps) (d - mean(d) - h mean(d h));    dw = sum d h;    db = sum d
    dr = sum du q,  q = y - x:  w / sqrt(variance + eps) (sum d q - mean(d) sum q - mean(d h) sum h q)

so the sums of d, d h, d q, q and h q over the rows give every gradient that is a number a channel.

**GELU.** gelu(n) = n P(n), P(n) = (1 + erf(n / sqrt 2)) / 2, and gelu'(n) = P(n) + n exp(-n^2 / 2) / sqrt(2 pi). erf is
formula 7.1.26 of Abramowitz and Stegun (1964), a polynomial times exp(-n^2 / 2), within 1.5e-7. So value and
derivative share one exponential and take about 20 instructions, half of what libdevice's erf and exp take.
"""

import triton
import triton.language as tl

from essl_fast.kernels.sums import over_rows
from essl_fast.kernels.tuning import AotCase

ROWS, WIDTH = 32, 64  # of a tile: each of 128 threads loads twice 16 bytes of a map in 16 bits
FEWER = 16  # rows of a tile in the backward pass, which keeps more values a place
NONE, RESIDUAL, MIX = 0, 1, 2  # how x and y are blended


@triton.jit
def gelu(n):
    """(gelu(n), its derivative) in float32."""
    bell = tl.exp(-0.5 * n * n)
    t = 1.0 / (1.0 + 0.23164189 * tl.abs(n))  # 0.3275911 / sqrt 2
    tail = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    below = 0.5 * tail * bell  # P(-|n|)
    p = tl.where(n > 0, 1.0 - below, below)
    return n * p, p + 0.3989422804 * n * bell


@triton.jit
def rate_of(rate, column, there):
    """relu of a parameter, [1, WIDTH]."""
    return tl.maximum(tl.load(rate + column, mask=there, other=0.0).to(tl.float32), 0.0)[None, :]


@triton.jit
def number_of(table, column, there):
    """A number a channel, [1, WIDTH] float32."""
    return tl.load(table + column, mask=there, other=0.0).to(tl.float32)[None, :]


@triton.jit
def store_end(n, top, t, less, out, apart, at, mask, TOP: tl.constexpr, LESS: tl.constexpr, STORE: tl.constexpr):
    """What a chain makes of its normalised values n at some places, from GELU on: out, and apart = out - less."""
    o, _ = gelu(n)
    if TOP:
        o, _ = gelu((1.0 - t) * o + t * tl.load(top + at, mask=mask, other=0.0).to(tl.float32))
    if LESS:
        error = o - tl.load(less + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(apart + at, error.to(apart.dtype.element_ty), mask=mask)
    if STORE:
        tl.store(out + at, o.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _blended(x, y, rate, at, mask, BLEND: tl.constexpr, KIND: tl.constexpr):
    """u at some places, rounded to KIND, in float32."""
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if BLEND == 1:
        value += tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
    if BLEND == 2:
        value = (1.0 - rate) * value + rate * tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
    return value.to(KIND).to(tl.float32)


@triton.jit
def blend_kernel(
    x,  # (V rows, C)
    y,  # (V rows, C), unless BLEND is 0
    rate,  # (C,), if BLEND is 2
    u,  # out (V rows, C), unless BLEND is 0
    partial,  # out (V, CHUNKS, 2, C) float32: mean, and sum of squares around it, of the chunk's rows
    rows,  # of a view
    C,
    BLEND: tl.constexpr,  # 0: u = x; 1: x + y; 2: mixed
    SPAN: tl.constexpr,  # rows of a chunk
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    chunk, view = tl.program_id(0), tl.program_id(1)
    column = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    there, begin, r = column < C, chunk * SPAN, 0.0
    if BLEND == 2:
        r = rate_of(rate, column, there)
    origin = (view.to(tl.int64) * rows + begin) * C  # of the program; from there 32 bits are enough
    x += origin
    if BLEND != 0:
        y += origin
        u += origin
    # Squares of distances from the first row's value lose nothing, however far from zero the values are.
    shift = _blended(x, y, r, column[None, :], tl.where(begin < rows, there, False)[None, :], BLEND, x.dtype.element_ty)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    squares = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, SPAN, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = ((row < SPAN) & (begin + row < rows))[:, None] & there[None, :]
        at = row[:, None] * C + column[None, :]
        value = _blended(x, y, r, at, mask, BLEND, x.dtype.element_ty)
        if BLEND != 0:
            tl.store(u + at, value.to(u.dtype.element_ty), mask=mask)
        apart = tl.where(mask, value - shift, 0.0)
        total += apart
        squares += apart * apart
    count = tl.minimum(tl.maximum(rows - begin, 1), SPAN).to(tl.float32)
    sums = over_rows(total, 3)[None, :]
    mean = sums / count
    place = partial + ((view * CHUNKS + chunk) * 2) * C + column[None, :]
    tl.store(place, shift + mean, mask=there[None, :])
    tl.store(place + C, tl.maximum(over_rows(squares, 3)[None, :] - sums * mean, 0.0), mask=there[None, :])


@triton.jit
def norm_kernel(
    u,  # (V rows, C)
    partial,  # (V, CHUNKS, 2, C) float32
    weight,  # (C,)
    bias,  # (C,)
    top,  # (V rows, C), if TOP
    top_rate,  # (C,), if TOP
    less,  # (V rows, C), if LESS
    out,  # out (V rows, C), if STORE
    apart,  # out (V rows, C), if LESS: out - less
    moments,  # out (2, V, C) float32: means, variances
    rows,
    C,
    eps,
    TOP: tl.constexpr,
    LESS: tl.constexpr,
    STORE: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    chunk, view, views = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    column = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    there, begin = column < C, chunk * SPAN
    part = tl.arange(0, CHUNKS)
    count = tl.minimum(tl.maximum(rows - part * SPAN, 0), SPAN).to(tl.float32)[:, None]
    place = partial + ((view * CHUNKS + part) * 2 * C)[:, None] + column[None, :]
    means = tl.load(place, mask=there[None, :], other=0.0)
    squares = tl.where(count > 0, tl.load(place + C, mask=there[None, :], other=0.0), 0.0)
    mean = (tl.sum(count * means, 0) / rows)[None, :]
    variance = (tl.sum(squares + count * (means - mean) * (means - mean), 0) / rows)[None, :]
    if chunk == 0:
        tl.store(moments + view * C + column[None, :], mean, mask=there[None, :])
        tl.store(moments + (views + view) * C + column[None, :], variance, mask=there[None, :])
    scale = number_of(weight, column, there) / tl.sqrt(variance + eps)
    b, t = number_of(bias, column, there), 0.0
    origin = (view.to(tl.int64) * rows + begin) * C  # of the program; from there 32 bits are enough
    u += origin
    if TOP:
        t = rate_of(top_rate, column, there)
        top += origin
    if LESS:
        less += origin
        apart += origin
    if STORE:
        out += origin
    for start in range(0, SPAN, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = ((row < SPAN) & (begin + row < rows))[:, None] & there[None, :]
        at = row[:, None] * C + column[None, :]
        value = tl.load(u + at, mask=mask, other=0.0).to(tl.float32)
        store_end((value - mean) * scale + b, top, t, less, out, apart, at, mask, TOP, LESS, STORE)


@triton.jit
def _through(gradient, again, u, top, at, mask, mean, inverse, w, b, t, TWICE: tl.constexpr, TOP: tl.constexpr):
    """At some places: the gradient of n, h, the gradient of the top mix, and top minus o (both 0 without a top)."""
    h = (tl.load(u + at, mask=mask, other=0.0).to(tl.float32) - mean) * inverse
    o, slope = gelu(h * w + b)
    d = tl.load(gradient + at, mask=mask, other=0.0).to(tl.float32)
    if TWICE:
        d += tl.load(again + at, mask=mask, other=0.0).to(tl.float32)
    mixed, apart = 0.0 * d, 0.0 * d
    if TOP:
        above = tl.load(top + at, mask=mask, other=0.0).to(tl.float32)
        _, bend = gelu((1.0 - t) * o + t * above)
        mixed, apart = d * bend, above - o
        d = (1.0 - t) * mixed
    return tl.where(mask, d * slope, 0.0), h, mixed, apart


@triton.jit
def sums_kernel(
    gradient,  # (V rows, C) of out
    again,  # (V rows, C) of out for its second reader, if TWICE
    u,  # (V rows, C)
    moments,  # (2, V, C) float32
    weight,  # (C,)
    bias,  # (C,)
    x,  # (V rows, C), if MIX
    y,  # (V rows, C), if MIX
    top,  # (V rows, C), if TOP
    top_rate,  # (C,), if TOP
    sums,  # out (V, CHUNKS, 6, C) float32: of d, d h, d q, q, h q, and of the top mix's gradient times top - o
    rows,
    C,
    eps,
    TWICE: tl.constexpr,
    MIX: tl.constexpr,
    TOP: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Sums of a program's rows. One kernel, because every sum needs the same values, which are computed once."""
    chunk, view, views = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    column = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    there, begin = column < C, chunk * SPAN
    mean = number_of(moments + view * C, column, there)
    inverse = 1.0 / tl.sqrt(number_of(moments + (views + view) * C, column, there) + eps)
    w, b, t = number_of(weight, column, there), number_of(bias, column, there), 0.0
    if TOP:
        t = rate_of(top_rate, column, there)
    sum_d = tl.zeros((ROWS, WIDTH), tl.float32)
    sum_dh, sum_dq, sum_q, sum_hq, sum_top = sum_d, sum_d, sum_d, sum_d, sum_d
    origin = (view.to(tl.int64) * rows + begin) * C  # of the program; from there 32 bits are enough
    gradient += origin
    u += origin
    if TWICE:
        again += origin
    if MIX:
        x += origin
        y += origin
    if TOP:
        top += origin
    for start in range(0, SPAN, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = ((row < SPAN) & (begin + row < rows))[:, None] & there[None, :]
        at = row[:, None] * C + column[None, :]
        d, h, mixed, apart = _through(gradient, again, u, top, at, mask, mean, inverse, w, b, t, TWICE, TOP)
        sum_d += d
        sum_dh += d * h
        if MIX:
            q = tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
            q -= tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
            sum_dq += d * q
            sum_q += q
            sum_hq += h * q
        if TOP:
            sum_top += tl.where(mask, mixed * apart, 0.0)
    place = sums + ((view * CHUNKS + chunk) * 6) * C + column
    tl.store(place, over_rows(sum_d, 3), mask=there)
    tl.store(place + C, over_rows(sum_dh, 3), mask=there)
    if MIX:
        tl.store(place + 2 * C, over_rows(sum_dq, 3), mask=there)
        tl.store(place + 3 * C, over_rows(sum_q, 3), mask=there)
        tl.store(place + 4 * C, over_rows(sum_hq, 3), mask=there)
    if TOP:
        tl.store(place + 5 * C, over_rows(sum_top, 3), mask=there)


@triton.jit
def _sum_of(sums, number: tl.constexpr, view, column, there, C, CHUNKS: tl.constexpr):
    """One of the sums over all rows of a view, [1, WIDTH]."""
    part = tl.arange(0, CHUNKS)[:, None]
    place = sums + ((view * CHUNKS + part) * 6 + number) * C + column[None, :]
    return tl.sum(tl.load(place, mask=there[None, :], other=0.0), 0)[None, :]


@triton.jit
def gradient_kernel(
    gradient,  # (V rows, C) of out
    again,  # (V rows, C) of out for its second reader, if TWICE
    u,  # (V rows, C)
    moments,  # (2, V, C) float32
    weight,  # (C,)
    bias,  # (C,)
    sums,  # (V, CHUNKS, 6, C) float32
    rate,  # (C,), if MIX
    top,  # (V rows, C), if TOP
    top_rate,  # (C,), if TOP
    to_x,  # out (V rows, C)
    to_y,  # out (V rows, C), if MIX; without a mix it is to_x
    to_top,  # out (V rows, C), if TO_TOP
    to_channels,  # out (4, C) float32: gradients of weight, bias, rate, top_rate
    rows,
    C,
    eps,
    TWICE: tl.constexpr,
    MIX: tl.constexpr,
    TOP: tl.constexpr,
    TO_TOP: tl.constexpr,  # top has a gradient
    VIEWS: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Gradients of maps and of channels. One kernel, because both need the same sums, and a launch costs time."""
    chunk, view = tl.program_id(0), tl.program_id(1)
    column = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    there, begin = column < C, chunk * SPAN
    w, b, r, t = number_of(weight, column, there), number_of(bias, column, there), 0.0, 0.0
    if MIX:
        r = rate_of(rate, column, there)
    if TOP:
        t = rate_of(top_rate, column, there)

    if (chunk == 0) & (view == 0):
        to_w, to_b, to_r, to_t = 0.0 * w, 0.0 * w, 0.0 * w, 0.0 * w
        for each in tl.static_range(VIEWS):
            sum_d = _sum_of(sums, 0, each, column, there, C, CHUNKS)
            sum_dh = _sum_of(sums, 1, each, column, there, C, CHUNKS)
            to_b += sum_d
            to_w += sum_dh
            if MIX:
                own = 1.0 / tl.sqrt(number_of(moments + (VIEWS + each) * C, column, there) + eps)
                found = _sum_of(sums, 2, each, column, there, C, CHUNKS)
                found -= sum_d / rows * _sum_of(sums, 3, each, column, there, C, CHUNKS)
                found -= sum_dh / rows * _sum_of(sums, 4, each, column, there, C, CHUNKS)
                to_r += tl.where(r > 0, w * own * found, 0.0)
            if TOP:
                to_t += tl.where(t > 0, _sum_of(sums, 5, each, column, there, C, CHUNKS), 0.0)
        tl.store(to_channels + column[None, :], to_w, mask=there[None, :])
        tl.store(to_channels + C + column[None, :], to_b, mask=there[None, :])
        tl.store(to_channels + 2 * C + column[None, :], to_r, mask=there[None, :])
        tl.store(to_channels + 3 * C + column[None, :], to_t, mask=there[None, :])

    mean = number_of(moments + view * C, column, there)
    inverse = 1.0 / tl.sqrt(number_of(moments + (VIEWS + view) * C, column, there) + eps)
    mean_d = _sum_of(sums, 0, view, column, there, C, CHUNKS) / rows
    mean_dh = _sum_of(sums, 1, view, column, there, C, CHUNKS) / rows
    origin = (view.to(tl.int64) * rows + begin) * C  # of the program; from there 32 bits are enough
    gradient += origin
    u += origin
    if TWICE:
        again += origin
    to_x += origin
    if MIX:
        to_y += origin
    if TOP:
        top += origin
    if TO_TOP:
        to_top += origin
    for start in range(0, SPAN, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = ((row < SPAN) & (begin + row < rows))[:, None] & there[None, :]
        at = row[:, None] * C + column[None, :]
        d, h, mixed, _ = _through(gradient, again, u, top, at, mask, mean, inverse, w, b, t, TWICE, TOP)
        du = w * inverse * (d - mean_d - h * mean_dh)
        if MIX:
            tl.store(to_x + at, ((1.0 - r) * du).to(to_x.dtype.element_ty), mask=mask)
            tl.store(to_y + at, (r * du).to(to_y.dtype.element_ty), mask=mask)
        else:
            tl.store(to_x + at, du.to(to_x.dtype.element_ty), mask=mask)
        if TO_TOP:
            tl.store(to_top + at, (t * mixed).to(to_top.dtype.element_ty), mask=mask)


# ---------------------------------------------------------------------------------------- ahead-of-time compilation


def _case(kernel, name: str, kind: str, maps: str, tables: str, constexprs: dict, absent: str = "") -> AotCase:
    """A case for 256 maps of 512 channels, 14 x 14; ``absent`` are arguments that are None."""
    wide = kernel is norm_kernel and kind == "fp32" and (constexprs["TOP"] or constexprs["LESS"])
    fewer = kernel in (sums_kernel, gradient_kernel) or wide
    sizes = {"SPAN": 800, "CHUNKS": 32, "ROWS": FEWER if fewer else ROWS, "WIDTH": WIDTH}
    signature = {each: f"*{kind}" for each in maps.split()} | dict.fromkeys(tables.split(), "*fp32")
    writes = not (kernel is sums_kernel or constexprs.get("BLEND") == NONE)  # a map
    signature |= {"rows": "i32", "C": "i32"} | ({} if kernel is blend_kernel else {"eps": "fp32"})
    return AotCase(
        f"{name} {kind}",
        kernel,
        signature,
        {**constexprs, **sizes, **dict.fromkeys(absent.split())},
        multiples_of_16=("rows", "C"),
        max_registers=128,
        min_load_bytes=16,
        min_store_bytes=16 if writes else 0,
    )


def _forward_cases(kind: str) -> list[AotCase]:
    tables, stores = "partial weight bias moments", {"STORE": True}
    return [
        _case(blend_kernel, "none", kind, "x u", "partial", {"BLEND": NONE}, "y rate"),
        _case(blend_kernel, "sum", kind, "x y u", "partial", {"BLEND": RESIDUAL}, "rate"),
        _case(blend_kernel, "mix", kind, "x y u", "rate partial", {"BLEND": MIX}),
        _case(
            norm_kernel,
            "less",
            kind,
            "u out apart less",
            tables,
            {"TOP": False, "LESS": True, **stores},
            "top top_rate",
        ),
        _case(
            norm_kernel,
            "top",
            kind,
            "u top out apart",
            f"{tables} top_rate",
            {"TOP": True, "LESS": False, **stores},
            "less",
        ),
    ]


def _backward_cases(kind: str) -> list[AotCase]:
    tables, one = "moments weight bias sums", {"TWICE": False, "MIX": False, "TOP": False}
    found = [_case(sums_kernel, "sum, one reader", kind, "gradient u", tables, one, "again x y top top_rate")]
    for name, mix, top, to_top in (("sum", 0, 0, 0), ("mix", 1, 0, 0), ("top", 0, 1, 0), ("trained top", 0, 1, 1)):
        maps = "gradient again u" + (" top" if top else "")
        rates = (" rate" if mix else "") + (" top_rate" if top else "")
        absent = ("" if mix else "rate ") + ("" if top else "top top_rate")
        readers = {"TWICE": True, "MIX": bool(mix), "TOP": bool(top)}
        if name in ("mix", "top"):
            own = f"{maps} x y" if mix else maps
            given = f"{tables} top_rate" if top else tables
            found.append(_case(sums_kernel, name, kind, own, given, readers, "top top_rate" if mix else "x y"))
        ends = {"TO_TOP": bool(to_top), "VIEWS": 2}
        maps, given = f"{maps} to_x to_y to_top", f"{tables} to_channels{rates}"
        found.append(_case(gradient_kernel, name, kind, maps, given, readers | ends, absent))
    return found


def aot_cases() -> list[AotCase]:
    """What a cycle launches: the mix below, the sum, the sum with the next cycle's mix, and the first pass.

    Where one case does all that another does and more, the other is left out.
    """
    return [case for kind in ("bf16", "fp16", "fp32") for case in _forward_cases(kind) + _backward_cases(kind)]
