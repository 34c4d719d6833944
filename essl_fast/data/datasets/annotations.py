"""Dataset formats → `Pair`: which frame, which moment, which boxes.

Chaotic World's tree (the folder that `--annotations` names):

    annotation/group/<video>.csv    one row a sound: start_fid, start_time, [end_fid, end_time,] bbox, ssl
    annotation/frame/<video>.csv    one row a sound and frame: fid, [time,] bbox, ssl (`middle` and `all` read it)
    train_ssl.txt, test_ssl.txt     one video name a line, beside `annotation/` or inside it

Columns are found by header, whatever their order, case or surrounding spaces; other columns are ignored. `bbox` is the
text of a list of boxes, `[[x1, y1, x2, y2], ...]`, in pixels of the annotation grid (320x180 as published).

Three frame policies. `start` takes the first frame of each sound, as the published code does; `middle` the middle of
it, as the paper says. `all` takes every annotated frame, that is, every row of annotation/frame: all 378,093 instances
of the full data set. A video without that file gives those of its sounds whose bbox lists one box a frame, from
start_fid to end_fid; a sound that does not is left out, since nobody drew where it is on which frame. A time that the
frame table lacks is counted, by the video's frame rate, from the start of the sound that the frame belongs to.

Rows that fall on one frame of one video become one pair with all their boxes.

Nothing is dropped in silence: what cannot become a pair is returned as a `LeftOut` with its reason, and what is
malformed is an `InputError` with file, line and column.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from essl_fast.common.errors import InputError, short
from essl_fast.data.datasets.pairs import Pairs, pair_key
from essl_fast.data.datasets.tables import Row, Table, read_text

GRID = 224  # side of the grid that boxes and heatmaps live on, in pixels
SPLITS = ("train", "val", "test")
FRAMES = ("start", "middle", "all")
ROW_BOXES = ("first", "all")
LONGEST_NAME = 240  # bytes of a video's name; file systems have 255, with its ending

NO_FILE = "annotation file missing"
NO_ROWS = "no annotations"
NO_BOX = "no box"
OUTSIDE = "box outside the frame"
INVERTED = "box inverted"
EMPTY = "box smaller than a grid pixel"
BAD_FRAME = "frame number below 1"
NO_FRAMES = "no box for each frame"

_GROUP_COLUMNS = {"start_fid": True, "start_time": True, "bbox": True, "ssl": True}
_FRAME_COLUMNS = ("fid", "frame", "frame_id", "start_fid")
_TIME_COLUMNS = ("time", "timestamp", "start_time")


@dataclass(frozen=True, order=True, slots=True)
class LeftOut:
    """What did not become a pair. `key` is "" where it concerns the whole video."""

    video: str
    key: str
    reason: str
    detail: str

    def as_json(self) -> dict:
        return {"video": self.video, "key": self.key or None, "reason": self.reason, "detail": self.detail}


@dataclass(frozen=True)
class Annotations:
    """`pairs` in the order of the lists and their rows; `videos`: split → names, also of videos without any pair.

    rows: that were read; merged: of them, those that joined the pair of an earlier row; further: boxes that
    `row_boxes="first"` ignored."""

    pairs: Pairs
    left_out: list[LeftOut]
    videos: dict[str, list[str]]
    rows: int = 0
    merged: int = 0
    further: int = 0


def boxes_to_grid(boxes, width: float, height: float, size: int = GRID) -> np.ndarray:
    """Annotation boxes → grid boxes: int(x / width * size) in float64, truncated toward zero, clamped to [0, size].

    Args: boxes (K, 4) xyxy numbers in pixels of a `width` x `height` frame. Returns int32 (K, 4).
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    scaled = np.trunc(boxes / np.array([width, height, width, height], np.float64) * size)
    return np.clip(scaled, 0, size).astype(np.int32)


def fault_of(box: Sequence[float], width: float, height: float) -> str:
    """Why an annotation box (xyxy) covers nothing of the grid."""
    if box[2] < box[0] or box[3] < box[1]:
        return INVERTED
    outside = box[2] <= 0 or box[3] <= 0 or box[0] >= width or box[1] >= height
    return OUTSIDE if outside else EMPTY


