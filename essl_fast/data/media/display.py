"""How a file asks players to turn its pictures: FFmpeg's command line and players do so, FFmpeg's libraries do not.

It asks with a, b, c, d of a display matrix: a pixel at (x, y) is shown at (ax + cy, bx + dy), up to a shift (ISO/IEC
14496-12, 8.3.2). Angles count to the nearest quarter turn.
"""

from __future__ import annotations

import threading

import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import VideoReformatter

Matrix = tuple[int, int, int, int]
TURNED: dict[int, Matrix] = {1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}  # by counterclockwise quarter turns


class _Own(threading.local):
    """A thread's own converter: each frame's would start threads of its own."""

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()


_own = _Own()


def upright(frame, matrix: Matrix = (1, 0, 0, 1)) -> np.ndarray:
    """RGB uint8 (H, W, 3) of a decoded frame, turned and mirrored as its own matrix asks, if it has none `matrix`."""
    rgb = _own.reformatter.reformat(frame, format="rgb24").to_ndarray()
    a, b, c, d = _own_matrix(frame) or matrix
    if abs(b) > abs(a):  # x and y change places
        rgb, a, d = rgb.swapaxes(0, 1), c, b
    return np.ascontiguousarray(rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _own_matrix(frame) -> Matrix | None:
    """The display matrix that comes with a frame, if one does."""
    try:
        # frame.side_data would make a cycle of the two: 80 frames of 1080p, 250 MB, waited for the garbage collector.
        data = SideDataContainer(frame).get("DISPLAYMATRIX")
    except ValueError:  # beside it is a kind of data that PyAV has no name for
        return TURNED.get(round(frame.rotation / 90) % 4)
    return tuple(np.frombuffer(data, np.int32)[[0, 1, 3, 4]].tolist()) if data else None


def quarters(matrix: Matrix) -> int | None:
    """Counterclockwise quarter turns that do the same; None if it mirrors."""
    a, b, c, d = matrix
    if abs(b) > abs(a):
        return None if (b < 0) == (c < 0) else (1 if b < 0 else 3)
    return None if (a < 0) != (d < 0) else 2 * (a < 0)
