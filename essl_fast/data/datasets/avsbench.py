"""AVSBench: videos of five seconds, a frame of each second, and masks of what sounds in it.

S4, one source (`--dataset avsbench-s4`):

    s4_meta_data.csv                                         columns name, category, split
    s4_data/visual_frames/<split>/<category>/<name>/<name>_<1..5>.png
    s4_data/audio_wav/<split>/<category>/<name>.wav
    s4_data/gt_masks/<split>/<category>/<name>/<name>_<1..5>.png     for train only that of the first frame

MS3, several sources (`--dataset avsbench-ms3`):

    ms3_meta_data.csv                                        columns video_id (or name), split
    ms3_data/visual_frames/<name>/<name>.mp4_<1..5>.png
    ms3_data/audio_wav/<split>/<name>.wav
    ms3_data/gt_masks/<split>/<name>/<name>_<1..5>.png

`--data` names the folder that holds the table and s4_data/ or ms3_data/ (or the folders in it). Each frame is a pair
<name>_<n>, with the 3 s in the middle of its video's sound, the smallest box around its mask, and the mask itself.
Frames of the training split without a mask are unlabelled. A frame of val or test whose mask is empty has nothing that
sounds in sight: it is a negative.

Zhou et al., Audio-Visual Segmentation, ECCV 2022.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from essl_fast.common.errors import InputError, short
from essl_fast.data import media
from essl_fast.data.datasets.annotations import LONGEST_NAME, NO_LABEL, SPLITS, Annotations, LeftOut
from essl_fast.data.datasets.dataset import STILL, UNKNOWN, Dataset, Files, register_dataset
from essl_fast.data.datasets.further import Further, box_of, packed_mask, read_mask
from essl_fast.data.datasets.options import DatasetOptions
from essl_fast.data.datasets.pairs import Pairs, pair_key
from essl_fast.data.datasets.tables import Table

FRAMES = 5  # of a video
_NAME = ("name", "video_id", "uid")


class _Video(NamedTuple):
    """A line of the table."""

    name: str
    split: str
    category: str  # "" for MS3


@register_dataset("avsbench-s4", needs=("data",), takes=("annotations",))
def read_s4(options: DatasetOptions) -> Dataset:
    """`--dataset avsbench-s4`. InputError if a file or folder is missing or malformed."""
    return _avsbench("s4", options)


@register_dataset("avsbench-ms3", needs=("data",), takes=("annotations",))
def read_ms3(options: DatasetOptions) -> Dataset:
    """`--dataset avsbench-ms3`. InputError if a file or folder is missing or malformed."""
    return _avsbench("ms3", options)


def _avsbench(part: str, options: DatasetOptions) -> Dataset:
    name, roots = f"avsbench-{part}", list(options.data)
    if nowhere := [root for root in roots if not root.is_dir()]:
        raise InputError(f"{nowhere[0]} is not a folder: --data must name the folder with {part}_data/")
    tables = [options.annotations] if options.annotations else [root / f"{part}_meta_data.csv" for root in roots]
    table = next((place for place in tables if place.is_file()), None)
    if table is None:
        raise InputError(f"there is no {' or '.join(map(str, tables))}: name the table with --annotations")
    inner = [place for root in roots for place in (root / f"{part}_data", root)]
    base = next((place for place in inner if (place / "visual_frames").is_dir()), None)
    for folder in ("visual_frames", "audio_wav", "gt_masks"):
        if base is None or not (base / folder).is_dir():
            where = base or roots[0] / f"{part}_data"
            raise InputError(f"{where / folder} is not there: --data must name the folder with {part}_data/{folder}/")
    assert base is not None
    pairs, left_out, masks, negatives = Pairs(), [], {}, set()
    places: dict[str, Files] = {}
    asked: dict[str, list[str]] = {split: [] for split in SPLITS}
    for video in sorted(_videos(table, part == "s4"), key=lambda video: SPLITS.index(video.split)):
        for number in range(1, FRAMES + 1):
            pair, key = f"{video.name}_{number}", pair_key(f"{video.name}_{number}", 1)
            picture, sound, mask = _files(base, video, number)
            places[pair] = Files(picture, STILL, sound)
            asked[video.split].append(pair)
            boxes: list[list[int]] = []
            if mask.is_file():
                seen = read_mask(mask)
                masks[key] = packed_mask(seen)
                boxes = [box for box in (box_of(seen),) if box]
            elif video.split != "train":
                left_out.append(LeftOut(pair, key, NO_LABEL, f"no mask {mask}"))
                pairs.add_video(pair, video.split, [])
                continue
            if not boxes and video.split != "train":
                negatives.add(key)
            pairs.add_video(pair, video.split, [(1, 0.0, boxes, (video.category or UNKNOWN,))])

    def files_of(pair: str) -> Files:
        files = places[pair]
        for there in (files.path, files.sound):
            if there is None or not there.is_file():
                raise media.MediaError(media.MISSING, f"{pair}: no {there}")
        return files

    read = Annotations(pairs, left_out, {split: names for split, names in asked.items() if names}, len(places))
    further = Further(masks, frozenset(negatives))
    return Dataset(name, read, files_of, {"dataset": name}, from_videos=False, further=further, listed=True)


def _files(base: Path, video: _Video, number: int) -> tuple[Path, Path, Path]:
    """Picture, sound and mask of a frame, as they are published."""
    frames, sounds, masks = base / "visual_frames", base / "audio_wav" / video.split, base / "gt_masks" / video.split
    if video.category:
        frames, sounds, masks = frames / video.split / video.category, sounds / video.category, masks / video.category
    picture = f"{video.name}_{number}.png" if video.category else f"{video.name}.mp4_{number}.png"
    return (
        frames / video.name / picture,
        sounds / f"{video.name}.wav",
        masks / video.name / f"{video.name}_{number}.png",
    )


def _videos(path: Path, categories: bool) -> list[_Video]:
    """The lines of the table. InputError if it is malformed, or names a video twice."""
    wanted = {_NAME: True, "split": True} | ({"category": True} if categories else {})
    found: dict[str, _Video] = {}
    for row in Table(path, wanted).rows():
        name, split = row.text(_NAME), row.text("split")
        category = row.text("category") if categories else ""
        for column, text in ((_NAME, name), ("category", category or "-")):
            if not text or text.startswith(".") or "/" in text or "\\" in text or len(text.encode()) > LONGEST_NAME - 9:
                raise row.error(column, f"{short(text)} is no folder's name", "write it as the folder is called")
        if split not in SPLITS:
            raise row.error("split", f"{short(split)} is no split", f"write one of {', '.join(SPLITS)}")
        if name in found:
            raise row.error(_NAME, f"{short(name)} is there twice", "keep one of the lines")
        found[name] = _Video(name, split, category)
    if not found:
        raise InputError(f"{path} names no video: is it {path.name} as published?")
    return list(found.values())