def read_chaotic_world(
    root: str | Path,
    *,
    frame: str = "start",
    row_boxes: str = "first",
    size: tuple[int, int] = (320, 180),
    validation: float = 0.1,
    seed: int = 0,
    frame_rate: Callable[[str], float | None] | None = None,
) -> Annotations:
    """Every pair that the annotations ask for.

    Args:
        root: folder with `annotation/`, `train_ssl.txt` and `test_ssl.txt`.
        frame: `start`, `middle` or `all` (above). row_boxes: take a row's `first` box (published code) or `all`.
        size: width and height of the frames that the boxes were drawn on, pixels.
        validation: share of the training videos that becomes the split `val`; seed: which ones.
        frame_rate: video → frames per second or None; asked only where `middle` meets a row without end_time, or
            `all` a frame without a time.

    A pair takes its time from the first of its rows. Raises InputError for malformed files, a missing list, a video in
    both lists, a name that is no file name, a setting out of range.
    """
    if frame not in FRAMES:
        raise InputError(f"frame is {frame!r}: choose one of {', '.join(FRAMES)}")
    if row_boxes not in ROW_BOXES:
        raise InputError(f"row_boxes is {row_boxes!r}: choose one of {', '.join(ROW_BOXES)}")
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"annotation_size is {size}: give the annotated frames' width and height, such as 320x180")
    if not 0 <= validation < 1:
        raise InputError(f"validation is {validation}: give a share of the training videos, at least 0 and below 1")
    root = Path(root)
    group, frames = root / "annotation" / "group", root / "annotation" / "frame"
    if not group.is_dir():
        raise InputError(f"{group} is not a folder: annotations must name what holds annotation/group/<video>.csv")
    listed = {name: _read_list(root, f"{name}_ssl.txt") for name in ("train", "test")}
    both = set(listed["train"]) & set(listed["test"])
    if both:
        raise InputError(
            f"{min(both)!r} and {len(both) - 1} more are in both train_ssl.txt and test_ssl.txt of {root}: "
            "testing on training videos means nothing; take them out of one list"
            if len(both) > 1
            else f"{min(both)!r} is in both train_ssl.txt and test_ssl.txt of {root}: take it out of one list"
        )
    if not listed["train"] and not listed["test"]:
        raise InputError(f"train_ssl.txt and test_ssl.txt of {root} name no video: write one video name a line")
    held_out = choose_validation(listed["train"], validation, seed)
    videos = {
        "train": [v for v in listed["train"] if v not in held_out],
        "val": [v for v in listed["train"] if v in held_out],
        "test": listed["test"],
    }
    pairs = Pairs()
    left_out: list[LeftOut] = []
    counts = Counter()
    for split, names in videos.items():
        for video in names:
            reader = _VideoReader(video, split, group, frames, frame, row_boxes, size, frame_rate, left_out, counts)
            pairs.add_video(video, split, reader.pairs())
    return Annotations(pairs, left_out, videos, counts["rows"], counts["merged"], counts["further"])


def choose_validation(videos: Sequence[str], fraction: float, seed: int) -> set[str]:
    """The videos that become `val`: the round(fraction * n) lowest by a hash of (seed, name), so the choice does not
    depend on the list's order; at least one, and never all, of two or more videos where fraction > 0."""
    count = round(fraction * len(videos))
    if fraction > 0 and len(videos) >= 2:
        count = min(max(count, 1), len(videos) - 1)
    return set(sorted(videos, key=lambda name: stable_rank(seed, name))[:count])


def stable_rank(seed: int, name: str) -> bytes:
    """16 bytes that order names at random, the same on every machine and with every version of every library."""
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()


def digest(annotations: Annotations) -> str:
    """A short fingerprint of everything that was read, to notice that annotations changed between two runs."""
    state = hashlib.blake2b(digest_size=8)
    annotations.pairs.digest(state)
    for left in sorted(annotations.left_out):
        state.update(repr(left).encode())
    return state.hexdigest()


