"""How the attention's kernels walk over a feature map: what a tile is, which thread holds what, how work is split.

A program works on a run of positions of one sample, tile by tile. In registers a tile is (groups, rows, wide):
groups x rows positions by all channels, padded to a power of two. The speed depends on which thread holds what. Triton
derives that from the shape and the order of the axes with which a tile is *loaded*:

* channels_last, (groups, chunks, rows, columns): a lane takes 16 bytes of neighbouring channels, a warp the 32 lanes
  of a chunk of columns, and warps are spread over groups. So a position belongs to one warp (up to 512 channels): sums
  over channels take five shuffles and no barrier, and rows and chunks stay within a thread. Sums over positions are
  kept per group and cost nothing until the last tile is done.
* contiguous, (groups, chunks, 1, rows): a lane takes up to 16 bytes of neighbouring positions, groups are lanes too,
  and the other lanes and the warps are spread over channels. A warp's load touches runs of at least 16 positions. Sums
  over channels then go through shared memory.

Triton hands lanes and warps first to the axis of contiguous values, here the last one of those above. Up to version 3.6
it goes on from the first axis to the last, and from 3.7 on from the last to the first. So with newer versions the first
three axes are in the opposite order, and groups come second with all of them (GROUPS_LATE).

16-bit features are loaded as 32-bit words of two neighbours and unpacked by hand. Loaded one by one, each would take a
register while it waits, and the next tile could not be loaded while this one is processed. Unpacking by hand costs 1
instruction per value instead of 1.5.
"""

import functools
import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from essl_fast.kernels import tuning
from essl_fast.kernels.sums import over_rows
from essl_fast.kernels.tuning import Config

MAX_CHANNELS, MAX_POSITIONS = 2048, 1024
LEAST_SQUARE = tl.constexpr(1e-24)  # F.normalize's eps, 1e-12, squared: vectors are divided by max(|v|, 1e-12)
GROUPS_LATE = tl.constexpr(tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 7))
LEAST_RANGE = tl.constexpr(1e-10)  # added to max s - min s


@dataclass(frozen=True)
class Tiling:
    """Constants of a launch. A kernel is compiled for each Tiling in use and kept on disk under the Tiling's repr.

    So values that follow from others are fields too, not properties: after a change of a formula, the old machine code
    must not be found.
    """

    channels: int
    wide: int  # channels, up to a power of two
    positions: int  # H * W
    map_size: int  # positions, up to a power of two
    positions_first: bool  # neighbouring positions are neighbours in memory, rather than channels
    pack: int  # values per loaded word: 2 of 16 bits, or 1
    groups: int
    rows: int
    chunks: int  # wide / columns
    columns: int
    lanes: int  # 32 where a warp holds whole positions: see store_rows
    ahead: bool  # load the next tile before working on this one
    size: int  # positions per tile
    tiles: int  # per sample
    share: int  # tiles per program
    splits: int  # programs per sample


@triton.jit
def positions_of(tile, T: tl.constexpr):
    """(groups, rows, 1): the positions of a tile's rows."""
    group = tl.arange(0, T.groups)[:, None, None]
    row = tl.arange(0, T.rows)[None, :, None]
    if T.positions_first:
        return (tile * T.groups + group) * T.rows + row
    else:
        return (tile * T.rows + row) * T.groups + group


@triton.jit
def _along(COUNT: tl.constexpr, AXIS: tl.constexpr):
    """0 .. COUNT - 1 along one of the first three axes of a loaded tile, of which groups are number 0."""
    if AXIS == (2 if GROUPS_LATE else 0):
        return tl.arange(0, COUNT)[:, None, None, None]
    elif AXIS == 1:
        return tl.arange(0, COUNT)[None, :, None, None]
    else:
        return tl.arange(0, COUNT)[None, None, :, None]


