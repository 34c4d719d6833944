"""Turns pictures upright as their file asks. Players and FFmpeg's command line do so; FFmpeg's libraries do not.

A file states a display matrix with a, b, c, d: a pixel at (x, y) is shown at (ax + cy, bx + dy), up to a shift (ISO/IEC
14496-12, 8.3.2). Angles are rounded to quarter turns.
"""

from __future__ import annotations

import threading

import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import VideoReformatter

from essl_fast.data.media import colours
from essl_fast.data.media.cropping import NO_CROP, Crop

Matrix = tuple[int, int, int, int]
TURNED: dict[int, Matrix] = {1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}  # by counterclockwise quarter turns


class _Own(threading.local):
    """One converter per thread: PyAV's default is one per frame, each of which starts threads."""

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()


_own = _Own()


def upright(frame, matrix: Matrix = (1, 0, 0, 1), colour: int = 2, crop: Crop = NO_CROP) -> np.ndarray:
    """RGB uint8 (H, W, 3) of a decoded frame, turned and mirrored by the frame's own matrix, or else by `matrix`.

    Its colours are as `colours` says. MediaError: they are stored in a form that is not read.

    Args:
        frame: of PyAV.
        matrix: the display matrix that the file states.
        colour: the colour matrix that the file states outside of the video stream, as H.273 numbers it; 2 for none.
        crop: pixels at the left, top, right and bottom, before the turn, that are left out.
    """
    source = colours.swscale_matrix(frame, colour)
    rgb = _own.reformatter.reformat(frame, format="rgb24", src_colorspace=source).to_ndarray()
    if any(crop):
        left, top, right, bottom = crop
        rgb = rgb[top : rgb.shape[0] - bottom, left : rgb.shape[1] - right]
    a, b, c, d = _own_matrix(frame) or matrix
    if abs(b) > abs(a):  # x and y change places
        rgb, a, d = rgb.swapaxes(0, 1), c, b
    return np.ascontiguousarray(rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _own_matrix(frame) -> Matrix | None:
    """The display matrix that comes with a frame, or None."""
    try:
        # `frame.side_data` makes a reference cycle: 80 frames of 1080p, 250 MB, then wait for the garbage collector.
        data = SideDataContainer(frame).get(  # type: ignore[call-arg]  # PyAV's stub lacks it
            "DISPLAYMATRIX"
        )
    except ValueError:  # the frame also has a kind of side data that PyAV does not know
        return TURNED.get(round(frame.rotation / 90) % 4)
    return tuple(np.frombuffer(data, np.int32)[[0, 1, 3, 4]].tolist()) if data else None


def quarters(matrix: Matrix) -> int | None:
    """Counterclockwise quarter turns with the same effect as a display matrix; None if it mirrors the picture."""
    a, b, c, d = matrix
    if abs(b) > abs(a):
        return None if (b < 0) == (c < 0) else (1 if b < 0 else 3)
    return None if (a < 0) != (d < 0) else 2 * (a < 0)
