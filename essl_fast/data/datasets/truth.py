"""Ground-truth boxes to draw on a video: a file of them, or Chaotic World's annotations.

    FILE.json    [{"time": seconds or "fid": frame counted from 1, "boxes": [[x1, y1, x2, y2], ...]}, ...]
    FILE.csv     the same in columns: time or fid, and bbox
    FOLDER       Chaotic World's tree: annotation/frame/<video>.csv, or, if it is missing, annotation/group/<video>.csv

Boxes are xyxy, in pixels of the video as it is shown; those of a folder are in pixels of the annotated 320x180 frames.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from essl_fast.common.errors import InputError, short
from essl_fast.common.files import parse_json
from essl_fast.data.datasets.tables import Table, is_box, is_number, read_text
from essl_fast.data.media import find_file

ANNOTATED = (320, 180)  # width and height of Chaotic World's annotated frames, pixels
_LONGEST_SPAN = 1 << 20  # frames of a sound, 10 h
_HELD = 0.5  # seconds that a box stays on screen if the next frames have none of their own
_FRAME, _TIME = ("fid", "frame", "frame_id"), ("time", "timestamp")
_SPAN = {"start_fid": True, "end_fid": True, "bbox": True}

Box = tuple[float, float, float, float]
_EXAMPLE = '{"time": 1.5, "boxes": [[12, 30, 100, 150]]}'


@dataclass(frozen=True)
class Truth:
    """Boxes at moments of a video."""

    at: list[float]  # the moments, ascending: frames counted from 1, or seconds
    boxes: list[list[Box]]  # of each moment
    by_frame: bool  # `at` counts frames
    size: tuple[int, int] | None  # width and height of the frames that the boxes refer to; None: those of the video

    def of(self, fid: int, time: float, rate: float, width: int, height: int) -> tuple[list[Box], bool]:
        """The boxes to draw on a frame.

        Args:
            fid: number of the frame, from 1.
            time: when it is shown, seconds.
            rate: frames per second.
            width: of the video, pixels.
            height: likewise.

        Returns:
            (boxes in pixels of the video, whether they belong to this frame and not to an earlier one).
        """
        # Written times are rounded, so they may be a little later than that of their frame.
        here, unit = (fid, 1 / rate) if self.by_frame else (time + 0.5 / rate, 1.0)
        number = bisect_right(self.at, here) - 1
        if number < 0 or (here - self.at[number]) * unit > _HELD:
            return [], False
        own = here - self.at[number] < (1 if self.by_frame else 1 / rate)
        x, y = (width / self.size[0], height / self.size[1]) if self.size else (1.0, 1.0)
        return [(x1 * x, y1 * y, x2 * x, y2 * y) for x1, y1, x2, y2 in self.boxes[number]], own


def read_truth(path: str | Path, video: str, size: tuple[int, int] | None = None) -> Truth:
    """Read the boxes of a file, or those of one video in a folder.

    Args:
        path: the file or folder (see above).
        video: the name of the video in the folder.
        size: width and height of the frames that the boxes refer to, if it is another than above.

    Raises:
        InputError: there are no boxes, or the file is malformed.
    """
    path = Path(path)
    if path.is_dir():
        table = next(
            filter(None, (find_file(path / "annotation" / kind, video, (".csv",)) for kind in ("frame", "group"))), None
        )
        if table is None:
            raise InputError(
                f"{path} has neither annotation/frame/{video}.csv nor annotation/group/{video}.csv; name the folder "
                "that holds annotation/, or give a JSON or CSV file of boxes"
            )
        rows = _spans(table) if table.parent.name == "group" else _rows(table)
        return _truth(rows, size or ANNOTATED, table)
    if not path.is_file():
        raise InputError(f"--boxes: there is no file or folder {path}")
    return _truth(_entries(path) if path.suffix.lower() == ".json" else _rows(path), size, path)


def _truth(rows: Iterable[tuple[bool, float, list]], size: tuple[int, int] | None, path: Path) -> Truth:
    """Join the rows of each moment. rows: (whether `at` is a frame, at, boxes)."""
    found: dict[float, list[Box]] = {}
    kinds = set()
    for by_frame, at, boxes in rows:
        kinds.add(by_frame)
        found.setdefault(at, []).extend((float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in boxes)
    if len(kinds) != 1:
        raise InputError(f"{path} has no boxes" if not kinds else f"{path} counts frames here and seconds there")
    moments = sorted(found)
    return Truth(moments, [found[at] for at in moments], kinds.pop(), size)


def _rows(path: Path) -> Iterable[tuple[bool, float, list]]:
    table = Table(path, {_FRAME: False, _TIME: False, "bbox": True})
    if not {_FRAME, _TIME} & set(table.columns):
        raise InputError(f"{path} line 1: there is neither a column fid nor a column time; add one")
    by_frame = _FRAME in table.columns
    for row in table.rows():
        yield by_frame, row.integer(_FRAME) if by_frame else row.number(_TIME), row.boxes("bbox")


def _spans(path: Path) -> Iterable[tuple[bool, float, list]]:
    """The rows of a group table: it has a box for each frame of a sound, or boxes that hold for all of its frames."""
    for row in Table(path, _SPAN).rows():
        first, last, boxes = row.integer("start_fid"), row.integer("end_fid"), row.boxes("bbox")
        if last - first >= _LONGEST_SPAN:
            raise row.error("end_fid", f"the sound lasts {last - first + 1:,} frames", "correct it")
        for fid in range(first, last + 1):
            yield True, fid, [boxes[fid - first]] if len(boxes) == last - first + 1 else boxes


def _entries(path: Path) -> Iterable[tuple[bool, float, list]]:
    try:
        entries = parse_json(read_text(path))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); write a list of entries such as {_EXAMPLE}") from None
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of entries such as {_EXAMPLE}")
    for number, entry in enumerate(entries):
        by_frame = isinstance(entry, dict) and "fid" in entry
        at = entry.get("fid", entry.get("time")) if isinstance(entry, dict) else None
        boxes = entry.get("boxes") if isinstance(entry, dict) else None
        if not is_number(at) or not isinstance(boxes, list) or not all(map(is_box, boxes)):
            raise InputError(f"{path}: entry {number} is {short(json.dumps(entry))}; write it as {_EXAMPLE}")
        yield by_frame, at, boxes  # type: ignore[misc]  # `is_number` has said that it is one
