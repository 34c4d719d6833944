"""The published, preprocessed HDF5 files → a data set: the pair of each row, and its boxes.

`published_rows` shows the folders. The names of Chaotic World are <video>_<frame>. Its training rows have no boxes,
unless `--annotations` names Chaotic World's annotations: then each row has the boxes that they list for its video and
frame.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from essl_fast.common.errors import InputError
from essl_fast.data.datasets import flickr, hdf5, vggss
from essl_fast.data.datasets.annotations import GRID, NO_LABEL, SPLITS, Annotations, LeftOut, choose_validation
from essl_fast.data.datasets.chaotic import read_chaotic_world
from essl_fast.data.datasets.dataset import HDF5, UNKNOWN, Dataset, Files, register_dataset
from essl_fast.data.datasets.folders import Folders
from essl_fast.data.datasets.listed import Label, annotate, on_grid, read_names
from essl_fast.data.datasets.options import DatasetOptions
from essl_fast.data.datasets.pairs import Pairs, pair_key
from essl_fast.data.datasets.published_rows import Rows, base_folder, test_rows, train_rows
from essl_fast.data.datasets.vggss import read_boxes

NO_ROW = "no row in the HDF5 file"
_LISTS = ("train_list", "val_list", "test_list")
_KEY = re.compile(r"(.+)_(\d{6,9})")
_CHAOTIC_SIZE = (320, 180)  # width and height of the frames that the boxes of its JSON file refer to, pixels

LabelOf = Callable[[str], Label | None]


@register_dataset("chaotic-h5", needs=("from_h5",), takes=("annotations", "row_boxes", *_LISTS))
def read_chaotic_h5(options: DatasetOptions) -> Dataset:
    """`--dataset chaotic --from-h5 DIR`. InputError if h5py, a file or a list is missing or does not fit the others."""
    if options.row_boxes is not None and options.annotations is None:
        raise InputError("--row-boxes does not go with --dataset chaotic with --from-h5")
    base = _base(options, "chaotic")
    rows = {"train": train_rows(base, "chaotic", None, options.train_list)}
    if options.annotations is not None:
        train = test = _labels_of_annotations(options.annotations, **options.given("row_boxes"))
    else:
        train, test = _no_label, _labels_of_chaotic_json(base)
    rows["test"] = test_rows(base, "chaotic", options.test_list)
    read, files_of = read_rows(rows, {"train": train, "test": test}, "chaotic", options.validation, options.seed)
    return _dataset("chaotic", read, files_of, 1, options)


@register_dataset("vggss-h5", needs=("from_h5",), takes=("annotations", "subset", *_LISTS))
def read_vggss_h5(options: DatasetOptions) -> Dataset:
    """`--dataset vggss --from-h5 DIR`. InputError as `read_chaotic_h5`."""
    base = _base(options, "vggss")
    rows = {"train": train_rows(base, "vggss", options.subset, options.train_list)}
    labels: dict[str, Callable[[str], Label | None]]
    labels = {"train": _no_label, "test": vggss.JsonLabels([base], options.annotations)}
    rows["test"] = test_rows(base, "vggss", options.test_list)
    read, files_of = read_rows(rows, labels, "vggss", options.validation, options.seed)
    return _dataset("vggss", read, files_of, vggss.CONSENSUS, options)


@register_dataset("flickr-h5", needs=("from_h5",), takes=("annotations", "subset", *_LISTS))
def read_flickr_h5(options: DatasetOptions) -> Dataset:
    """`--dataset flickr --from-h5 DIR`: rows to train on; the pairs of --test-list are files. InputError as above."""
    base = _base(options, "flickr")
    rows = {"train": train_rows(base, "flickr", options.subset, options.train_list)}
    read, files_of = read_rows(rows, {"train": _no_label}, "flickr", options.validation, options.seed)
    if options.test_list is not None:
        read, files_of = _with_test_files(read, files_of, base, options.test_list, options.annotations)
    return _dataset("flickr", read, files_of, flickr.CONSENSUS, options)


def _base(options: DatasetOptions, name: str) -> Path:
    """The folder of the data set, after what all three data sets must check first."""
    hdf5.library()
    if options.val_list is not None:
        raise InputError("--val-list does not go with --from-h5: val is a share of the labelled training rows")
    assert options.from_h5 is not None  # "needs" of these data sets
    return base_folder(options.from_h5, name)


def _dataset(name: str, read: Annotations, files_of: Callable, consensus: int, options: DatasetOptions) -> Dataset:
    settings = {"dataset": name, "from_h5": True, "validation": float(options.validation), "seed": options.seed}
    return Dataset(name, read, files_of, settings, consensus, float_sound=True, from_videos=False)


# ---------------------------------------------------------------- labels


def _no_label(name: str) -> None:
    del name


def _labels_of_chaotic_json(base: Path) -> LabelOf:
    """Name → the boxes that ChaoticWorld_test.json has for it."""
    path = base / "labeled" / "Annotations" / "ChaoticWorld_test.json"
    if not path.is_file():
        raise InputError(f"{path} is not there: it holds the boxes of the test rows")
    width, height = _CHAOTIC_SIZE
    labels = read_boxes(path, side=1)

    def fractions(label: Label) -> Label:
        return label._replace(boxes=[[a / width, b / height, c / width, d / height] for a, b, c, d in label.boxes])

    return {name: fractions(label) for name, label in labels.items()}.get


def _labels_of_annotations(root: Path, row_boxes: str = "first") -> LabelOf:
    """Name → the boxes that Chaotic World's annotations have for the first frame of a sound."""
    read = read_chaotic_world(root, row_boxes=row_boxes, validation=0)
    return {pair.key: Label(pair.boxes.tolist(), GRID, pair.classes, f"{pair.video}.csv") for pair in read.pairs}.get


