"""The connected regions of a heatmap, against a flood fill."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from essl_fast.localize.regions import find_regions


def flooded(mask: np.ndarray) -> set[tuple]:
    """(box, area) of each part that is connected by sides or corners, found pixel by pixel."""
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, set()
    while left:
        todo, part = [left.pop()], []
        while todo:
            y, x = todo.pop()
            part.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            todo += near
        ys, xs = zip(*part, strict=True)
        found.add(((min(xs), min(ys), max(xs) + 1, max(ys) + 1), len(part)))
    return found


@settings(derandomize=True, database=None, deadline=None)  # the same examples everywhere, however long one takes
@given(arrays.arrays(np.float64, (7, 9), elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])))
def test_regions_are_those_of_a_flood_fill(heat):
    found = find_regions(heat, 0.5)
    if heat.max() == heat.min():
        assert not found
        return
    assert len(found) == len({(region.box, region.area, region.peak) for region in found})
    assert {(region.box, region.area) for region in found} == flooded(heat >= 0.5)
    assert [heat[region.peak] for region in found] == sorted((heat[region.peak] for region in found), reverse=True)
    for (x1, y1, x2, y2), _, (y, x) in found:
        assert y1 <= y < y2 and x1 <= x < x2 and heat[y, x] >= 0.5


def test_a_spiral_is_one_region():
    heat = np.zeros((9, 9))
    heat[0], heat[:, 8], heat[8], heat[2:, 0], heat[2, :7], heat[2:7, 6] = 1, 1, 1, 1, 1, 1
    (region,) = find_regions(heat, 0.5)
    assert region.box == (0, 0, 9, 9) and region.area == int(heat.sum())
