"""The ops of the training step, behind one name each: a fused kernel where one runs, plain PyTorch elsewhere.

| op                                                  | GPU        | CPU          | formula and truth |
| --------------------------------------------------- | ---------- | ------------ | ----------------- |
| audio_guided_attention, negative_cosine_similarity, | Triton     | PyTorch      | reference.py      |
| pixel_bce                                           |            |              |                   |
| two_views, random_views, view_params, view_boxes,   | CUDA, csrc | C++, csrc    | reference.py      |
| log_mel, localization_counts                        |            |              |                   |
| conv_relu                                           | cuDNN      | PyTorch      | reference.py      |
| softmax_attention: its cosines; the rest is PyTorch | Triton     | PyTorch      | reference.py      |

Without the compiled module its ops run in PyTorch as well, slower (`native.why_unavailable()` says why it is missing).
"""

import importlib.util

import torch
from torch import Tensor

from essl_fast.kernels import native, reference
from essl_fast.kernels.convolution import conv_relu
from essl_fast.kernels.convolution import fuses as conv_relu_fuses
from essl_fast.kernels.reference import Attention, box_weights

if importlib.util.find_spec("triton") is not None:
    from essl_fast.kernels.attention import audio_guided_attention
    from essl_fast.kernels.cosine import negative_cosine_similarity
    from essl_fast.kernels.pixel_bce import pixel_bce
else:  # not on Linux: there is no GPU to use either
    from essl_fast.kernels.reference import audio_guided_attention, negative_cosine_similarity, pixel_bce

__all__ = [
    "Attention",
    "audio_guided_attention",
    "box_weights",
    "conv_relu",
    "conv_relu_fuses",
    "localization_counts",
    "log_mel",
    "negative_cosine_similarity",
    "pixel_bce",
    "random_views",
    "softmax_attention",
    "two_views",
    "view_boxes",
    "view_params",
]


def softmax_attention(features: Tensor, audio: Tensor) -> Attention:
    """Cosine map of the features with the audio, the softmax of its positive part, and the features pooled by that.

    LSS's attention (Senocak et al., CVPR 2018): s_i = cos(v_i, a); w = softmax(relu(s)); pooled = sum_i w_i v_i. The
    kernel of :func:`audio_guided_attention` makes s. Exponentials are not affine in s, so it cannot pool by them in the
    same pass: the features are read once more, by one reduction where the step is compiled.

    Args:
        features: (B, C, H, W) floating point.
        audio: (B, C), on the same device.

    Returns:
        Attention: pooled (B, C), similarity (B, H, W) and attention (B, H, W), which sums to 1 over the positions;
        float32 (float64 for float64 inputs), autocast or not.

    Raises:
        ValueError: shapes, types or devices that do not fit together.
    """
    return reference.softmax_pool(features, audio_guided_attention(features, audio).similarity)


def _compiled(tensor: Tensor) -> bool:
    """Whether the compiled module has the op for this tensor's device."""
    return native.has_cuda() if tensor.is_cuda else native.available()


def two_views(
    frames: Tensor,
    rows: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    size: int = 224,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Gather, crop, flip and normalise rows of a pool of frames, all views in one pass.

    Args:
        frames: (N, S, S, 3) uint8, contiguous.
        rows: (B,) integers, the frame of each sample.
        top, left: (V, B) integers, the window's first row and column, 0 to S - size.
        flip: (V, B) bool, mirror the window left to right.
        size: side of the window, pixels.
        dtype: of the result; by default bfloat16 on a GPU and float32 on a CPU.

    Returns:
        (V, B, 3, size, size), each view channels_last: ((byte / 255) - mean) / std with ImageNet's mean and std.

    Raises:
        ValueError: wrong shape, type, device or layout. IndexError: an index out of its range (CPU).
    """
    if not _compiled(frames):
        return reference.two_views(frames, rows, top, left, flip, size, dtype)
    return native.two_views(frames, rows.long(), top.int(), left.int(), flip.bool(), size, dtype)


def view_params(seed: int, epoch: int, index: Tensor, margin: int, views: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Crop offsets and flips of each pair's views: top, left (V, B) int32 in [0, margin], flip (V, B) bool.

    index (B,) integers is the pair's row in the manifest. A pure function of (seed, epoch, index, view) by Philox
    4x32-10: neither batch order, ranks, a resume nor the device change it.
    """
    if not _compiled(index):
        return reference.view_params(seed, epoch, index, margin, views)
    return native.view_params(seed, epoch, index.long(), margin, views)


def random_views(
    frames: Tensor,
    rows: Tensor,
    index: Tensor,
    seed: int,
    epoch: int,
    size: int = 224,
    dtype: torch.dtype | None = None,
    views: int = 2,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`view_params` and :func:`two_views` in one pass: (views, top, left, flip), with a margin of S - size.

    frames (N, S, S, 3) uint8; rows (B,) integers, the frame of each sample; index (B,) integers, its row in the
    manifest.
    """
    if not _compiled(frames):
        top, left, flip = reference.view_params(seed, epoch, index, frames.shape[1] - size, views)
        return reference.two_views(frames, rows, top, left, flip, size, dtype), top, left, flip
    return native.random_views(frames, rows.long(), index.long(), seed, epoch, size, dtype, views)


def view_boxes(boxes: Tensor, top: Tensor, left: Tensor, flip: Tensor, side: int = 246, size: int = 224) -> Tensor:
    """Boxes (B, K, 4) int32 of the size x size grid as each view shows them: (V, B, K, 4) int32, clamped to the view.

    The frame is stored at side x side; the view is its crop at top, left (V, B), mirrored where flip (V, B) is set.
    Edges go to the nearest pixel. A box outside the crop, like a padding box, ends with zero area.
    """
    if not _compiled(boxes):
        return reference.view_boxes(boxes, top, left, flip, side, size)
    return native.view_boxes(boxes.int(), top.int(), left.int(), flip.bool(), side, size)


def log_mel(pcm: Tensor, normalize: bool = True) -> Tensor:
    """VGGish examples of 16 kHz sound, (B, T) int16 or float32 in [-1, 1], to (B, E, 96, 64) float32.

    E = (1 + (T - 400) // 160) // 96: 3 examples for 3 s. normalize: bring each clip to [-1, 1) first, as the published
    code does. The compiled op's spectrum is float32, within 2e-3 of the reference's in bands that are silent beside
    loud ones and some 1e-5 elsewhere. A clip's result does not depend on the others of its batch.

    Raises:
        ValueError: wrong shape, type or device, or less than 15,600 samples.
    """
    if not _compiled(pcm):
        return reference.log_mel(pcm, normalize)
    return native.log_mel(pcm, normalize)


def localization_counts(
    similarity: Tensor, boxes: Tensor, consensus: int = 1, size: int = 224, threshold: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Intersection (B,) and union (B,), float64, of the thresholded map with the box weights; cIoU is their quotient.

    similarity (B, h, w) is resized to size (bilinear, half-pixel), then min-max scaled, then thresholded at >=; a
    constant map infers nothing. boxes (B, K, 4) integer xyxy on the size x size grid; a pixel weighs g = min(1, boxes
    covering it / consensus). intersection = sum(infer * g); union = sum(g) + sum(infer * [g = 0]).

    Raises:
        ValueError: wrong shape, type or device; from the compiled op, sides or a consensus above 1024.
    """
    if not _compiled(similarity):
        return reference.localization_counts(similarity, boxes, consensus, size, threshold)
    return native.localization_counts(similarity, boxes, consensus, size, threshold)