@triton.jit
def words_of(tile, STRIDE_C: tl.constexpr, STRIDE_P: tl.constexpr, PACK: tl.constexpr, T: tl.constexpr):
    """Offsets of a tile's words of PACK values in a sample, in the shape in which it is loaded; and which are real."""
    group, chunk = _along(T.groups, 0), _along(T.chunks, 1)
    if T.positions_first:
        channel = chunk * T.columns + _along(T.columns, 2)
        word = (tile * T.groups + group) * (T.rows // PACK) + tl.arange(0, T.rows // PACK)[None, None, None, :]
        return channel * (STRIDE_C // PACK) + word * STRIDE_P, (word < T.positions // PACK) & (channel < T.channels)
    else:
        position = (tile * T.rows + _along(T.rows, 2)) * T.groups + group
        word = chunk * (T.columns // PACK) + tl.arange(0, T.columns // PACK)[None, None, None, :]
        return position * (STRIDE_P // PACK) + word * STRIDE_C, (position < T.positions) & (word < T.channels // PACK)


@triton.jit
def load_tile(sample, tile, end, STRIDE_C: tl.constexpr, STRIDE_P: tl.constexpr, T: tl.constexpr):
    """A tile of a sample's features, packed; 0 after the last position and channel, and from tile ``end`` on."""
    words, real = words_of(tile, STRIDE_C, STRIDE_P, T.pack, T)
    if T.splits > 1:
        real = tl.where(tile < end, real, False)  # not &: from Triton 3.9 on, interpreted masks would not broadcast
    if T.pack == 2:
        sample = sample.to(tl.pointer_type(tl.int32))
    return tl.load(sample + words, mask=real, other=0)


@triton.jit
def share_of(split, T: tl.constexpr):
    """First tile of a program's share, and the first one after it. Constants if one program has the whole sample."""
    if T.splits == 1:
        return tl.constexpr(0), tl.constexpr(T.tiles)
    else:
        return split * T.share, tl.minimum((split + 1) * T.share, T.tiles)


@triton.jit
def load_row(row, LIKE: tl.constexpr, T: tl.constexpr):
    """(groups or 1, 1, wide) float32: a row of channels, which warps exchange where a tile has them in other threads.

    The row is loaded like a tile, and nothing is exchanged, if a warp holds whole positions and the row's values are as
    wide as LIKE, the features' type.
    """
    if T.lanes < 32 or row.dtype.element_ty.primitive_bitwidth != LIKE.primitive_bitwidth:
        channel = tl.arange(0, T.wide)[None, None, :]
        return tl.load(row + channel, mask=channel < T.channels, other=0).to(tl.float32)
    else:
        channel = _along(T.chunks, 1) * T.columns + tl.arange(0, T.columns)[None, None, None, :]
        channel += 0 * _along(T.groups, 0)  # every group loads the row
        return _spread(tl.load(row + channel, mask=channel < T.channels, other=0).to(tl.float32), 1, T)


@triton.jit
def unpack_tile(tile, DTYPE: tl.constexpr, T: tl.constexpr):
    """(groups, rows, wide) float32 of a loaded tile."""
    if T.pack == 2:
        if DTYPE == tl.bfloat16:
            low = (tile << 16).to(tl.float32, bitcast=True)
            high = (tile & -65536).to(tl.float32, bitcast=True)
        else:
            low = tile.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
            high = (tile >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        tile = tl.reshape(tl.join(low, high), (tile.shape[0], tile.shape[1], tile.shape[2], 2 * tile.shape[3]))
    else:
        tile = tile.to(tl.float32)
    return _spread(tile, T.rows, T)


@triton.jit
def _spread(tile, ROWS: tl.constexpr, T: tl.constexpr):
    """(groups, rows, wide) of a tile with the axes with which it was loaded."""
    if T.positions_first:
        tile = tl.permute(tile, (2, 3, 1, 0) if GROUPS_LATE else (0, 3, 1, 2))
    else:
        tile = tl.permute(tile, (2, 0, 1, 3) if GROUPS_LATE else (0, 2, 1, 3))
    return tl.reshape(tile, (T.groups, ROWS, T.wide))


@triton.jit
def over_groups(x, T: tl.constexpr):
    """(wide,): the sum of (groups, 1, wide) over the groups, of which each warp has its own (channels_last)."""
    x = tl.reshape(x, (T.groups, T.wide))
    if T.groups == 1 or T.positions_first:  # there the groups are lanes, or both
        return tl.sum(x, axis=0)
    else:
        return over_rows(x, 1)


@triton.jit
def store_tile(sample, tile, values, STRIDE_C: tl.constexpr, STRIDE_P: tl.constexpr, T: tl.constexpr):
    """Write (groups, rows, wide) values to the places of the tile's features."""
    values = tl.reshape(values.to(sample.dtype.element_ty), (T.groups, T.rows, T.chunks, T.columns))
    if T.positions_first:
        values = tl.permute(values, (3, 2, 0, 1) if GROUPS_LATE else (0, 2, 3, 1))
    else:
        values = tl.permute(values, (1, 2, 0, 3) if GROUPS_LATE else (0, 2, 1, 3))
    words, real = words_of(tile, STRIDE_C, STRIDE_P, 1, T)
    tl.store(sample + words, values, mask=real)


@triton.jit
def store_rows(row, tile, values, T: tl.constexpr):
    """Write (groups, rows, 1) values into a sample's map.

    All lanes of a warp that holds a whole position have its value, and lane 0 writes it. The extra axis of lanes keeps
    the order that Triton has already; without it, Triton would reorder each tile's values through shared memory, with
    two barriers.
    """
    position = positions_of(0, T)  # in the tile
    lane = tl.arange(0, T.lanes)[None, None, :]
    if GROUPS_LATE:
        position, values = tl.permute(position, (1, 0, 2)), tl.permute(values, (1, 0, 2))
    mask = (position < T.positions - tile * T.size) & (lane == 0)
    tl.store(row + tile * T.size + position + lane, values, mask=mask)


@triton.jit
def unit(x):
    """x / max(|x|, eps) over the last axis; the factor that x was multiplied by, (..., 1); is that factor 1 / |x|."""
    square = tl.sum(x * x, axis=2, keep_dims=True)
    inverse = tl.rsqrt(tl.maximum(square, LEAST_SQUARE))
    return x * inverse, inverse, square >= LEAST_SQUARE


def position_stride(features: Tensor) -> int | None:
    """Elements from one position of features (B, C, H, W) to the next; None if one stride cannot walk over all rows."""
    (height, width), (down, right) = features.shape[2:], features.stride()[2:]
    if width == 1:
        return 0 if height == 1 else down
    return right if height == 1 or down == width * right else None


def walkable(features: Tensor) -> Tensor:
    """The features (B, C, H, W) themselves, or a contiguous copy if one stride cannot walk over all positions."""
    step = position_stride(features)
    channels, positions = features.shape[1], features.shape[2] * features.shape[3]
    near = step is not None and channels * features.stride(1) + positions * step < 2**30  # offsets are 32-bit
    return features if near else features.contiguous()


def like(features: Tensor) -> Tensor:
    """An empty gradient for the features, in their memory layout."""
    gradient = torch.empty_like(features)
    walks = position_stride(gradient) is not None
    return gradient if walks else torch.empty_like(features, memory_format=torch.contiguous_format)


def empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """An empty tensor on the device of ``like``; a kernel must write all of it."""
    return torch.empty(shape, dtype=dtype, device=like.device)


@functools.lru_cache
def splits_of(batch: int, positions: int, processors: int) -> int:
    """Programs per sample: one if there are samples for most multiprocessors, since then no second kernel is needed.

    Else as many as make two programs per multiprocessor, which is what fits; each has at least 16 positions.
    """
    if 2 * batch > processors:
        return 1
    return min((2 * processors + batch // 2) // batch, triton.cdiv(positions, 16))


def steps_of(features: Tensor) -> tuple[int, int, int]:
    """Strides of walkable features over samples, channels and positions; for a single sample, the first is its size."""
    step = position_stride(features)
    assert step is not None, "only walkable features are walked"
    positions = features.shape[2] * features.shape[3]
    step_b = features.stride(0) if features.shape[0] > 1 else features.shape[1] * positions
    return step_b, features.stride(1), step


class Parts(NamedTuple):
    """A shape class, taken apart."""

    channels: int
    positions: int
    bytes_each: int  # of a value
    positions_first: bool
    vector: int  # neighbouring values that a load may take
    splits: int  # programs per sample
    alone: bool  # no more programs than multiprocessors

    def dense_steps(self) -> tuple[int, int, int]:
        """``steps_of`` for features without gaps."""
        near = (self.positions, 1) if self.positions_first else (1, self.channels)
        return self.channels * self.positions, *near


def shape_class(features: Tensor) -> str:
    """What a launch for walkable features (B, C, H, W) depends on, such as "c512-p196-16bit-last8-split1".

    That is: channels; positions; bits per value; the axis whose neighbours are neighbours in memory (channels: "last",
    positions: "first") and how many of them one load may take; programs per sample; "-alone" if no multiprocessor gets
    more than one program.
    """
    batch, channels, positions = features.shape[0], features.shape[1], features.shape[2] * features.shape[3]
    bytes_each, processors = features.element_size(), tuning.processors_of(features.device)
    step_b, step_c, step_p = steps_of(features)
    if step_c == 1:
        layout, vector = "last", math.gcd(16 // bytes_each, channels, step_p, step_b)
    elif step_p == 1:
        layout, vector = "first", math.gcd(16 // bytes_each, positions, step_c, step_b)
    else:
        layout, vector = "last", 1
    if features.data_ptr() % 16:  # then Triton assumes no more than the alignment of a word
        vector = math.gcd(vector, 4 // bytes_each) if features.data_ptr() % 4 == 0 else 1
    splits = splits_of(batch, positions, processors)
    alone = "-alone" if batch * splits <= processors else ""
    return f"c{channels}-p{positions}-{8 * bytes_each}bit-{layout}{vector}-split{splits}{alone}"


def parse(text: str) -> Parts:
    """The parts of a shape class. ValueError if it is none."""
    found = re.fullmatch(r"c(\d+)-p(\d+)-(16|32)bit-(last|first)(\d)-split(\d+)(-alone)?", text)
    if not found:
        raise ValueError(f"attention: {text!r} is no shape class, such as 'c512-p196-16bit-last8-split1'")
    channels, positions, bits, layout, vector, splits, alone = found.groups()
    return Parts(
        int(channels), int(positions), int(bits) // 8, layout == "first", int(vector), int(splits), alone is not None
    )


def config_of(text: str, rows_bytes: int, ahead: bool, warps: int = 8) -> Config:
    """Blocks for a shape class; twice the warps if a program has a multiprocessor to itself.

    Channels last: a lane holds at most 16 values of a position, and rows of rows_bytes in all. Positions first: a lane
    holds 32 values, or 16 if it cannot load at least four at a time, since its sums then take more registers.
    """
    shape = parse(text)
    wide, most = triton.next_power_of_2(shape.channels), triton.next_power_of_2(shape.positions)
    warps *= 2 if shape.alone else 1
    if shape.positions_first:
        values = 32 if shape.vector >= 4 else 16
        warps = max(warps, 16) if wide > 512 or shape.vector < 4 else warps
        size = max(shape.vector, min(32 * values * warps // wide, most, 64))
        while warps > 1 and wide * size < 32 * values * warps:
            warps //= 2
        blocks = {"groups": size // shape.vector, "rows": shape.vector, "columns": 1, "ahead": int(ahead)}
        return Config(blocks, warps, 1)
    columns = min(wide, 32 * shape.vector)
    lanes = columns // shape.vector  # that share a position
    row_warps = max(1, wide // (16 * lanes))  # that share a position
    rows = max(1, rows_bytes * lanes * row_warps // (wide * shape.bytes_each))
    while rows > 1 and rows * warps * 32 > most * lanes * row_warps:
        rows //= 2
    while warps > row_warps and warps * 32 > most * lanes * row_warps:
        warps //= 2
    groups = warps * 32 // (lanes * row_warps)
    return Config({"groups": groups, "rows": rows, "columns": columns, "ahead": int(ahead)}, warps, 1)


def registers(warps: int) -> int:
    """Registers per thread: two programs of 8 warps must fit on a multiprocessor; smaller ones are for small maps."""
    return 128 if warps >= 8 else 168


def tiling_of(text: str, config: Config) -> Tiling:
    """The constants of a launch."""
    return _tiling_of(text, config.num_warps, **config.blocks)


@functools.lru_cache
def _tiling_of(text: str, warps: int, groups: int, rows: int, columns: int, ahead: int) -> Tiling:
    shape = parse(text)
    wide, count = triton.next_power_of_2(shape.channels), triton.cdiv(shape.positions, groups * rows)
    share = triton.cdiv(count, min(shape.splits, count))
    whole = not shape.positions_first and columns == 32 * shape.vector and groups == warps
    return Tiling(
        channels=shape.channels,
        wide=wide,
        positions=shape.positions,
        map_size=triton.next_power_of_2(shape.positions),
        positions_first=shape.positions_first,
        pack=2 if shape.bytes_each == 2 and shape.vector > 1 else 1,
        groups=groups,
        rows=rows,
        chunks=wide // columns,
        columns=columns,
        lanes=32 if whole else 1,
        ahead=bool(ahead),
        size=groups * rows,
        tiles=count,
        share=share,
        splits=triton.cdiv(count, share),  # no program is left without a tile
    )


def join_block(tiling: Tiling) -> int:
    """Channels per program of the kernels that join the parts of a sample: about 2,048 values of one kind."""
    return max(16, min(tiling.wide, 2048 // triton.next_power_of_2(tiling.splits)))
