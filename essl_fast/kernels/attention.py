"""Audio-guided attention (SSPL; Song et al., CVPR 2022) in one read of the features; this is the forward.

The backward is in `attention_backward`. For one sample: features v_i in R^C at positions i, audio a. With F.normalize's
eps = 1e-12:

    s_i = u . v_i / n_i,   u = a / max(|a|, eps),   n_i = max(|v_i|, eps)        similarity
    w_i = (s_i - low) / D,   low = min s,   D = max s - low + 1e-10              attention
    f   = sum_i w_i v_i                                                          pooled

The weights need the extremes of s, which are known only when all features have been read. But w is affine in s:

    f = (sum_i s_i v_i - low sum_i v_i) / D

So both sums are computed in the same pass as s, and the features are read exactly once. In float32, that difference of
two sums would leave rounding errors of the size of |s| where the map is nearly constant, and D divides by as little as
1e-10. So the first sum is of (s_i - pivot) v_i instead, with one pivot per group of threads: s at the first position
that the group read. At the end (pivot - low) sum_i v_i is added. Then all terms have the size of the map's range, and a
constant map gives exactly 0, as the reference does.

One program works on a sample, or several share one (small batches). In the second case each program reduces its part to
its own low and its two sums, and a second kernel joins them. Sums have one fixed order whatever the schedule: a
thread's positions in ascending order, then over groups, then a tree over programs. So the same inputs give the same
bits. A NaN in the features makes the sample's attention and pooled vector NaN, as in the reference (Triton's min and
max would drop it).

If the chip cannot hold a program for each sample, a program takes several, one after the other (programs_of). The last
step over a sample's tiles loads the next sample's first tile, and its audio is loaded before the barrier that follows:
the memory works while warps exchange their sums. All programs are on the chip at once and take as many samples, or one
less, so no rest of a batch is left to a few of them: 256 samples are 128 programs with two each on an A100, which holds
216, and 1,024 are 256 programs with four each on an H200, which holds 264.

Bytes per sample: C H W values are read once; H W floats of s and of w, C floats of f and of sum v (which the backward
uses) are written. 512 channels of 14 x 14 in bf16: 200,704 bytes and 1 KiB of audio in, 5.6 KiB out. The compiled loop
agrees: 13 tiles of 16 positions, each four 16-byte loads by 256 threads, the last one masked to its 4 positions. A
position of 512 bf16 channels costs a warp 140 instructions (as compiled for sm_90), so a multiprocessor's four
schedulers could do one in 35 cycles. Its 1 KiB takes 57 cycles at 18 bytes per cycle, a multiprocessor's share of an
H200's 4.3 TB/s. So memory is the limit, by estimate: it was not measured on a GPU yet.

To keep the memory busy, a warp has the next tile's 2 KiB in flight while it works on the current one. Two programs of 8
warps and at most 128 registers per thread fit on a multiprocessor: that makes 32 KiB, enough for 1,800 cycles of
latency at that rate. There is no barrier and no shared memory in the loop (channels_last). Around it are 406
instructions and 15 barriers; benchmarks/records/2026-11-30_attention says what they were before, and why the sums over
groups take the way that they take (tiles.over_groups).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from essl_fast.kernels import attention_backward, reference, tuning
from essl_fast.kernels import attention_tiles as tiles
from essl_fast.kernels.attention_tiles import (
    LEAST_RANGE,
    LEAST_SQUARE,
    Tiling,
    load_row,
    load_tile,
    over_groups,
    share_of,
    store_rows,
    unit,
    unpack_tile,
)
from essl_fast.kernels.reference import Attention
from essl_fast.kernels.tuning import AotCase, Config


def candidates(shape_class: str) -> tuple[Config, ...]:
    """Launches worth measuring, the default first."""
    parts = tiles.parse(shape_class)
    ahead = parts.bytes_each == 2 or not parts.positions_first  # else the next tile would not fit into the registers
    return (
        tiles.config_of(shape_class, 64, ahead),
        tiles.config_of(shape_class, 64, not ahead),
        tiles.config_of(shape_class, 32, ahead),
        tiles.config_of(shape_class, 64, ahead, warps=4),
        tiles.config_of(shape_class, 32, ahead, warps=4),
    )


def _default(shape_class: str) -> Config:
    return candidates(shape_class)[0]


@triton.jit
def _less(x, y):
    """The smaller one; NaN if there is one, which tl.min would drop."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _extremes(s, real):
    """Low and high of a map (map_size,) where real. One exchange between warps for both; NaN if there is one."""
    ends = tl.join(tl.where(real, s, float("inf")), tl.where(real, -s, float("inf")))
    low, below = tl.split(tl.reduce(ends, 0, _less))
    return low, -below


