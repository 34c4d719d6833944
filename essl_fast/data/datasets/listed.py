"""Data sets with one pair for each name of a list: lists of names, labels for some of them, folders with the files.

Flickr-SoundNet and VGG-SS are such data sets. A list says which names train and which test; each name has a picture and
a sound (or a short video), and the names that somebody annotated have boxes. The name is the pair's video and its frame
is 1, so the key of `10000130166` is `10000130166_000001`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from essl_fast.common.errors import InputError, short
from essl_fast.data import media
from essl_fast.data.datasets.annotations import (
    GRID,
    LONGEST_NAME,
    NO_BOX,
    NO_LABEL,
    Annotations,
    LeftOut,
    boxes_to_grid,
    choose_validation,
    reason_for_no_area,
)
from essl_fast.data.datasets.dataset import UNKNOWN, Dataset
from essl_fast.data.datasets.folders import PICTURES, SOUNDS, Folders
from essl_fast.data.datasets.options import DatasetOptions
from essl_fast.data.datasets.pairs import Pairs, pair_key
from essl_fast.data.datasets.tables import read_text

LISTED = {"needs": ("data",), "takes": ("annotations", "train_list", "val_list", "test_list")}  # for register_dataset
_LARGEST_LIST = 1 << 28  # bytes


class NoAnnotations(InputError):
    """There are no annotations at the places that were searched."""


class Label(NamedTuple):
    """What annotators said about a name.

    Attributes:
        boxes: K x 4 numbers, xyxy, in units of a frame of `side` x `side`.
        side: of that frame.
        classes: of the sound, the first one counts.
        where: place of the annotation, for messages.
    """

    boxes: list[list[float]]
    side: float
    classes: tuple[str, ...]
    where: str


class Labels(Protocol):
    """The labels of a data set. `where`: where they come from, for messages."""

    where: str

    def has(self, name: str) -> bool:
        """Whether the name has a label."""

    def __call__(self, name: str) -> Label | None:
        """The label of a name, None if it has none. InputError if it is malformed."""


def listed_dataset(
    name: str,
    find_labels: Callable[[list[Path], Path | None], Labels],
    consensus: int,
    options: DatasetOptions,
) -> Dataset:
    """A data set of pictures and sounds, or short videos, in the folders `options.data`.

    Args:
        name: of the data set.
        find_labels: (folders, file or folder of annotations or None) → labels. Raises NoAnnotations if there are none.
        consensus: how many annotators must agree for a pixel to count fully.
        options: data, annotations, train_list, val_list, test_list, validation and seed count.

    Raises:
        InputError: a list or a folder is missing or malformed, or a name is in two lists.
    """
    roots, lists = list(options.data), options.lists()
    if not {"train", "test"} & lists.keys():
        raise InputError(f"{name} needs --train-list or --test-list, or both: which pairs are meant?")
    if nowhere := [root for root in roots if not Path(root).is_dir()]:
        raise InputError(f"{nowhere[0]} is not a folder: --data must name where the pictures and sounds are")
    entries = {split: read_names(path) for split, path in lists.items()}
    try:
        labels: Labels = find_labels(roots, options.annotations)
    except NoAnnotations:
        if {"val", "test"} & lists.keys() or options.annotations is not None:
            raise
        labels = _NoLabels()  # training pairs alone need none
    splits = split_names(entries, labels.has, options.validation, options.seed)
    files = Folders(roots, {name: entry for names in entries.values() for name, entry in names.items()})
    settings = {"dataset": name, "validation": float(options.validation), "seed": options.seed}
    read = annotate(splits, labels, labels.where)
    return Dataset(name, read, files, settings, consensus, from_videos=bool(files.videos), listed=True)


class _NoLabels:
    """The labels of a data set without annotations."""

    where = "no annotations"

    def has(self, name: str) -> bool:
        return False

    def __call__(self, name: str) -> None:
        return None


def read_names(path: Path, once: bool = False) -> dict[str, str]:
    """The names of a list, in its order, each with its entry.

    The entry is the first cell of a line: a name, or the path of a file, whose name is its last part without the
    extension.

    Args:
        path: a text or CSV file.
        once: each line stands for a row of an array, so no name may come twice.

    Raises:
        InputError: the list cannot be read, names no pair, or names one twice.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not there: give the list, a name a line (or first in each line of a CSV file)")
    if path.stat().st_size > _LARGEST_LIST:
        raise InputError(f"{path} has {path.stat().st_size / 1e6:.0f} MB: is it a list of names?")
    names: dict[str, str] = {}
    try:  # strict: after a quote that is not closed, all further lines would be read as one name
        cells_of = list(csv.reader(read_text(path).splitlines(), strict=True))
    except csv.Error as error:
        raise InputError(f"{path} is no list of names ({error}): quotes must be closed, or left out") from None
    for line, cells in enumerate(cells_of, 1):
        entry = cells[0].strip() if cells else ""
        if not entry:
            continue
        name = entry.rsplit("/", 1)[-1]
        if name.lower().endswith((*media.EXTENSIONS, *PICTURES, *SOUNDS)):
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


def split_names(
    lists: Mapping[str, Mapping[str, str]], labelled: Callable[[str], bool], share: float, seed: int
) -> dict[str, list[str]]:
    """Split → its names.

    Args:
        lists: train, val and test → names as `read_names` gives them; some may be missing.
        labelled: whether a name has a label.
        share: without a list of val, the share of the labelled training names that becomes val. Other names cannot be
            scored.
        seed: decides which ones.

    Raises:
        InputError: a name is in two lists, or the share is out of range.
    """
    if not 0 <= share < 1:
        raise InputError(f"--validation is {share}: give a share of the labelled training pairs, from 0 to below 1")
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
    """The pairs of all names.

    Training names need no label. Names of val and test without a label, or without a box, are left out, because they
    cannot be scored.

    Args:
        splits: split → names.
        label: name → its label or None.
        missing: where the labels were searched, for messages.
    """
    pairs, left_out = Pairs(), []
    rows = 0
    for split, names in splits.items():
        for name in names:
            found, key = label(name), pair_key(name, 1)
            ready: list[tuple] = []
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
    """The label's boxes on the 224 grid, xyxy. Equal boxes all stay, because two annotators may agree.

    Boxes that cover no pixel are added to `left_out`. Boxes of a label whose side is 224 are on the grid already.
    """
    if label.side == GRID:  # without scaling: 61 / 224 * 224 is a little less than 61
        return [[int(value) for value in box] for box in label.boxes]
    kept = []
    for box, placed in zip(label.boxes, boxes_to_grid(label.boxes, label.side, label.side).tolist(), strict=True):
        if placed[2] > placed[0] and placed[3] > placed[1]:
            kept.append(placed)
        else:
            detail = f"{label.where}: box {box} of a {label.side:g}x{label.side:g} frame"
            left_out.append(LeftOut(name, key, reason_for_no_area(box, label.side, label.side), detail))
    return kept
