"""When each sample of a sound track is heard: its number over the rate, unless stamps of packets say otherwise.

A capture device that runs 1% fast gives 16,160 samples in a second that its file calls 16,000; the stamps still
follow the wall clock. The difference is small within a packet and grows from packet to packet. `SoundClock` keeps it;
windows are moved where it matters, and resampled where moving them does not do.
"""

from __future__ import annotations

from array import array

import numpy as np

_MATTERS = 0.01  # seconds; stamps are rounded and jitter by some milliseconds, and below this nothing is resampled
_NEAR = 0.02  # seconds by which a sample of a window may be heard early or late
_TAPS = 16  # samples on each side of a position that count for the value there
_CHUNK = 1 << 14  # positions that are computed at a time


class SoundClock:
    """Marks along a track: (number of a sample, by how many samples it is heard later than its number says)."""

    def __init__(self) -> None:
        self._at, self._late = array("q"), array("q")
        self._most = 0

    @property
    def late(self) -> int:
        """Of the last mark; 0 if there is none."""
        return self._late[-1] if self._late else 0

    @property
    def last(self) -> int:
        """The sample of the last mark; 0 if there is none."""
        return self._at[-1] if self._at else 0

    def mark(self, at: int, late: int) -> None:
        """Add a mark. Marks at this sample or after it no longer count."""
        marks = self._at
        if not late and not self._most and len(marks) > 1 and at > marks[-1]:
            marks[-1] = at  # of a track that keeps its rate, the first and the last mark are enough
            return
        while marks and marks[-1] >= at:
            marks.pop()
            self._late.pop()
        marks.append(at)
        self._late.append(late)
        self._most = max(self._most, abs(late))

    def off(self, rate: int) -> bool:
        """Whether the track leaves its rate anywhere so far by more than stamps jitter."""
        return self._most > _MATTERS * rate

    def start(self, offset: int, length: int, rate: int) -> int | None:
        """The first of `length` samples in a row that are heard from `offset` on.

        If the track is off, those in whose middle the right sample is, as long as the others are heard within `_NEAR`
        of their time: sound that is not resampled keeps its pitch. None if they are not; then `positions` tells.
        """
        if not self.off(rate):
            return offset
        heard, late = self._arrays()
        first, end = np.searchsorted(heard, [offset, offset + length])
        if np.abs(late[max(int(first) - 1, 0) : int(end) + 1]).max(initial=0) <= _MATTERS * rate:
            return offset
        times = np.concatenate([[offset, offset + length], heard[first:end]])
        middle, *others = np.interp([offset + length / 2, *times], heard, late)
        return offset - round(middle) if np.abs(np.array(others) - middle).max() <= _NEAR * rate else None

    def heard(self, at: float) -> float:
        """When sample `at` is heard, in samples from time 0."""
        if not self._most:
            return at
        return at + float(np.interp(at, np.frombuffer(self._at, np.int64), np.frombuffer(self._late, np.int64)))

    def positions(self, offset: int, length: int) -> np.ndarray:
        """float64 (length,): the samples that are heard at offset, offset + 1, ..., ascending, fractions included."""
        heard, late = self._arrays()
        times = np.arange(offset, offset + length, dtype=np.float64)
        return times - np.interp(times, heard, late)

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(when the marked samples are heard, ascending; by how much later than their numbers say)."""
        late = np.frombuffer(self._late, np.int64)
        return np.maximum.accumulate(np.frombuffer(self._at, np.int64) + late), late


def resampled(mono: np.ndarray, first: int, positions: np.ndarray) -> np.ndarray:
    """The values of a sound between its samples: float32 (n,).

    A sinc under a Hann window of 2 * _TAPS samples; positions are nearly one sample apart, so nothing folds.

    Args:
        mono: float32 (m,), silence before and after it.
        first: the number of its first sample.
        positions: (n,), in numbers of samples.
    """
    padded = np.concatenate([np.zeros(_TAPS, np.float32), mono, np.zeros(_TAPS, np.float32)])
    out = np.empty(len(positions), np.float32)
    steps = np.arange(1 - _TAPS, _TAPS + 1)
    for begin in range(0, len(positions), _CHUNK):
        some = positions[begin : begin + _CHUNK] - first + _TAPS
        whole = np.floor(some).astype(np.int64)
        apart = (some - whole)[:, None] - steps
        weights = np.sinc(apart) * (0.5 + 0.5 * np.cos(np.pi * apart / _TAPS))
        places = np.clip(whole[:, None] + steps, 0, len(padded) - 1)
        out[begin : begin + _CHUNK] = (weights * padded[places]).sum(1)
    return out