@triton.jit
def _store_map(attention, extremes, b, s, low, high, T: tl.constexpr):
    """Write a sample's attention; and for the backward its extremes and their first positions, or the first NaN's."""
    i = tl.arange(0, T.map_size)
    inside = i < T.positions
    at_low = tl.where(inside & ((s == low) | (s != s)), i, T.map_size)
    at_high = tl.where(inside & ((s == high) | (s != s)), i, T.map_size)
    tl.store(attention + b * T.positions + i, tl.div_rn(s - low, high - low + LEAST_RANGE), mask=inside)
    low_at, high_at = tl.split(tl.min(tl.join(at_low, at_high), axis=0))
    tl.store(extremes + 4 * b, low)
    tl.store(extremes + 4 * b + 1, high)
    tl.store(extremes + 4 * b + 2, low_at.to(tl.float32))
    tl.store(extremes + 4 * b + 3, high_at.to(tl.float32))


@triton.jit(do_not_specialize=["batch"])
def _forward(
    features,  # (B, C, P) by strides, 16-bit or float32
    audio,  # (B, C) any of these types
    similarity,  # (B, P) float32, s
    attention,  # (B, P) float32, w
    pooled,  # (B, C) float32, f; with several programs per sample (B, splits, C), sums of (s - own low) v
    sums,  # (B, C) float32, sum of v; with several programs per sample (B, splits, C)
    extremes,  # (B, 4) float32: low, high, their positions; with several programs per sample (B, splits): own lows
    batch,  # B, if a program takes several samples; None if each has one
    STRIDE_B: tl.constexpr,
    STRIDE_C: tl.constexpr,
    STRIDE_P: tl.constexpr,
    T: tl.constexpr,
):
    """A program's samples, one after the other.

    One function, since a sample's end and the next one's loads overlap: the tile that is on its way stays in registers.
    """
    program, split = tl.program_id(0), tl.program_id(1)
    first, end = share_of(split, T)
    heard = load_row(audio + program.to(tl.int64) * T.channels, features.dtype.element_ty, T)
    if T.ahead:
        coming = load_tile(features + program.to(tl.int64) * STRIDE_B, first, end, STRIDE_C, STRIDE_P, T)
        tl.debug_barrier()  # starts these loads now; without it, ptxas lets them wait for the audio's norm
    # What is the same for all samples is worked out for each: before the loop, it would take the tiles' registers.
    for turn in tl.range(1 if batch is None else tl.cdiv(batch - program, tl.num_programs(0)), disable_licm=True):
        sample = program + turn * tl.num_programs(0)
        next_sample = sample + tl.num_programs(0)
        b = tl.cast(sample, tl.int64)
        u = unit(heard)[0]
        pivot = tl.full((T.groups, 1, 1), 0.0, tl.float32)
        above = tl.full((T.groups, 1, T.wide), 0.0, tl.float32)  # sum of (s - pivot) v
        total = tl.full((T.groups, 1, T.wide), 0.0, tl.float32)  # sum of v
        for step in range(T.share):
            tile = first + step
            if T.ahead:  # after a sample's last tile comes the next sample's first one
                packed = coming
                origin, following = sample, tile + 1
                if batch is not None:
                    last = step == T.share - 1
                    origin = tl.where(last, next_sample, sample)
                    following = tl.where(last, tl.where(next_sample < batch, first, end), following)
                coming = load_tile(
                    features + tl.cast(origin, tl.int64) * STRIDE_B, following, end, STRIDE_C, STRIDE_P, T
                )
            else:
                packed = load_tile(features + b * STRIDE_B, tile, end, STRIDE_C, STRIDE_P, T)
            v = unpack_tile(packed, features.dtype.element_ty, T)
            inverse = tl.rsqrt(tl.maximum(tl.sum(v * v, axis=2, keep_dims=True), LEAST_SQUARE))
            s = tl.sum(v * u, axis=2, keep_dims=True) * inverse  # (groups, rows, 1)
            store_rows(similarity + b * T.positions, tile, s, T)
            if step == 0:
                pivot = tl.sum(tl.where(tl.arange(0, T.rows)[None, :, None] == 0, s, 0), axis=1, keep_dims=True)
            above += tl.sum((s - pivot) * v, axis=1, keep_dims=True)
            total += tl.sum(v, axis=1, keep_dims=True)

        if batch is not None:
            heard = load_row(
                audio + tl.cast(tl.minimum(next_sample, batch - 1), tl.int64) * T.channels, features.dtype.element_ty, T
            )
        tl.debug_barrier()  # these loads have started, and the map is written and can be read
        i = tl.arange(0, T.map_size)
        own = (i >= first * T.size) & (i < end * T.size) & (i < T.positions)
        s = tl.load(similarity + b * T.positions + i, mask=own, other=0)
        part = b * T.splits + split
        channel = tl.max_contiguous(tl.arange(0, T.wide), 1)  # else threads would exchange sums to store two at once
        real = channel < T.channels
        tl.store(sums + part * T.channels + channel, over_groups(total, T), mask=real)
        low, high = _extremes(s, own)
        above = over_groups(above + (pivot - low) * total, T)
        if T.splits == 1:
            above = tl.div_rn(above, high - low + LEAST_RANGE)
            _store_map(attention, extremes, b, s, low, high, T)
        else:
            tl.store(extremes + part, low)
        tl.store(pooled + part * T.channels + channel, above, mask=real)


