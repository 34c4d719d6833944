"""The data sets that `prepare` reads, each by a reader of its own: what it asks for, and where its files are.

| `--dataset` | reader        | `--from-h5`  | consensus |
| ----------- | ------------- | ------------ | --------- |
| chaotic     | `annotations` | `published`  | 1         |
| flickr      | `flickr`      | training     | 2         |
| vggss       | `vggss`       | `published`  | 1         |

The readers' docstrings show the folder trees.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from essl_fast.common.errors import InputError
from essl_fast.data import media
from essl_fast.data.datasets import annotations as notes
from essl_fast.data.datasets import flickr, hdf5, listed, published, vggss
from essl_fast.data.datasets.listed import Files, Label

NAMES = ("chaotic", "flickr", "vggss")
SOURCES = {"videos", "annotations", "data", "from_h5", "train_list", "val_list", "test_list"}
_CONSENSUS = {"chaotic": 1, "flickr": flickr.CONSENSUS, "vggss": vggss.CONSENSUS}


@dataclass(frozen=True)
class Dataset:
    """What `prepare` makes shards of.

    read: the pairs; find: video → the files of its pairs, MediaError where they are missing; settings: how it was read,
    as far as that decides what is stored; consensus: annotators that must agree; floats: sound is kept as float32;
    videos: frames come out of videos, so that clips are possible.
    """

    name: str
    read: notes.Annotations
    find: Callable[[str], Files]
    settings: Mapping[str, Any] = field(default_factory=dict)
    consensus: int = 1
    floats: bool = False
    videos: bool = True

    def header(self) -> dict[str, Any]:
        """What the manifest's header says of the data set."""
        return {"dataset": self.name, "consensus": self.consensus} | ({"sound": "f32"} if self.floats else {})


