"""How the attention's kernels walk a feature map: what a tile is, who holds which part of it, how work is split.

A program works for one sample, on a run of its positions, tile by tile. In registers a tile is (groups, rows, wide):
groups x rows positions by all channels, padded to a power of two. What makes the kernels fast is who holds what, and
Triton derives that from the shape and the order of the axes with which a tile is *loaded*:

* channels_last, (groups, chunks, rows, columns): a lane takes 16 bytes of neighbouring channels, a warp the 32 lanes
  of a chunk of columns, then warps spread over groups. So a position belongs to one warp (up to 512 channels): sums
  over channels take five shuffles and no barrier, and rows and chunks stay within a thread. Sums over positions, kept
  per group, cost nothing until the last tile is done.
* contiguous, (groups, chunks, 1, rows): a lane takes up to 16 bytes of neighbouring positions, groups are lanes too,
  the other lanes and the warps spread over channels. A warp's load touches runs of 16 positions or more. Sums over
  channels then go through shared memory.

16-bit features are loaded as 32-bit words of two neighbours and unpacked by hand. Loaded as they are, they would
take a register each while they wait, and the next tile could not be fetched while this one is worked on; unpacking
costs 1 instruction a value instead of 1.5.
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
from essl_fast.kernels.tuning import Config

MAX_CHANNELS, MAX_POSITIONS = 2048, 1024
LEAST_SQUARE = tl.constexpr(1e-24)  # F.normalize's eps, 1e-12, squared: vectors are divided by max(|v|, 1e-12)
LEAST_RANGE = tl.constexpr(1e-10)  # added to max s - min s


@dataclass(frozen=True)
class Tiling:
    """Constants of a launch. A kernel is compiled for each that is used, and kept on disk by what repr shows of it.

    So what follows from others is a field as well, not a property: a changed formula must not find old machine code.
    """

    channels: int
    wide: int  # channels, up to a power of two
    positions: int  # H * W
    map_size: int  # positions, up to a power of two
    positions_first: bool  # neighbouring positions are neighbours in memory, rather than channels
    pack: int  # values a loaded word: 2, 16-bit ones, or 1
    groups: int
    rows: int
    chunks: int  # wide / columns
    columns: int
    lanes: int  # 32 where a warp holds whole positions: see store_rows
    ahead: bool  # load the next tile before working on this one
    size: int  # positions a tile
    tiles: int  # a sample
    share: int  # tiles a program
    splits: int  # programs a sample


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
def words_of(tile, STRIDE_C: tl.constexpr, STRIDE_P: tl.constexpr, PACK: tl.constexpr, T: tl.constexpr):
    """Offsets in a sample, in words of PACK values, of a tile as it is loaded and stored; and which words are real."""
    group = tl.arange(0, T.groups)[:, None, None, None]
    chunk = tl.arange(0, T.chunks)[None, :, None, None]
    if T.positions_first:
        channel = chunk * T.columns + tl.arange(0, T.columns)[None, None, :, None]
        word = (tile * T.groups + group) * (T.rows // PACK) + tl.arange(0, T.rows // PACK)[None, None, None, :]
        return channel * (STRIDE_C // PACK) + word * STRIDE_P, (word < T.positions // PACK) & (channel < T.channels)
    else:
        position = (tile * T.rows + tl.arange(0, T.rows)[None, None, :, None]) * T.groups + group
        word = chunk * (T.columns // PACK) + tl.arange(0, T.columns // PACK)[None, None, None, :]
        return position * (STRIDE_P // PACK) + word * STRIDE_C, (position < T.positions) & (word < T.channels // PACK)


@triton.jit
def load_tile(sample, tile, end, STRIDE_C: tl.constexpr, STRIDE_P: tl.constexpr, T: tl.constexpr):
    """A tile of a sample's features, packed: 0 past the last position and channel, and from tile ``end`` on."""
    words, real = words_of(tile, STRIDE_C, STRIDE_P, T.pack, T)
    if T.splits > 1:
        real &= tile < end
    if T.pack == 2:
        sample = sample.to(tl.pointer_type(tl.int32))
    return tl.load(sample + words, mask=real, other=0)


@triton.jit
def share_of(split, T: tl.constexpr):
    """First tile of a program's share, and the first after it. Constants where one program does a sample."""
    if T.splits == 1:
        return 0, T.tiles
    else:
        return split * T.share, tl.minimum((split + 1) * T.share, T.tiles)


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
        if T.positions_first:
            tile = tl.reshape(tl.join(low, high), (T.groups, T.chunks, T.columns, T.rows))
        else:
            tile = tl.reshape(tl.join(low, high), (T.groups, T.chunks, T.rows, T.columns))
    else:
        tile = tile.to(tl.float32)
    if T.positions_first:
        tile = tl.permute(tile, (0, 3, 1, 2))
    else:
        tile = tl.permute(tile, (0, 2, 1, 3))
    return tl.reshape(tile, (T.groups, T.rows, T.wide))


@triton.jit
def store_tile(sample, tile, values, STRIDE_C: tl.constexpr, STRIDE_P: tl.constexpr, T: tl.constexpr):
    """Writes (groups, rows, wide) values where the tile's features would lie."""
    values = tl.reshape(values.to(sample.dtype.element_ty), (T.groups, T.rows, T.chunks, T.columns))
    if T.positions_first:
        values = tl.permute(values, (0, 2, 3, 1))
    else:
        values = tl.permute(values, (0, 2, 1, 3))
    words, real = words_of(tile, STRIDE_C, STRIDE_P, 1, T)
    tl.store(sample + words, values, mask=real)


