"""A data set as `prepare` takes it, and the register of the readers that make one.

| `--dataset`  | reader      | consensus |
| ------------ | ----------- | --------- |
| chaotic      | `chaotic`   | 1         |
| csv          | `chaotic`   | 1         |
| flickr       | `flickr`    | 2         |
| vggss        | `vggss`     | 1         |
| chaotic-h5   | `published` | 1         |
| flickr-h5    | `published` | 2         |
| vggss-h5     | `published` | 1         |
| flickr-extended, vggss-extended | `extended` | 2, 1 |
| is3          | `is3`       | 1         |
| avsbench-s4, avsbench-ms3       | `avsbench` | 1    |

`--dataset NAME --from-h5 DIR` means the reader NAME-h5. The docstrings of the readers show their folder trees;
docs/datasets.md shows how to add a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from essl_fast.common.errors import InputError
from essl_fast.common.registry import Registry
from essl_fast.data.datasets.annotations import GRID, SPLITS, Annotations
from essl_fast.data.datasets.further import Further
from essl_fast.data.datasets.options import OPTIONS, DatasetOptions

VIDEO, MIDDLE, STILL, HDF5 = "video", "middle", "still", "hdf5"  # the kinds of `Files`
UNKNOWN = "unknown"  # the class of a pair whose sound has no label

_LATER = ("extended", "is3", "avsbench")  # sets of later work, for evaluation

_READERS = Registry(
    "data set",
    setting="--dataset",
    own=[f"essl_fast.data.datasets.{module}" for module in ("chaotic", "flickr", "vggss", "published", *_LATER)],
)


class Files(NamedTuple):
    """The files that hold the pairs of one video.

    Attributes:
        path: the file of the frames.
        kind: VIDEO, a video with sound: each pair is its frame and the 3 s around it;
            MIDDLE, likewise, but its one pair is the middle of the video, whatever the annotations say;
            STILL, a picture: its one pair is the picture and the middle 3 s of the file `sound`;
            HDF5, a published array of frames: each pair is a row of it and of the array in `sound`.
        sound: the file of the sound, for STILL and HDF5.
        rows: for HDF5, frame number → row.
    """

    path: Path
    kind: str = VIDEO
    sound: Path | None = None
    rows: Mapping[int, int] | None = None


@dataclass(frozen=True)
class Dataset:
    """What `prepare` makes shards of.

    Attributes:
        name: for the manifest: reports show the published results of the data set of this name.
        annotations: the pairs, and what was left out.
        files_of: video → the files of its pairs. Raises `essl_fast.data.media.MediaError` if they are missing.
        settings: everything else that decides what is stored, as JSON values. `prepare` refuses a folder that
            was made with other settings.
        consensus: how many annotators must agree for a pixel to count fully, 1 or more.
        float_sound: store the sound as float32 instead of int16.
        from_videos: frames come out of videos, so that clips are possible.
        further: masks, negatives, scenes and the classes of boxes, where the data set has them.
        listed: its pairs come from public lists, so it is reported how many of them were found.
    """

    name: str
    annotations: Annotations
    files_of: Callable[[str], Files]
    settings: Mapping[str, Any] = field(default_factory=dict)
    consensus: int = 1
    float_sound: bool = False
    from_videos: bool = True
    further: Further = Further()
    listed: bool = False

    def check(self) -> None:
        """Check that shards can hold the data set: a reader of a user's own may be wrong. InputError if they cannot."""
        pairs, reader = self.annotations.pairs, f"the reader of data set {self.name!r}"
        splits = {split for _, split, _ in pairs.videos()} | self.annotations.videos.keys()
        if wrong := sorted(splits - set(SPLITS)):
            raise InputError(f"{reader} gave the split {wrong[0]!r}: choose from {', '.join(SPLITS)}")
        seen: set[str] = set()
        for video, _, span in pairs.videos():
            if video in seen:
                raise InputError(f"{reader} added the video {video!r} twice: add all its pairs at once")
            seen.add(video)
            if len(set(pairs.fid[span.start : span.stop].tolist())) < len(span):
                raise InputError(f"{reader} gave two pairs for one frame of {video!r}: join their boxes in one pair")
        if len(pairs.boxes) and not 0 <= pairs.boxes.min() <= pairs.boxes.max() <= GRID:
            raise InputError(f"{reader} gave a box outside of the {GRID} grid: scale it with boxes_to_grid")
        if not np.isfinite(pairs.time).all():
            raise InputError(f"{reader} gave a time that is no number: give seconds")
        if not all(pairs.class_sets):
            raise InputError(f"{reader} gave a pair without a class: give (UNKNOWN,) if nobody named it")

    def header(self) -> dict[str, Any]:
        """What the manifest's header says of the data set."""
        return {"dataset": self.name, "consensus": self.consensus} | ({"sound": "f32"} if self.float_sound else {})


Reader = Callable[[DatasetOptions], Dataset]


def register_dataset(name: str, *, needs: Iterable[str] = (), takes: Iterable[str] = ()) -> Callable[[Reader], Reader]:
    """A decorator that makes a reader known as `--dataset NAME`.

    Args:
        name: what `--dataset` says.
        needs: fields of `DatasetOptions` that must be given.
        takes: fields that may be given. `validation` and `seed` always may; any other one is an error.

    Returns:
        The decorator. The reader gets a `DatasetOptions` and returns a `Dataset`.

    Raises:
        ValueError: an option does not exist, or the name is taken.
    """
    needs, takes = tuple(needs), tuple(takes)
    if unknown := sorted({*needs, *takes} - OPTIONS):
        raise ValueError(
            f"data set {name!r}: there is no option {unknown[0]!r}; choose from {', '.join(sorted(OPTIONS))}"
        )
    return _READERS.register(name, needs=needs, takes=takes)


def dataset_names() -> list[str]:
    """The names that `read_dataset` knows, ours and the registered ones."""
    return _READERS.names()


def read_dataset(given: Mapping[str, Any]) -> Dataset:
    """Read the data set that the options ask for.

    Args:
        given: "dataset", "name" if the user named it, and those fields of `DatasetOptions` that were given.

    Raises:
        InputError: there is no such data set, an option is missing or does not go with it, or the reader refuses.
    """
    options = dict(given)
    name, title = options.pop("dataset"), options.pop("name", "")
    if "data" in options:
        options["data"] = tuple(options["data"])
    h5 = "from_h5" in options
    reader_name = f"{name}-h5" if h5 and not name.endswith("-h5") else name
    reader, facts = _READERS.get(reader_name), _READERS.facts(reader_name)
    what = f"--dataset {name}{' with --from-h5' if h5 else ''}"
    needs, takes = set(facts["needs"]), set(facts["takes"])
    if missing := sorted(needs - options.keys()):
        raise InputError(f"{what} needs {' and '.join(map(_flag, missing))}")
    if foreign := sorted(options.keys() - needs - takes - {"validation", "seed"}):
        raise InputError(f"{_flag(foreign[0])} does not go with {what}")
    found = reader(DatasetOptions(**options))
    if not isinstance(found, Dataset):
        raise InputError(f"the reader of {what} returned {type(found).__name__} instead of a Dataset")
    return replace(found, name=title, settings={**found.settings, "name": title}) if title else found


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
