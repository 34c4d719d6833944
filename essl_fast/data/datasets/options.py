"""The options that the reader of a data set may get. This file imports little, so that `prepare --help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

FRAMES = ("start", "middle", "all")
ROW_BOXES = ("first", "all")
SUBSETS = ("10k", "144k")


@dataclass(frozen=True)
class DatasetOptions:
    """The options of `python -m essl_fast.prepare` that choose and read a data set. None: it was not given.

    Attributes:
        videos: folder of videos.
        annotations: file or folder of annotations.
        data: folders of pictures and sounds, or whatever a reader expects there.
        from_h5: folder of the published HDF5 files.
        train_list: file that names the training pairs.
        val_list: file that names the validation pairs.
        test_list: file that names the test pairs.
        negatives: file that names test pairs whose sound is not in the frame.
        subset: one of SUBSETS, which training pairs of the HDF5 files.
        frame: one of FRAMES, which frames of a sound.
        row_boxes: one of ROW_BOXES, which boxes of an annotation row.
        annotation_size: width and height of the frames that the boxes were drawn on, pixels.
        validation: share of the training videos or pairs that becomes the split val, 0 up to 1.
        seed: decides which ones.
    """

    videos: Path | None = None
    annotations: Path | None = None
    data: tuple[Path, ...] = ()
    from_h5: Path | None = None
    train_list: Path | None = None
    val_list: Path | None = None
    test_list: Path | None = None
    negatives: Path | None = None
    subset: str | None = None
    frame: str | None = None
    row_boxes: str | None = None
    annotation_size: tuple[int, int] | None = None
    validation: float = 0.1
    seed: int = 0

    def lists(self) -> dict[str, Path]:
        """Split → its list, of the lists that were given."""
        lists = {"train": self.train_list, "val": self.val_list, "test": self.test_list}
        return {split: path for split, path in lists.items() if path is not None}

    def given(self, *names: str) -> dict[str, Any]:
        """Those of the named options that were given, so that a function's own defaults stand for the others."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


OPTIONS = {field.name for field in fields(DatasetOptions)}
SOURCES = {
    "videos",
    "annotations",
    "data",
    "from_h5",
    "train_list",
    "val_list",
    "test_list",
    "negatives",
}  # options that name files
