"""A row of the published HDF5 arrays → a pair: the frame as a PNG file, the sound as float32. Nothing is lost.

The frame. The arrays hold integers from 0 to 255 as float32. They become uint8 by truncation, as in the published code,
and then a PNG file without compression: exact, as large as the pixels, and as fast to decode as a JPEG (CPU time of
DALI for a picture of 256 x 256 on an AMD EPYC: 0.64 ms; compressed PNG 1.4 to 1.6 ms; JPEG 0.66 ms).

The sound. The arrays hold it resampled to 16 kHz and normalised: x = 2 (p - min p) / (r + e) - 1 with r = max p - min p
and e = 1e-3. Training normalises once more, which would scale x by r' / (r' + e), so p is restored before: from max x =
2 r / (r + e) - 1 follow r = e (1 + max x) / (1 - max x) and p - min p = (x + 1) (r + e) / 2. (min p is lost, but
normalising removes it anyway.) After resampling, p is no multiple of 2^-15, so PCM16 would change the log-mel of silent
bands by up to 0.05. Therefore p is stored as float32.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from essl_fast.common.errors import InputError
from essl_fast.data.media import MediaError
from essl_fast.data.media.jpeg import MOST_PIXELS
from essl_fast.data.shards import SAMPLES, SOUNDS

DAMAGED = "HDF5 row unreadable"
NOT_PIXELS = "HDF5 frame is no picture"
NOT_NORMALISED = "HDF5 sound is not normalised"
_EPSILON = 1e-3  # of the published normalisation
_LARGEST_CHUNK = 1 << 28  # bytes that are unpacked to read one row


def library():
    """The module h5py. InputError if it is not installed."""
    try:
        import h5py
    except ImportError:
        raise InputError("reading HDF5 needs h5py: pip install 'essl_fast[h5]', or pip install h5py") from None
    return h5py


@contextmanager
def open_array(path: Path, kind: str):
    """Open the array train_`kind` or test_`kind` of an HDF5 file, for a `with` block.

    Args:
        path: the file.
        kind: frames (N, H, W, 3), audios (N, 48000) or spects (N, 3, 96, 64).

    Yields:
        The `h5py.Dataset`, of numbers.

    Raises:
        InputError: the file cannot be opened, or has no such array, or the array is stored in another file.
    """
    h5py = library()
    if not path.is_file():
        raise InputError(f"{path} is not there: --from-h5 needs the published files under their published names")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} is no HDF5 file, or an incomplete one ({error}): fetch it again") from None
    with file:
        try:
            name = next((name for name in (f"train_{kind}", f"test_{kind}") if name in file), None)
            holds = ", ".join(list(file)[:8]) or "nothing"
            # A link, or an array that is stored elsewhere, would make us read a file that nobody named.
            array = file[name] if name and isinstance(file.get(name, getlink=True), h5py.HardLink) else None
            if isinstance(array, h5py.Dataset):  # if these cannot be read, the file is damaged
                _ = array.shape, array.dtype, array.chunks, array.is_virtual, array.external
        except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:  # all that h5py raises
            raise InputError(f"{path} is damaged ({error}): fetch it again") from None
        if name is None:
            raise InputError(f"{path} holds {holds} instead of train_{kind} or test_{kind}: is it another file?")
        if not isinstance(array, h5py.Dataset) or array.is_virtual or array.external:
            raise InputError(f"{path}: {name} is no array in this file: copy its data into it")
        tail = {"frames": (*array.shape[1:3], 3), "audios": (SAMPLES,), "spects": (3, 96, 64)}[kind]
        if array.shape[1:] != tail or array.dtype.kind not in "fu" or not 0 < np.prod(tail) <= 3 * MOST_PIXELS:
            shape = {"frames": "(N, height, width, 3)"}.get(kind, f"(N, {', '.join(map(str, tail))})")
            raise InputError(f"{path}: {name} is {array.dtype} {array.shape} instead of float32 {shape}")
        if array.chunks and np.prod(array.chunks) * array.dtype.itemsize > _LARGEST_CHUNK:
            raise InputError(f"{path}: {name} is stored in chunks of {array.chunks}: rewrite it with smaller ones")
        yield array


def rows_of(path: Path, kind: str) -> int:
    """The number of rows of the array. InputError as `open_array`."""
    with open_array(path, kind) as array:
        return len(array)


def stored_rows(
    frames: Path, audios: Path, requests: Sequence[tuple[str, int, float]], rows: Sequence[int], left_out: list
) -> Iterator[tuple[str, bytes, bytes]]:
    """Read pairs, one row at a time.

    Args:
        frames: file of the frames.
        audios: file of the sounds.
        requests: (key, ...) of each pair.
        rows: of each pair.
        left_out: (key, reason, detail) of pairs that cannot be read is appended here.

    Yields:
        (key, PNG file, 192,000 bytes of little-endian float32 sound).
    """
    with open_array(frames, "frames") as pictures, open_array(audios, "audios") as sounds:
        for (key, _, _), row in zip(requests, rows, strict=True):
            try:
                yield key, *_stored(pictures, sounds, row)
            except MediaError as error:
                left_out.append((key, error.reason, f"{frames.name} row {row}: {error.detail}"))


def _stored(pictures, sounds, row: int) -> tuple[bytes, bytes]:
    try:
        frame, sound = pictures[row], sounds[row]
    except (OSError, ValueError, IndexError) as error:
        raise MediaError(DAMAGED, str(error)) from error
    return png_file(to_pixels(frame)), restored(sound).astype(SOUNDS["f32"]).tobytes()


def to_pixels(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) numbers from 0 to 255 → uint8, truncated as in the published code. MediaError for other numbers."""
    if not (np.isfinite(frame).all() and frame.min() >= 0 and frame.max() < 256):
        raise MediaError(NOT_PIXELS, f"its values go from {frame.min():g} to {frame.max():g} instead of 0 to 255")
    return frame.astype(np.uint8)


def png_file(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 → a PNG file without compression."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def restored(normalised: np.ndarray) -> np.ndarray:
    """Undo the published normalisation of a row of `audios` (see above).

    Args:
        normalised: (48000,) numbers from -1 to below 1. A constant row of -1 is silence.

    Returns:
        float32 (48000,), centred on 0. Its normalisation is the row again.

    Raises:
        MediaError: the row is not normalised; for example, its minimum is not -1.
    """
    x = np.asarray(normalised, np.float64)
    low, high = x.min(), x.max()
    if not (abs(low + 1) < 1e-5 and high < 1):  # NaN included
        raise MediaError(NOT_NORMALISED, f"its samples go from {low:g} to {high:g} instead of -1 to nearly 1")
    span = _EPSILON * (1 + high) / (1 - high)
    return (((x + 1) * (span + _EPSILON) - span) / 2).astype(np.float32)
