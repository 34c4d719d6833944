"""From a network's small map to the heat that the metric thresholds, with NumPy."""

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
