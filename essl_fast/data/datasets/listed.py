"""Data sets of one pair a file: lists of names, labels for some of them, and folders that hold the files.

Flickr-SoundNet and VGG-SS are such: a list says which names train and which test, a picture and a sound (or a short
video) belong to each name, and boxes to those that somebody annotated. A name is its pair's video, its frame is 1, so
the key of `10000130166` is `10000130166_000001`.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from essl_fast.common.errors import InputError, short
from essl_fast.data import media
from essl_fast.data.datasets.annotations import (
    GRID,
    LONGEST_NAME,
    NO_BOX,
    Annotations,
    LeftOut,
    boxes_to_grid,
    choose_validation,
    fault_of,
)
from essl_fast.data.datasets.pairs import Pairs, pair_key
from essl_fast.data.datasets.tables import read_text

VIDEO, MIDDLE, STILL, HDF5 = "video", "middle", "still", "hdf5"  # what a task's file is
UNKNOWN = "unknown"  # the class where nobody named one
NO_LABEL = "not annotated"
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_SOUNDS = (".wav", ".mp3", ".flac", ".ogg", ".m4a")
_LARGEST_LIST = 1 << 28  # bytes
_FRAME_FOLDERS = ("frames", "Data/frames", "5k_labeled/Data/frames")
_SOUND_FOLDERS = ("audio", "Data/audio", "5k_labeled/Data/audio")
_VIDEO_FOLDERS = ("videos", "Data/videos", "5k_labeled/Data/videos", ".")


class NoAnnotations(InputError):
    """There are none where they were looked for."""


class Label(NamedTuple):
    """What annotators said of a name: boxes (K x 4 numbers, xyxy), in units of a frame of `side` x `side`; where that
    is written, for messages."""

    boxes: list[list[float]]
    side: float
    classes: tuple[str, ...]
    where: str


class Files(NamedTuple):
    """What a pair's frame and sound come from, as a `parts.Task` has it. rows: of HDF5, frame → row."""

    path: Path
    kind: str = VIDEO
    sound: Path | None = None
    rows: Mapping[int, int] | None = None


