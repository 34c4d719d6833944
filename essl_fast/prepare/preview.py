"""`preview.png`: some pairs with their boxes, so that one look tells whether the boxes fit."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw

from essl_fast.common.files import atomic_file
from essl_fast.data import media
from essl_fast.data.datasets import GRID
from essl_fast.data.shards import Manifest
from essl_fast.prepare.verifying import decode_frame, read_pair

PREVIEW = "preview.png"
PAIRS, COLUMNS = 16, 4
_WIDTH, _HEIGHT, _TEXT = 160, 120, 14  # pixels of a picture's place and of the line under it
_GREEN, _GREY, _WHITE = (0, 255, 0), (32, 32, 36), (235, 235, 235)


def write_preview(manifest: Manifest) -> None:
    """Write `preview.png` of a finished folder: see :func:`draw_preview`.

    Raises:
        OSError: it cannot be written.
    """
    rows = spread(manifest.labelled)
    pictures = [(manifest.key(row), _picture(manifest, row), manifest.boxes[row].tolist()) for row in rows]
    draw_preview(manifest.root / PREVIEW, pictures)
    manifest.publish(PREVIEW)


def spread(labelled: np.ndarray) -> list[int]:
    """Which pairs a preview shows: PAIRS of them, evenly spread over those with boxes, or over all if none has any.

    labelled: (N,) bool, whether each pair has boxes.
    """
    rows = np.flatnonzero(labelled)
    rows = rows if len(rows) else np.arange(len(labelled))
    places = np.linspace(0, len(rows) - 1, min(PAIRS, len(rows))).round().astype(int)
    return rows[sorted(set(places.tolist()))].tolist()  # np.unique would import for 0.1 s


def draw_preview(path: Path, pictures: Sequence[tuple[str, np.ndarray | None, Sequence[Sequence[int]]]]) -> None:
    """Draw pairs with their boxes on one sheet.

    Args:
        path: PNG file.
        pictures: of each pair its key; its frame, uint8 (H, W, 3), or None if it cannot be decoded; its boxes, xyxy on
            the 224 grid.

    Raises:
        OSError: it cannot be written.
    """
    down = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * _WIDTH, max(down, 1) * (_HEIGHT + _TEXT)), _GREY)
    draw = ImageDraw.Draw(sheet)
    for number, (key, rgb, boxes) in enumerate(pictures):
        left, top = number % COLUMNS * _WIDTH, number // COLUMNS * (_HEIGHT + _TEXT)
        draw.text((left + 2, top + _HEIGHT), _shown(key), fill=_WHITE)
        if rgb is not None:
            sheet.paste(_with_boxes(rgb, boxes), (left, top))
    with atomic_file(path) as file:
        file.write(_png(np.asarray(sheet)))


def _shown(key: str) -> str:
    """The end of a pair's key, in the letters that every font has."""
    return key[-26:].encode("ascii", "replace").decode()


def _png(rgb: np.ndarray) -> bytes:
    """A picture, uint8 (H, W, 3), as a PNG file. Pillow would import all its formats for that, which takes 0.1 s."""
    encoder: Any = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = rgb.shape[:2]
    encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1)
    encoder.options = {"compression_level": "1"}
    return b"".join(map(bytes, encoder.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")) + encoder.encode(None)))


def _picture(manifest: Manifest, row: int) -> np.ndarray | None:
    """A pair's picture; None if it cannot be decoded."""
    data, kind, target, _ = read_pair(manifest, row)
    try:
        return decode_frame(data, kind, target)
    except (media.MediaError, ValueError, OSError):
        return None  # `--verify` lists it


def _with_boxes(rgb: np.ndarray, boxes: Sequence[Sequence[int]]) -> Image.Image:
    """A picture with its boxes, in its place's size at most."""
    picture = Image.fromarray(rgb)
    picture.thumbnail((_WIDTH, _HEIGHT))
    draw = ImageDraw.Draw(picture)
    for box in boxes:
        if box[2] > box[0] and box[3] > box[1]:
            x, y = picture.width / GRID, picture.height / GRID
            corners = [box[0] * x, box[1] * y, max(box[2] * x - 1, box[0] * x), max(box[3] * y - 1, box[1] * y)]
            draw.rectangle(corners, outline=_GREEN)
    return picture
