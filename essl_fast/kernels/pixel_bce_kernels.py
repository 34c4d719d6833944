"""SemiPL's pixel loss L_S and its gradient, with no size x size map in memory (SemiPL, arXiv 2404.19615).

    heat = bilinear resize of attention (h, w) to (size, size), half-pixel centres, clamped to [1e-6, 1 - 1e-6]
    t    = min(1, boxes covering the pixel / consensus)
    L_S  = mean over labelled samples of the mean over pixels of -t log heat - (1 - t) log(1 - heat)

**Tiles.** Each axis of the picture is cut into half-cells: along x, half-cell m = 0 .. 2w - 1 goes from m size / 2w to
(m + 1) size / 2w. The map's node m // 2 is the nearest to every pixel centre in it, and is at one end of it. The far
node is the next one beyond its other end (past the map's ends the near node counts alone). A tile is at most 8 x 8
pixels inside one half-cell of each axis, so that all its pixels share four nodes: nn, nf, fn, ff, near or far along y,
then along x. With x and y the weights of the far column and row, 0 to 1/2, and before the clamp,

    near   = nn + y (fn - nn)                          once a row of the tile
    change = (nf - nn) + y ((ff - fn) - (nf - nn))
    heat   = near + x change                           one multiply-add a pixel

The far weight is at most 1/2. So a heat close to 0, where the gradient 1/heat is largest, keeps its relative accuracy.
One thread takes one tile (a lane, below). Nothing passes between threads, and no zeros of a weight matrix are
multiplied, as they would be in a resize by matrix products. 14 x 14 to 224 x 224 makes 28 x 28 tiles of 8 x 8 pixels
per sample.

**Target.** The part of a tile that a box covers is one 64-bit mask, with bit 8 v + u for the pixel (u, v) counted from
the near node's corner, and shifts make it from coordinates. So K boxes cost K masks per tile, not K tests per pixel.
Cross-entropy is linear in t, so a consensus of c is the mean of c binary losses; the target of the m-th is the pixels
that at least m boxes cover.

**Logarithm.** With q = heat inside the target and 1 - heat outside, the loss is -sum log q. A lane multiplies its q's
and takes one logarithm at the end. After 4 factors, each at least 1e-6, the product's exponent moves to an integer sum
and the mantissa stays, so that nothing underflows. Rounding 1 - heat and the product costs at most 2^-23 per pixel, in
practice far less since roundings cancel. In return, one logarithm serves 64 pixels. log1p in float32 is better only for
a mean loss below 0.1, and there by less than 1.2e-7, the unit in the last place of a loss of 1.

**Gradient.** g = -1/q inside, 1/q outside, and 0 where the clamp acts (exact bounds pass, as in torch.clamp). The sums
of g, x g, y g and x y g over a tile give the tile's part for its four nodes. A second launch adds the 16 parts of each
node (4 half-cells of each axis), and the parts of the loss, in a fixed order: there are no atomics, and two runs give
the same bits. The backward multiplies the small map by the upstream scalar.

**Cost at B = 256 (128 pairs, two views), 14 x 14 to 224 x 224, one box, on an H200: estimated, not measured.** The map
has 0.2 MB, the parts 3.2 MB, written and read (they stay in L2), the gradient 0.2 MB. Eager PyTorch makes 50 launches
that touch 2.9 GB: 0.66 ms at 4.3 TB/s. Instructions, counted in the code for sm_90: 13.4 per pixel and 290 per tile,
1,140 in all. 6,656 warps on 132 x 4 schedulers at 1.75 GHz issue them in 8.2 us; at the same time the reciprocals (4
lanes per cycle) take 3.7 us. With about 2 us for the second launch, that is 11 to 14 us. An unlabelled sample costs
nothing.
"""

import triton
import triton.language as tl

from essl_fast.kernels import tuning
from essl_fast.kernels.tuning import AotCase, Config

INTERPRETED = tl.constexpr(tuning.INTERPRETED)


# ---------------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _within(x, LIMIT: tl.constexpr):
    """x clamped to 0 .. LIMIT."""
    return tl.minimum(tl.maximum(x, 0), LIMIT)


