"""The connected parts of a heatmap at or above a threshold, with NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class MapRegion(NamedTuple):
    """A connected part of a heatmap.

    box: xyxy, half-open, in pixels of the map. area: pixels. peak: (row, column) of the largest value.
    """

    box: tuple[int, int, int, int]
    area: int
    peak: tuple[int, int]


class _Run(NamedTuple):
    """Pixels begin to end - 1 of a row, all at or above the threshold."""

    row: int
    begin: int
    end: int


def find_regions(heat: np.ndarray, threshold: float) -> list[MapRegion]:
    """The parts of a heatmap (h, w) at or above the threshold that touch by sides or corners, the hottest first.

    A constant map has none, as in the metric.
    """
    if heat.max() <= heat.min():
        return []
    # Runs of pixels in a row are joined instead of pixels: there are a few hundred runs and 50,000 pixels.
    edges = np.diff((heat >= threshold).astype(np.int8), axis=1, prepend=0, append=0)
    begins, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)[:, 1]
    runs = [_Run(int(y), int(a), int(b)) for (y, a), b in zip(begins, ends, strict=True)]
    found = []
    for part in _connected(runs):
        hottest = max(((y, a + int(heat[y, a:b].argmax())) for y, a, b in part), key=lambda at: heat[at])
        box = min(run.begin for run in part), part[0].row, max(run.end for run in part), part[-1].row + 1
        found.append(MapRegion(box, sum(run.end - run.begin for run in part), hottest))
    return sorted(found, key=lambda region: -heat[region.peak])


def _connected(runs: list[_Run]) -> list[list[_Run]]:
    """The runs, given row by row, in groups that are connected (union-find)."""
    parent = list(range(len(runs)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    above: list[int] = []  # runs of the row above
    row: list[int] = []  # runs of this row so far
    for number, run in enumerate(runs):
        if number and runs[number - 1].row != run.row:
            above, row = (row if runs[number - 1].row == run.row - 1 else []), []
        for other in above:
            if runs[other].begin <= run.end and run.begin <= runs[other].end:
                parent[root(other)] = root(number)
        row.append(number)
    parts: dict[int, list[_Run]] = {}
    for number, run in enumerate(runs):
        parts.setdefault(root(number), []).append(run)
    return list(parts.values())