@triton.jit
def _join(
    aboves,  # (B, splits, C) float32, each program's sum of (s - own low) v
    totals,  # (B, splits, C) float32, each program's sum of v
    lows,  # (B, splits) float32
    similarity,  # (B, P) float32
    attention,  # (B, P) float32
    pooled,  # (B, C) float32
    sums,  # (B, C) float32
    extremes,  # (B, 4) float32
    T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, T.map_size)
    s = tl.load(similarity + b * T.positions + i, mask=i < T.positions, other=0)
    low, high = _extremes(s, i < T.positions)
    if block == 0:
        _store_map(attention, extremes, b, s, low, high, T)
    part = tl.arange(0, triton.next_power_of_2(T.splits))[:, None]
    channel = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    real = (part < T.splits) & (channel < T.channels)
    at = (b * T.splits + part) * T.channels + channel
    above = tl.load(aboves + at, mask=real, other=0)
    total = tl.load(totals + at, mask=real, other=0)
    own_low = tl.load(lows + b * T.splits + part, mask=part < T.splits, other=0)
    above = tl.sum(above + (own_low - low) * total, axis=0, keep_dims=True)
    total = tl.sum(total, axis=0, keep_dims=True)
    real = channel < T.channels
    tl.store(pooled + b * T.channels + channel, tl.div_rn(above, high - low + LEAST_RANGE), mask=real)
    tl.store(sums + b * T.channels + channel, total, mask=real)


