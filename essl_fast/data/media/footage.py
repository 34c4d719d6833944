"""The frames that a localization goes through: those of a video file, or a still picture shown for some seconds.

`Video` and `Still` have the same properties and methods. A frame is named by its place, from 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from essl_fast.common.errors import InputError
from essl_fast.data.media import limits
from essl_fast.data.media.decoding import decode_all, decode_frames
from essl_fast.data.media.errors import MediaError
from essl_fast.data.media.probing import Probe

STILL_RATE = 10  # frames per second of a still picture
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")


@dataclass(frozen=True, eq=False)
class Video:
    """The frames of a video file; `found` is its probe."""

    found: Probe

    @cached_property
    def times(self) -> np.ndarray:
        """float64 (n,), seconds at which each frame is shown, from 0 on, ascending."""
        return (self.found.pts - self.found.start) * float(self.found.time_base)

    @property
    def ticks(self) -> np.ndarray:
        """int64 (n,), the same in ticks of `time_base` seconds."""
        return self.found.pts - self.found.start

    @property
    def time_base(self) -> Fraction:
        return self.found.time_base

    @property
    def frame_rate(self) -> float:
        """Mean frames per second; 1 for a single frame."""
        return self.found.frame_rate or 1.0

    def aspect(self, width: int, height: int) -> Fraction | None:
        """Width over height of a pixel of the upright picture of this size; None if it is a square."""
        turned = (width > height) != (self.found.width > self.found.height)
        return (1 / self.found.aspect if turned else self.found.aspect) if self.found.aspect != 1 else None

    def zero(self, sound: Path) -> float | None:
        """Time 0 in seconds of the clock of the file `sound`; None if it is another file, which has its own."""
        return self.found.zero if sound == self.found.path else None

    def track(self, sound: Path) -> str:
        """Which of several tracks is heard, in words; "" if there is one, or if the sound is of another file."""
        return self.found.track if sound == self.found.path else ""

    @property
    def faults(self) -> list[str]:
        """What is missing from the file, in words."""
        return [self.found.truncated] if self.found.truncated else []

    def some(self, places: Sequence[int]) -> Iterator[tuple[int, np.ndarray | MediaError]]:
        """(place, RGB uint8 (H, W, 3), upright, or the error where there is none) for each place; they must ascend."""
        requests = [(place + 1, float(self.times[place])) for place in places]
        for index, picture in decode_frames(self.found.path, requests, self.found):
            yield places[index], picture

    def all(self) -> Iterator[tuple[int, np.ndarray]]:
        """(place, RGB uint8 (H, W, 3), upright) for every frame that can be decoded."""
        return decode_all(self.found)


@dataclass(frozen=True, eq=False)
class Still:
    """A picture, RGB uint8 (H, W, 3), shown for `seconds`, with the properties of a `Video`."""

    picture: np.ndarray
    seconds: float

    @cached_property
    def times(self) -> np.ndarray:
        return self.ticks / STILL_RATE

    @property
    def ticks(self) -> np.ndarray:
        return np.arange(max(1, round(self.seconds * STILL_RATE)))

    @property
    def time_base(self) -> Fraction:
        return Fraction(1, STILL_RATE)

    @property
    def frame_rate(self) -> float:
        return float(STILL_RATE)

    def aspect(self, width: int, height: int) -> Fraction | None:
        return None

    def zero(self, sound: Path) -> float | None:
        return None

    def track(self, sound: Path) -> str:
        return ""

    @property
    def faults(self) -> list[str]:
        return []

    def some(self, places: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        return ((place, self.picture) for place in places)

    def all(self) -> Iterator[tuple[int, np.ndarray]]:
        return self.some(range(len(self.times)))


Footage = Video | Still


def is_picture(path: Path) -> bool:
    """Whether the file's name says that it is a picture."""
    return path.suffix.lower() in PICTURES


def read_picture(path: Path) -> np.ndarray:
    """A picture file as RGB uint8 (H, W, 3), turned as its Exif data asks. InputError if Pillow cannot read it."""
    try:
        with Image.open(path, formats=_FORMATS) as picture:  # Pillow starts other programs to read some formats
            if wrong := limits.picture(picture.width, picture.height):
                raise InputError(f"{path}: {wrong}; scale it down")
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not a picture that Pillow reads ({error}); give a JPEG or PNG file") from error
