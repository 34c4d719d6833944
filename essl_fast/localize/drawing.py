"""Heat over pictures: blending, contours, boxes, contact sheets. NumPy and Pillow, no window system.

Heat over a picture of 1920 x 1080 pixels, with its contour, takes 20 ms on one core of an AMD EPYC. Pillow's own loops
do what is done to every pixel: with NumPy, whose look-ups by rows of three bytes are slow, it took 45 ms.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

WHITE, GREEN = (255, 255, 255), (64, 255, 64)


class Region(NamedTuple):
    """A connected part of a thresholded map. box: xyxy, half-open, in the map's pixels; area: pixels; peak: (row,
    column) of its largest value."""

    box: tuple[int, int, int, int]
    area: int
    peak: tuple[int, int]


def regions(heat: np.ndarray, threshold: float) -> list[Region]:
    """The connected parts (by sides and corners) of a heatmap (h, w) at or above the threshold, the hottest first.

    A constant map has none, as in the metric.
    """
    mask = heat >= threshold
    if heat.max() <= heat.min():
        return []
    # Runs of each row, joined with those of the row before: a few hundred of them, where pixels are 50,000.
    edges = np.diff(mask.astype(np.int8), axis=1, prepend=0, append=0)
    begins, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)[:, 1]
    runs = [(int(y), int(a), int(b)) for (y, a), b in zip(begins, ends, strict=True)]
    parent = list(range(len(runs)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    above: list[int] = []
    row: list[int] = []
    for number, (y, a, b) in enumerate(runs):
        if number and runs[number - 1][0] != y:
            above, row = (row if runs[number - 1][0] == y - 1 else []), []
        for other in above:
            if runs[other][1] <= b and a <= runs[other][2]:
                parent[root(other)] = root(number)
        row.append(number)
    parts: dict[int, list[tuple[int, int, int]]] = {}
    for number, run in enumerate(runs):
        parts.setdefault(root(number), []).append(run)
    found = []
    for members in parts.values():
        hottest = max(((y, a + int(heat[y, a:b].argmax())) for y, a, b in members), key=lambda at: heat[at])
        box = min(a for _, a, _ in members), members[0][0], max(b for *_, b in members), members[-1][0] + 1
        found.append(Region(box, sum(b - a for _, a, b in members), hottest))
    return sorted(found, key=lambda region: -heat[region.peak])


def _palette() -> np.ndarray:
    """Colours (256, 3) of heat 0 to 255: black, blue, purple, red, orange."""
    stops = np.array([[0, 0, 4], [50, 10, 120], [150, 10, 140], [230, 20, 70], [255, 70, 10], [255, 140, 0]])
    at = np.linspace(0, 255, len(stops))
    return np.stack([np.interp(np.arange(256), at, channel) for channel in stops.T], axis=1)


class Overlay:
    """Blends heat into pictures of one size.

    opacity: of the hottest place; it falls off with the heat, so that a picture without heat is the picture itself.
    """

    def __init__(self, width: int, height: int, threshold: float = 0.5, opacity: float = 0.6) -> None:
        self.width, self.height, self.threshold = width, height, threshold
        self.line = max(1, round(min(width, height) / 270))  # pixels across a contour or a box's side
        self._palette = _palette().round().astype(np.uint8).tobytes()
        self._mask = [round(255 * opacity * (level / 255) ** 0.8) for level in range(256)]

    @classmethod
    def of(cls, picture: np.ndarray, threshold: float = 0.5, opacity: float = 0.6) -> Overlay:
        """For pictures of this one's size."""
        return cls(picture.shape[1], picture.shape[0], threshold, opacity)

    def blend(self, picture: np.ndarray, heat: np.ndarray | None, boxes: Sequence[Sequence[float]] = ()) -> np.ndarray:
        """A picture (height, width, 3) uint8 under a heatmap (h, w) in [0, 1], with the contour at the threshold in
        white and `boxes` (xyxy, pixels of the picture) in green; a new array. No heat: the picture and its boxes."""
        if heat is None:
            out = picture.copy()
        else:
            levels = Image.fromarray(np.round(heat * 255).astype(np.uint8))
            levels = levels.resize((self.width, self.height), Image.Resampling.BILINEAR)
            inside = np.asarray(levels) >= self.threshold * 255
            mask = levels.point(self._mask)
            levels.putpalette(self._palette)  # from here on the levels are colours
            out = np.array(Image.composite(levels.convert("RGB"), Image.fromarray(picture), mask))
            out[self._contour(inside)] = WHITE
        for box in boxes:
            self._frame(out, box)
        return out

    def _contour(self, inside: np.ndarray) -> np.ndarray:
        """Pixels (height, width) bool of a mask whose neighbour `line` pixels on lies on the other side."""
        edge, n = np.zeros_like(inside), self.line
        down, right = inside[n:] != inside[:-n], inside[:, n:] != inside[:, :-n]
        edge[: len(down)] |= down
        edge[:, : right.shape[1]] |= right
        return edge

    def _frame(self, picture: np.ndarray, box: Sequence[float]) -> None:
        n, limits = self.line, (self.width, self.height, self.width, self.height)
        x1, y1, x2, y2 = (min(max(round(value), 0), limit) for value, limit in zip(box, limits, strict=True))
        if x2 > x1 and y2 > y1:
            part = picture[y1:y2, x1:x2]
            part[:n], part[-n:], part[:, :n], part[:, -n:] = GREEN, GREEN, GREEN, GREEN


def fit(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 at that size: the picture itself, but where a video changes its size on the way."""
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def shrink(picture: np.ndarray, width: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 at `width` pixels or its own width, whichever is less."""
    if picture.shape[1] <= width:
        return picture
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def contact_sheet(pictures: Sequence[np.ndarray], titles: Sequence[str], columns: int, legend: str) -> bytes:
    """Pictures (h, w, 3) uint8 of one size in rows, each under its title, as a PNG."""
    height, width = pictures[0].shape[:2]
    gap, text = 8, 18
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    size = columns * (width + gap) + gap, rows * (height + text + gap) + gap + text
    sheet = Image.new("RGB", size, (24, 24, 28))
    draw = ImageDraw.Draw(sheet)
    for number, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        left, top = gap + number % columns * (width + gap), gap + number // columns * (height + text + gap)
        draw.text((left, top), title, fill=WHITE)
        sheet.paste(Image.fromarray(picture), (left, top + text))
    draw.text((gap, size[1] - text), legend, fill=(190, 190, 190))
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()
