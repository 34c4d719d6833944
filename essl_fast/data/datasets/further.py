"""What some data sets say of a pair beyond its boxes: a mask, that its sound is not in the frame, its frame's name, and
which of its boxes is of which class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from essl_fast.common.errors import InputError
from essl_fast.data.datasets.annotations import GRID

MASK_BYTES = GRID * GRID // 8
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # Pillow starts other programs to read some other formats


@dataclass(frozen=True)
class Further:
    """All of it, by the keys of the pairs. A mapping that is not empty holds the pairs that it is about.

    Attributes:
        masks: key -> the pixels of the sounding object on the 224 grid, a bit each, row by row (`packed_mask`).
        negatives: keys of pairs whose sound has no source in the frame: silence, or something off-screen.
        scenes: key -> a name that the pairs of one frame share, where a frame has several sources.
        box_classes: key -> the class of each of its boxes, for pairs whose boxes are of several classes. The boxes of
            all others are of the pair's class.
    """

    masks: Mapping[str, bytes] = field(default_factory=dict)
    negatives: frozenset[str] = frozenset()
    scenes: Mapping[str, str] = field(default_factory=dict)
    box_classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def columns(
        self, keys: list[str], classes: Sequence[str], class_id: np.ndarray, boxes: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The columns of a manifest for these pairs (N): mask (N, 6272) uint8, negative (N,), scene (N,) int32,
        box_class (N, K) int32, which is -1 for a padding box.

        A pair without a mask has an empty one; a pair without a scene is alone in its own. Columns about which the data
        set says nothing are left out.

        Args:
            keys, class_id, boxes: of the pairs: (N,), (N,) and (N, K, 4).
            classes: the names, which `class_id` counts.
        """
        found: dict[str, np.ndarray] = {}
        if self.masks:
            empty = bytes(MASK_BYTES)
            packed = b"".join(self.masks.get(key, empty) for key in keys)
            found["mask"] = np.frombuffer(packed, np.uint8).reshape(len(keys), MASK_BYTES)
        if self.negatives:
            found["negative"] = np.array([key in self.negatives for key in keys], bool)
        if self.scenes:
            names = [self.scenes.get(key, f"\0{key}") for key in keys]
            found["scene"] = np.unique(names, return_inverse=True)[1].astype(np.int32)
        if self.box_classes:
            number = {name: at for at, name in enumerate(classes)}
            box_class = np.where(boxes.any(axis=2), class_id[:, None], -1).astype(np.int32)
            for row, key in enumerate(keys):
                for at, name in enumerate(self.box_classes.get(key, ())):
                    box_class[row, at] = number[name]
            found["box_class"] = box_class
        return found

    def digest(self) -> str:
        """A short hash of it; "" if there is nothing. Classes of boxes follow from the annotations and do not count."""
        if not (self.masks or self.negatives or self.scenes):
            return ""
        state = hashlib.blake2b(digest_size=8)
        state.update(repr((sorted(self.negatives), sorted(self.scenes.items()))).encode())
        for key in sorted(self.masks):
            state.update(key.encode() + self.masks[key])
        return state.hexdigest()


def read_mask(path: Path) -> np.ndarray:
    """A picture's pixels that are not black, on the 224 grid: bool (224, 224), the nearest pixel of each.

    Raises:
        InputError: the file is missing, or is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > 1 << 26:
                raise InputError(f"{path} has {picture.width}x{picture.height} pixels: is it a mask?")
            pixels = np.asarray(picture.convert("L") if picture.mode != "P" else picture)
    except FileNotFoundError:
        raise InputError(f"{path} is not there: it should be the mask of the sounding object") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path} cannot be read as a mask ({error}): fetch it again") from None
    rows, columns = ((np.arange(GRID) + 0.5) * side // GRID for side in pixels.shape[:2])
    chosen = pixels[rows.astype(int)[:, None], columns.astype(int)[None, :]]
    # JPEG is not exact: what is nearly black is background. Pictures of other kinds hold 0 there.
    return chosen > (127 if path.suffix.lower() in (".jpg", ".jpeg") else 0)


def packed_mask(mask: np.ndarray) -> bytes:
    """A mask bool (224, 224) as `Further.masks` holds it."""
    return np.packbits(mask).tobytes()


def box_of(mask: np.ndarray) -> list[int] | None:
    """The smallest box, xyxy, half-open, on the 224 grid, around a mask bool (224, 224); None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
