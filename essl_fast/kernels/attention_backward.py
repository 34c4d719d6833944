"""Backward of the audio-guided attention: one read of the features and one write of their gradient.

Notation as in :mod:`essl_fast.kernels.attention`: features v_i, audio a, u = a / |a|, s_i = u . v_i / n_i,
n_i = |v_i|, low and high the extremes of s at positions j and k, D = high - low + 1e-10, w_i = (s_i - low) / D, pooled
f = sum_i w_i v_i. Given the gradients g of f, p_i of s_i and q_i of w_i (any of them may be absent):

    G_i = q_i + g . v_i                                        gradient that reaches w_i
    T_i = p_i + G_i / D + [i = j] L + [i = k] H                gradient that reaches s_i, with
    H   = -sum_i G_i w_i / D                                   the part through high, since D grows with it,
    L   = -sum_i G_i (1 - w_i) / D                             and the part through low
    dv_i = w_i g + (T_i / n_i) u - (T_i s_i / n_i^2) v_i
    da   = (sum_i (T_i / n_i) v_i - u sum_i T_i s_i) / |a|

H and L are sums over all positions, but they are known before the features are read:

    sum_i G_i w_i       = g . f               + sum_i q_i w_i
    sum_i G_i (1 - w_i) = g . (sum_i v_i - f) + sum_i q_i (1 - w_i)

The forward has kept sum_i v_i (B, C), so one pass over the features is enough, with no second visit to positions j and
k. Where a norm is at most eps, F.normalize divides by eps, a constant: then the terms that come from the norm vanish,
and eps takes the place of the norm. n_i is computed again from the same registers, which is cheaper than storing and
loading it.

Bytes: the features are read once, and as many bytes are written if their gradient is wanted. The rest is small: for 512
channels of 196 positions in bf16, 200,704 bytes each way, 7 KiB of g, f, sum v and a, and 0.8 KiB of s. A position of
512 channels costs a warp 194 instructions (as compiled for sm_90), so a multiprocessor's four schedulers could do one
in 49 cycles. It moves 2 KiB, which takes 114 cycles at 18 bytes per cycle, a multiprocessor's share of an H200's 4.3
TB/s. So memory is the limit, by estimate: it was not measured on a GPU yet.

Each sum has one fixed order: a thread's positions in ascending order, then over groups, then a tree over the
programs of a sample, in a second small kernel. So the same inputs give the same bits.
"""

import triton
import triton.language as tl
from torch import Tensor

from essl_fast.kernels import attention_tiles as tiles
from essl_fast.kernels import tuning
from essl_fast.kernels.attention_tiles import (
    LEAST_RANGE,
    LEAST_SQUARE,
    load_tile,
    over_groups,
    positions_of,
    share_of,
    store_tile,
    unit,
    unpack_tile,
)
from essl_fast.kernels.tuning import AotCase, Config


def candidates(shape_class: str) -> tuple[Config, ...]:
    """Launches worth measuring, the default first."""
    ahead = not tiles.parse(shape_class).positions_first  # there the next tile would not fit into the registers
    return (
        tiles.config_of(shape_class, 32, ahead),
        tiles.config_of(shape_class, 32, not ahead),
        tiles.config_of(shape_class, 64, False),
        tiles.config_of(shape_class, 32, ahead, warps=4),
        tiles.config_of(shape_class, 64, False, warps=4),
    )


def _default(shape_class: str) -> Config:
    return candidates(shape_class)[0]


