"""`preview.png`: some pairs of a prepared folder with their boxes, so that one look tells whether the boxes fit."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw

from essl_fast.common.files import atomic_file
from essl_fast.data import media
from essl_fast.data.datasets import GRID
from essl_fast.data.shards import Manifest
from essl_fast.prepare.verifying import decode_frame, read_pair

PAIRS, COLUMNS = 16, 4
_WIDTH, _HEIGHT, _TEXT = 160, 120, 14  # pixels of a picture's place and of the line under it
_GREEN, _GREY, _WHITE = (0, 255, 0), (32, 32, 36), (235, 235, 235)


def write_preview(manifest: Manifest) -> None:
    """Write `preview.png`: PAIRS pairs, evenly spread over those with boxes, or over all if none has any.

    Raises:
        OSError: it cannot be written.
    """
    rows = np.flatnonzero(manifest.labelled)
    rows = rows if len(rows) else np.arange(len(manifest))
    places = np.linspace(0, len(rows) - 1, min(PAIRS, len(rows))).round().astype(int)
    rows = rows[sorted(set(places.tolist()))]  # np.unique would import for 0.1 s
    down = -(-len(rows) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * _WIDTH, max(down, 1) * (_HEIGHT + _TEXT)), _GREY)
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows.tolist()):
        left, top = number % COLUMNS * _WIDTH, number // COLUMNS * (_HEIGHT + _TEXT)
        key = manifest.key(row)
        draw.text((left + 2, top + _HEIGHT), key[-26:].encode("ascii", "replace"), fill=_WHITE)
        picture = _picture(manifest, row)
        if picture is not None:
            sheet.paste(picture, (left, top))
    with atomic_file(manifest.root / "preview.png") as file:
        file.write(_png(np.asarray(sheet)))


def _png(rgb: np.ndarray) -> bytes:
    """A picture, uint8 (H, W, 3), as a PNG file. Pillow would import all its formats for that, which takes 0.1 s."""
    encoder: Any = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = rgb.shape[:2]
    encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1)
    encoder.options = {"compression_level": "1"}
    return b"".join(map(bytes, encoder.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")) + encoder.encode(None)))


def _picture(manifest: Manifest, row: int) -> Image.Image | None:
    """A pair's picture with its boxes, in its place's size at most; None if it cannot be decoded."""
    data, kind, target, _ = read_pair(manifest, row)
    try:
        rgb = decode_frame(data, kind, target)
    except (media.MediaError, ValueError, OSError):
        return None  # `--verify` lists it
    picture = Image.fromarray(rgb)
    picture.thumbnail((_WIDTH, _HEIGHT))
    draw = ImageDraw.Draw(picture)
    for box in manifest.boxes[row].tolist():
        if box[2] > box[0] and box[3] > box[1]:
            x, y = picture.width / GRID, picture.height / GRID
            corners = [box[0] * x, box[1] * y, max(box[2] * x - 1, box[0] * x), max(box[3] * y - 1, box[1] * y)]
            draw.rectangle(corners, outline=_GREEN)
    return picture