@triton.jit
def store_rows(row, tile, values, T: tl.constexpr):
    """Writes (groups, rows, 1) values into a sample's map.

    The lanes of a warp that holds a whole position all have its value, and lane 0 writes it: with an axis of lanes,
    that is the order Triton sees. Without it, it would bring each tile's values into another order through shared
    memory, with two barriers.
    """
    position = positions_of(tile, T)
    lane = tl.arange(0, T.lanes)[None, None, :]
    tl.store(row + position + lane, values, mask=(position < T.positions) & (lane == 0))


@triton.jit
def unit(x):
    """x / max(|x|, eps) over the last axis; what it was multiplied by, (..., 1); and whether that was 1 / |x|."""
    square = tl.sum(x * x, axis=2, keep_dims=True)
    inverse = tl.rsqrt(tl.maximum(square, LEAST_SQUARE))
    return x * inverse, inverse, square >= LEAST_SQUARE


def position_stride(features: Tensor) -> int | None:
    """Elements from one position to the next of features (B, C, H, W), or None if rows do not follow each other."""
    (height, width), (down, right) = features.shape[2:], features.stride()[2:]
    if width == 1:
        return 0 if height == 1 else down
    return right if height == 1 or down == width * right else None


def walkable(features: Tensor) -> Tensor:
    """The features (B, C, H, W) themselves, or a contiguous copy where one stride cannot walk all positions."""
    step = position_stride(features)
    channels, positions = features.shape[1], features.shape[2] * features.shape[3]
    near = step is not None and channels * features.stride(1) + positions * step < 2**30  # offsets are 32-bit
    return features if near else features.contiguous()


def like(features: Tensor) -> Tensor:
    """An empty gradient for the features: in their memory layout."""
    gradient = torch.empty_like(features)
    walks = position_stride(gradient) is not None
    return gradient if walks else torch.empty_like(features, memory_format=torch.contiguous_format)


def empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """An empty tensor on a tensor's device, for a kernel to fill whole."""
    return torch.empty(shape, dtype=dtype, device=like.device)


@functools.lru_cache
def splits_of(batch: int, positions: int, processors: int) -> int:
    """Programs a sample: one where there are samples for most multiprocessors, as no second kernel is needed then.

    Else as many as make two programs a multiprocessor, which is what fits, but 16 positions each at least.
    """
    if 2 * batch > processors:
        return 1
    return min((2 * processors + batch // 2) // batch, triton.cdiv(positions, 16))


def steps_of(features: Tensor) -> tuple[int, int, int]:
    """Strides of walkable features over samples, channels, positions; for a single sample, what it takes up."""
    positions = features.shape[2] * features.shape[3]
    step_b = features.stride(0) if features.shape[0] > 1 else features.shape[1] * positions
    return step_b, features.stride(1), position_stride(features)


class Parts(NamedTuple):
    """What a shape class says."""

    channels: int
    positions: int
    bytes_each: int  # of a value
    positions_first: bool
    vector: int  # neighbouring values that a load may take
    splits: int  # programs a sample
    alone: bool  # no more programs than multiprocessors

    def dense_steps(self) -> tuple[int, int, int]:
        """steps_of for features without gaps."""
        near = (self.positions, 1) if self.positions_first else (1, self.channels)
        return self.channels * self.positions, *near


def shape_class(features: Tensor) -> str:
    """What a launch for walkable features (B, C, H, W) depends on: "c512-p196-16bit-last8-split1".

    Channels; positions; bits a value; the axis whose neighbours are neighbours in memory (channels: last, or positions:
    first) and how many of them a load may take; programs a sample; "-alone" where multiprocessors get one at most.
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
    if features.data_ptr() % 16:  # Triton then takes an address for that of a word, no more
        vector = math.gcd(vector, 4 // bytes_each) if features.data_ptr() % 4 == 0 else 1
    splits = splits_of(batch, positions, processors)
    alone = "-alone" if batch * splits <= processors else ""
    return f"c{channels}-p{positions}-{8 * bytes_each}bit-{layout}{vector}-split{splits}{alone}"


def parse(text: str) -> Parts:
    """A shape class taken apart."""
    found = re.fullmatch(r"c(\d+)-p(\d+)-(16|32)bit-(last|first)(\d)-split(\d+)(-alone)?", text)
    if not found:
        raise ValueError(f"attention: {text!r} is no shape class, such as 'c512-p196-16bit-last8-split1'")
    channels, positions, bits, layout, vector, splits, alone = found.groups()
    return Parts(
        int(channels), int(positions), int(bits) // 8, layout == "first", int(vector), int(splits), alone is not None
    )


def config_of(text: str, rows_bytes: int, ahead: bool, warps: int = 8) -> Config:
    """Blocks for a shape class; twice the warps where a program has a multiprocessor for itself.

    Channels last: a lane holds 16 values of a position, or fewer, and rows of rows_bytes in all. Positions first: a
    lane holds 32 values, or 16 where it cannot load at least four at a time, as then its sums take more registers.
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
    """What a thread may have: two programs of 8 warps are to fit a multiprocessor. Smaller ones serve small maps."""
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
        splits=triton.cdiv(count, share),  # none is left without a tile
    )


def join_block(tiling: Tiling) -> int:
    """Channels a program of the kernels that join the parts of a sample: about 2,048 values of one kind."""
    return max(16, min(tiling.wide, 2048 // triton.next_power_of_2(tiling.splits)))