@triton.jit
def _coordinate(box, SIZE: tl.constexpr):
    """A box's coordinate at its address, clamped to the grid, as int32."""
    return _within(tl.load(box), SIZE).to(tl.int32)


@triton.jit
def _first_pixel(half, NODES: tl.constexpr, SIZE: tl.constexpr):
    """The first pixel whose centre is in half-cell ``half``: ceil(half SIZE / (2 NODES) - 1/2)."""
    if SIZE % (2 * NODES) == 0:
        return half * (SIZE // (2 * NODES))
    return (half * SIZE + NODES - 1) // (2 * NODES)


@triton.jit
def _nodes_of(half, NODES: tl.constexpr):
    """A half-cell's near node, and its far one (clamped to the map); whether its pixels go up from the near one."""
    near, up = half // 2, half % 2 == 1
    return near, tl.minimum(tl.maximum(tl.where(up, near + 1, near - 1), 0), NODES - 1), up


@triton.jit
def _tile_of(half, up, tile, NODES: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr):
    """The tile-th tile, counted from the near node.

    Returns its nearest pixel, how many pixels it has (0 to TILE), the weight of the far node at the nearest pixel, and
    by how much that weight grows per pixel. At the map's ends the near node counts alone.
    """
    first, end = _first_pixel(half, NODES, SIZE), _first_pixel(half + 1, NODES, SIZE)
    nearest = tl.where(up, first + tile * TILE, end - 1 - tile * TILE)
    distance = (2 * nearest + 1) * NODES - SIZE - 2 * SIZE * (half // 2)  # from the near node; exact
    weight = tl.where(up, distance, -distance).to(tl.float32) / (2 * SIZE)
    alone = (half == 0) | (half == 2 * NODES - 1)
    count = _within(end - first - tile * TILE, TILE)
    return nearest, count, tl.where(alone, 0.0, weight), tl.where(alone, 0.0, NODES / SIZE)


@triton.jit
def _span(low, high, nearest, up, TILE: tl.constexpr):
    """The pixels low .. high - 1 of the picture, as the tile counts them from its nearest one: (first, end)."""
    first, end = tl.where(up, low - nearest, nearest + 1 - high), tl.where(up, high - nearest, nearest + 1 - low)
    return _within(first, TILE), _within(end, TILE)


@triton.jit
def _rows_below(n):
    """64-bit mask of the first n (0 to 8) rows of a tile. Two shifts, since a shift by 64 is undefined."""
    everything = (0 * n - 1).to(tl.int64)
    half = (4 * n).to(tl.int64)
    return ~((everything << half) << half)


@triton.jit
def _rectangle(x1, y1, x2, y2):
    """64-bit mask of rows y1 .. y2 - 1 and columns x1 .. x2 - 1 of a tile, all 0 to 8; nothing where x2 <= x1."""
    columns = ((1 << x2) - 1) & ~((1 << x1) - 1)
    return (_rows_below(y2) & ~_rows_below(y1)) & (columns.to(tl.int64) * 0x0101010101010101)


@triton.jit
def _reciprocal(q):
    """1/q to one unit in the last place, for a q far from the ends of the range: the bare hardware instruction."""
    if INTERPRETED:
        return 1.0 / q
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [q], tl.float32, is_pure=True, pack=1)


@triton.jit
def tiles_kernel(
    attention,  # (B, H, W) any float, strides stride_b, stride_y, stride_x
    boxes,  # (B, K, 4) int32 or int64, contiguous
    labelled,  # (B,) bool
    losses,  # out (B, programs of a sample) float32: sum over the program's pixels and targets
    parts,  # out (B, 4, lanes) float32: each tile's gradient for its four nodes
    K,
    stride_b,
    stride_y,
    stride_x,
    H: tl.constexpr,
    W: tl.constexpr,
    SIZE: tl.constexpr,
    CONSENSUS: tl.constexpr,
    TILES_Y: tl.constexpr,  # tiles of a half-cell: along y each has its own lane; along x one lane takes all
    TILES_X: tl.constexpr,
    TILE_Y: tl.constexpr,  # pixels, at most 8
    TILE_X: tl.constexpr,
    WHOLE: tl.constexpr,  # whether every tile is full
    GRADIENT: tl.constexpr,
    LANES: tl.constexpr,  # of a program
):
    """Loss and gradient parts of one sample's tiles. One function, since a kernel is one launch: the loop over pixels
    needs every value before it in registers.
    """
    b = tl.program_id(0).to(tl.int64)
    out_loss = losses + b * tl.num_programs(1) + tl.program_id(1)
    if not tl.load(labelled + b):  # its map is never read
        tl.store(out_loss, 0.0)
        return
    ALL: tl.constexpr = 2 * H * TILES_Y * 2 * W
    GROUP: tl.constexpr = 4  # factors between two renormalisations of the product
    FACTORS: tl.constexpr = TILE_X * CONSENSUS  # of a row of a tile
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    real = lane < ALL
    row = tl.minimum(lane, ALL - 1) // (2 * W)
    half_y, half_x = row // TILES_Y, tl.minimum(lane, ALL - 1) % (2 * W)
    # n and f: near and far, first along y, then along x.
    near_y, far_y, up_y = _nodes_of(half_y, H)
    near_x, far_x, up_x = _nodes_of(half_x, W)
    sample = attention + b * stride_b
    nn = tl.load(sample + near_y * stride_y + near_x * stride_x).to(tl.float32)
    nf = tl.load(sample + near_y * stride_y + far_x * stride_x).to(tl.float32)
    fn = tl.load(sample + far_y * stride_y + near_x * stride_x).to(tl.float32)
    ff = tl.load(sample + far_y * stride_y + far_x * stride_x).to(tl.float32)
    y0, count_y, weight_y, step_y = _tile_of(half_y, up_y, row % TILES_Y, H, SIZE, TILE_Y)

    exponent = tl.zeros((LANES,), tl.int32)
    product = tl.full((LANES,), 1.0, tl.float32)
    part_nn, part_nf, part_fn, part_ff = (tl.zeros((LANES,), tl.float32),) * 4
    for tile_x in range(TILES_X):
        x0, count_x, weight_x, step_x = _tile_of(half_x, up_x, tile_x, W, SIZE, TILE_X)

        # planes[m]: the tile's pixels that more than m boxes cover.
        planes = (tl.zeros((LANES,), tl.int64),) * CONSENSUS
        k = 0
        while k < K:  # with NumPy 2.4, Triton's interpreter has no range() over an argument
            box = boxes + (b * K + k) * 4
            x1, y1 = _coordinate(box, SIZE), _coordinate(box + 1, SIZE)
            x2, y2 = _coordinate(box + 2, SIZE), _coordinate(box + 3, SIZE)
            if (x1 < x2) & (y1 < y2):  # a padding box costs only its load
                u1, u2 = _span(x1, x2, x0, up_x, TILE_X)
                v1, v2 = _span(y1, y2, y0, up_y, TILE_Y)
                grown = _rectangle(u1, v1, u2, v2)
                more = ()
                for m in tl.static_range(CONSENSUS):
                    more = more + (planes[m] | grown,)  # type: ignore[assignment]  # Triton's tuples may grow
                    grown = planes[m] & grown
                planes = more
            k += 1
        if not WHOLE:
            valid = _rectangle(0 * count_x, 0 * count_y, count_x, count_y)

        weights = ()  # of the far column, for each u
        for u in tl.static_range(TILE_X):
            weights = weights + (weight_x + u * step_x,)  # type: ignore[assignment]  # Triton's tuples may grow
        sum1, sumx, sumy, sumxy = (tl.zeros((LANES,), tl.float32),) * 4
        for v in range(TILE_Y):
            wy = weight_y + v * step_y
            near, change = nn + wy * (fn - nn), (nf - nn) + wy * ((ff - fn) - (nf - nn))
            row1, rowx = (tl.zeros((LANES,), tl.float32),) * 2
            for u in tl.static_range(TILE_X):
                heat = near + weights[u] * change
                clamped = tl.minimum(tl.maximum(heat, 1e-6), 1.0 - 1e-6)
                passes = heat == clamped
                if not WHOLE:
                    here = ((valid >> (8 * v)).to(tl.int32) & (1 << u)) != 0
                    passes = passes & here
                for m in tl.static_range(CONSENSUS):
                    inside = ((planes[m] >> (8 * v)).to(tl.int32) & (1 << u)) != 0
                    # |signed| is q. Its sign gives the gradient's: -1/q inside and 1/q outside are both -1/signed.
                    signed = tl.where(inside, clamped, clamped - 1.0)
                    q = tl.abs(signed)
                    if not WHOLE:
                        q = tl.where(here, q, 1.0)
                    product *= q
                    factor = u * CONSENSUS + m + 1
                    if factor % GROUP == 0 or factor == FACTORS:
                        bits = product.to(tl.int32, bitcast=True)
                        exponent += (bits >> 23) - 127
                        product = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
                    if GRADIENT:
                        g = _reciprocal(tl.where(passes, signed, float("inf")))  # 1/inf is the 0 where the clamp acts
                        row1 += g
                        rowx += weights[u] * g
            sum1 += row1
            sumx += rowx
            sumy += wy * row1
            sumxy += wy * rowx
        if GRADIENT:
            part_nn += sum1 - sumx - sumy + sumxy
            part_nf += sumx - sumxy
            part_fn += sumy - sumxy
            part_ff += sumxy

    # The clamp hides a NaN or an infinity in the map, but the loss must show it.
    finite = tl.abs(nn) + tl.abs(nf) + tl.abs(fn) + tl.abs(ff) < float("inf")
    product = tl.where(finite, product, float("nan"))
    loss = -(exponent * 0.6931471805599453 + tl.log(product))
    tl.store(out_loss, tl.sum(tl.where(real, loss, 0.0)))
    if GRADIENT:
        out = parts + b * 4 * ALL + lane
        tl.store(out, part_nn, mask=real)
        tl.store(out + ALL, part_nf, mask=real)
        tl.store(out + 2 * ALL, part_fn, mask=real)
        tl.store(out + 3 * ALL, part_ff, mask=real)


@triton.jit
def finish_kernel(
    losses,  # (B, programs) float32, of tiles_kernel
    parts,  # (B, 4, lanes) float32, of tiles_kernel; undefined for samples that are not labelled
    labelled,  # (B,) bool
    loss,  # out () float32
    unit,  # out (B, H, W) float32: the gradient for an upstream gradient of 1
    B,
    PARTS,  # elements of losses
    H: tl.constexpr,
    W: tl.constexpr,
    SIZE: tl.constexpr,
    CONSENSUS: tl.constexpr,
    TILES_Y: tl.constexpr,
    NODES: tl.constexpr,  # of a program
):
    """Program 0 sums the loss. Program 1 + b * ceil(H W / NODES) + i makes the i-th piece of sample b's gradient."""
    FLAGS: tl.constexpr = 2048  # 16 bytes per thread
    flag = tl.arange(0, FLAGS)
    ones = tl.zeros((FLAGS,), tl.int32)
    start = 0
    while start < B:
        ones += tl.load(labelled + start + flag, mask=start + flag < B, other=0).to(tl.int32)
        start += FLAGS
    scale = 1.0 / (SIZE * SIZE * CONSENSUS) / tl.maximum(tl.sum(ones), 1).to(tl.float32)

    if tl.program_id(0) == 0:
        CHUNK: tl.constexpr = 1024
        at = tl.arange(0, CHUNK)
        total = tl.zeros((CHUNK,), tl.float32)
        first = 0
        while first < PARTS:
            total += tl.load(losses + first + at, mask=first + at < PARTS, other=0.0)
            first += CHUNK
        tl.store(loss, tl.sum(total) * scale)
    else:
        PIECES: tl.constexpr = (H * W + NODES - 1) // NODES
        b = ((tl.program_id(0) - 1) // PIECES).to(tl.int64)
        node = (tl.program_id(0) - 1) % PIECES * NODES + tl.arange(0, NODES)
        real = node < H * W
        wanted = tl.where(tl.load(labelled + b), real, False)
        i, j = node // W, node % W
        gathered = tl.zeros((NODES,), tl.float32)
        # Node j is the near node of half-cells 2j and 2j + 1, and the far node of 2j - 1 and 2j + 2; likewise along y.
        for tile in range(4 * TILES_Y):
            side_y = tile // TILES_Y
            half_y = 2 * i - 1 + side_y
            row = half_y * TILES_Y + tile % TILES_Y
            far_y = 1 - (side_y + 1) // 2 % 2
            for side_x in tl.static_range(4):
                half_x = 2 * j - 1 + side_x
                there = (half_y >= 0) & (half_y < 2 * H) & (half_x >= 0) & (half_x < 2 * W)
                part = (b * 4 + 2 * far_y + 1 - (side_x + 1) // 2 % 2) * (2 * H * TILES_Y * 2 * W)
                gathered += tl.load(parts + part + row * (2 * W) + half_x, mask=wanted & there, other=0.0)
        tl.store(unit + b * H * W + node, -scale * gathered, mask=real)


# ---------------------------------------------------------------------------------------------------- launch settings


def tiling(nodes: int, size: int) -> tuple[int, int, bool]:
    """How an axis of `size` pixels is cut: tiles per half-cell, pixels per tile (at most 8), is every tile full."""
    longest = -(-size // (2 * nodes))
    tiles = -(-longest // 8)
    pixels = -(-longest // tiles)
    return tiles, pixels, tiles * pixels * 2 * nodes == size


def geometry(h: int, w: int, size: int, consensus: int) -> dict[str, int]:
    """The constants of both kernels for a map (h, w)."""
    (tiles_y, tile_y, whole_y), (tiles_x, tile_x, whole_x) = tiling(h, size), tiling(w, size)
    whole = whole_y and whole_x
    return {
        "H": h,
        "W": w,
        "SIZE": size,
        "CONSENSUS": consensus,
        "TILES_Y": tiles_y,
        "TILES_X": tiles_x,
        "TILE_Y": tile_y,
        "TILE_X": tile_x,
        "WHOLE": whole,
    }


def shape_class(h: int, w: int, size: int, consensus: int) -> str:
    """What the best launch depends on."""
    return f"{h}x{w}-to{size}-consensus{consensus}"


def candidates(shape_class: str) -> tuple[Config, ...]:
    """Launches worth measuring, the default first.

    One lane per thread: with more, the compiler moves values between threads through shared memory.
    """
    return tuple(Config({"LANES": 32 * warps}, num_warps=warps) for warps in (2, 4, 1))


# ---------------------------------------------------------------------------------------- ahead-of-time compilation


def _case(h: int, w: int, size: int, consensus: int, boxes: str, registers: int, **other: int) -> AotCase:
    config = candidates(shape_class(h, w, size, consensus))[0]
    types = {"attention": "*fp32", "boxes": f"*{boxes}", "labelled": "*i1", "losses": "*fp32", "parts": "*fp32"}
    types |= {"K": "i32", "stride_b": "i32", "stride_y": "i32"}
    constexprs = {"stride_x": 1, "GRADIENT": True, **geometry(h, w, size, consensus), **config.blocks, **other}
    return AotCase(
        f"{h}x{w} to {size}, consensus {consensus}, {boxes}{''.join(f', {k}={v}' for k, v in other.items())}",
        tiles_kernel,
        {name: kind for name, kind in types.items() if name not in other},
        constexprs,
        num_warps=config.num_warps,
        max_registers=registers,
    )


def aot_cases() -> list[AotCase]:
    """Training's launch, one box, the loss alone, two annotators, and half-cells of different sizes."""
    finish = AotCase(
        "14x14",
        finish_kernel,
        {
            "losses": "*fp32",
            "parts": "*fp32",
            "labelled": "*i1",
            "loss": "*fp32",
            "unit": "*fp32",
            "B": "i32",
            "PARTS": "i32",
        },
        {"H": 14, "W": 14, "SIZE": 224, "CONSENSUS": 1, "TILES_Y": 1, "NODES": 256},
        multiples_of_16=("B", "PARTS"),
        max_registers=64,
    )
    return [
        _case(14, 14, 224, 1, "i32", 48),
        _case(14, 14, 224, 1, "i32", 48, K=1),
        _case(14, 14, 224, 1, "i32", 48, GRADIENT=False),
        _case(14, 14, 224, 2, "i32", 64),
        _case(9, 13, 224, 1, "i64", 64),
        finish,
    ]