@triton.jit
def _backward(
    features,  # (B, C, P) by strides, 16-bit or float32
    audio,  # (B, C) any of these types
    similarity,  # (B, P) float32, s
    pooled,  # (B, C) float32, f
    sums,  # (B, C) float32, sum of v over the positions
    extremes,  # (B, 4) float32: low, high, j, k
    grad_pooled,  # (B, C) float32 or None, g
    grad_similarity,  # (B, P) float32 or None, p
    grad_attention,  # (B, P) float32 or None, q
    grad_features,  # (B, C, P) by strides, features' type, or None
    grad_audio,  # (B, C) audio's type, or None; with several programs per sample (B, splits, C) float32: sum of T v / n
    residues,  # (B, splits) float32, sums of T s; None with one program per sample
    STRIDE_B: tl.constexpr,
    STRIDE_C: tl.constexpr,
    STRIDE_P: tl.constexpr,
    GRAD_B: tl.constexpr,
    GRAD_C: tl.constexpr,
    GRAD_P: tl.constexpr,
    T: tl.constexpr,
):
    """Gradients of one sample's tiles. One function, since a kernel is one launch: the loop needs every value before it
    in registers.
    """
    b, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first, end = share_of(split, T)
    features += b * STRIDE_B
    similarity += b * T.positions
    if grad_similarity is not None:
        grad_similarity += b * T.positions
    if grad_attention is not None:
        grad_attention += b * T.positions
    if T.ahead:
        coming = load_tile(features, first, end, STRIDE_C, STRIDE_P, T)
        next_s, next_p, next_q = _load_maps(similarity, grad_similarity, grad_attention, first, T)
    low = tl.load(extremes + 4 * b)
    high = tl.load(extremes + 4 * b + 1)
    low_at = tl.load(extremes + 4 * b + 2).to(tl.int32)
    high_at = tl.load(extremes + 4 * b + 3).to(tl.int32)
    tl.debug_barrier()  # starts these loads now; without it, ptxas lets them wait for a's norm
    channel = tl.arange(0, T.wide)[None, None, :]
    real = channel < T.channels
    a = tl.load(audio + b * T.channels + channel, mask=real, other=0).to(tl.float32)
    if grad_pooled is not None:
        g = tl.load(grad_pooled + b * T.channels + channel, mask=real, other=0)
        f = tl.load(pooled + b * T.channels + channel, mask=real, other=0)
        total = tl.load(sums + b * T.channels + channel, mask=real, other=0)
    if grad_attention is not None:
        i = tl.arange(0, T.map_size)
        q_map = tl.load(grad_attention + i, mask=i < T.positions, other=0)
        w_map = tl.load(similarity + i, mask=i < T.positions, other=0)

    u, inverse_a, a_turns = unit(a)
    scale = 1 / (high - low + LEAST_RANGE)
    through_low, through_high = 0.0, 0.0  # L and H
    if grad_pooled is not None:
        through_low += tl.sum(g * (total - f))
        through_high += tl.sum(g * f)
    if grad_attention is not None:
        w_map = (w_map - low) * scale
        through_low += tl.sum(q_map * (1 - w_map))
        through_high += tl.sum(q_map * w_map)
    through_low *= -scale
    through_high *= -scale

    towards = tl.full((T.groups, 1, T.wide), 0.0, tl.float32)  # sum of T v / n
    residue = tl.full((T.groups, 1, 1), 0.0, tl.float32)  # sum of T s
    for step in range(T.share):
        tile = first + step
        if T.ahead:
            packed, s, p, q = coming, next_s, next_p, next_q
            coming = load_tile(features, tile + 1, end, STRIDE_C, STRIDE_P, T)
            next_s, next_p, next_q = _load_maps(similarity, grad_similarity, grad_attention, tile + 1, T)
        else:
            packed = load_tile(features, tile, end, STRIDE_C, STRIDE_P, T)
            s, p, q = _load_maps(similarity, grad_similarity, grad_attention, tile, T)
        v = unpack_tile(packed, features.dtype.element_ty, T)
        square = tl.sum(v * v, axis=2, keep_dims=True)  # (groups, rows, 1), as s, p, q
        inverse = tl.rsqrt(tl.maximum(square, LEAST_SQUARE))

        position = positions_of(tile, T)
        t = tl.where(position == low_at, through_low, 0) + tl.where(position == high_at, through_high, 0)
        if grad_pooled is not None:
            t += tl.sum(v * g, axis=2, keep_dims=True) * scale
        if grad_attention is not None:
            t += q * scale
        if grad_similarity is not None:
            t += p
        pull = t * inverse

        if grad_features is not None:
            dv = pull * u - tl.where(square >= LEAST_SQUARE, pull * s * inverse, 0) * v
            if grad_pooled is not None:
                dv += (s - low) * scale * g
            store_tile(grad_features + b * GRAD_B, tile, dv, GRAD_C, GRAD_P, T)
        if grad_audio is not None:
            towards += tl.sum(pull * v, axis=1, keep_dims=True)
            residue += tl.sum(t * s, axis=1, keep_dims=True)

    if grad_audio is not None:
        towards = over_groups(towards, T)[None, None, :]
        residue = tl.sum(residue, axis=0, keep_dims=True)
        if T.splits == 1:
            da = _audio_gradient(towards, residue, u, inverse_a, a_turns)
            tl.store(grad_audio + b * T.channels + channel, da, mask=real)
        else:
            part = b * T.splits + split
            tl.store(grad_audio + part * T.channels + channel, towards, mask=real)
            tl.store(residues + part + channel, residue, mask=channel == 0)


