"""What DALI 2.4's GPU video decoder makes of a decoded picture, played in NumPy after its source.

NVDEC's own pictures are those of any decoder, bit for bit: H.264, HEVC, VP9 and AV1 define them exactly. What differs
is the conversion to RGB: `VideoColorSpaceConversionKernel` in dali/operators/video/color_space.cu.
"""

from __future__ import annotations

import numpy as np


def gpu_rgb(frame, full: bool) -> np.ndarray:
    """RGB uint8 (H, W, 3) of a PyAV frame in yuv420p or yuvj420p. full: the flag for full range in the video stream."""
    luma, *chroma = (_plane(plane) for plane in frame.planes)
    height, width = luma.shape
    y = luma.astype(np.float32)
    cb, cr = (_doubled(plane)[:height, :width].astype(np.float32) - 128 for plane in chroma)
    if full:
        rgb = [y + 1.402 * cr, y - 0.34413629 * cb - 0.71413629 * cr, y + 1.772 * cb]
    else:
        y = 1.164 * (y - 16)
        rgb = [y + 1.596 * cr, y - 0.813 * cr - 0.392 * cb, y + 2.017 * cb]
    return np.clip(np.rint(np.stack(rgb, -1)), 0, 255).astype(np.uint8)


def corrected(rgb: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """`fn.coord_transform` of uint8 pixels by a (3, 4) matrix."""
    return np.clip(np.rint(rgb @ turn[:, :3].T + turn[:, 3]), 0, 255).astype(np.uint8)


def _plane(plane) -> np.ndarray:
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def _doubled(plane: np.ndarray) -> np.ndarray:
    """A chroma plane at twice its size: linear between the centres of its pixels, clamped at the border, rounded."""
    for axis in (0, 1):
        size = plane.shape[axis]
        at = np.arange(2 * size) / 2 - 0.25
        low, share = np.floor(at).astype(int), (at - np.floor(at)).astype(np.float32)
        below, above = (np.take(plane, np.clip(low + step, 0, size - 1), axis).astype(np.float32) for step in (0, 1))
        share = share[:, None] if axis == 0 else share[None]
        plane = below * (1 - share) + above * share
    return np.rint(plane).astype(np.uint8)
