"""The overlay video: every frame of the input under the heat of its time, with the input's sound.

The input is decoded a second time here, on the host, when the heat of each moment is known and can fade into the next
one's. Memory holds the few frames between the decoder and the encoder.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from essl_fast.data.datasets import Truth
from essl_fast.data.media import video_file
from essl_fast.data.media.footage import Footage
from essl_fast.localize.drawing import Overlay, fit
from essl_fast.localize.moments import Localization

BLENDERS = 4  # threads that blend, beside the one that decodes and the encoder's own


class FadingHeat:
    """The heat at any time of a video: between two moments it fades from one to the other."""

    def __init__(self, found: Localization) -> None:
        self._found, self._moments, self._at = found, found.moments, 0
        self._known: dict[int, np.ndarray | None] = {}  # heat of the moments around the last time

    def at(self, time: float) -> np.ndarray | None:
        """The heatmap, float32 (224, 224) in [0, 1], at `time` seconds; None where nothing is shown.

        `time` must not decrease from call to call.
        """
        moments = self._moments
        while self._at + 1 < len(moments) and moments[self._at + 1].time <= time:
            self._known.pop(self._at, None)
            self._at += 1
        before, after = self._heat(self._at), self._heat(self._at + 1)
        if before is None or after is None:
            return before
        begin, end = moments[self._at].time, moments[self._at + 1].time
        part = np.float32(max(time - begin, 0) / (end - begin))
        return before + part * (after - before)

    def _heat(self, number: int) -> np.ndarray | None:
        if number not in self._known and number < len(self._moments):
            heat = self._found.heat(self._moments[number])
            self._known[number] = None if heat is None else heat.astype(np.float32)
        return self._known.get(number)


def write_overlay(
    path: Path,
    found: Localization,
    footage: Footage,
    sound: Path,
    *,
    threshold: float = 0.5,
    opacity: float = 0.6,
    truth: Truth | None = None,
    step: Callable[[int], None] = lambda count: None,
) -> int:
    """Write the overlay video, and return the number of frames that it leaves out since they cannot be decoded.

    Args:
        path: the file to write, MP4.
        sound: the file whose sound goes with the frames.
        threshold, opacity: as in `Overlay`.
        truth: boxes to draw.
        step: called with the number of frames done since its last call.

    Raises:
        media.MediaError: the input cannot be opened again.
        OSError: the file cannot be written.
    """
    overlay = Overlay(found.width, found.height, threshold, opacity)
    heat, drawn = FadingHeat(found), 0
    rate, ticks = footage.frame_rate, footage.ticks.tolist()
    workers = min(BLENDERS, len(os.sched_getaffinity(0)))
    waiting: deque[tuple[int, Future]] = deque()
    size = found.width, found.height
    timing: dict[str, Any] = {"zero": footage.zero(sound), "aspect": footage.aspect(*size)}
    with (
        video_file(path, *size, footage.time_base, rate, sound, **timing) as writer,
        ThreadPoolExecutor(workers) as pool,
    ):

        def write() -> None:
            tick, picture = waiting.popleft()
            writer.add(picture.result(), tick)
            step(1)

        for place, picture in footage.all():
            now = float(footage.times[place])
            boxes = truth.of(place + 1, now, rate, found.width, found.height)[0] if truth is not None else []
            picture = fit(picture, found.width, found.height)
            waiting.append((ticks[place], pool.submit(overlay.blend, picture, heat.at(now), boxes)))
            drawn += 1
            if len(waiting) > workers:
                write()
        while waiting:
            write()
    return len(ticks) - drawn