@triton.jit
def _load_maps(similarity, grad_similarity, grad_attention, tile, T: tl.constexpr):
    """s, p and q of a tile's rows, (groups, rows, 1) each; s stands for one that is absent, and is then not used."""
    position = positions_of(tile, T)
    inside = position < T.positions
    s = tl.load(similarity + position, mask=inside, other=0)
    p, q = s, s
    if grad_similarity is not None:
        p = tl.load(grad_similarity + position, mask=inside, other=0)
    if grad_attention is not None:
        q = tl.load(grad_attention + position, mask=inside, other=0)
    return s, p, q


@triton.jit
def _audio_gradient(towards, residue, u, inverse, turns):
    """da (1, 1, C) from its two sums. u = a * inverse; turns: inverse is 1 / |a|, not 1 / eps."""
    return (towards - tl.where(turns, residue, 0) * u) * inverse


@triton.jit
def _join(
    parts,  # (B, splits, C) float32, each program's sum of T v / n
    residues,  # (B, splits) float32, each program's sum of T s
    audio,  # (B, C)
    grad_audio,  # (B, C) audio's type
    SPLITS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, WIDE)[None, None, :]
    a = tl.load(audio + b * CHANNELS + channel, mask=channel < CHANNELS, other=0).to(tl.float32)
    _, inverse, turns = unit(a)
    channel = block * BLOCK + tl.arange(0, BLOCK)[None, None, :]
    real = channel < CHANNELS
    u = tl.load(audio + b * CHANNELS + channel, mask=real, other=0).to(tl.float32) * inverse
    part = tl.arange(0, triton.next_power_of_2(SPLITS))[:, None, None]
    towards = parts + (b * SPLITS + part) * CHANNELS + channel
    towards = tl.sum(tl.load(towards, mask=(part < SPLITS) & real, other=0), axis=0, keep_dims=True)
    residue = tl.sum(tl.load(residues + b * SPLITS + part, mask=part < SPLITS, other=0), axis=0, keep_dims=True)
    tl.store(grad_audio + b * CHANNELS + channel, _audio_gradient(towards, residue, u, inverse, turns), mask=real)


