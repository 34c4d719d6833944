"""Every op in plain PyTorch: what tests and benchmarks compare the kernels with, and what runs where no kernel does.

Shapes: B batch, V views, C channels, H x W feature map, S stored frame side, K boxes per frame, D embedding.
Formulas: SSPL (Song et al., CVPR 2022) for attention and L_U, SemiPL (arXiv 2404.19615) for L_S, LSS (Senocak et al.,
CVPR 2018) for the softmax attention, VGGish (Hershey et al., ICASSP 2017) for log-mel.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Attention(NamedTuple):
    """The result of the audio-guided attention, float32 (float64 for float64 features)."""

    pooled: Tensor  # (B, C)
    similarity: Tensor  # (B, H, W) cosine of each position with the audio
    attention: Tensor  # (B, H, W) the same, min-max scaled to [0, 1]


def _wide(x: Tensor) -> Tensor:
    """x as float32, or unchanged if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def _without_autocast(op):
    """The op with autocast off; autocast would compute its sums of products in 16 bits."""

    @functools.wraps(op)
    def inner(first: Tensor, *args, **kwargs):
        if torch.compiler.is_exporting():  # the graph is of float32, and other runtimes know no autocast
            return op(first, *args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return op(first, *args, **kwargs)

    return inner


@_without_autocast
def audio_guided_attention(features: Tensor, audio: Tensor) -> Attention:
    """Cosine map of features (B, C, H, W) with audio (B, C), min-max scaled, and the features pooled with it.

    s_i = cos(v_i, a); w_i = (s_i - min s) / (max s - min s + 1e-10); pooled = sum_i w_i v_i; v is not normalised.
    """
    features, audio = _wide(features), _wide(audio)
    similarity = torch.einsum("bchw,bc->bhw", F.normalize(features, dim=1), F.normalize(audio, dim=1))
    flat = similarity.flatten(1)
    # min/max(dim), not amin/amax: on a tie, only the first position gets the gradient.
    low = flat.min(dim=1).values[:, None, None]
    high = flat.max(dim=1).values[:, None, None]
    attention = (similarity - low) / (high - low + 1e-10)
    return Attention(torch.einsum("bchw,bhw->bc", features, attention), similarity, attention)


@_without_autocast
def softmax_pool(features: Tensor, similarity: Tensor) -> Attention:
    """LSS's attention, w = softmax(relu(similarity)) over the positions, and the pooled features, sum_i w_i v_i.

    features (B, C, H, W); similarity (B, H, W), whose dtype the sums and the result have.
    """
    attention = similarity.relu().flatten(1).softmax(dim=1).view_as(similarity)
    # Not einsum: for a matrix product, the features would first be written to memory in float32.
    return Attention((features.to(attention.dtype) * attention[:, None]).sum(dim=(2, 3)), similarity, attention)


@_without_autocast
def negative_cosine_similarity(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """L_U = -(mean cos(p1, z2) + mean cos(p2, z1)) / 2 for (B, D) inputs; z1 and z2 get no gradient."""
    p1, p2, z1, z2 = (_wide(x) for x in (p1, p2, z1.detach(), z2.detach()))
    return -0.5 * (F.cosine_similarity(p1, z2, dim=-1).mean() + F.cosine_similarity(p2, z1, dim=-1).mean())


@_without_autocast
def box_weights(boxes: Tensor, size: int = 224, consensus: int = 1) -> Tensor:
    """Pixel weights (B, size, size) in float32: min(1, boxes covering the pixel / consensus).

    boxes (B, K, 4) integer xyxy, half-open, on the size x size grid; a box without area covers nothing.
    """
    at = torch.arange(size, device=boxes.device)
    x1, y1, x2, y2 = boxes.unsqueeze(-1).unbind(dim=2)  # each (B, K, 1)
    rows = (at >= y1) & (at < y2)  # (B, K, size)
    cols = (at >= x1) & (at < x2)
    covering = torch.einsum("bky,bkx->byx", rows.float(), cols.float())
    return (covering / consensus).clamp_(max=1)


def view_boxes(boxes: Tensor, top: Tensor, left: Tensor, flip: Tensor, side: int = 246, size: int = 224) -> Tensor:
    """Move boxes with the views: (B, K, 4) int32 on the size x size grid to (V, B, K, 4) int32, clamped to the view.

    The frame is stored at side x side. The view is its crop at top, left (V, B), mirrored where flip (V, B) is set.
    Edges are rounded to the nearest pixel. A box outside the crop, like a padding box, has no area.
    """
    stored = (2 * side * boxes.long() + size) // (2 * size)
    corner = torch.stack([left, top, left, top], dim=-1).long()  # (V, B, 4)
    x1, y1, x2, y2 = (stored[None] - corner[:, :, None]).clamp(0, size).unbind(-1)
    mirror = flip.bool()[..., None]
    x1, x2 = torch.where(mirror, size - x2, x1), torch.where(mirror, size - x1, x2)
    return torch.stack([x1, y1, x2, y2], dim=-1).int()


@_without_autocast
def pixel_bce(attention: Tensor, boxes: Tensor, labelled: Tensor, consensus: int = 1, size: int = 224) -> Tensor:
    """SemiPL's L_S: cross-entropy of the attention map, resized to size x size, with the box weights.

    attention (B, h, w) in [0, 1]; boxes (B, K, 4) int; labelled (B,) bool. Mean over pixels, then over the
    labelled samples; 0 if none is labelled.
    """
    heat = F.interpolate(_wide(attention)[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
    heat = heat.clamp(1e-6, 1 - 1e-6)
    target = box_weights(boxes, size, consensus).to(heat.dtype)
    per_sample = -(target * heat.log() + (1 - target) * (-heat).log1p()).mean(dim=(1, 2))
    mask = labelled.to(heat.dtype)
    # torch.where, not a product: a NaN of an unlabelled sample must stay out of the sum.
    return torch.where(labelled, per_sample, 0).sum() / mask.sum().clamp(min=1)


def _resize(maps: Tensor, size: int) -> Tensor:
    """Resize the last axis of (B, h, w), bilinear with half-pixel centres: x + t (y - x), each step rounded.

    F.interpolate rounds differently on CPUs with and without fused multiply-add. Which pixels of a map are exactly at
    the threshold, and whether a constant map stays constant, must not depend on that.
    """
    n = maps.shape[-1]
    place = ((torch.arange(size, dtype=torch.float64, device=maps.device) + 0.5) * (n / size) - 0.5).clamp_(min=0)
    left = place.long().clamp_(max=n - 1)
    x, y = maps[..., left], maps[..., (left + 1).clamp_(max=n - 1)]
    return x + (place - left) * (y - x)


def heat_maps(similarity: Tensor, size: int = 224) -> Tensor:
    """Maps (B, h, w) at the size at which they are scored: (B, size, size) float64, bilinear, half-pixel centres."""
    return _resize(_resize(similarity.double(), size).mT, size).mT


@_without_autocast
def localization_counts(
    similarity: Tensor, boxes: Tensor, consensus: int = 1, size: int = 224, threshold: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Intersection (B,) and union (B,), float64, of the thresholded map with the box weights.

    similarity (B, h, w) is resized to size x size (bilinear, half-pixel centres), then min-max scaled; pixels that are
    >= threshold are inferred; a constant map infers nothing. With the box weights g: intersection = sum(infer * g);
    union = sum(g) + sum(infer * [g = 0]).
    """
    heat = heat_maps(similarity, size)
    low, high = heat.amin(dim=(1, 2), keepdim=True), heat.amax(dim=(1, 2), keepdim=True)
    infer = (heat - low) / (high - low) >= threshold  # 0/0 is NaN, which compares false
    weights = box_weights(boxes, size, consensus).double()
    intersection = torch.where(infer, weights, 0).sum(dim=(1, 2))
    union = weights.sum(dim=(1, 2)) + (infer & (weights == 0)).sum(dim=(1, 2))
    return intersection, union


@functools.lru_cache
def mel_matrix() -> np.ndarray:
    """VGGish's mel filters (257, 64) float64: 125-7500 Hz, slopes linear in mel, zero for the DC bin."""

    def mel(hertz):
        return 1127.0 * np.log(1.0 + np.asarray(hertz, np.float64) / 700.0)

    bins = mel(np.linspace(0.0, 8000.0, 257))[:, None]
    edges = np.linspace(mel(125.0), mel(7500.0), 66)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    matrix = np.maximum(0.0, np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)))
    matrix[0] = 0.0
    return matrix


@functools.lru_cache
def _mel_on(device: torch.device) -> Tensor:
    """The filters on a device. Copied only once, since a copy from pageable memory makes the host wait for the GPU."""
    with torch.inference_mode(False):  # the tensor is kept, and training must be able to use it
        return torch.from_numpy(mel_matrix()).to(device)


def normalize_pcm(pcm: Tensor) -> Tensor:
    """Scale each clip (B, T) to a minimum of -1 and a maximum just under 1, in float32, as the published code does."""
    shifted = pcm - pcm.amin(dim=1, keepdim=True)
    return (shifted / (shifted.amax(dim=1, keepdim=True) + 1e-3) - 0.5) * 2


def log_mel(pcm: Tensor, normalize: bool = True) -> Tensor:
    """VGGish's log-mel examples (B, E, 96, 64) float32 of (B, T) int16, or float32 in [-1, 1], at 16 kHz.

    Frames of 400 samples every 160 without padding, periodic Hann window, 512-point FFT magnitude, 64 mel bands,
    log(mel + 0.01). E = (1 + (T - 400) // 160) // 96: 3 for 3 s. The spectrum is float64, since float32 rounding alone
    moves quiet bands by up to 2e-3. ValueError: T is less than 15,600.
    """
    if pcm.ndim != 2 or pcm.shape[1] < 400 + 95 * 160:
        raise ValueError(f"log_mel: pcm must be (B, T) with T >= {400 + 95 * 160}, got {tuple(pcm.shape)}")
    wave = pcm.float() / 32768 if pcm.dtype == torch.int16 else pcm.float()
    if normalize:
        wave = normalize_pcm(wave)
    window = torch.hann_window(400, periodic=True, dtype=torch.float64, device=pcm.device)
    frames = wave.double().unfold(1, 400, 160) * window
    magnitude = torch.fft.rfft(frames, n=512).abs()
    bands = magnitude @ _mel_on(pcm.device)
    examples = bands.shape[1] // 96
    return (bands[:, : examples * 96] + 0.01).log().view(len(pcm), examples, 96, 64).float()


@functools.lru_cache
def _imagenet_on(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and std on a device. Copied once: a CUDA graph cannot hold a copy from pageable memory."""
    with torch.inference_mode(False):  # the tensors are kept, and training must be able to use them
        return torch.tensor(IMAGENET_MEAN, device=device), torch.tensor(IMAGENET_STD, device=device)


def two_views(
    frames: Tensor,
    rows: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    size: int = 224,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Crop, flip and normalise frames of a pool: frames (N, S, S, 3) uint8, rows (B,), top/left/flip (V, B).

    Returns (V, B, 3, size, size), each view channels_last, as dtype (by default bfloat16 on a GPU, float32 on a CPU).
    """
    if dtype is None:
        dtype = torch.bfloat16 if frames.is_cuda else torch.float32
    at = torch.arange(size, device=frames.device)
    y = top.long()[..., None] + at  # (V, B, size)
    x = left.long()[..., None] + torch.where(flip.bool()[..., None], size - 1 - at, at)
    crops = frames[rows.long()[None, :, None, None], y[..., :, None], x[..., None, :]]  # (V, B, size, size, 3)
    mean, std = _imagenet_on(frames.device)
    return crops.float().div(255).sub(mean).div(std).to(dtype).permute(0, 1, 4, 2, 3)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox 4x32-10 (Salmon et al., SC 2011): four counter words and two key words to four random words < 2^32.

    Words are int64 tensors of one shape, or integers.
    """
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The int64 product wraps, but its 64 bits are right; the mask removes the sign bits of the shift.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (b >> 32) & mask ^ c1 ^ k0, b & mask, (a >> 32) & mask ^ c3 ^ k1, a & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3


def view_params(seed: int, epoch: int, index: Tensor, margin: int, views: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Draw crop offsets and flips of each pair's views: top, left (V, B) int32 in [0, margin], flip (V, B) bool.

    index (B,) int64 is the pair's row in the manifest. The result is a pure function of (seed, epoch, index, view): it
    depends neither on the batch order, nor on the number of ranks, a resume or the device. The bias of the reduction to
    the range is under margin / 2^32.
    """
    mask = 0xFFFFFFFF
    index = index.long()[None].expand(views, -1)
    view = torch.arange(views, device=index.device)[:, None].expand_as(index)
    counter = (index & mask, (index >> 32) & mask, view, torch.full_like(index, epoch & mask))
    words = philox(counter, (seed & mask, (seed >> 32) & mask))
    top, left = ((word * (margin + 1) >> 32).int() for word in words[:2])
    return top, left, (words[2] >> 31).bool()


def upsample_by_two(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, 2h, 2w), bilinear; the corners' values stay in the corners (align_corners)."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def doubled_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """:func:`upsample_by_two`, then a 3x3 transposed convolution with padding 1: (B, C, h, w), (C, D, 3, 3)."""
    return F.conv_transpose2d(upsample_by_two(x), weight, padding=1)


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
    """What norm_gelu.py computes, with its arguments: the PCM's chain of blend, batch norm, GELU and mix."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if y is not None:
        r = None if rate is None else F.relu(rate).to(wide)[:, None, None]
        x = (x.to(wide) + y if r is None else (1 - r) * x + r * y).to(x.dtype)
    grouped = x.to(wide).unflatten(0, (views, -1))
    variance, mean = torch.var_mean(grouped, dim=(1, 3, 4), correction=0, keepdim=True)
    normal = ((grouped - mean) * torch.rsqrt(variance + eps)).flatten(0, 1)
    out = F.gelu(normal * weight[:, None, None] + bias[:, None, None])
    if top is not None and top_rate is not None:
        t = F.relu(top_rate).to(wide)[:, None, None]
        out = F.gelu((1 - t) * out + t * top)
    moments = torch.stack([mean.detach().flatten(1), variance.detach().flatten(1)])
    out = out.to(x.dtype)
    first = out if less is None else out - less
    return first, out if twice else first, moments


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
    """What at_rest.py computes, with its arguments: the chain with running statistics."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if y is not None:
        r = None if rate is None else F.relu(rate).to(wide)[:, None, None]
        x = (x.to(wide) + y if r is None else (1 - r) * x + r * y).to(x.dtype)
    scale = (weight * torch.rsqrt(variance + eps))[:, None, None]
    out = F.gelu((x.to(wide) - mean[:, None, None]) * scale + bias[:, None, None])
    if top is not None and top_rate is not None:
        t = F.relu(top_rate).to(wide)[:, None, None]
        out = F.gelu((1 - t) * out + t * top)
    out = out.to(x.dtype)
    first = out if less is None else out - less
    return first, out if twice else first


def conv_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """max(0, x * weight + bias), a 3x3 convolution with padding 1: (B, C, H, W), (K, C, 3, 3), (K,) -> (B, K, H, W)."""
    return F.relu(F.conv2d(x, weight, bias, padding=1))
