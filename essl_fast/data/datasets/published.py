"""The published, preprocessed HDF5 files → a data set: which row is which pair, and its boxes.

    ChaoticWorld/   all_unlabeled/h5py_train_{frames,audios,spects}.h5      all_unlabeled/ChaoticWorld_train.csv
                    labeled/Data/h5py_test_{frames,audios,spects}.h5        labeled/ChaoticWorld_test.csv
                    labeled/Annotations/ChaoticWorld_test.json
    VGG-Sound/      10k_unlabeled/h5py_train_{…}_10k.h5                     10k_unlabeled/*.csv
                    144k_unlabeled/h5py_train_{…}_144k_{1..10}.h5           144k_unlabeled/*.csv
                    5k_labeled/Data/h5py_test_{…}.h5                        vggss_test_4692.csv
                    5k_labeled/Annotations/vggss_test_5158.json
    SoundNet_Flickr/10k_unlabeled, 144k_unlabeled as above; its test pairs are files, see `flickr`

`--from-h5` names one of these folders, or the folder that holds it. Row i of the arrays is line i of the list. The
published script leaves out rows at the end of the arrays and not of the list: such names are left out here, too. Of the
arrays only `frames` and `audios` are read: `spects` is the log-mel of `audios`, which is computed anew. Where it is
there, it must have as many rows.

Chaotic World's names are <video>_<frame>, and its training rows have no boxes here, unless `--annotations` names
Chaotic World's annotations: then each row has the boxes that are there for its video and frame.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from essl_fast.common.errors import InputError
from essl_fast.data.datasets import hdf5
from essl_fast.data.datasets.annotations import Annotations, LeftOut, choose_validation
from essl_fast.data.datasets.listed import HDF5, NO_LABEL, UNKNOWN, Files, Label, on_grid, read_names
from essl_fast.data.datasets.pairs import Pairs, pair_key
from essl_fast.data.datasets.vggss import read_boxes

FOLDERS = {"chaotic": "ChaoticWorld", "flickr": "SoundNet_Flickr", "vggss": "VGG-Sound"}
SUBSETS = ("10k", "144k")
NO_ROW = "no row in the HDF5 file"
_KEY = re.compile(r"(.+)_(\d{6,9})")
_CHAOTIC_SIZE = (320, 180)  # of the frames that the boxes of its JSON file were drawn on


class Rows(NamedTuple):
    """Where the rows of a split are: name → (number of its file, row), of (frames, audios) files in their order."""

    files: list[tuple[Path, Path]]
    names: dict[str, tuple[int, int]]
    missing: list[str]  # names behind the last row


def base_folder(root: Path, dataset: str) -> Path:
    """The data set's folder: `root`, or the one of its name in it. InputError if there is neither."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: --from-h5 must name the one that holds {FOLDERS[dataset]}")
    inside = root / FOLDERS[dataset]
    return inside if inside.is_dir() else root


def train_rows(base: Path, dataset: str, subset: str | None, listed: Path | None) -> Rows:
    """The training rows. InputError that says what is missing, where there is a choice to make, or which files differ
    in their number of rows."""
    if dataset == "chaotic":
        folder = base / "all_unlabeled"
        found = [_pair(folder, "h5py_train_{}.h5")]
        return _rows(found, listed or folder / "ChaoticWorld_train.csv")
    there = [name for name in SUBSETS if (base / f"{name}_unlabeled").is_dir()]
    if subset is None and len(there) != 1:
        what = "neither 10k_unlabeled nor 144k_unlabeled" if not there else "both 10k_unlabeled and 144k_unlabeled"
        raise InputError(f"{base} holds {what}: {'choose one with --subset' if there else 'are the files elsewhere?'}")
    subset = subset or there[0]
    folder = base / f"{subset}_unlabeled"
    numbered = sorted(folder.glob(f"h5py_train_frames_{subset}_*.h5"), key=_number)
    if numbered:
        found = [_pair(folder, f"h5py_train_{{}}_{subset}_{_number(path)}.h5") for path in numbered]
        if [_number(path) for path in numbered] != list(range(1, len(numbered) + 1)):
            raise InputError(f"{folder}: {numbered[-1].name} is there, and one with a lower number is not")
    else:
        found = [_pair(folder, f"h5py_train_{{}}_{subset}.h5")]
    lists = sorted(folder.glob("*.csv"))
    if listed is None and len(lists) != 1:
        raise InputError(
            f"{folder} holds {len(lists)} CSV files instead of the list of its rows: name that one with --train-list"
        )
    return _rows(found, listed or lists[0])


def test_rows(base: Path, dataset: str, listed: Path | None) -> Rows:
    """The test rows, of Chaotic World and VGG-SS. InputError as `train_rows`."""
    folder = base / ("labeled" if dataset == "chaotic" else "5k_labeled") / "Data"
    found = [_pair(folder, "h5py_test_{}.h5")]
    if listed is None:
        places = sorted(base.glob("vggss_test*.csv"))
        if dataset == "chaotic":
            name = "ChaoticWorld_test.csv"
            places = [path for path in (base / "labeled" / name, folder / name) if path.is_file()]
        if not places:
            what = "labeled/ChaoticWorld_test.csv" if dataset == "chaotic" else "vggss_test_4692.csv"
            raise InputError(f"{base / what} is not there: it names the test rows; put it there or give --test-list")
        if len(places) > 1 and dataset == "vggss":
            raise InputError(f"{base} holds {' and '.join(path.name for path in places)}: name one with --test-list")
        listed = places[0]
    return _rows(found, listed)


