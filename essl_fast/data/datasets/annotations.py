"""The form in which every reader gives a data set's annotations: pairs, and a list of what was left out.

Nothing is dropped silently: whatever cannot become a pair is a `LeftOut` with its reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from essl_fast.data.datasets.pairs import Pairs

GRID = 224  # side of the grid of boxes and heatmaps, in pixels
SPLITS = ("train", "val", "test")
LONGEST_NAME = 240  # bytes of a video's name; a file system allows 255, with the file's extension

NO_FILE = "annotation file missing"
NO_ROWS = "no annotations"
NO_LABEL = "not annotated"
NO_BOX = "no box"
OUTSIDE = "box outside the frame"
INVERTED = "box inverted"
EMPTY = "box smaller than a grid pixel"
BAD_FRAME = "frame number below 1"
NO_FRAMES = "no box for each frame"


@dataclass(frozen=True, order=True, slots=True)
class LeftOut:
    """Something that did not become a pair. `key` is "" if it is the whole video."""

    video: str
    key: str
    reason: str
    detail: str

    def as_json(self) -> dict:
        return {"video": self.video, "key": self.key or None, "reason": self.reason, "detail": self.detail}


@dataclass
class BoxSizes:
    """How boxes lie in the frames that they are said to be drawn on.

    Attributes:
        frame: width and height of these frames, pixels; None if boxes come without a size.
        count: boxes that were read.
        outside: those that leave the frame by more than half a pixel, and are clamped to it.
        largest: the largest x and y of a corner.
    """

    frame: tuple[int, int] | None = None
    count: int = 0
    outside: int = 0
    largest: tuple[float, float] = (0.0, 0.0)

    def add(self, boxes: Sequence[Sequence[float]]) -> None:
        """Count some boxes: xyxy, pixels of the frame."""
        assert self.frame is not None  # whose boxes are counted
        width, height = self.frame
        for x1, y1, x2, y2 in boxes:
            right, below = max(x1, x2), max(y1, y2)
            self.count += 1
            self.outside += right > width + 0.5 or below > height + 0.5 or min(x1, x2, y1, y2) < -0.5
            self.largest = max(self.largest[0], right), max(self.largest[1], below)

    def doubt(self) -> str:
        """Why the boxes seem to be drawn on frames of another size, in words; "" if they do not."""
        if not self.count or self.frame is None:
            return ""
        (width, height), (x, y) = self.frame, self.largest
        most = f"the largest coordinates are {x:g} and {y:g}"
        if self.outside > _MOST_OUTSIDE * self.count or x > 1.2 * width or y > 1.2 * height:
            share = 100 * self.outside / self.count
            what = (
                f"{self.outside} of {self.count} boxes ({share:.0f}%) leave frames of {width}x{height} and are clamped"
            )
            return f"{what}; {most}"
        if self.count >= _MANY and 2 * x < width and 2 * y < height:
            return f"all {self.count} boxes lie in the upper left quarter of frames of {width}x{height}; {most}"
        return ""


_MOST_OUTSIDE, _MANY = 0.02, 20  # share of boxes; boxes


@dataclass(frozen=True)
class Annotations:
    """Everything that was read from a data set's annotations.

    Attributes:
        pairs: in the order of the lists and of their rows.
        left_out: what could not become a pair, each with its reason.
        videos: split → names of its videos, also of videos without any pair. Taken from `pairs` if it is not given.
        rows: how many rows were read.
        merged: how many of these rows joined the pair of an earlier row.
        further: how many boxes `row_boxes="first"` ignored.
        sizes: how the boxes lie in their frames, where the reader counts that.
        box_classes: key -> the class of each of its boxes, of pairs whose boxes are of several classes.
    """

    pairs: Pairs
    left_out: list[LeftOut] = field(default_factory=list)
    videos: dict[str, list[str]] = field(default_factory=dict)
    rows: int = 0
    merged: int = 0
    further: int = 0
    sizes: BoxSizes = field(default_factory=BoxSizes)
    box_classes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.videos:
            for name, split, _ in self.pairs.videos():
                self.videos.setdefault(split, []).append(name)


def boxes_to_grid(boxes, width: float, height: float, size: int = GRID) -> np.ndarray:
    """Scale annotation boxes to the grid: int(x / width * size) in float64, truncated, clamped to [0, size].

    Args:
        boxes: (K, 4) xyxy numbers, pixels of a frame of `width` x `height`.
        width: of that frame, in the units of the boxes.
        height: likewise.
        size: side of the grid, pixels.

    Returns:
        int32 (K, 4) xyxy, pixels of the grid.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    scaled = np.trunc(boxes / np.array([width, height, width, height], np.float64) * size)
    return np.clip(scaled, 0, size).astype(np.int32)


def reason_for_no_area(box: Sequence[float], width: float, height: float) -> str:
    """Why an annotation box (xyxy, in pixels of a `width` x `height` frame) covers no pixel of the grid."""
    if box[2] < box[0] or box[3] < box[1]:
        return INVERTED
    outside = box[2] <= 0 or box[3] <= 0 or box[0] >= width or box[1] >= height
    return OUTSIDE if outside else EMPTY


def choose_validation(videos: Sequence[str], fraction: float, seed: int) -> set[str]:
    """The videos that become the split `val`.

    They are the round(fraction * n) lowest by a hash of (seed, name), so the choice does not depend on the order of
    `videos`. If fraction > 0 and there are two or more videos, at least one is chosen, and never all.
    """
    count = round(fraction * len(videos))
    if fraction > 0 and len(videos) >= 2:
        count = min(max(count, 1), len(videos) - 1)
    return set(sorted(videos, key=lambda name: stable_rank(seed, name))[:count])


def stable_rank(seed: int, name: str) -> bytes:
    """16 bytes that put names into a random order, the same on every machine and with every library version."""
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()


def digest(annotations: Annotations) -> str:
    """A short hash of everything that was read. It shows whether annotations changed between two runs."""
    state = hashlib.blake2b(digest_size=8)
    annotations.pairs.digest(state)
    for left in sorted(annotations.left_out):
        state.update(repr(left).encode())
    return state.hexdigest()
