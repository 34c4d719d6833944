"""The ops of the training step, behind one name each: a fused kernel where one runs, plain PyTorch elsewhere.

| op                                                  | GPU        | CPU          | plain version     |
| --------------------------------------------------- | ---------- | ------------ | ----------------- |
| audio_guided_attention, negative_cosine_similarity, | Triton     | PyTorch      | reference.py      |
| pixel_bce, blend_norm_gelu, and this at rest        |            |              |                   |
| two_views, random_views, view_params, view_boxes,   | CUDA, csrc | C++, csrc    | reference.py      |
| log_mel, localization_counts                        |            |              |                   |
| conv_relu of a map                                  | cuDNN      | PyTorch      | reference.py      |
| a max pool by two, without a gradient               | Triton     | PyTorch      | PyTorch's         |
| conv_relu of an image                               | Triton     | PyTorch      | reference.py      |
| doubled_convolution                                 | cuBLAS     | PyTorch      | reference.py      |
| softmax_attention: its cosines; the rest is PyTorch | Triton     | PyTorch      | reference.py      |

Without the compiled module, its ops run in PyTorch, more slowly; `native.why_unavailable()` says why it is missing.
"""

import importlib.util

import torch
from torch import Tensor

from essl_fast.kernels import native, reference
from essl_fast.kernels.reference import Attention

if importlib.util.find_spec("triton") is not None:
    from essl_fast.kernels.at_rest import blend_norm_gelu_at_rest, pool_at_rest, rests
    from essl_fast.kernels.attention import audio_guided_attention
    from essl_fast.kernels.cosine import negative_cosine_similarity
    from essl_fast.kernels.norm_gelu import blend_norm_gelu, runs_chain
    from essl_fast.kernels.pixel_bce_op import pixel_bce
else:  # not on Linux: there is no GPU to use either
    from essl_fast.kernels.reference import (
        audio_guided_attention,
        blend_norm_gelu,
        blend_norm_gelu_at_rest,
        negative_cosine_similarity,
        pixel_bce,
    )

    def runs_chain(x: Tensor) -> bool:
        """Whether blend_norm_gelu has kernels for a map."""
        return False

    def rests(x: Tensor) -> bool:
        """Whether there are kernels for a map without gradients."""
        return False

    def pool_at_rest(x: Tensor) -> Tensor:
        """F.max_pool2d(x, 2)."""
        return torch.nn.functional.max_pool2d(x, 2)


__all__ = [
    "audio_guided_attention",
    "blend_norm_gelu",
    "blend_norm_gelu_at_rest",
    "centre_view",
    "localization_counts",
    "log_mel",
    "negative_cosine_similarity",
    "pixel_bce",
    "pool_at_rest",
    "random_views",
    "rests",
    "runs_chain",
    "softmax_attention",
    "two_views",
    "view_boxes",
    "view_params",
]