def read_names(path: Path, once: bool = False) -> dict[str, str]:
    """A list's names, in its order, each with its entry: the first cell of every line, a name or the path of a video,
    of which the name is the last part without its extension. InputError if it cannot be read or names none, or, where
    lines are counted (`once`), one name twice."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not there: give the list, a name a line (or first in each line of a CSV file)")
    if path.stat().st_size > _LARGEST_LIST:
        raise InputError(f"{path} has {path.stat().st_size / 1e6:.0f} MB: is it a list of names?")
    names: dict[str, str] = {}
    try:  # strict: a quote that is not closed would have the lines behind it taken for one name
        cells_of = list(csv.reader(read_text(path).splitlines(), strict=True))
    except csv.Error as error:
        raise InputError(f"{path} is no list of names ({error}): quotes must be closed, or left out") from None
    for line, cells in enumerate(cells_of, 1):
        entry = cells[0].strip() if cells else ""
        if not entry:
            continue
        name = entry.rsplit("/", 1)[-1]
        if name.lower().endswith((*media.EXTENSIONS, *_PICTURES, *_SOUNDS)):
            name = name.rsplit(".", 1)[0]
        if name in ("", ".", "..") or ".." in entry.split("/") or re.search(r"[\\\x00-\x1f\x7f]", entry):
            raise InputError(f"{path} line {line}: {short(entry)} is no name of a pair")
        if len(name.encode()) > LONGEST_NAME:
            raise InputError(f"{path} line {line}: {short(name)} is longer than {LONGEST_NAME} bytes, no file's name")
        if once and name in names:
            raise InputError(f"{path} line {line}: {short(name)} is there twice: is it the list of these rows?")
        if names.setdefault(name, entry) != entry:
            raise InputError(f"{path} line {line}: {short(entry)} and {short(names[name])} have the same name")
    if not names:
        raise InputError(f"{path} names no pair: write a name a line")
    return names


def split_names(lists: Mapping[str, Mapping[str, str]], labelled: Callable[[str], bool], share: float, seed: int):
    """Split → names, of the lists that are there. `val` is its own list or, without one, a share of the labelled
    training names: nobody can score the others. InputError for a name in two lists, and a share out of range."""
    if not 0 <= share < 1:
        raise InputError(f"validation is {share}: give a share of the labelled training pairs, at least 0 and below 1")
    for first, second in (("train", "test"), ("train", "val"), ("val", "test")):
        if both := lists.get(first, {}).keys() & lists.get(second, {}).keys():
            raise InputError(
                f"{min(both)!r} and {len(both) - 1} more names are in the lists of both {first} and {second}: take "
                "them out of one"
            )
    train = list(lists.get("train", ()))
    if "val" in lists:
        held_out = set()
        val = list(lists["val"])
    else:
        held_out = choose_validation([name for name in train if labelled(name)], share, seed)
        val = [name for name in train if name in held_out]
    return {"train": [name for name in train if name not in held_out], "val": val, "test": list(lists.get("test", ()))}


def annotate(splits: Mapping[str, Sequence[str]], label: Callable[[str], Label | None], missing: str) -> Annotations:
    """The pairs of all names. Training names need no label; val and test names without one, or without a box, are left
    out: nobody could score them. `missing`: where the labels were looked for, in words."""
    pairs, left_out = Pairs(), []
    rows = 0
    for split, names in splits.items():
        for name in names:
            found, key, ready = label(name), pair_key(name, 1), []
            if found is None and split != "train":
                left_out.append(LeftOut(name, key, NO_LABEL, f"{name} is not in {missing}"))
            elif found is None:
                ready = [(1, 0.0, [], (UNKNOWN,))]
            else:
                rows += 1
                boxes = on_grid(found, name, key, left_out)
                if boxes or (split == "train" and not found.boxes):
                    ready = [(1, 0.0, boxes, found.classes)]
                elif not found.boxes:
                    left_out.append(LeftOut(name, key, NO_BOX, f"{found.where}: a pair without a box cannot be scored"))
            pairs.add_video(name, split, ready)
    return Annotations(pairs, left_out, {split: list(names) for split, names in splits.items()}, rows)


def on_grid(label: Label, name: str, key: str, left_out: list[LeftOut]) -> list[list[int]]:
    """The label's boxes on the 224 grid, all of them, also equal ones: two annotators may agree. Boxes of a label whose
    side is 224 are on it already."""
    if label.side == GRID:  # 61 / 224 * 224 is a little less than 61
        return [[int(value) for value in box] for box in label.boxes]
    kept = []
    for box, placed in zip(label.boxes, boxes_to_grid(label.boxes, label.side, label.side).tolist(), strict=True):
        if placed[2] > placed[0] and placed[3] > placed[1]:
            kept.append(placed)
        else:
            told = f"{label.where}: box {box} of a {label.side:g}x{label.side:g} frame"
            left_out.append(LeftOut(name, key, fault_of(box, label.side, label.side), told))
    return kept


class Folders:
    """Finds the files of names under some roots, in the layouts that the published codes use:

        frames/<name>.jpg, audio/<name>.wav                          LVS, EZ-VSL; also below Data/ and 5k_labeled/Data/
        Data/<name>/*.jpg, Data/<name>/*.wav                         the labelled pairs of Flickr-SoundNet, as published
        frames/<entry>/*.jpg, mp3/<entry's folder>/*.mp3             SoundNet: the picture in the middle of the folder
        videos/<name>.mp4 (or <name>.mp4)                            the video's middle

    names: name → its entry in the list. Other formats of pictures, sounds and videos do as well. Folders are listed
    once. InputError where none of these layouts is in any root.
    """

    def __init__(self, roots: Iterable[Path], names: Mapping[str, str]):
        self.roots, self.names = [Path(root) for root in roots], names
        self.pictures = self._list(_FRAME_FOLDERS, _PICTURES)
        self.sounds = self._list(_SOUND_FOLDERS, _SOUNDS)
        self.videos = self._list(_VIDEO_FOLDERS, media.EXTENSIONS)
        nested = any((root / "mp3").is_dir() or (root / "Data").is_dir() for root in self.roots)
        if not (self.videos or nested or (self.pictures and self.sounds)):
            where = " or ".join(str(root) for root in self.roots)
            lack = "no picture" if not self.pictures else "no sound"
            looked = ", ".join(f"{name}/" for name in (*_FRAME_FOLDERS, *_SOUND_FOLDERS, *_VIDEO_FOLDERS[:-1]))
            raise InputError(f"{where} holds {lack} of any listed name, and no video: looked in {looked}")

    def __call__(self, name: str) -> Files:
        """The files of a name. MediaError says which one is missing, and where it was looked for."""
        if name in self.pictures and name in self.sounds:
            return Files(self.pictures[name], STILL, self.sounds[name])
        for root in self.roots:
            if found := self._nested(root, name):
                return found
        if name in self.videos:
            return Files(self.videos[name], MIDDLE)
        lack = [what for what, there in (("picture", self.pictures), ("sound", self.sounds)) if name not in there]
        looked = {"picture": _FRAME_FOLDERS, "sound": _SOUND_FOLDERS}
        told = "; ".join(f"no {what} in {', '.join(f'{folder}/' for folder in looked[what])}" for what in lack)
        raise media.MediaError(media.MISSING, f"{name}: {told}; no video in {', '.join(_VIDEO_FOLDERS[:-1])}")

    def _list(self, folders: Sequence[str], kinds: Sequence[str]) -> dict[str, Path]:
        """Name → file, of the listed names; the first root, folder and kind count."""
        found: dict[str, tuple[int, Path]] = {}
        for number, folder in enumerate(root / name for root in self.roots for name in folders):
            if not folder.is_dir():
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    stem, dot, kind = entry.name.rpartition(".")
                    if stem in self.names and dot + kind.lower() in kinds and entry.is_file():
                        rank = number * len(kinds) + kinds.index(dot + kind.lower())
                        if stem not in found or (rank, folder / entry.name) < found[stem]:
                            found[stem] = rank, folder / entry.name
        return {name: path for name, (_, path) in found.items()}

    def _nested(self, root: Path, name: str) -> Files | None:
        entry = self.names[name]
        for pictures, sounds in (
            (root / "Data" / name, root / "Data" / name),
            (root / "frames" / entry, root / "mp3" / entry.rpartition("/")[0]),
        ):
            shown, heard = _files(pictures, _PICTURES), _files(sounds, _SOUNDS)
            if shown and heard:
                return Files(shown[len(shown) // 2], STILL, heard[0])
        return None


def _files(folder: Path, kinds: Sequence[str]) -> list[Path]:
    """The folder's files of these kinds, by name; none if there is no such folder."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in kinds and path.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []
