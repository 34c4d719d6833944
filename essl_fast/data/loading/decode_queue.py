"""The loader's end of decoding: it takes batches from the producer's thread, and begins and ends that thread."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from essl_fast.common.errors import InputError
from essl_fast.data.loading.producer import Decoded, Producer
from essl_fast.data.loading.settings import LoaderSettings
from essl_fast.data.loading.skipped import Fault, SkippedPairs
from essl_fast.data.loading.sounds import SoundTransform, transformed
from essl_fast.data.shards import Shards


class DecodedPairs(NamedTuple):
    """positions (b,) int64; frames (b, S, S, 3) uint8 and sound (b, ...) on the device. b may be 0."""

    positions: np.ndarray
    frames: torch.Tensor
    sound: torch.Tensor


class DecodeQueue:
    """Decoded pairs of one loader, in the order of its source's plan.

    Attributes:
        skipped: the pairs that do not decode.
        waited: seconds that `next` has waited for data.
    """

    def __init__(
        self,
        shards: Shards,
        settings: LoaderSettings,
        plan: Callable[[int, int, np.ndarray], Iterator[np.ndarray]],
        sound: SoundTransform,
        skipped: SkippedPairs,
    ):
        """
        Args:
            plan: plan(epoch, step, skipped) gives the positions to decode from there on, see `Source.to_decode`.
            sound: what batches carry of the sound.
        """
        self._shards, self._settings, self._plan, self._sound = shards, settings, plan, sound
        self.skipped, self.waited = skipped, 0.0
        self._producer: Producer | None = None
        self._stop: weakref.finalize | None = None

    def next(self, epoch: int, step: int) -> DecodedPairs:
        """The next pairs. If no thread is decoding, one begins with those of `step` of `epoch`.

        Raises:
            InputError: a pair does not decode, too many pairs do not, or files cannot be read. The thread has ended.
        """
        begin = time.perf_counter()
        if self._producer is None:
            self._start(epoch, step)
        assert self._producer is not None
        item = self._producer.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        if item.ready is not None:
            current = torch.cuda.current_stream(self._settings.device)
            current.wait_event(item.ready)
            for tensor in (item.frames, item.pcm):
                tensor.record_stream(current)
        self.waited += time.perf_counter() - begin
        if item.faults:
            self.skipped.unshared += item.faults
            self.skip(item.faults)
        return self._with_sound(item)

    def skip(self, faults: Sequence[Fault]) -> None:
        """Skip these pairs, one or more, from now on.

        Raises:
            InputError: too many pairs are skipped by now. The thread has ended.
        """
        try:
            self.skipped.add(faults)
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        """End the thread, if there is one, and free what it holds."""
        if self._stop is not None:
            self._stop()
        self._producer = self._stop = None

    def _start(self, epoch: int, step: int) -> None:
        plan = self._plan(epoch, step, self.skipped.mask)
        self._producer = Producer(self._shards, self._settings, plan, self.skipped.mask)
        self._stop = weakref.finalize(self, self._producer.stop)  # a loader that nobody holds ends its thread
        self._stop.atexit = False

    def _with_sound(self, item: Decoded) -> DecodedPairs:
        sound = transformed(self._sound, item.pcm) if len(item.positions) else item.pcm
        return DecodedPairs(item.positions, item.frames, sound)