def softmax_attention(features: Tensor, audio: Tensor) -> Attention:
    """LSS's attention: the cosine map, the softmax of its positive part, and the features pooled with it.

    Senocak et al., CVPR 2018: s_i = cos(v_i, a); w = softmax(relu(s)); pooled = sum_i w_i v_i. The kernel of
    :func:`audio_guided_attention` computes s. The weights are not affine in s, so that kernel cannot pool with them in
    the same pass: the features are read once more, by one reduction if the step is compiled.

    Args:
        features: (B, C, H, W) floating point.
        audio: (B, C), on the same device.

    Returns:
        Attention: pooled (B, C), similarity (B, H, W) and attention (B, H, W), which sums to 1 over the positions;
        float32 (float64 for float64 inputs), autocast or not.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together.
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
    """Gather, crop, flip and normalise the views of a batch from a pool of frames, in one pass.

    Args:
        frames: (N, S, S, 3) uint8, contiguous.
        rows: (B,) integers, the frame of each sample.
        top, left: (V, B) integers, first row and column of the crop, 0 to S - size.
        flip: (V, B) bool, whether the crop is mirrored left to right.
        size: side of the crop, pixels.
        dtype: of the result; by default bfloat16 on a GPU and float32 on a CPU.

    Returns:
        (V, B, 3, size, size), each view channels_last: ((byte / 255) - mean) / std with ImageNet's mean and std.

    Raises:
        ValueError: wrong shape, dtype, device or layout.
        IndexError: an index out of its range (on a CPU).
    """
    if not _compiled(frames):
        return reference.two_views(frames, rows, top, left, flip, size, dtype)
    return native.two_views(frames, rows.long(), top.int(), left.int(), flip.bool(), size, dtype)


def centre_view(frames: Tensor, dtype: torch.dtype, rows: Tensor | None = None, size: int = 224) -> Tensor:
    """The one view of evaluation: whole stored frames, normalised.

    Args:
        frames: (N, size, size, 3) uint8, contiguous.
        dtype: of the result.
        rows: (B,) integers, the frame of each sample; by default every frame once, in order.
        size: side of the frames, pixels.

    Returns:
        (1, B, 3, size, size), as :func:`two_views` makes it.
    """
    rows = torch.arange(len(frames), device=frames.device) if rows is None else rows
    zero = torch.zeros((1, len(rows)), dtype=torch.int32, device=frames.device)
    return two_views(frames, rows, zero, zero, zero.bool(), size, dtype)


def view_params(seed: int, epoch: int, index: Tensor, margin: int, views: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the crop offsets and flips of each pair's views.

    The result is a pure function of (seed, epoch, index, view), by Philox 4x32-10 (Salmon et al., SC 2011): it depends
    neither on the batch order, nor on the number of ranks, a resume or the device.

    Args:
        seed, epoch: of the run.
        index: (B,) integers, each pair's row in the manifest.
        margin: the largest offset, S - size.
        views: V, the number of views.

    Returns:
        top, left (V, B) int32 in [0, margin], and flip (V, B) bool.
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
    """:func:`view_params`, with a margin of S - size, and :func:`two_views` in one pass.

    Args:
        frames: (N, S, S, 3) uint8, contiguous.
        rows: (B,) integers, the frame of each sample.
        index: (B,) integers, each sample's row in the manifest.
        seed, epoch: of the run.
        size: side of the crop, pixels.
        dtype: of the views; by default bfloat16 on a GPU and float32 on a CPU.
        views: V, the number of views.

    Returns:
        The views (V, B, 3, size, size); top, left (V, B) int32; flip (V, B) bool.
    """
    if not _compiled(frames):
        top, left, flip = reference.view_params(seed, epoch, index, frames.shape[1] - size, views)
        return reference.two_views(frames, rows, top, left, flip, size, dtype), top, left, flip
    return native.random_views(frames, rows.long(), index.long(), seed, epoch, size, dtype, views)


def view_boxes(boxes: Tensor, top: Tensor, left: Tensor, flip: Tensor, side: int = 246, size: int = 224) -> Tensor:
    """Move boxes with the views. Edges are rounded to the nearest pixel.

    Args:
        boxes: (B, K, 4) int32 xyxy on the size x size grid of the whole frame.
        top, left, flip: (V, B), the crops of the stored frame, as :func:`view_params` draws them.
        side: of the stored frame, pixels.
        size: side of the crop and of the grid, pixels.

    Returns:
        (V, B, K, 4) int32, clamped to the view. A box outside the crop, like a padding box, has no area.
    """
    if not _compiled(boxes):
        return reference.view_boxes(boxes, top, left, flip, side, size)
    return native.view_boxes(boxes.int(), top.int(), left.int(), flip.bool(), side, size)


def log_mel(pcm: Tensor, normalize: bool = True) -> Tensor:
    """VGGish's log-mel examples of sound at 16 kHz (Hershey et al., ICASSP 2017).

    The compiled op computes the spectrum in float32: it differs from the reference by up to 2e-3 in silent bands beside
    loud ones, and by about 1e-5 elsewhere. A clip's result does not depend on the other clips of its batch.

    Args:
        pcm: (B, T) int16, or float32 in [-1, 1]; T at least 15,600.
        normalize: bring each clip to [-1, 1) first, as the published code does.

    Returns:
        (B, E, 96, 64) float32: E = (1 + (T - 400) // 160) // 96 examples, 3 for 3 s.

    Raises:
        ValueError: wrong shape, dtype or device, or too few samples.
    """
    if not _compiled(pcm):
        return reference.log_mel(pcm, normalize)
    return native.log_mel(pcm, normalize)


def localization_counts(
    similarity: Tensor, boxes: Tensor, consensus: int = 1, size: int = 224, threshold: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Intersection and union of each thresholded map with the box weights; cIoU is their quotient.

    The map is resized to size x size (bilinear, half-pixel centres), min-max scaled, and thresholded: a pixel at or
    above the threshold is inferred, infer = 1. A constant map infers nothing. A pixel weighs
    g = min(1, boxes that cover it / consensus). Then

        intersection = sum(infer * g)
        union        = sum(g) + sum(infer * [g = 0])

    Args:
        similarity: (B, h, w) floating point.
        boxes: (B, K, 4) integer xyxy, half-open, on the size x size grid.
        consensus: how many boxes must cover a pixel for the weight 1.
        size: side of the grid, pixels.
        threshold: of the scaled map, 0 to 1.

    Returns:
        intersection (B,) and union (B,), float64.

    Raises:
        ValueError: wrong shape, dtype or device; from the compiled op also sides or a consensus above 1024.
    """
    if not _compiled(similarity):
        return reference.localization_counts(similarity, boxes, consensus, size, threshold)
    return native.localization_counts(similarity, boxes, consensus, size, threshold)
