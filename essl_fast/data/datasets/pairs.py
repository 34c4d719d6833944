"""The pairs that annotations ask for, in columns.

378,093 of them, with a box each, take 16 MB; as many objects would take 210 MB. A `Pair` is made when one is asked for.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False, slots=True)
class Pair:
    """One frame with the 3 s of sound around it.

    `boxes`: int32 (K, 4), xyxy, half-open, on the 224 grid, clamped; K = 0 where `labelled` is False.
    `fid`: displayed frame, counted from 1. `time`: seconds. `classes`: all named for the frame, `class_name` first.
    """

    key: str
    video: str
    fid: int
    time: float
    boxes: np.ndarray
    class_name: str
    labelled: bool
    split: str
    classes: tuple[str, ...] = ()


class Pairs(Sequence):
    """N pairs, those of a video one after another: a sequence of `Pair` that is read-only but for `add_video`.

    The columns, NumPy views: fid (N,) int32; time (N,) float64; class_id (N,) int32, index into `class_sets`; box_end
    (N,) int64, the pair's boxes end there in boxes (M, 4) int32 and begin where those of the pair before it end.
    """

    def __init__(self) -> None:
        self.class_sets: list[tuple[str, ...]] = []  # the classes of a pair, `class_name` first
        self._class_ids: dict[tuple[str, ...], int] = {}
        self._videos: list[tuple[str, str]] = []  # name, split
        self._video_end = array("q")
        self._fid, self._time, self._class = array("i"), array("d"), array("i")
        self._box_end, self._boxes = array("q"), array("i")

    def add_video(
        self, video: str, split: str, pairs: Iterable[tuple[int, float, Sequence[Sequence[int]], tuple[str, ...]]]
    ) -> None:
        """Append a video's pairs: (fid, time, boxes as K x 4 whole numbers, classes) each; a video comes once."""
        for fid, time, boxes, classes in pairs:
            if (known := self._class_ids.get(classes)) is None:
                known = self._class_ids[classes] = len(self.class_sets)
                self.class_sets.append(classes)
            self._fid.append(fid)
            self._time.append(time)
            self._class.append(known)
            for box in boxes:
                self._boxes.extend(box)
            self._box_end.append(len(self._boxes) // 4)
        self._videos.append((video, split))
        self._video_end.append(len(self._fid))

    @property
    def fid(self) -> np.ndarray:
        return np.frombuffer(self._fid, np.int32)

    @property
    def time(self) -> np.ndarray:
        return np.frombuffer(self._time, np.float64)

    @property
    def class_id(self) -> np.ndarray:
        return np.frombuffer(self._class, np.int32)

    @property
    def box_end(self) -> np.ndarray:
        return np.frombuffer(self._box_end, np.int64)

    @property
    def boxes(self) -> np.ndarray:
        return np.frombuffer(self._boxes, np.int32).reshape(-1, 4)

    def videos(self) -> Iterator[tuple[str, str, range]]:
        """(name, split, indexes of its pairs) of each video that was added, in that order."""
        begin = 0
        for (video, split), end in zip(self._videos, self._video_end, strict=True):
            yield video, split, range(begin, end)
            begin = end

    def box_span(self, index: int) -> tuple[int, int]:
        return (self._box_end[index - 1] if index else 0), self._box_end[index]

    def key(self, video: str, index: int) -> str:
        """The key of a pair of `video`."""
        return pair_key(video, self._fid[index])

    def get(self, video: str, split: str, index: int) -> Pair:
        """The pair at `index`, by whoever knows whose it is."""
        begin, end = self.box_span(index)
        boxes = np.array(self._boxes[4 * begin : 4 * end], np.int32).reshape(-1, 4)
        classes, fid = self.class_sets[self._class[index]], self._fid[index]
        key = pair_key(video, fid)
        return Pair(key, video, fid, self._time[index], boxes, classes[0], end > begin, split, classes)

    def __len__(self) -> int:
        return len(self._fid)

    def __getitem__(self, index: int) -> Pair:
        index = range(len(self))[index]
        video = int(np.searchsorted(np.frombuffer(self._video_end, np.int64), index, "right"))
        return self.get(*self._videos[video], index)

    def __iter__(self) -> Iterator[Pair]:
        for video, split, span in self.videos():
            for index in span:
                yield self.get(video, split, index)

    def digest(self, state: hashlib.blake2b) -> None:
        """Feed everything that the pairs say to a hash."""
        state.update(repr((self._videos, self.class_sets)).encode())
        for column in (self._video_end, self._fid, self._time, self._class, self._box_end, self._boxes):
            state.update(len(column).to_bytes(8, "little"))
            array_ = np.frombuffer(column, column.typecode)
            state.update(array_.astype(array_.dtype.newbyteorder("<"), copy=False).tobytes())


def pair_key(video: str, fid: int) -> str:
    return f"{video}_{fid:06d}"
