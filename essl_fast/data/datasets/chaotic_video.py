"""The annotation tables of one Chaotic World video → its pairs.

Three steps: the tables are read (`VideoTables`); the frame policy chooses frames and gives an `Instance` for each sound
on each of them; the instances of one frame become one pair (`read_pairs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from essl_fast.data.datasets.annotations import (
    BAD_FRAME,
    NO_BOX,
    NO_FILE,
    NO_FRAMES,
    NO_ROWS,
    BoxSizes,
    LeftOut,
    boxes_to_grid,
    reason_for_no_area,
)
from essl_fast.data.datasets.pairs import pair_key
from essl_fast.data.datasets.tables import Row, Table

_GROUP_COLUMNS = {"start_fid": True, "start_time": True, "bbox": True, "ssl": True}
_FRAME = ("fid", "frame", "frame_id", "start_fid")  # names that the column may have
_TIME = ("time", "timestamp", "start_time")
_FRAME_COLUMNS = {_FRAME: True, "bbox": True, "ssl": True, _TIME: False}


@dataclass(frozen=True)
class Choice:
    """Which frames and boxes become pairs; the fields are those of `read_chaotic_world`."""

    frame: str
    row_boxes: str
    size: tuple[int, int]


@dataclass
class Findings:
    """What was found beside the pairs, over all videos; the fields are those of `Annotations`."""

    left_out: list[LeftOut] = field(default_factory=list)
    rows: int = 0
    merged: int = 0
    further: int = 0
    sizes: BoxSizes = field(default_factory=BoxSizes)
    box_classes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def leave(self, video: str, key: str, reason: str, detail: str) -> None:
        self.left_out.append(LeftOut(video, key, reason, detail))

    def chosen(self, boxes: list, choice: Choice) -> list:
        """Those boxes of a row that count."""
        if choice.row_boxes == "all":
            return boxes
        self.further += len(boxes[1:])
        return boxes[:1]


class Instance(NamedTuple):
    """One annotated sound on one frame."""

    row: Row
    fid: int
    time: float  # seconds
    boxes: list  # xyxy, in pixels of the annotated frames


# ---------------------------------------------------------------- the tables


@dataclass(frozen=True)
class VideoTables:
    """The two CSV files of a video; either may be missing. `frame_rate` serves to compute times that they lack."""

    video: str
    group_file: Path
    frame_file: Path
    frame_rate: Callable[[str], float | None] | None

    def group(self, columns: dict | None = None, needs_end: str = "") -> Table:
        """The table of sounds, with these columns beside the usual ones. `needs_end`: what requires end_fid."""
        return Table(self.group_file, _GROUP_COLUMNS | (columns or {}), needs_end)

    def frames(self) -> Iterator[tuple[Row, int]]:
        """(row, frame number) of the table of frames."""
        for row in Table(self.frame_file, _FRAME_COLUMNS).rows():
            yield row, row.integer(_FRAME)

    def seconds(self, frames: int) -> float:
        """How many seconds `frames` frames last. 0 if the video cannot be read: decoding then leaves the pair out."""
        if not frames:
            return 0.0
        rate = self.frame_rate(self.video) if self.frame_rate else None
        return frames / rate if rate else 0.0

    def clock(self) -> Callable[[int, str], float]:
        """(frame, class) → its time in seconds, for frames whose time the frame table lacks.

        The time is counted from the start of a sound in the group table: one that covers the frame, or else the nearest
        one; among several, one of the same class. If there are no sounds, frame 1 is at 0 s.
        """
        sounds = [(1, 1, 0.0, "")]
        if self.group_file.is_file():
            sounds = [_sound(row) for row in self.group({"end_fid": False}).rows()] or sounds

        def time_of(fid: int, label: str) -> float:
            def distance(sound):
                first, last, _, name = sound
                return max(first - fid, fid - last, 0), name != label, fid - first

            first, _, start, _ = min(sounds, key=distance)
            return start + self.seconds(fid - first)

        return time_of


def _sound(row: Row) -> tuple[int, int, float, str]:
    """(first frame, last frame, start in seconds, class) of a group row."""
    first = row.integer("start_fid")
    last = row.integer("end_fid") if row.has("end_fid") else first
    return first, last, row.number("start_time"), row.label("ssl")


def _span(row: Row) -> tuple[int, int]:
    """The first and the last frame of a sound."""
    first, last = row.integer("start_fid"), row.integer("end_fid")
    if last < first:
        raise row.error("end_fid", f"{last} is before start_fid {first}", "swap them")
    return first, last


# ---------------------------------------------------------------- the frames that are chosen


def _instances(tables: VideoTables, choice: Choice, found: Findings) -> Iterator[Instance]:
    """The sounds on the frames that the policy chooses. A video without any is left out."""
    framewise = choice.frame == "all" and tables.frame_file.is_file()
    file = tables.frame_file if framewise else tables.group_file
    if not file.is_file():
        found.leave(tables.video, "", NO_FILE, f"{file.name} is not in annotation/{file.parent.name}")
        return
    before = len(found.left_out)
    choose = _rows_of_frame_table if framewise else _POLICIES[choice.frame]
    empty = True
    for instance in choose(tables, choice, found):
        empty = False
        yield instance
    if empty and len(found.left_out) == before:
        found.leave(tables.video, "", NO_ROWS, f"annotation/{file.parent.name}/{file.name} has a header and no row")


def _first_frames(tables: VideoTables, choice: Choice, found: Findings) -> Iterator[Instance]:
    table = tables.group({"end_fid": False, "end_time": False}, "frame policy start")
    for row in table.rows():
        fid, time = row.integer("start_fid"), row.number("start_time")
        yield Instance(row, fid, time, found.chosen(row.boxes("bbox"), choice))


def _middle_frames(tables: VideoTables, choice: Choice, found: Findings) -> Iterator[Instance]:
    """The middle frame of each sound, with the boxes of the frame table if it has this frame and class."""
    table = tables.group({"end_fid": True, "end_time": False}, "frame policy middle")
    by_frame: dict[tuple[int, str], tuple[list, float | None]] = {}  # (frame, class) → boxes, time of the first row
    if tables.frame_file.is_file():
        for row, fid in tables.frames():
            place = fid, row.label("ssl")
            time = row.number(_TIME) if row.has(_TIME) else None
            by_frame.setdefault(place, ([], time))[0].extend(found.chosen(row.boxes("bbox"), choice))
    for row in table.rows():
        first, last = _span(row)
        fid = (first + last) // 2
        boxes, frame_time = by_frame.get((fid, row.label("ssl")), (None, None))
        if boxes is None:
            boxes = row.boxes("bbox")
            each = len(boxes) == last - first + 1  # a box for each frame
            boxes = [boxes[fid - first]] if each else found.chosen(boxes, choice)
        start = row.number("start_time")
        if row.has("end_time"):
            time = (start + row.number("end_time")) / 2
        else:
            time = start + tables.seconds(fid - first) if frame_time is None else frame_time
        yield Instance(row, fid, time, boxes)


def _all_frames(tables: VideoTables, choice: Choice, found: Findings) -> Iterator[Instance]:
    """Every frame of the group rows that list one box for each frame."""
    table = tables.group({"end_fid": True, "end_time": False}, "frame policy all")
    for row in table.rows():
        (first, last), boxes, start = _span(row), row.boxes("bbox"), row.number("start_time")
        if len(boxes) != last - first + 1:
            what = f"{len(boxes)} boxes for the frames {first} to {last}, and no annotation/frame/{table.path.name}"
            found.leave(tables.video, pair_key(tables.video, first), NO_FRAMES, f"{row.where}: {what}")
            continue
        for fid, box in enumerate(boxes, first):
            if row.has("end_time") and last > first:
                time = start + (row.number("end_time") - start) * ((fid - first) / (last - first))
            else:
                time = start + tables.seconds(fid - first)
            yield Instance(row, fid, time, [box])


def _rows_of_frame_table(tables: VideoTables, choice: Choice, found: Findings) -> Iterator[Instance]:
    clock = None
    for row, fid in tables.frames():
        if row.has(_TIME):
            time = row.number(_TIME)
        else:
            clock = tables.clock() if clock is None else clock
            time = clock(fid, row.label("ssl"))
        yield Instance(row, fid, time, found.chosen(row.boxes("bbox"), choice))


_POLICIES = {"start": _first_frames, "middle": _middle_frames, "all": _all_frames}


# ---------------------------------------------------------------- the pairs


@dataclass
class _Draft:
    """A pair while its rows are being collected."""

    time: float
    boxes: list[list[int]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    box_classes: list[str] = field(default_factory=list)  # the class of each box
    empty_rows: list[str] = field(default_factory=list)  # places of rows with an empty list of boxes


def read_pairs(
    tables: VideoTables, choice: Choice, found: Findings, scored: bool
) -> Iterator[tuple[int, float, list[list[int]], tuple[str, ...]]]:
    """(frame, time, boxes on the grid, classes) of each pair, in the order of its first row.

    Args:
        tables: of the video.
        choice: which frames and boxes.
        found: counts and what is left out are added here.
        scored: the pairs will be scored, so that a pair without a box is left out.

    Raises:
        InputError: a table is malformed.
    """
    drafts: dict[int, _Draft] = {}
    rows = 0
    for row, fid, time, boxes in _instances(tables, choice, found):
        rows += 1
        key = pair_key(tables.video, fid)
        if fid < 1:
            found.leave(tables.video, key, BAD_FRAME, f"{row.where}: frame {fid}; frames count from 1")
            continue
        found.merged += fid in drafts
        draft = drafts.setdefault(fid, _Draft(time))
        kept = []
        found.sizes.add(boxes)
        for box, placed in zip(boxes, boxes_to_grid(boxes, *choice.size).tolist(), strict=True):
            if placed[2] > placed[0] and placed[3] > placed[1]:
                kept.append(placed)
                continue
            width, height = choice.size
            detail = f"{row.where}: box {box} of a {width}x{height} frame"
            found.leave(tables.video, key, reason_for_no_area(box, width, height), detail)
        if not boxes:
            draft.empty_rows.append(row.where)
        if kept or not boxes:
            draft.classes.append(row.label("ssl"))
        new = [box for box in kept if box not in draft.boxes]
        draft.boxes.extend(new)
        draft.box_classes.extend(row.label("ssl") for _ in new)
    found.rows += rows
    for fid, draft in drafts.items():
        if not draft.classes:
            continue  # every box was dropped, each with its own reason
        if not draft.boxes and scored:
            for where in draft.empty_rows:
                detail = f"{where}: an empty list cannot be scored"
                found.leave(tables.video, pair_key(tables.video, fid), NO_BOX, detail)
            continue
        if len(set(draft.box_classes)) > 1:
            found.box_classes[pair_key(tables.video, fid)] = tuple(draft.box_classes)
        yield fid, draft.time, draft.boxes, tuple(dict.fromkeys(draft.classes))
