"""What holds nothing to see or to hear: pictures of one colour, and silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

BLACK_UP_TO = 15  # of 255; black is 0, and compression adds a few levels of noise
SILENT_UP_TO = 32  # of 32767: -60 dB


def is_silent(pcm: np.ndarray) -> bool:
    """Whether the samples, int16 (n,), stay within -60 dB of one value, which need not be 0."""
    return int(pcm.max()) - int(pcm.min()) <= 2 * SILENT_UP_TO


def are_plain(frames: torch.Tensor) -> torch.Tensor:
    """Which of the frames, uint8 (B, H, W, 3), are black or of any other single colour: bool (B,)."""
    return (frames.amax((1, 2)) - frames.amin((1, 2))).amax(1) <= BLACK_UP_TO