# ---------------------------------------------------------------- pairs


def read_rows(
    rows: Mapping[str, Rows], labels: Mapping[str, LabelOf], dataset: str, share: float, seed: int
) -> tuple[Annotations, Callable[[str], Files]]:
    """The pairs of the rows, and the files of each video.

    Test rows without a label are left out, because they cannot be scored.

    Args:
        rows: train and, except for Flickr-SoundNet, test → its rows.
        labels: train and test → the labels of their rows.
        dataset: chaotic, flickr or vggss.
        share: of the training videos with labels, the share that becomes val.
        seed: decides which ones.

    Raises:
        InputError: the share is out of range, a name is in both splits, or a video is in two files.
    """
    if not 0 <= share < 1:
        raise InputError(f"--validation is {share}: give a share of the labelled training pairs, from 0 to below 1")
    if both := rows["train"].names.keys() & rows["test"].names.keys() if len(rows) > 1 else ():
        raise InputError(f"{min(both)!r} and {len(both) - 1} more names are rows of both train and test")
    found: dict[str, dict[str, list]] = {split: {} for split in SPLITS}  # video → [(frame, ...), ...]
    places: dict[str, Files] = {}
    left_out: list[LeftOut] = []
    for split, held in rows.items():
        for name, (file, row) in held.names.items():
            video, fid = _video_of(name, dataset)
            label, key, boxes = labels[split](name), pair_key(video, fid), []
            if label is not None:
                boxes = on_grid(label, video, key, left_out)
            if not boxes and split == "test":
                if label is None or not label.boxes:
                    left_out.append(LeftOut(video, key, NO_LABEL, f"{name} has no box among the annotations"))
                continue
            frames, sounds = held.files[file]
            known = places.setdefault(video, Files(frames, HDF5, sounds, {}))
            if known.path != frames:
                raise InputError(f"rows of {video} are in {known.path.name} and in {frames.name}: they must be in one")
            assert isinstance(known.rows, dict)
            known.rows[fid] = row
            found[split].setdefault(video, []).append((fid, 0.0, boxes, label.classes if label else (UNKNOWN,)))
        for name in held.missing:
            video, fid = _video_of(name, dataset)
            detail = f"{name} is listed behind the arrays' last row"
            left_out.append(LeftOut(video, pair_key(video, fid), NO_ROW, detail))
    _hold_out(found, share, seed, left_out)
    pairs = Pairs()
    for split, videos in found.items():
        for video, of_video in videos.items():
            pairs.add_video(video, split, of_video)
    listed = {split: list(videos) for split, videos in found.items()}
    read = Annotations(pairs, left_out, listed, sum(len(held.names) for held in rows.values()))
    return read, places.__getitem__


def _hold_out(found: dict[str, dict[str, list]], share: float, seed: int, left_out: list[LeftOut]) -> None:
    """Move a share of the training videos with boxes to val, without their pairs that have no box."""
    with_boxes = [video for video, pairs in found["train"].items() if any(boxes for _, _, boxes, _ in pairs)]
    chosen = choose_validation(with_boxes, share, seed)
    for video in filter(chosen.__contains__, with_boxes):  # in their order: that of a set changes from run to run
        pairs = found["train"].pop(video)
        found["val"][video] = [pair for pair in pairs if pair[2]]
        lost = [pair for pair in pairs if not pair[2]]
        left_out += [LeftOut(video, pair_key(video, pair[0]), NO_LABEL, "a val pair without a box") for pair in lost]


def _video_of(name: str, dataset: str) -> tuple[str, int]:
    """(video, frame) of the name of a row."""
    match = _KEY.fullmatch(name) if dataset == "chaotic" else None
    return (match[1], int(match[2])) if match else (name, 1)


def _with_test_files(
    read: Annotations, files_of: Callable[[str], Files], base: Path, test: Path, annotations: Path | None
) -> tuple[Annotations, Callable[[str], Files]]:
    """Add the test pairs of Flickr-SoundNet, which are files, to its training rows."""
    entries = read_names(test)
    if both := entries.keys() & set(read.videos["train"]):
        raise InputError(f"{min(both)!r} and {len(both) - 1} more names are training rows and in {test}: take them out")
    labels, folders = flickr.XmlLabels([base], annotations), Folders([base], entries)
    tested = annotate({"test": list(entries)}, labels, labels.where)
    for video, split, span in tested.pairs.videos():
        pairs = [tested.pairs[index] for index in span]
        read.pairs.add_video(video, split, [(p.fid, p.time, p.boxes.tolist(), p.classes) for p in pairs])
    videos = read.videos | {"test": list(entries)}
    joined = Annotations(read.pairs, read.left_out + tested.left_out, videos, read.rows + tested.rows)
    return joined, lambda video: folders(video) if video in entries else files_of(video)
