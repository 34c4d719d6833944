"""Chaotic World: videos, and CSV files of the sounds in them. `--annotations` names the folder of this tree:

    annotation/group/<video>.csv    a row for each sound: start_fid, start_time, [end_fid, end_time,] bbox, ssl
    annotation/frame/<video>.csv    a row for each sound and frame: fid, [time,] bbox, ssl (read by `middle` and `all`)
    train_ssl.txt, test_ssl.txt     a video name on each line, beside `annotation/` or inside it

Columns are found by their header, in any order, in upper or lower case, with or without spaces around; other columns
are ignored. `bbox` is the text of a list of boxes, `[[x1, y1, x2, y2], ...]`, in pixels of the annotated frames, which
have 320x180 as published.

There are three frame policies. `start` takes the first frame of each sound, as the published code does. `middle` takes
the middle frame, as the paper says. `all` takes every annotated frame, that is, every row of annotation/frame: all
378,093 instances of the full data set. If a video has no such file, `all` takes those of its sounds whose bbox lists
one box for each frame from start_fid to end_fid; a sound with another number of boxes is left out, because its boxes
cannot be assigned to frames. If the frame table has no time, the time is counted, by the video's frame rate, from the
start of the sound that the frame belongs to.

Rows on the same frame of a video become one pair with all their boxes. Malformed input is an `InputError` that names
file, line and column.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from essl_fast.common.errors import InputError, short
from essl_fast.data import media
from essl_fast.data.datasets.annotations import LONGEST_NAME, Annotations, BoxSizes, choose_validation
from essl_fast.data.datasets.chaotic_video import Choice, Findings, VideoTables, read_pairs
from essl_fast.data.datasets.dataset import Dataset, Files, register_dataset
from essl_fast.data.datasets.further import Further
from essl_fast.data.datasets.options import FRAMES, ROW_BOXES, DatasetOptions
from essl_fast.data.datasets.pairs import Pairs
from essl_fast.data.datasets.tables import read_text

_TAKES = ("frame", "row_boxes", "annotation_size", "train_list", "val_list", "test_list")


@register_dataset("chaotic", needs=("videos", "annotations"), takes=_TAKES)
def read_chaotic(options: DatasetOptions) -> Dataset:
    """`--dataset chaotic`. InputError as `chaotic_world`."""
    return _read(options, "chaotic")


@register_dataset("csv", needs=("videos", "annotations"), takes=_TAKES)
def read_csv(options: DatasetOptions) -> Dataset:
    """`--dataset csv`: a user's own videos, with tables like Chaotic World's. InputError as `chaotic_world`."""
    found = _read(options, "csv")
    return replace(found, name="csv", settings={**found.settings, "name": "csv"})


def _read(options: DatasetOptions, name: str) -> Dataset:
    if lists := options.lists():
        raise InputError(
            f"--{min(lists)}-list does not go with --dataset {name}: train_ssl.txt and test_ssl.txt are its lists"
        )
    assert options.videos is not None and options.annotations is not None  # "needs" of this data set
    return chaotic_world(
        options.videos,
        options.annotations,
        **options.given("frame", "row_boxes", "annotation_size", "validation", "seed"),
    )


def chaotic_world(
    videos: str | Path,
    annotations: str | Path,
    *,
    frame: str = "start",
    row_boxes: str = "first",
    annotation_size: tuple[int, int] = (320, 180),
    validation: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Chaotic World with its videos.

    Args:
        videos: folder of <video>.mp4 (or .mkv, .webm, .avi, .mov).
        annotations: folder of the tree above.
        frame: as in `read_chaotic_world`, and so are all further arguments; `annotation_size` is its `size`.

    Raises:
        InputError: `videos` is no folder, or `read_chaotic_world` refuses the annotations.
    """
    videos = Path(videos)
    if not videos.is_dir():
        raise InputError(f"{videos} is not a folder: --videos must name the folder that holds <video>.mp4")
    read = read_chaotic_world(
        annotations,
        frame=frame,
        row_boxes=row_boxes,
        size=(annotation_size[0], annotation_size[1]),
        validation=validation,
        seed=seed,
        frame_rate=functools.cache(functools.partial(_frame_rate, videos)),
    )
    settings: dict[str, Any] = {"frame": frame, "row_boxes": row_boxes, "annotation_size": list(annotation_size)}
    settings |= {"validation": float(validation), "seed": seed}
    further = Further(box_classes=read.box_classes)
    return Dataset("chaotic", read, lambda video: Files(media.find_video(videos, video)), settings, further=further)


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
    """All pairs of the annotations. A pair takes its time from the first of its rows.

    Args:
        root: folder with `annotation/`, `train_ssl.txt` and `test_ssl.txt`.
        frame: frame policy: `start`, `middle` or `all` (above).
        row_boxes: which boxes of a row count: the `first` (as in the published code) or `all`.
        size: width and height of the frames that the boxes were drawn on, pixels.
        validation: share of the training videos that becomes the split `val`, at least 0 and below 1.
        seed: decides which ones.
        frame_rate: video → frames per second or None. It is called only if `middle` meets a row without end_time, or
            `all` a frame without a time.

    Raises:
        InputError: a file is malformed, a list is missing, a video is in both lists, a name is no file name, or an
            argument is out of range.
    """
    if frame not in FRAMES:
        raise InputError(f"--frame is {frame!r}: choose one of {', '.join(FRAMES)}")
    if row_boxes not in ROW_BOXES:
        raise InputError(f"--row-boxes is {row_boxes!r}: choose one of {', '.join(ROW_BOXES)}")
    if len(size) != 2 or min(size) < 1:
        given = "x".join(map(str, size))
        raise InputError(f"--annotation-size is {given}: give the annotated frames' width and height, such as 320x180")
    if not 0 <= validation < 1:
        raise InputError(f"--validation is {validation}: give a share of the training videos, at least 0 and below 1")
    root = Path(root)
    group, frames = root / "annotation" / "group", root / "annotation" / "frame"
    if not group.is_dir():
        raise InputError(f"{group} is not a folder: --annotations must name what holds annotation/group/<video>.csv")
    videos = _read_splits(root, validation, seed)
    pairs, choice, found = Pairs(), Choice(frame, row_boxes, size), Findings(sizes=BoxSizes(size))
    for split, names in videos.items():
        for video in names:
            tables = VideoTables(video, _table(group, video), _table(frames, video), frame_rate)
            pairs.add_video(video, split, read_pairs(tables, choice, found, scored=split != "train"))
    told = found.left_out, videos, found.rows, found.merged, found.further, found.sizes, found.box_classes
    return Annotations(pairs, *told)


def _table(folder: Path, video: str) -> Path:
    """The CSV file of a video, in either Unicode form of its name; where it would be if there is none."""
    return media.find_file(folder, video, (".csv",)) or folder / f"{video}.csv"


def _read_splits(root: Path, validation: float, seed: int) -> dict[str, list[str]]:
    """Split → names of its videos."""
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
    return {
        "train": [name for name in listed["train"] if name not in held_out],
        "val": [name for name in listed["train"] if name in held_out],
        "test": listed["test"],
    }


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


def _frame_rate(videos: Path, video: str) -> float | None:
    """Frames per second, or None if the video cannot be read: then its part will say why."""
    try:
        return media.probe(media.find_video(videos, video)).frame_rate
    except (OSError, ValueError):  # a MediaError is a ValueError
        return None