def forward(
    features: Tensor,  # (B, C, H, W)
    audio: Tensor,  # (B, C)
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """pooled (B, C), similarity, attention (B, H, W); for the backward sums (B, C), extremes (B, 4); all float32."""
    batch, channels, height, width = features.shape
    outputs = _outputs(features)
    if not batch:
        return outputs
    features, audio = tiles.walkable(features), audio.contiguous()
    shape_class = tiles.shape_class(features)
    config = tuning.pick("attention_forward", shape_class, features.device, _default)
    tiling = tiles.tiling_of(shape_class, config)
    pooled, similarity, attention, sums, extremes = outputs
    parts: tuple[Tensor, ...] = (pooled, sums, extremes)
    if tiling.splits > 1:
        parts = tuple(tiles.empty((batch, tiling.splits, *last), features) for last in ((channels,), (channels,), ()))
    weights = attention if tiling.splits == 1 else None
    programs = programs_of(features, audio, tiling, config.num_warps)
    _forward[programs, tiling.splits](
        features,
        audio,
        similarity,
        weights,
        *parts,
        None if programs == batch else batch,
        *tiles.steps_of(features),
        tiling,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        maxnreg=tiles.registers(config.num_warps),
        **tuning.FUSED,
    )
    if tiling.splits > 1:
        block = tiles.join_block(tiling)
        _join[batch, triton.cdiv(channels, block)](
            *parts, similarity, attention, pooled, sums, extremes, tiling, block, num_warps=4, **tuning.FUSED
        )
    return outputs


def programs_of(features: Tensor, audio: Tensor, tiling: Tiling, warps: int) -> int:
    """Programs for the samples (groups of programs where several share a sample); each takes its samples in turn.

    As many as are on the chip at once, or fewer, so that all take as many samples, or some one less. One for each
    sample where a program cannot load the next one's first tile ahead, or would need more registers for it.
    """
    batch = features.shape[0]
    widest = tiling.lanes == 32 and tiling.columns * features.element_size() == 32 * 16  # bytes that a warp loads
    if not (widest and tiling.ahead and tiling.splits == 1 and audio.element_size() == features.element_size()):
        return batch
    resident = 65536 // (32 * warps * tiles.registers(warps)) * tuning.processors_of(features.device)
    return triton.cdiv(batch, triton.cdiv(batch, resident))


def _outputs(features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, channels, height, width = features.shape
    shapes = ((batch, channels), (batch, height, width), (batch, height, width), (batch, channels), (batch, 4))
    pooled, similarity, attention, sums, extremes = (tiles.empty(shape, features) for shape in shapes)
    return pooled, similarity, attention, sums, extremes


@torch.library.custom_op("essl_fast::audio_guided_attention", mutates_args=())
def _attend(features: Tensor, audio: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.cuda.device_of(features):  # Triton launches on the current device
        return forward(features, audio)


@_attend.register_fake
def _(features: Tensor, audio: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _outputs(features)


@torch.library.custom_op("essl_fast::audio_guided_attention_backward", mutates_args=())
def _attend_backward(
    features: Tensor,
    audio: Tensor,
    similarity: Tensor,
    pooled: Tensor,
    sums: Tensor,
    extremes: Tensor,
    grad_pooled: Tensor | None,
    grad_similarity: Tensor | None,
    grad_attention: Tensor | None,
    to_features: bool,
    to_audio: bool,
) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(features):
        gradients = attention_backward.backward(
            features,
            audio,
            similarity,
            pooled,
            sums,
            extremes,
            grad_pooled,
            grad_similarity,
            grad_attention,
            to_features,
            to_audio,
        )
    of_features, of_audio = (features.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return of_features, of_audio


@_attend_backward.register_fake
def _(features, audio, similarity, pooled, sums, extremes, g, p, q, to_features: bool, to_audio: bool):
    return (
        tiles.like(features) if to_features else features.new_empty(0),
        tiles.empty(audio.shape, audio, audio.dtype) if to_audio else features.new_empty(0),
    )


def _keep(ctx, inputs, output) -> None:
    pooled, similarity, _, sums, extremes = output
    ctx.mark_non_differentiable(sums, extremes)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, similarity, pooled, sums, extremes)


def _gradients(ctx, grad_pooled, grad_similarity, grad_attention, *_):
    if grad_pooled is None and grad_similarity is None and grad_attention is None:
        return None, None
    wanted = ctx.needs_input_grad
    gradients = _attend_backward(*ctx.saved_tensors, grad_pooled, grad_similarity, grad_attention, *wanted)
    return tuple(gradient if want else None for gradient, want in zip(gradients, wanted, strict=True))


_attend.register_autograd(_gradients, setup_context=_keep)


def aot_cases() -> list[AotCase]:
    """Training's 512 x 14 x 14: each dtype and layout, several programs per sample; other sizes."""
    classes = (
        ("c512-p196-16bit-last8-split1", "bf16", "bf16"),
        ("c512-p196-16bit-last8-split1", "fp16", "fp32"),
        ("c512-p196-16bit-last8-split1-alone", "bf16", "bf16"),
        ("c512-p196-16bit-last8-split4", "bf16", "bf16"),
        ("c512-p196-32bit-last4-split1", "fp32", "fp32"),
        ("c512-p196-16bit-first4-split1", "bf16", "bf16"),
        ("c512-p196-32bit-first4-split1", "fp32", "fp32"),
        ("c2048-p49-16bit-last8-split1", "bf16", "bf16"),
        ("c385-p1024-16bit-last1-split1", "bf16", "bf16"),
    )
    names = ("aboves", "totals", "lows", "similarity", "attention", "pooled", "sums", "extremes")
    tiling = tiles.tiling_of(classes[3][0], _default(classes[3][0]))
    join = AotCase("4 of 512", _join, dict.fromkeys(names, "*fp32"), {"T": tiling, "BLOCK": 512}, max_registers=64)
    several = [_case(*classes[each], several=True) for each in (0, 4)]
    return [_case(*each) for each in classes] + several + [join]


def _case(shape_class: str, kind: str, audio: str, several: bool = False) -> AotCase:
    config = _default(shape_class)
    parts = tiles.parse(shape_class)
    present = {"features": f"*{kind}", "audio": f"*{audio}"}
    present |= dict.fromkeys(("similarity", "attention", "pooled", "sums", "extremes"), "*fp32")
    constants: dict[str, int | None] = dict(zip(("STRIDE_B", "STRIDE_C", "STRIDE_P"), parts.dense_steps(), strict=True))
    tiling = tiles.tiling_of(shape_class, config)
    if several:
        present["batch"] = "i32"
    else:
        constants["batch"] = None
    if tiling.splits > 1:
        del present["attention"]
        constants["attention"] = None
    return AotCase(
        f"{shape_class} {kind}" + (", several samples" if several else ""),
        _forward,
        present,
        constants | {"T": tiling},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        max_registers=128,
        maxnreg=tiles.registers(config.num_warps),
        min_load_bytes=parts.vector * parts.bytes_each,
    )


def audio_guided_attention(features: Tensor, audio: Tensor) -> Attention:
    """The cosine map of the features with the audio, min-max scaled, and the features pooled with it.

    SSPL (Song et al., CVPR 2022): s_i = cos(v_i, a); w_i = (s_i - min s) / (max s - min s + 1e-10);
    pooled = sum_i w_i v_i. Both inputs get gradients of first order; through min and max they go to the first position
    that has the extreme. Sums are float32, also under autocast, and the same inputs on the same GPU give the same bits.
    Where no kernel runs (a CPU, float64, more than 2048 channels or 1024 positions), the reference does the work.

    Args:
        features: (B, C, H, W) float32, bfloat16, float16 or float64. Channels_last and contiguous tensors, and slices
            of them along batch or channels, are read in place.
        audio: (B, C), on the same device; its dtype may differ, except that float64 needs float64.

    Returns:
        Attention: pooled (B, C), similarity (B, H, W) and attention (B, H, W), float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together, or a map without positions or channels.
    """
    _check(features, audio)
    fits = features.shape[1] <= tiles.MAX_CHANNELS and features.shape[2] * features.shape[3] <= tiles.MAX_POSITIONS
    if not fits or features.dtype == torch.float64 or not tuning.runs_here(features):
        return reference.audio_guided_attention(features, audio)
    return Attention(*_attend(features, audio)[:3])


def _check(features: Tensor, audio: Tensor) -> None:
    if features.ndim != 4 or audio.shape != features.shape[:2] or 0 in features.shape[1:]:
        raise ValueError(
            "audio_guided_attention: takes features (B, C, H, W), with C, H and W at least 1, and audio (B, C), "
            f"not {tuple(features.shape)} and {tuple(audio.shape)}"
        )
    for name, tensor in (("features", features), ("audio", audio)):
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise ValueError(f"audio_guided_attention: {name} must be floating point, not {tensor.dtype}; cast it")
    if features.device != audio.device or (features.dtype == torch.float64) != (audio.dtype == torch.float64):
        raise ValueError(
            "audio_guided_attention: features and audio must be on one device, and float64 both or neither, not "
            f"{features.dtype} on {features.device} and {audio.dtype} on {audio.device}"
        )