@dataclass
class _Draft:
    """A pair while its rows are being collected."""

    time: float
    boxes: list[list[int]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    empty_rows: list[str] = field(default_factory=list)  # places of rows with an empty list of boxes


class _VideoReader:
    """The rows of one video → its pairs; what is dropped goes to `left_out`."""

    def __init__(self, video, split, group, frames, policy, row_boxes, size, frame_rate, left_out, counts):
        self.video, self.split, self.policy, self.row_boxes, self.size = video, split, policy, row_boxes, size
        self.group_file, self.frame_file = group / f"{video}.csv", frames / f"{video}.csv"
        self.frame_rate, self.left_out, self.counts = frame_rate, left_out, counts
        self.skipped = 0  # rows that gave nothing, each with its reason

    def pairs(self) -> Iterator[tuple[int, float, list[list[int]], tuple[str, ...]]]:
        """(fid, time, boxes on the grid, classes) of each pair, in the order of its first row."""
        drafts: dict[int, _Draft] = {}
        rows = 0
        for row, fid, time, boxes in self._instances():
            rows += 1
            if fid < 1:
                self._leave(pair_key(self.video, fid), BAD_FRAME, f"{row.where}: frame {fid}; frames count from 1")
                continue
            self.counts["merged"] += fid in drafts
            draft = drafts.setdefault(fid, _Draft(time))
            kept = self._on_grid(boxes, row, fid)
            if not boxes:
                draft.empty_rows.append(row.where)
            if kept or not boxes:
                draft.classes.append(row.label("ssl"))
            draft.boxes.extend(box for box in kept if box not in draft.boxes)
        self.counts["rows"] += rows
        for fid, draft in drafts.items():
            if self._complete(fid, draft):
                yield fid, draft.time, draft.boxes, tuple(dict.fromkeys(draft.classes))

    def _instances(self) -> Iterator[tuple[Row, int, float, list]]:
        """(row, frame, time, its boxes in annotation pixels) of each annotated sound on each frame that counts."""
        framewise = self.policy == "all" and self.frame_file.is_file()
        file = self.frame_file if framewise else self.group_file
        if not file.is_file():
            self._leave("", NO_FILE, f"{file.name} is not in annotation/{file.parent.name}")
            return
        if framewise:
            read = self._framewise()
        else:
            ends = self.policy != "start"
            table = Table(file, _GROUP_COLUMNS | {"end_fid": ends, "end_time": False}, f"frame policy {self.policy}")
            read = getattr(self, f"_{self.policy}")(table)
        empty = True
        for instance in read:
            empty = False
            yield instance
        if empty and not self.skipped:
            self._leave("", NO_ROWS, f"annotation/{file.parent.name}/{file.name} has a header and no row")

    def _start(self, table: Table) -> Iterator[tuple[Row, int, float, list]]:
        for row in table.rows():
            yield row, row.integer("start_fid"), row.number("start_time"), self._chosen(row.boxes("bbox"))

    def _chosen(self, boxes: list) -> list:
        """The boxes of a row that count."""
        if self.row_boxes == "all":
            return boxes
        self.counts["further"] += len(boxes[1:])
        return boxes[:1]

    def _middle(self, table: Table) -> Iterator[tuple[Row, int, float, list]]:
        by_frame = self._frame_rows()
        for row in table.rows():
            first, last = _span(row)
            fid = (first + last) // 2
            boxes, frame_time = by_frame.get((fid, row.label("ssl")), (None, None))
            if boxes is None:
                boxes = row.boxes("bbox")
                boxes = [boxes[fid - first]] if len(boxes) == last - first + 1 else self._chosen(boxes)
            start = row.number("start_time")
            if row.has("end_time"):
                time = (start + row.number("end_time")) / 2
            else:
                time = start + self._seconds(fid - first) if frame_time is None else frame_time
            yield row, fid, time, boxes

    def _all(self, table: Table) -> Iterator[tuple[Row, int, float, list]]:
        """Group rows that list one box a frame, taken apart."""
        for row in table.rows():
            (first, last), boxes, start = _span(row), row.boxes("bbox"), row.number("start_time")
            if len(boxes) != last - first + 1:
                self.skipped += 1
                what = f"{len(boxes)} boxes for the frames {first} to {last}, and no annotation/frame/{table.path.name}"
                self._leave(pair_key(self.video, first), NO_FRAMES, f"{row.where}: {what}")
                continue
            for fid, box in enumerate(boxes, first):
                if row.has("end_time") and last > first:
                    time = start + (row.number("end_time") - start) * ((fid - first) / (last - first))
                else:
                    time = start + self._seconds(fid - first)
                yield row, fid, time, [box]

    def _framewise(self) -> Iterator[tuple[Row, int, float, list]]:
        """The rows of the frame table."""
        table = Table(self.frame_file, {_FRAME_COLUMNS: True, "bbox": True, "ssl": True, _TIME_COLUMNS: False})
        clock = None
        for row in table.rows():
            fid = row.integer(_FRAME_COLUMNS)
            if row.has(_TIME_COLUMNS):
                time = row.number(_TIME_COLUMNS)
            else:
                clock = self._clock() if clock is None else clock
                time = clock(fid, row.label("ssl"))
            yield row, fid, time, self._chosen(row.boxes("bbox"))

    def _clock(self) -> Callable[[int, str], float]:
        """(frame, class) → seconds, counted from the start of the sound of the group table that covers the frame, else
        of the one nearest to it, of the same class if there is a choice; without sounds, frame 1 is at 0 s."""
        sounds = [(1, 1, 0.0, "")]
        if self.group_file.is_file():
            table = Table(self.group_file, _GROUP_COLUMNS | {"end_fid": False})
            sounds = [
                (
                    first,
                    row.integer("end_fid") if row.has("end_fid") else first,
                    row.number("start_time"),
                    row.label("ssl"),
                )
                for row in table.rows()
                for first in [row.integer("start_fid")]
            ] or sounds

        def seconds(fid: int, label: str) -> float:
            def far(sound):
                first, last, _, named = sound
                return max(first - fid, fid - last, 0), named != label, fid - first

            first, _, start, _ = min(sounds, key=far)
            return start + self._seconds(fid - first)

        return seconds

    def _seconds(self, frames: int) -> float:
        """So many frames, by the video's rate."""
        if not frames:
            return 0.0
        rate = self.frame_rate(self.video) if self.frame_rate else None
        # No rate means that the video cannot be read: whoever decodes it leaves the pair out with that reason.
        return frames / rate if rate else 0.0

    def _frame_rows(self) -> dict[tuple[int, str], tuple[list, float | None]]:
        """(frame, class) → boxes of all rows, time of the first of them or None. Empty without a frame CSV."""
        if not self.frame_file.is_file():
            return {}
        table = Table(self.frame_file, {_FRAME_COLUMNS: True, "bbox": True, "ssl": True, _TIME_COLUMNS: False})
        found: dict[tuple[int, str], tuple[list, float | None]] = {}
        for row in table.rows():
            place = row.integer(_FRAME_COLUMNS), row.label("ssl")
            time = row.number(_TIME_COLUMNS) if row.has(_TIME_COLUMNS) else None
            found.setdefault(place, ([], time))[0].extend(self._chosen(row.boxes("bbox")))
        return found

    def _on_grid(self, boxes: list, row: Row, fid: int) -> list[list[int]]:
        width, height = self.size
        kept = []
        for box, (left, top, right, bottom) in zip(boxes, boxes_to_grid(boxes, width, height).tolist(), strict=True):
            if right > left and bottom > top:
                kept.append([left, top, right, bottom])
                continue
            told = f"{row.where}: box {box} of a {width}x{height} frame"
            self._leave(pair_key(self.video, fid), fault_of(box, width, height), told)
        return kept

    def _complete(self, fid: int, draft: _Draft) -> bool:
        """Whether something is left of the pair."""
        if not draft.classes:
            return False  # every box was dropped, each with its own reason
        if not draft.boxes and self.split != "train":
            for where in draft.empty_rows:
                self._leave(pair_key(self.video, fid), NO_BOX, f"{where}: an empty list cannot be scored")
            return False
        return True

    def _leave(self, key: str, reason: str, detail: str) -> None:
        self.left_out.append(LeftOut(self.video, key, reason, detail))


def _span(row: Row) -> tuple[int, int]:
    """The first and the last frame of a sound."""
    first, last = row.integer("start_fid"), row.integer("end_fid")
    if last < first:
        raise row.error("end_fid", f"{last} is before start_fid {first}", "swap them")
    return first, last


def _read_list(root: Path, name: str) -> list[str]:
    """The video names of a list, each once, in the list's order."""
    places = [root / name, root / "annotation" / name]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise InputError(f"{name} is neither {places[0]} nor {places[1]}: write it there, one video name a line")
    names: dict[str, None] = {}
    for line, text in enumerate(read_text(path).splitlines(), 1):
        video = text.strip()
        if not video:
            continue
        if video in (".", "..") or re.search(r"[/\\\x00-\x1f\x7f]", video):
            raise InputError(f"{path} line {line}: {short(video)} is not a plain video name; leave folders out of it")
        if len(video.encode()) > LONGEST_NAME:
            raise InputError(f"{path} line {line}: {short(video)} is longer than {LONGEST_NAME} bytes, as no file is")
        names[video] = None
    return list(names)
