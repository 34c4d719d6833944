"""The pairs that annotations ask for, stored in columns.

378,093 pairs with one box each take 16 MB; as objects they would take 210 MB. A `Pair` is made when it is asked for.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False, slots=True)
class Pair:
    """One frame with the 3 s of sound around it."""

    key: str
    video: str
    fid: int  # number of the displayed frame, from 1
    time: float  # of the frame, seconds
    boxes: np.ndarray  # int32 (K, 4), xyxy, half-open, on the 224 grid, clamped
    class_name: str
    labelled: bool  # whether K > 0
    split: str
    classes: tuple[str, ...] = ()  # all classes of the frame, `class_name` first


class Pairs(Sequence):
    """A sequence of N `Pair`, video by video. `add_video` appends to it; nothing else changes it.

    The columns are NumPy views:

        fid (N,) int32; time (N,) float64, seconds; class_id (N,) int32, index into `class_sets`
        boxes (M, 4) int32, those of all pairs; box_end (N,) int64: the pair's boxes end there in `boxes`, and begin
            where those of the pair before end
    """

    def __init__(self) -> None:
        self.class_sets: list[tuple[str, ...]] = []  # classes of a pair, `class_name` first
        self._class_ids: dict[tuple[str, ...], int] = {}
        self._videos: list[tuple[str, str]] = []  # name, split
        self._video_end = array("q")
        self._fid, self._time, self._class = array("i"), array("d"), array("i")
        self._box_end, self._boxes = array("q"), array("i")

    def add_video(
        self, video: str, split: str, pairs: Iterable[tuple[int, float, Sequence[Sequence[int]], tuple[str, ...]]]
    ) -> None:
        """Append a video with all its pairs.

        Args:
            video: its name; each video is added once.
            split: train, val or test.
            pairs: (frame number from 1, time in seconds, boxes as K x 4 integers on the 224 grid, classes) of each.
        """
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
        """(name, split, indexes of its pairs) of each video, in the order in which they were added."""
        begin = 0
        for (video, split), end in zip(self._videos, self._video_end, strict=True):
            yield video, split, range(begin, end)
            begin = end

    def box_span(self, index: int) -> tuple[int, int]:
        """Where the boxes of a pair begin and end in `boxes`."""
        return (self._box_end[index - 1] if index else 0), self._box_end[index]

    def key(self, video: str, index: int) -> str:
        """The key of a pair of `video`."""
        return pair_key(video, self._fid[index])

    def get(self, video: str, split: str, index: int) -> Pair:
        """The pair at `index`. The caller knows its video and split, which saves a search."""
        begin, end = self.box_span(index)
        boxes = np.array(self._boxes[4 * begin : 4 * end], np.int32).reshape(-1, 4)
        classes, fid = self.class_sets[self._class[index]], self._fid[index]
        key = pair_key(video, fid)
        return Pair(key, video, fid, self._time[index], boxes, classes[0], end > begin, split, classes)

    def __len__(self) -> int:
        return len(self._fid)

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]  # no slices
        index = range(len(self))[index]
        video = int(np.searchsorted(np.frombuffer(self._video_end, np.int64), index, "right"))
        return self.get(*self._videos[video], index)

    def __iter__(self) -> Iterator[Pair]:
        for video, split, span in self.videos():
            for index in span:
                yield self.get(video, split, index)

    def digest(self, state: hashlib.blake2b) -> None:
        """Feed everything that the pairs say into a hash."""
        state.update(repr((self._videos, self.class_sets)).encode())
        for column in (self._video_end, self._fid, self._time, self._class, self._box_end, self._boxes):
            state.update(len(column).to_bytes(8, "little"))
            array_ = np.frombuffer(column, column.typecode)
            state.update(array_.astype(array_.dtype.newbyteorder("<"), copy=False).tobytes())


def pair_key(video: str, fid: int) -> str:
    """The key of the pair of frame `fid` of a video."""
    return f"{video}_{fid:06d}"
