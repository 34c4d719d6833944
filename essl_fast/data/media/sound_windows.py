"""The 3 s of sound around each of a series of moments, for a sound track of any length.

Memory holds the blocks of one window; `audio.decode_sound` holds the whole track. A window inside the track equals, to
the bit, the sound that `prepare` stores for a pair of that time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from essl_fast.data.media import blank, opening
from essl_fast.data.media.audio import RATE, Blocks, find_sound, to_pcm16, to_stored, window_span
from essl_fast.data.media.errors import UNREADABLE, MediaError
from essl_fast.data.media.sound_clock import resampled


@dataclass(frozen=True, eq=False)
class Window:
    """Sound around a moment.

    Attributes:
        pcm: int16 (48000,), mono at 16 kHz.
        begin, end: seconds of the track between which it lies.
    """

    pcm: np.ndarray
    begin: float
    end: float

    @property
    def silent(self) -> bool:
        """Whether nothing in it is louder than -60 dB."""
        return blank.is_silent(self.pcm)


class SoundWindows:
    """The 3 s around one moment after another of a sound track.

    A window that would leave the track is moved inside it, because the network was trained only on full 3 s. A track
    shorter than 3 s is repeated, as for training. A moment after the end of the track has no sound.

    Raises:
        MediaError: nothing of the track can be decoded.
    """

    def __init__(self, path: Path, blocks: Blocks):
        self.path, self.blocks = path, blocks
        self._coming, self._ended = iter(blocks), False
        self._held: deque[tuple[int, np.ndarray]] = deque()
        while not self._ended and self._empty:
            self._read()
        if self._empty:
            why = blocks.damage or "the track is empty"
            raise MediaError(UNREADABLE, f"{path.name}: no sound can be decoded ({why})")

    def around(self, time: float) -> Window | None:
        """The 3 s around `time` (seconds); None if the track ends before it. Times must ascend from call to call."""
        rate, clock = self.blocks.rate, self.blocks.clock
        offset, length = window_span(time, rate)
        offset = max(offset, 0)
        while not self._ended and self.blocks.reached < offset + length:
            self._read()
            # This window goes no further back, nor does the last window if the track ends here.
            keep = min(offset, self.blocks.reached - length) - abs(clock.late) - 2 * rate * clock.off(rate)
            while self._held and self._held[0][0] + len(self._held[0][1]) <= keep:
                self._held.popleft()
        filled = self._end()
        if time * rate > filled:
            return None
        offset = max(min(offset, filled - length), 0)
        length = min(length, filled - offset)
        start = clock.start(offset, length, rate)
        if start is None:
            positions = clock.positions(offset, length)
            first = max(int(positions[0]) - rate, 0)
            mono = resampled(self._samples(first, int(positions[-1]) + rate - first), first, positions)
        else:
            start = start if start == offset else min(max(start, 0), self.blocks.filled - length)
            mono = self._samples(start, length)
        return Window(to_pcm16(to_stored(mono, rate)), offset / rate, (offset + length) / rate)

    def _samples(self, first: int, count: int) -> np.ndarray:
        """float32 (count,): the samples from number `first` on, as far as they are in memory, and silence."""
        mono = np.zeros(count, np.float32)
        for at, part in self._held:
            begin, end = max(at, first), min(at + len(part), first + count)
            if begin < end:
                mono[begin - first : end - first] = part[begin - at : end - at]
        return mono

    def _end(self) -> int:
        """Up to where the sound is known, in samples from time 0: the end of the track if it was read to there."""
        blocks = self.blocks
        return int(blocks.clock.heard(blocks.filled)) if self._ended else blocks.reached

    def length(self) -> float:
        """Seconds of the whole track. It reads the track to its end, so `around` cannot be called after it."""
        while not self._ended:
            self._held.clear()
            self._read()
        return self._end() / self.blocks.rate

    @property
    def faults(self) -> list[str]:
        """Which parts of the track could not be decoded so far, in words."""
        rate = self.blocks.rate
        found = [
            f"the sound from {begin / rate:.2f} s to {end / rate:.2f} s cannot be decoded, it counts as silence"
            for begin, end in self.blocks.holes
        ]
        found += [
            f"the sound from {begin / rate:.2f} s to {end / rate:.2f} s holds samples that are no numbers: silence"
            for begin, end in self.blocks.broken
        ]
        if self.blocks.damage:
            found.append(f"the sound breaks off at {self.blocks.filled / rate:.2f} s: {self.blocks.damage}")
        return found

    @property
    def _empty(self) -> bool:
        return self.blocks.filled * RATE <= self.blocks.rate  # at most one sample at 16 kHz

    def _read(self) -> None:
        block = next(self._coming, None)
        if block is None:
            self._ended = True
        else:
            self._held.append(block)


@contextmanager
def open_windows(path: str | Path, zero: float | None = None) -> Iterator[SoundWindows]:
    """The windows of a file's sound track; `zero` as in `audio.decode_sound`.

    Raises:
        MediaError: it cannot be opened, or has no sound that can be decoded.
    """
    path = Path(path)
    with opening.open_file(path) as container:
        yield SoundWindows(path, Blocks(container, *find_sound(container, path, zero)))


def sound_length(path: str | Path) -> float:
    """Seconds of a file's sound track from time 0 on, found by decoding it. MediaError as `open_windows`."""
    with open_windows(path) as windows:
        return windows.length()
