"""The thread that reads and decodes batches ahead of need."""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from essl_fast.common.errors import InputError
from essl_fast.data.loading.decode_faults import DecodeError
from essl_fast.data.loading.decoder import FrameDecoder
from essl_fast.data.loading.settings import LoaderSettings
from essl_fast.data.loading.skipped import Fault
from essl_fast.data.shards import SAMPLES, Picture, Shards


class Decoded(NamedTuple):
    """A batch as the producer hands it over.

    Attributes:
        positions: (b,) int64, of the pairs that decoded; b may be 0.
        frames: (b, S, S, 3) uint8, on the device after `ready`.
        pcm: (b, 48000) int16 or float32, likewise.
        faults: the pairs of the batch that were left out.
        ready: event of the producer's CUDA stream; None on a CPU, and where b is 0.
    """

    positions: np.ndarray
    frames: torch.Tensor
    pcm: torch.Tensor
    faults: list[Fault]
    ready: torch.cuda.Event | None


class _ReadBatch:
    """A batch that was read and is being decoded."""

    def __init__(self, positions: np.ndarray, pcm: torch.Tensor):
        self.positions, self.pcm = positions, pcm
        self.faults: list[Fault] = []

    def drop(self, faults: dict[int, str]) -> None:
        """Leave out the pairs at these places."""
        self.faults += [Fault(int(self.positions[i]), reason) for i, reason in faults.items()]
        keep = np.setdiff1d(np.arange(len(self.positions)), list(faults))
        self.positions, self.pcm = self.positions[keep], self.pcm[torch.from_numpy(keep)]


_running: weakref.WeakSet[Producer] = weakref.WeakSet()


@atexit.register  # registered after DALI's own, so it runs before: no thread may use a pipeline that was shut down
def _stop_running() -> None:
    for producer in list(_running):
        producer.stop()


class Producer:
    """Reads and decodes the batches of a plan in a thread of its own, and puts them into a short queue.

    Sound needs no decoding: it is read straight into the batch's memory, which is pinned where the batch goes to a GPU.
    """

    def __init__(self, shards: Shards, settings: LoaderSettings, plan: Iterator[np.ndarray], skipped: np.ndarray):
        """
        Args:
            plan: the positions (b,) int64 of one batch after another. It runs in the thread.
            skipped: (n,) bool, pairs that are left out from the beginning. It is copied.
        """
        self.shards, self.settings, self.plan, self.skipped = shards, settings, plan, skipped.copy()
        self.device = settings.device
        self.reading: deque[_ReadBatch] = deque()  # the oldest first
        self.executor = ThreadPoolExecutor(settings.threads, thread_name_prefix="essl_fast-read")
        self.decoder = FrameDecoder(
            self._read,
            settings.batch_size,
            settings.side,
            settings.device,
            settings.threads,
            settings.prefetch,
            self.executor,
            jpegs=shards.jpegs,
            clips=len(shards.clips) > 0,
            name=shards.name,
            remember=shards.checks.put,
        )
        self.queue: queue.Queue = queue.Queue(settings.prefetch)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, name="essl_fast-loader", daemon=True)
        _running.add(self)
        shards.go_on()
        self.thread.start()

    def stop(self) -> None:
        """End the thread and free the pipeline."""
        self.stopped.set()
        self.shards.pause()  # it may wait for one that is far away
        if threading.current_thread() is not self.thread:  # a garbage collection in that thread may call this
            self.thread.join()

    def get(self) -> Decoded | BaseException:
        """The next batch, or what went wrong."""
        while True:
            try:
                return self.queue.get(timeout=1)
            except queue.Empty:
                if not self.thread.is_alive() and self.queue.empty():
                    return RuntimeError("the loader's plan ended before its order did")

    def _read(self) -> list[Picture]:
        """The decoder's source."""
        while True:
            positions = next(self.plan)
            if self.skipped.all():  # else this might go on forever
                raise InputError(f"none of the {len(self.skipped)} pairs decodes: run prepare again")
            positions = positions[~self.skipped[positions]]
            dtype = torch.float32 if self.shards.sound.kind == "f" else torch.int16
            pcm = torch.empty(len(positions), SAMPLES, dtype=dtype, pin_memory=self.device.type == "cuda")
            pictures = self.shards.read(positions, pcm.numpy(), self.executor, self.settings.threads)
            self.reading.append(_ReadBatch(positions, pcm))
            if pictures:  # the decoder never sees an empty batch
                return pictures

    def _run(self) -> None:
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        try:
            with torch.cuda.stream(stream):  # a stream of None changes nothing
                while not self.stopped.is_set():
                    try:
                        frames = next(self.decoder)
                    except StopIteration:
                        self._hand_over_empty()
                        return
                    except DecodeError as error:
                        self._skip_or_stop(error)
                        continue
                    self._hand_over_empty()
                    self._hand_over(self.reading.popleft(), frames, stream)
        except BaseException as error:  # raised again where the batch is asked for
            self._put(error)
        finally:
            self.decoder.close()
            self.executor.shutdown()

    def _skip_or_stop(self, error: DecodeError) -> None:
        """Leave out what did not decode, or raise an InputError that names it."""
        self._hand_over_empty()
        batch = self.reading[0]
        if self.settings.on_error == "skip" and error.faults:
            batch.drop(error.faults)
            self.skipped[[fault.position for fault in batch.faults]] = True
            self.decoder.drop(error.faults)
            return
        if not error.faults:
            raise InputError(
                f"a batch cannot be decoded here ({error}), though a CPU decodes each of its frames: "
                + (
                    "clips need a codec that this GPU's NVDEC knows and the driver's video library (in a container, "
                    "NVIDIA_DRIVER_CAPABILITIES with video); else prepare the data with --visual jpeg"
                    if len(self.shards.clips)
                    else "is there memory left, and does the driver work?"
                )
            ) from error
        (first, reason), more = next(iter(error.faults.items())), len(error.faults) - 1
        names = self.shards.name(batch.positions[first]) + (f" and {more} more of its batch" if more else "")
        raise InputError(f"the frame of {names} cannot be decoded ({reason}): {self.shards.remedy()}") from error

    def _hand_over_empty(self) -> None:
        """Hand over the batches at the front that have no pair left: the decoder does not know of them."""
        side = self.settings.side
        while self.reading and not len(self.reading[0].positions):
            self._hand_over(self.reading.popleft(), torch.empty(0, side, side, 3, dtype=torch.uint8), None)

    def _hand_over(self, batch: _ReadBatch, frames: torch.Tensor, stream: torch.cuda.Stream | None) -> None:
        pcm = batch.pcm if stream is None else batch.pcm.to(self.device, non_blocking=True)
        ready = None if stream is None else stream.record_event()
        self._put(Decoded(batch.positions, frames, pcm, batch.faults, ready))

    def _put(self, item: Decoded | BaseException) -> None:
        while not self.stopped.is_set():
            try:
                return self.queue.put(item, timeout=0.1)
            except queue.Full:
                continue
