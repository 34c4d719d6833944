"""Which clips NVDEC may get, and the colours of what DALI makes of them.

A clip that DALI would decode wrongly or not at all, without an error, is not handed to it: PyAV decodes it. That counts
for clips of older versions, too, so nothing here relies on how `clips` cuts them today.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from essl_fast.data.media import colours, starts
from essl_fast.data.media.errors import MediaError
from essl_fast.data.media.headers import stream_header
from essl_fast.data.media.mp4 import read_index

_FULL = 2  # FFmpeg's number of full range
_KEY_HEADER = 32  # bytes of a VP9 key frame that hold its size and colours
SIDE = 8  # of a check value


class Fit(NamedTuple):
    """Whether NVDEC may get a clip. why: "" or why it may not; turn: (3, 4) float32, see `colours.correction`."""

    why: str
    turn: np.ndarray


def fit(data) -> Fit:
    """Look at a clip (bytes-like), in 0.1 ms. MediaError if it is no clip, or is cut off."""
    data = memoryview(data)
    index = read_index(data)
    if not index.shown:
        return Fit("it holds no picture", colours.IDENTITY)
    first = bytes(data[index.begins[0] : index.begins[1]])
    begun, why = starts.as_first(index.codec, first, index.settings)
    if why or begun is not first:
        return Fit(why or "its parameter sets are not in its first packet", colours.IDENTITY)
    key = first[:_KEY_HEADER] if index.codec == "vp9" else b""
    colour = index.colour[2:] if index.colour else (2, 0)
    return _fit_stream(index.codec, index.settings, key, (index.width, index.height), colour)


def clip_size(data) -> tuple[int, int] | None:
    """Width and height of the pictures in a clip (bytes-like), before they are turned; None if it is none."""
    try:
        index = read_index(memoryview(data))  # type: ignore[arg-type]  # bytes-like
    except MediaError:
        return None
    return index.width, index.height


@functools.lru_cache(256)
def _fit_stream(
    codec: str, settings: bytes | None, key: bytes, size: tuple[int, int], container: tuple[int, int]
) -> Fit:
    """The part of `fit` that clips of one video share. container: matrix and range that the file states."""
    if codec == "mjpeg":
        return Fit("", colours.IDENTITY)
    if size[0] % 2 or size[1] % 2:
        return Fit(f"its size {size[0]}x{size[1]} is odd", colours.IDENTITY)
    header = stream_header(codec, settings, key)
    if header is None and codec != "av1":
        return Fit("its stream header cannot be read", colours.IDENTITY)
    if header and not header.halved:
        return Fit("its chroma is not 4:2:0", colours.IDENTITY)
    stream, seen = (header.matrix, header.full) if header else (2, None)
    # Only H.264 takes the range from the file where the stream is silent, as FFmpeg does.
    full = container[1] == _FULL if seen is None and codec in ("h264", "av1") else bool(seen)
    if full and (codec not in ("h264", "hevc") or not seen):
        return Fit("it is in full range, which its video stream does not tell NVDEC", colours.IDENTITY)
    try:
        matrix = colours.matrix_of(colours.stated(stream, container[0]), size[1])
    except MediaError as error:
        return Fit(error.detail, colours.IDENTITY)
    return Fit("", colours.correction(matrix, full))


def check_value(frame: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: the means of a frame (H, W, 3) uint8 over SIDE x SIDE fields of equal size."""
    for axis in (0, 1):
        edges = np.linspace(0, frame.shape[axis], SIDE + 1).round().astype(int)
        sums = np.add.reduceat(frame, edges[:-1], axis, dtype=np.float32 if axis else np.uint32)
        counts = np.diff(edges).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        frame = sums / counts
    return np.rint(frame).astype(np.uint8)


def same_picture(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two check values (SIDE, SIDE, 3) are those of one picture, converted to RGB by two programs.

    FFmpeg and DALI differ by 1 to 2 levels on average, and by up to 20 in a field of colours that DALI has to clip.
    """
    apart = np.abs(one.astype(np.int16) - other)
    return bool(apart.mean() <= 4 and apart.max() <= 24)