def chaotic(
    videos: str | Path,
    annotations: str | Path,
    *,
    frame: str = "start",
    row_boxes: str = "first",
    annotation_size: tuple[int, int] = (320, 180),
    validation: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Chaotic World from its videos. InputError for what `read_chaotic_world` refuses."""
    videos = Path(videos)
    if not videos.is_dir():
        raise InputError(f"{videos} is not a folder: videos must name the folder that holds <video>.mp4")
    rate = functools.cache(functools.partial(_frame_rate, videos))
    read = notes.read_chaotic_world(
        annotations,
        frame=frame,
        row_boxes=row_boxes,
        size=tuple(annotation_size),
        validation=validation,
        seed=seed,
        frame_rate=rate,
    )
    settings = {"frame": frame, "row_boxes": row_boxes, "annotation_size": list(annotation_size)}
    settings |= {"validation": float(validation), "seed": seed}
    return Dataset("chaotic", read, lambda video: Files(media.find_video(videos, video)), settings)


def pairs_of_files(
    name: str,
    roots: list[Path],
    lists: Mapping[str, Path],
    annotations: Path | None = None,
    *,
    validation: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Flickr-SoundNet or VGG-SS (`name`) from pictures and sounds, or short videos, in `roots`. `lists`: of train, val
    and test, some of them; the folder or file of annotations is looked for in `roots` unless it is given. InputError
    for a list or a folder that is missing or malformed, or a name in two lists."""
    if not {"train", "test"} & lists.keys():
        raise InputError(f"{name} needs --train-list or --test-list, or both: which pairs are meant?")
    if nowhere := [root for root in roots if not Path(root).is_dir()]:
        raise InputError(f"{nowhere[0]} is not a folder: --data must name where the pictures and sounds are")
    entries = {split: listed.read_names(path) for split, path in lists.items()}
    label = _labels(name, roots, annotations, needed=bool({"val", "test"} & lists.keys()))
    splits = listed.split_names(entries, label.has, validation, seed)
    find = listed.Folders(roots, {name: entry for names in entries.values() for name, entry in names.items()})
    settings = {"dataset": name, "validation": float(validation), "seed": seed}
    read = listed.annotate(splits, label, label.where)
    return Dataset(name, read, find, settings, _CONSENSUS[name], videos=bool(find.videos))


def from_h5(
    name: str,
    root: Path,
    lists: Mapping[str, Path],
    annotations: Path | None = None,
    *,
    subset: str | None = None,
    row_boxes: str = "first",
    validation: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """The published HDF5 files of a data set. `lists`: of train and test, where they are not in their published place;
    of Flickr-SoundNet, whose test pairs are files, that of test is needed for them. `subset`: 10k or 144k, where both
    are there. InputError where h5py, a file or a list is missing or does not fit the others."""
    hdf5.library()
    if "val" in lists:
        raise InputError("--val-list does not go with --from-h5: val is a share of the labelled training rows")
    base = published.base_folder(root, name)
    rows = {"train": published.train_rows(base, name, subset, lists.get("train"))}
    label: dict[str, Callable[[str], Label | None]] = {"train": lambda name: None}
    if name == "chaotic" and annotations is not None:
        label["train"] = label["test"] = _chaotic_labels(annotations, row_boxes)
    elif name == "chaotic":
        label["test"] = published.label_of_chaotic(base, "test")
    elif name == "vggss":
        label["test"] = vggss.Boxes([base], annotations)
    if name != "flickr":
        rows["test"] = published.test_rows(base, name, lists.get("test"))
    read, find = published.read_rows(rows, label, name, validation, seed)
    if name == "flickr" and "test" in lists:
        read, find = _with_files(read, find, base, lists["test"], annotations)
    settings = {"dataset": name, "from_h5": True, "validation": float(validation), "seed": seed}
    return Dataset(name, read, find, settings, _CONSENSUS[name], floats=True, videos=False)


def asked_for(options: Mapping[str, Any]) -> Dataset:
    """The data set that the options of the command ask for: "dataset", and the others where they were given. InputError
    where one is missing or does not go with the others."""
    given = dict(options)
    name, h5 = given.pop("dataset"), given.pop("from_h5", None)
    lists = {split: given.pop(f"{split}_list") for split in ("train", "val", "test") if f"{split}_list" in given}
    common = {option: given.pop(option) for option in ("validation", "seed") if option in given}
    what = f"--dataset {name}{' with --from-h5' if h5 else ''}"
    needed = set() if h5 else {"videos", "annotations"} if name == "chaotic" else {"data"}
    if missing := sorted(needed - given.keys()):
        raise InputError(f"{what} needs {' and '.join(f'--{option}' for option in missing)}")
    own = {"frame", "row_boxes", "annotation_size"} if name == "chaotic" and not h5 else set()
    if h5:
        own = {"subset"} if name != "chaotic" else {"row_boxes"} & given.keys() if "annotations" in given else set()
    if foreign := sorted(given.keys() - needed - own - {"annotations"}):
        raise InputError(f"--{foreign[0].replace('_', '-')} does not go with {what}")
    if h5:
        options = {option: given[option] for option in own & given.keys()}
        return from_h5(name, h5, lists, given.get("annotations"), **options, **common)
    if name == "chaotic" and lists:
        raise InputError(f"--{min(lists)}-list does not go with {what}: train_ssl.txt and test_ssl.txt are its lists")
    if name == "chaotic":
        return chaotic(**given, **common)
    return pairs_of_files(name, given["data"], lists, given.get("annotations"), **common)


def _labels(name: str, roots: list[Path], annotations: Path | None, needed: bool):
    try:
        return (flickr if name == "flickr" else vggss).Boxes(roots, annotations)
    except listed.NoAnnotations:
        if needed or annotations is not None:
            raise
        return _Nothing()  # training pairs alone need no labels


class _Nothing:
    where = "no annotations"

    def has(self, name: str) -> bool:
        return False

    def __call__(self, name: str) -> None:
        return None


def _chaotic_labels(root: Path, row_boxes: str) -> Callable[[str], Label | None]:
    """Name → label, of Chaotic World's annotations, by the first frame of each sound."""
    read = notes.read_chaotic_world(root, row_boxes=row_boxes, validation=0)
    return {
        pair.key: Label(pair.boxes.tolist(), notes.GRID, pair.classes, f"{pair.video}.csv") for pair in read.pairs
    }.get


def _with_files(read: notes.Annotations, find: Callable[[str], Files], base: Path, test: Path, annotations):
    """Training rows and the test pairs of Flickr-SoundNet together."""
    entries = listed.read_names(test)
    if both := entries.keys() & set(read.videos["train"]):
        raise InputError(f"{min(both)!r} and {len(both) - 1} more names are training rows and in {test}: take them out")
    label, files = flickr.Boxes([base], annotations), listed.Folders([base], entries)
    tested = listed.annotate({"test": list(entries)}, label, label.where)
    for video, split, span in tested.pairs.videos():
        pairs = [tested.pairs[index] for index in span]
        read.pairs.add_video(video, split, [(p.fid, p.time, p.boxes.tolist(), p.classes) for p in pairs])
    videos = read.videos | {"test": list(entries)}
    joined = notes.Annotations(read.pairs, read.left_out + tested.left_out, videos, read.rows + tested.rows)
    return joined, lambda video: files(video) if video in entries else find(video)


def _frame_rate(videos: Path, video: str) -> float | None:
    try:
        return media.probe(media.find_video(videos, video)).frame_rate
    except Exception:
        return None  # whatever it is, the video's part will say why
