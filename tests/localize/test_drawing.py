"""Heat over pictures: connected regions against a flood fill, what is blended, and what stays as it was."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from essl_fast.localize.drawing import GREEN, WHITE, Overlay, contact_sheet, fit, regions, shrink


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


@given(arrays.arrays(np.float64, (7, 9), elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])))
def test_regions_are_those_of_a_flood_fill(heat):
    found = regions(heat, 0.5)
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
    (region,) = regions(heat, 0.5)
    assert region.box == (0, 0, 9, 9) and region.area == int(heat.sum())


def test_where_there_is_no_heat_the_picture_stays():
    picture = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    overlay = Overlay(160, 90)
    assert np.array_equal(overlay.blend(picture, None), picture)
    heat = np.zeros((224, 224))
    heat[:, :56] = 1  # the left quarter
    blended = overlay.blend(picture, heat)
    assert np.array_equal(blended[:, 45:], picture[:, 45:])
    red = blended[:, 5:30].astype(int) - picture[:, 5:30]
    assert red[..., 0].mean() > 20 > red[..., 2].mean()
    assert (blended[45] == WHITE).all(-1).sum() == overlay.line  # the contour, once across this row
    assert np.flatnonzero((blended[45] == WHITE).all(-1)).tolist() == pytest.approx([39.5], abs=1)


def test_boxes_are_drawn_inside_the_picture_alone():
    picture = np.zeros((90, 160, 3), np.uint8)
    drawn = Overlay(160, 90).blend(
        picture, None, [(10.2, 20, 50, 60), (-30, -30, 5, 500), (70, 70, 70, 80), (200, 1, 300, 9)]
    )
    green = (drawn == GREEN).all(-1)
    assert green[20, 10:50].all() and green[59, 10:50].all() and green[20:60, 10].all() and green[20:60, 49].all()
    assert not green[21:59, 11:49].any() and green[:, 4].all() and not green[:, 60:].any()
    assert not picture.any()


def test_shrink_and_contact_sheet():
    picture = np.full((180, 320, 3), 77, np.uint8)
    assert fit(picture, 320, 180) is picture and fit(picture, 100, 50).shape == (50, 100, 3)
    assert shrink(picture, 160).shape == (90, 160, 3) and shrink(picture, 999) is picture
    with Image.open(io.BytesIO(contact_sheet([picture] * 5, [f"{n} s" for n in range(5)], 4, "legend"))) as sheet:
        assert sheet.format == "PNG" and sheet.width > 4 * 320 and 2 * 180 < sheet.height < 3 * 180
        assert sheet.getpixel((100, 100)) == (77, 77, 77)