def backward(
    features: Tensor,  # (B, C, H, W)
    audio: Tensor,  # (B, C)
    similarity: Tensor,  # (B, H, W) float32
    pooled: Tensor,  # (B, C) float32
    sums: Tensor,  # (B, C) float32
    extremes: Tensor,  # (B, 4) float32
    grad_pooled: Tensor | None,  # (B, C) float32
    grad_similarity: Tensor | None,  # (B, H, W) float32
    grad_attention: Tensor | None,  # (B, H, W) float32
    to_features: bool,
    to_audio: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of features and audio, in their dtypes; that of the features in their memory layout.

    to_features, to_audio: which of the two are wanted; the other is None.
    """
    grad_features = tiles.like(features) if to_features else None
    grad_audio = tiles.empty(audio.shape, audio, audio.dtype) if to_audio else None
    features, audio = tiles.walkable(features), audio.contiguous()
    batch, channels = audio.shape
    if not batch or not (to_features or to_audio):
        return grad_features, grad_audio
    shape_class = tiles.shape_class(features)
    config = tuning.pick("attention_backward", shape_class, features.device, _default)
    tiling = tiles.tiling_of(shape_class, config)
    towards, residues = grad_audio, None
    if to_audio and tiling.splits > 1:
        towards = tiles.empty((batch, tiling.splits, channels), audio)
        residues = tiles.empty((batch, tiling.splits), audio)
    if similarity[0].numel() == 1:  # pooled and attention are always 0, and L would only nearly cancel G / D
        grad_pooled = grad_attention = None
    small = (g if g is None else g.contiguous() for g in (grad_pooled, grad_similarity, grad_attention))
    steps = tiles.steps_of(features) + ((0, 0, 0) if grad_features is None else tiles.steps_of(grad_features))
    _backward[batch, tiling.splits](
        features,
        audio,
        similarity,
        pooled,
        sums,
        extremes,
        *small,
        grad_features,
        towards,
        residues,
        *steps,
        tiling,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        maxnreg=tiles.registers(config.num_warps),
        **tuning.FUSED,
    )
    if residues is not None:
        block = tiles.join_block(tiling)
        parts = (towards, residues, audio, grad_audio)
        constants = (tiling.splits, channels, tiling.wide, block)
        _join[batch, triton.cdiv(channels, block)](*parts, *constants, num_warps=4, **tuning.FUSED)
    return grad_features, grad_audio


def aot_cases() -> list[AotCase]:
    """Training's 512 x 14 x 14: each dtype, layout and set of gradients, several programs per sample; other sizes."""
    last16, first16 = "c512-p196-16bit-last8-split1", "c512-p196-16bit-first4-split1"
    return [
        _case(last16, "bf16", "pooled"),
        _case(last16, "fp16", "pooled similarity attention"),
        _case(last16, "bf16", "pooled attention", to="audio"),
        _case(last16, "bf16", "similarity attention", to="features"),
        _case("c512-p196-16bit-last8-split1-alone", "bf16", "pooled"),
        _case("c512-p196-16bit-last8-split4", "bf16", "pooled"),
        _case("c512-p196-32bit-last4-split1", "fp32", "pooled attention"),
        _case(first16, "bf16", "pooled attention"),
        _case("c512-p196-32bit-first4-split1", "fp32", "pooled attention"),
        _case("c2048-p49-16bit-last8-split1", "bf16", "pooled attention"),
        _case("c385-p1024-16bit-last1-split1", "bf16", "pooled attention"),
        AotCase(
            "4 of 512",
            _join,
            {"parts": "*fp32", "residues": "*fp32", "audio": "*bf16", "grad_audio": "*bf16"},
            {"SPLITS": 4, "CHANNELS": 512, "WIDE": 512, "BLOCK": 512},
            max_registers=64,
        ),
    ]


def _case(shape_class: str, kind: str, given: str, to: str = "features audio") -> AotCase:
    config = _default(shape_class)
    tiling = tiles.tiling_of(shape_class, config)
    parts = tiles.parse(shape_class)
    steps = parts.dense_steps()
    present = {"features": f"*{kind}", "audio": f"*{kind}"}
    maps = ["similarity", "pooled", "sums", "extremes"] + [f"grad_{name}" for name in given.split()]
    present |= dict.fromkeys(maps, "*fp32") | {f"grad_{name}": f"*{kind}" for name in to.split()}
    if "audio" in to and tiling.splits > 1:
        present |= {"grad_audio": "*fp32", "residues": "*fp32"}
    optional = ("grad_pooled", "grad_similarity", "grad_attention", "grad_features", "grad_audio", "residues")
    constants: dict = {name: None for name in optional if name not in present}
    constants |= dict(zip(("STRIDE_B", "STRIDE_C", "STRIDE_P", "GRAD_B", "GRAD_C", "GRAD_P"), 2 * steps, strict=True))
    return AotCase(
        f"{shape_class} {kind}, {given}" + (f" to {to}" if " " not in to else ""),
        _backward,
        present,
        constants | {"T": tiling},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        max_registers=128,
        maxnreg=tiles.registers(config.num_warps),
        min_load_bytes=parts.vector * parts.bytes_each,
        min_store_bytes=parts.vector * parts.bytes_each if "features" in to else 0,
    )
