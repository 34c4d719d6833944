"""Heat over pictures: what is blended, and what stays as it was."""

import io

import numpy as np
import pytest
from PIL import Image

from essl_fast.localize.drawing import GREEN, WHITE, Overlay, contact_sheet, fit, shrink


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
