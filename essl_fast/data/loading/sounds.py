"""What a batch carries of each pair's sound: samples, or what a function makes of them on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from essl_fast.data.shards import SAMPLES

SoundTransform = Callable[[torch.Tensor], torch.Tensor]
"""(B, 48000) int16 or float32, 16 kHz mono -> (B, ...). It must treat each row by itself: a pool calls it once for each
pair, in whatever batch the pair comes first."""


def raw_samples(pcm: torch.Tensor) -> torch.Tensor:
    """The samples as they are stored: (B, 48000) int16."""
    return pcm


def float_samples(pcm: torch.Tensor) -> torch.Tensor:
    """The samples of a folder that stores float32: (B, 48000) float32."""
    return pcm.float()


def transformed(transform: SoundTransform, pcm: torch.Tensor) -> torch.Tensor:
    """transform(pcm), without gradients."""
    with torch.no_grad():
        return transform(pcm)


class SoundLayout(NamedTuple):
    """What a pool stores for the sound of one pair."""

    shape: tuple[int, ...]  # without the batch dimension
    dtype: torch.dtype

    @classmethod
    def of(cls, transform: SoundTransform, device: torch.device | str) -> SoundLayout:
        """Found by calling `transform` with one pair of silence.

        Raises:
            ValueError: `transform` does not keep the batch dimension.
        """
        made = transformed(transform, torch.zeros(1, SAMPLES, dtype=torch.int16, device=device))
        if len(made) != 1:
            raise ValueError(f"sound must keep the batch's dimension, and gave {tuple(made.shape)} for one pair")
        return cls(tuple(made.shape[1:]), made.dtype)

    def pair_bytes(self, side: int) -> int:
        """Bytes of one pair in a pool: its frame (side, side, 3) uint8 and its sound."""
        return side * side * 3 + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def bytes_per_pair(side: int, transform: SoundTransform = raw_samples, device: torch.device | str = "cpu") -> int:
    """Bytes that one pair takes in a pool on `device`; `transform` is called there to find out."""
    return SoundLayout.of(transform, device).pair_bytes(side)
