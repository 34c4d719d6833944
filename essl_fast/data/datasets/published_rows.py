"""The rows of the published, preprocessed HDF5 files: which arrays there are, and the name of each row.

    ChaoticWorld/   all_unlabeled/h5py_train_{frames,audios,spects}.h5      all_unlabeled/ChaoticWorld_train.csv
                    labeled/Data/h5py_test_{frames,audios,spects}.h5        labeled/ChaoticWorld_test.csv
                    labeled/Annotations/ChaoticWorld_test.json
    VGG-Sound/      10k_unlabeled/h5py_train_{…}_10k.h5                     10k_unlabeled/*.csv
                    144k_unlabeled/h5py_train_{…}_144k_{1..10}.h5           144k_unlabeled/*.csv
                    5k_labeled/Data/h5py_test_{…}.h5                        vggss_test_4692.csv
                    5k_labeled/Annotations/vggss_test_5158.json
    SoundNet_Flickr/10k_unlabeled, 144k_unlabeled as above; its test pairs are files, see `flickr`

`--from-h5` names one of these folders, or the folder that holds it. Row i of the arrays is line i of the list. The
published script may leave rows out at the end of the arrays, but not of the list: the names of these rows are left out
here, too. Only the arrays `frames` and `audios` are read: `spects` is the log-mel of `audios`, which is computed anew.
If there is a file of `spects`, it must have as many rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from essl_fast.common.errors import InputError
from essl_fast.data.datasets import hdf5
from essl_fast.data.datasets.listed import read_names
from essl_fast.data.datasets.options import SUBSETS

FOLDERS = {"chaotic": "ChaoticWorld", "flickr": "SoundNet_Flickr", "vggss": "VGG-Sound"}


class Rows(NamedTuple):
    """Where the rows of a split are."""

    files: list[tuple[Path, Path]]  # (frames, audios)
    names: dict[str, tuple[int, int]]  # name → (index into `files`, row)
    missing: list[str]  # names of the list after the last row


def base_folder(root: Path, dataset: str) -> Path:
    """The folder of the data set: `root`, or its subfolder of the published name. InputError if there is neither."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: --from-h5 must name the one that holds {FOLDERS[dataset]}")
    inside = root / FOLDERS[dataset]
    return inside if inside.is_dir() else root


def train_rows(base: Path, dataset: str, subset: str | None, listed: Path | None) -> Rows:
    """The training rows.

    Args:
        base: folder of the data set.
        dataset: chaotic, flickr or vggss.
        subset: one of SUBSETS, or None if there is only one.
        listed: the list of the rows, None if it is in its published place.

    Raises:
        InputError: something is missing, there are several subsets or lists, or files differ in their number of rows.
    """
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
    """The test rows of Chaotic World or VGG-SS. Arguments and InputError as `train_rows`."""
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


def _pair(folder: Path, pattern: str) -> tuple[Path, Path]:
    return folder / pattern.format("frames"), folder / pattern.format("audios")


def _number(path: Path) -> int:
    number = path.stem.rpartition("_")[2]
    if not number.isdecimal():
        raise InputError(f"{path} is not numbered as the published files are: rename it or move it away")
    return int(number)


def _rows(files: list[tuple[Path, Path]], listed: Path) -> Rows:
    """The rows of some files, one file after another, with the names of a list."""
    counts = []
    for frames, audios in files:
        count, sounds = hdf5.rows_of(frames, "frames"), hdf5.rows_of(audios, "audios")
        if count != sounds:
            raise InputError(f"{frames} has {count} rows and {audios.name} has {sounds}: fetch them again")
        spects = audios.with_name(audios.name.replace("audios", "spects"))
        if spects.is_file() and (spectrograms := hdf5.rows_of(spects, "spects")) != count:
            raise InputError(f"{frames} has {count} rows and {spects.name} has {spectrograms}: fetch them again")
        counts.append(count)
    names = list(read_names(listed, once=True))
    if len(names) < sum(counts):
        raise InputError(
            f"{listed} names {len(names)} different pairs, and the arrays have {sum(counts)} rows: is it "
            "the list of another set?"
        )
    places = [(file, row) for file, count in enumerate(counts) for row in range(count)]
    return Rows(files, dict(zip(names, places, strict=False)), names[len(places) :])
