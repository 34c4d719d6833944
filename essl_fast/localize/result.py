"""What is written beside the video: the contact sheet, and the moments as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from essl_fast.data.media.footage import Footage
from essl_fast.localize.drawing import Overlay, contact_sheet
from essl_fast.localize.moments import Localization, Moment

COLUMNS = 4  # pictures in a row of the contact sheet
LEGEND = "heat: similarity with the sound, on one scale for the whole video; white: threshold"
GREEN = "; green: ground truth"  # where there is any
FORMAT, VERSION = "essl_fast localization", 2  # 1 scaled the heat of each moment by itself


def sheet(found: Localization, threshold: float = 0.5, opacity: float = 0.6) -> bytes:
    """The contact sheet, as a PNG."""
    pictures, titles = [], []
    for moment, thumb in found.thumbs:
        height, width = thumb.shape[:2]
        heat = found.heat(moment)
        x, y = width / found.width, height / found.height
        boxes = [(x1 * x, y1 * y, x2 * x, y2 * y) for x1, y1, x2, y2 in moment.truth]
        pictures.append(Overlay.of(thumb, threshold, opacity).blend(thumb, heat, boxes))
        score = f"score {moment.regions[0].score:.2f}" if moment.regions else moment.why or "no region"
        titles.append(f"{moment.time:.2f} s: {score}" + ("" if moment.ciou is None else f", cIoU {moment.ciou:.2f}"))
    green = GREEN if any(moment.truth for moment, _ in found.thumbs) else ""
    return contact_sheet(pictures, titles, COLUMNS, LEGEND + green)


def document(found: Localization, footage: Footage, rate: float, threshold: float, about: dict[str, str]) -> dict:
    """The content of the JSON file. about: which files it is of."""
    return {
        "format": FORMAT,
        "version": VERSION,
        **about,
        "width": found.width,
        "height": found.height,
        "frames": len(footage.times),
        "frame_rate": footage.frame_rate,
        "rate": rate,
        "threshold": threshold,
        "min_score": found.min_score,
        "scale": found.scale and asdict(found.scale),
        "notes": found.notes,
        "faults": found.faults,
        "moments": [_moment(moment) for moment in found.moments],
    }


def _moment(moment: Moment) -> dict:
    entry: dict[str, Any] = {"time": round(moment.time, 6), "frame": moment.frame, "sound": moment.sound}
    if moment.score is not None:
        entry["score"] = round(moment.score, 4)
    entry["regions"] = [asdict(region) for region in moment.regions]
    if moment.why:
        entry["why"] = moment.why
    if moment.truth:
        entry |= {"truth": moment.truth, "ciou": moment.ciou}
    return entry
