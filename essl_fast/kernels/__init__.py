"""The ops of the training step, behind one name each: a fused kernel where one runs, plain PyTorch elsewhere."""

import torch
from torch import Tensor

from essl_fast.kernels import native, reference
from essl_fast.kernels.reference import (
    Attention,
    audio_guided_attention,
    box_weights,
    localization_counts,
    log_mel,
    negative_cosine_similarity,
    pixel_bce,
    view_boxes,
    view_params,
)

__all__ = [
    "Attention",
    "audio_guided_attention",
    "box_weights",
    "localization_counts",
    "log_mel",
    "negative_cosine_similarity",
    "pixel_bce",
    "two_views",
    "view_boxes",
    "view_params",
]


def two_views(
    frames: Tensor,
    rows: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    size: int = 224,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Gather, crop, flip and normalise rows of a pool of frames, both views in one pass.

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
    ready = native.has_cuda() if frames.is_cuda else native.available()
    if not ready:
        return reference.two_views(frames, rows, top, left, flip, size, dtype)
    return native.two_views(frames, rows.long(), top.int(), left.int(), flip.bool(), size, dtype)