def label_of_chaotic(base: Path, split: str) -> Callable[[str], Label | None]:
    """The boxes of ChaoticWorld_test.json; training rows have none."""
    path = base / "labeled" / "Annotations" / "ChaoticWorld_test.json"
    if split == "train":
        return lambda name: None
    if not path.is_file():
        raise InputError(f"{path} is not there: it holds the boxes of the test rows")
    width, height = _CHAOTIC_SIZE
    labels = read_boxes(path, side=1)

    def fractions(label: Label) -> Label:
        return label._replace(boxes=[[a / width, b / height, c / width, d / height] for a, b, c, d in label.boxes])

    return {name: fractions(label) for name, label in labels.items()}.get


def read_rows(
    rows: Mapping[str, Rows], label: Mapping[str, Callable[[str], Label | None]], dataset: str, share: float, seed: int
) -> tuple[Annotations, Callable[[str], Files]]:
    """The pairs of the rows, and where each video's rows are. `label`: split → name → label. Test rows without one are
    left out, since nobody can score them; of the training videos with labels, a share becomes val."""
    if not 0 <= share < 1:
        raise InputError(f"validation is {share}: give a share of the labelled training pairs, at least 0 and below 1")
    if both := rows["train"].names.keys() & rows["test"].names.keys() if len(rows) > 1 else ():
        raise InputError(f"{min(both)!r} and {len(both) - 1} more names are rows of both train and test")
    found: dict[str, dict[str, list]] = {split: {} for split in ("train", "val", "test")}  # video → [(frame, ...), ...]
    places: dict[str, Files] = {}
    left_out: list[LeftOut] = []
    for split, held in rows.items():
        for name, (file, row) in held.names.items():
            video, fid = _video_of(name, dataset)
            labelled, key, boxes = label[split](name), pair_key(video, fid), []
            if labelled is not None:
                boxes = on_grid(labelled, video, key, left_out)
            if not boxes and split == "test":
                if labelled is None or not labelled.boxes:
                    left_out.append(LeftOut(video, key, NO_LABEL, f"{name} has no box among the annotations"))
                continue
            frames, sounds = held.files[file]
            known = places.setdefault(video, Files(frames, HDF5, sounds, {}))
            if known.path != frames:
                raise InputError(f"rows of {video} are in {known.path.name} and in {frames.name}: they must be in one")
            known.rows[fid] = row
            classes = labelled.classes if labelled else (UNKNOWN,)
            found[split].setdefault(video, []).append((fid, 0.0, boxes, classes))
        for name in held.missing:
            left_out.append(LeftOut(*_missing(name, dataset), NO_ROW, f"{name} is listed behind the arrays' last row"))
    with_boxes = [video for video, pairs in found["train"].items() if any(boxes for _, _, boxes, _ in pairs)]
    for video in choose_validation(with_boxes, share, seed):
        pairs = found["train"].pop(video)
        found["val"][video] = [pair for pair in pairs if pair[2]]
        lost = [pair for pair in pairs if not pair[2]]
        left_out += [LeftOut(video, pair_key(video, pair[0]), NO_LABEL, "a val pair without a box") for pair in lost]
    pairs = Pairs()
    for split, videos in found.items():
        for video, of_video in videos.items():
            pairs.add_video(video, split, of_video)
    listed = {split: list(videos) for split, videos in found.items()}
    read = Annotations(pairs, left_out, listed, sum(len(held.names) for held in rows.values()))
    return read, places.__getitem__


def _video_of(name: str, dataset: str) -> tuple[str, int]:
    """(video, frame) of a row's name."""
    told = _KEY.fullmatch(name) if dataset == "chaotic" else None
    return (told[1], int(told[2])) if told else (name, 1)


def _missing(name: str, dataset: str) -> tuple[str, str]:
    video, fid = _video_of(name, dataset)
    return video, pair_key(video, fid)


def _pair(folder: Path, pattern: str) -> tuple[Path, Path]:
    return folder / pattern.format("frames"), folder / pattern.format("audios")


def _number(path: Path) -> int:
    number = path.stem.rpartition("_")[2]
    if not number.isdecimal():
        raise InputError(f"{path} is not numbered as the published files are: rename it or move it away")
    return int(number)


def _rows(files: list[tuple[Path, Path]], listed: Path) -> Rows:
    """The rows of some files, one after another, under the names of a list."""
    counts = []
    for frames, audios in files:
        count, heard = hdf5.rows_of(frames, "frames"), hdf5.rows_of(audios, "audios")
        if count != heard:
            raise InputError(f"{frames} has {count} rows and {audios.name} has {heard}: fetch them again")
        spects = audios.with_name(audios.name.replace("audios", "spects"))
        if spects.is_file() and (shown := hdf5.rows_of(spects, "spects")) != count:
            raise InputError(f"{frames} has {count} rows and {spects.name} has {shown}: fetch them again")
        counts.append(count)
    names = list(read_names(listed, once=True))
    if len(names) < sum(counts):
        raise InputError(
            f"{listed} names {len(names)} different pairs, and the arrays have {sum(counts)} rows: is it "
            "the list of another set?"
        )
    places = [(file, row) for file, count in enumerate(counts) for row in range(count)]
    return Rows(files, dict(zip(names, places, strict=False)), names[len(places) :])
