"""From a network's small map to heat, with NumPy.

The metric scales each map by itself, so even the map of a silent or an empty frame has a hottest place. What is drawn
over a video is scaled over all of the video instead: a moment whose cosines are small stays dark.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from essl_fast.config import SIZE


def resize_map(similarity: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Cosine maps (..., h, w) on the metric's grid, as float64 (..., size, size).

    Bilinear, with half-pixel centres. Each step is rounded as in `kernels.reference.heat_maps`, so that a constant map
    stays constant.
    """
    maps = np.asarray(similarity, np.float64)
    for _ in range(2):  # the last axis, then the one before it
        n = maps.shape[-1]
        place = np.maximum((np.arange(size) + 0.5) * (n / size) - 0.5, 0)
        left = np.minimum(place.astype(np.int64), n - 1)
        before, after = maps[..., left], maps[..., np.minimum(left + 1, n - 1)]
        maps = (before + (place - left) * (after - before)).swapaxes(-1, -2)
    return maps


def heat_of(similarity: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Cosine maps (..., h, w) as heat: resized, then min-max scaled to [0, 1], float64 (..., size, size).

    A constant map becomes 0 everywhere.
    """
    maps = resize_map(similarity, size)
    low, high = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    return np.divide(maps - low, high - low, out=np.zeros_like(maps), where=high > low)


@dataclass(frozen=True)
class HeatScale:
    """The cosines that are drawn as no heat and as full heat, the same for all moments of a video."""

    low: float
    high: float

    @classmethod
    def of(cls, maps: np.ndarray) -> HeatScale:
        """The scale of a few maps (..., h, w)."""
        wide = resize_map(maps)
        return cls(float(wide.min()), float(wide.max()))

    def over(self, other: HeatScale | None) -> HeatScale:
        """The scale of the maps of both."""
        return self if other is None else HeatScale(min(self.low, other.low), max(self.high, other.high))

    def heat(self, similarity: np.ndarray) -> np.ndarray:
        """Cosine maps (..., h, w) as heat: resized, then scaled and clipped to [0, 1], float64 (..., 224, 224).

        If all cosines of the video are equal, there is no heat.
        """
        maps = resize_map(similarity)
        span = self.high - self.low
        return np.clip((maps - self.low) / span, 0, 1) if span > 0 else np.zeros_like(maps)
