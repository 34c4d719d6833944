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
    """Gather, crop, flip and normalise in one pass; see :func:`essl_fast.kernels.reference.two_views`."""
    ready = native.has_cuda() if frames.is_cuda else native.available()
    op = native.two_views if ready else reference.two_views
    return op(frames, rows, top, left, flip, size, dtype)
