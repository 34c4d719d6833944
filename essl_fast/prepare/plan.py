"""The order in which videos are read, and the task of each."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from essl_fast.data import media
from essl_fast.data.datasets import Dataset, pair_key
from essl_fast.data.shards import SPLITS
from essl_fast.prepare.tasks import Task, lost_part


class Planned(NamedTuple):
    """A video with pairs."""

    split: int  # index into SPLITS
    video: str
    span: range  # indexes of its pairs


class Plan:
    """The videos in the order in which their pairs are in the shards: by split, then by name."""

    def __init__(self, dataset: Dataset, settings: Mapping[str, Any]):
        """Plan a data set. settings: `visual` and `decoders` decide whether clips are cut."""
        self.dataset, self.pairs = dataset, dataset.annotations.pairs
        visual, decoders = settings["visual"], settings["decoders"]
        self._clips = visual == "clip" or (visual == "auto" and bool(decoders))
        self._decoders = decoders if visual != "auto" or self._clips else None
        planned = (Planned(SPLITS.index(split), video, span) for video, split, span in self.pairs.videos() if span)
        self.videos = sorted(planned, key=lambda planned: planned[:2])
        self._last = -1, ""  # number of a video, its fingerprint

    def __len__(self) -> int:
        return len(self.videos)

    def order(self, number: int) -> np.ndarray:
        """(pairs,) int64: the indexes of a video's pairs in the order of their frames."""
        span = self.videos[number].span
        return span.start + np.argsort(self.pairs.fid[span.start : span.stop], kind="stable")

    def task(self, number: int) -> tuple[str, Task | dict]:
        """(video, its task). If its files are missing: (video, the index of a part without pairs)."""
        _, video, span = self.videos[number]
        try:
            files = self.dataset.files_of(video)
        except media.MediaError as error:
            return video, lost_part(len(span), error.reason, error.detail)
        order = self.order(number)
        fids, times = self.pairs.fid[order].tolist(), self.pairs.time[order].tolist()
        return video, Task(
            video,
            str(files.path),
            tuple((pair_key(video, fid), fid, time) for fid, time in zip(fids, times, strict=True)),
            self._clips,
            self._decoders,
            files.kind,
            str(files.sound or ""),
            tuple(files.rows[fid] for fid in fids) if files.rows else (),
            self.dataset.float_sound,
        )

    def fingerprint(self, number: int) -> str:
        """The fingerprint of a video's task; "" if its files are missing."""
        if number != self._last[0]:
            _, task = self.task(number)
            found = ""
            if isinstance(task, Task):
                with contextlib.suppress(media.MediaError):
                    found = task.fingerprint()
            self._last = number, found
        return self._last[1]
