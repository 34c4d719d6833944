"""The seconds of sound around moments that come one after another, of a track of any length.

Memory holds the blocks of one window, where `audio.decode_sound` holds the whole track. Inside the track a window is
the one that `prepare` stores for a pair of that time, to the bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from essl_fast.data.media.audio import RATE, Blocks, find_sound, to_pcm16, to_stored, window_span
from essl_fast.data.media.video import UNREADABLE, MediaError, open_file


@dataclass(frozen=True, eq=False)
class Window:
    """pcm: int16 (48000,) at 16 kHz. begin, end: seconds of the track that it is of."""

    pcm: np.ndarray
    begin: float
    end: float

    @property
    def silent(self) -> bool:
        """No sample differs from the others: there is nothing to hear."""
        return bool((self.pcm == self.pcm[0]).all())


class SoundWindows:
    """The 3 s around one moment after another of a sound track.

    Where they would leave the track they are moved into it, as far as it takes, for the network was trained on whole
    3 s alone; a track shorter than that is repeated, as for training. Around a moment behind the track's end there is
    no sound.
    """

    def __init__(self, path: Path, blocks: Blocks):
        self.path, self.blocks = path, blocks
        self._coming, self._ended = iter(blocks), False
        self._held: deque[tuple[int, np.ndarray]] = deque()
        while not self._ended and self._empty:
            self._read()
        if self._empty:
            told = blocks.damage or "the track is empty"
            raise MediaError(UNREADABLE, f"{path.name}: no sound can be decoded ({told})")

    def around(self, time: float) -> Window | None:
        """The 3 s around `time` s, which must not be less than the time before; None if the track ended before it."""
        rate = self.blocks.rate
        offset, length = window_span(time, rate)
        offset = max(offset, 0)
        while not self._ended and self.blocks.filled < offset + length:
            self._read()
            # Neither this window nor the last one that the track may turn out to have goes further back.
            keep = min(offset, self.blocks.filled - length)
            while self._held and self._held[0][0] + len(self._held[0][1]) <= keep:
                self._held.popleft()
        filled = self.blocks.filled
        if time * rate > filled:
            return None
        offset = max(min(offset, filled - length), 0)
        mono = np.zeros(min(length, filled - offset), np.float32)
        for at, part in self._held:
            begin, end = max(at, offset), min(at + len(part), offset + len(mono))
            if begin < end:
                mono[begin - offset : end - offset] = part[begin - at : end - at]
        return Window(to_pcm16(to_stored(mono, rate)), offset / rate, (offset + len(mono)) / rate)

    def length(self) -> float:
        """Seconds of the whole track; no window can be had after that."""
        while not self._ended:
            self._held.clear()
            self._read()
        return self.blocks.filled / self.blocks.rate

    @property
    def faults(self) -> list[str]:
        """What of the track could not be decoded so far, in words."""
        rate = self.blocks.rate
        told = [
            f"the sound from {begin / rate:.2f} s to {end / rate:.2f} s cannot be decoded, it counts as silence"
            for begin, end in self.blocks.holes
        ]
        if self.blocks.damage:
            told.append(f"the sound breaks off at {self.blocks.filled / rate:.2f} s: {self.blocks.damage}")
        return told

    @property
    def _empty(self) -> bool:
        return self.blocks.filled * RATE <= self.blocks.rate  # a sample at 16 kHz, at most

    def _read(self) -> None:
        block = next(self._coming, None)
        if block is None:
            self._ended = True
        else:
            self._held.append(block)


@contextmanager
def open_windows(path: str | Path) -> Iterator[SoundWindows]:
    """The windows of a file's sound track. MediaError if it cannot be opened, has no track, or an empty one."""
    path = Path(path)
    with open_file(path) as container:
        yield SoundWindows(path, Blocks(container, *find_sound(container, path)))


def sound_length(path: str | Path) -> float:
    """Seconds of a file's sound track from time 0 on, by decoding it. MediaError as `open_windows`."""
    with open_windows(path) as windows:
        return windows.length()
