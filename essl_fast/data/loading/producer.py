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
from essl_fast.data.loading.pipeline import DecodeError, FrameDecoder
from essl_fast.data.shards import SAMPLES
from essl_fast.data.shards.reading import Picture, Shards


class Decoded(NamedTuple):
    """A batch: positions (b,) int64; their frames (b, S, S, 3) uint8 and pcm (b, 48000) int16 or float32, on the device
    when `ready`; lost, the positions that were left out of it, with the reason."""

    positions: np.ndarray
    frames: torch.Tensor
    pcm: torch.Tensor
    lost: list[tuple[int, str]]  # positions that were left out, with the reason
    ready: torch.cuda.Event | None


class _Reading:
    """A batch between its reading and its decoding."""

    def __init__(self, positions: np.ndarray, pcm: torch.Tensor):
        self.positions, self.pcm = positions, pcm
        self.lost: list[tuple[int, str]] = []

    def drop(self, faults: dict[int, str]) -> None:
        self.lost += [(int(self.positions[i]), reason) for i, reason in faults.items()]
        keep = np.setdiff1d(np.arange(len(self.positions)), list(faults))
        self.positions, self.pcm = self.positions[keep], self.pcm[torch.from_numpy(keep)]


_running: weakref.WeakSet[Producer] = weakref.WeakSet()


@atexit.register  # after DALI was imported, so before DALI's own: no thread may use a pipeline that was shut down
def _stop_running() -> None:
    for producer in list(_running):
        producer.stop()


class Producer:
    """A thread that reads and decodes the batches of `plan`, an iterator of positions, into a short queue.

    lost (n,) bool: pairs that are left out, since they do not decode; where `skip` is set, more are added to it.
    """

    def __init__(
        self,
        shards: Shards,
        plan: Iterator[np.ndarray],
        lost: np.ndarray,
        skip: bool,
        device: torch.device,
        threads: int,
        prefetch: int,
        batch_size: int,
        side: int,
    ):
        self.shards, self.plan, self.lost, self.skip = shards, plan, lost.copy(), skip
        self.device, self.threads, self.shape = device, threads, (side, side, 3)
        self.reading: deque[_Reading] = deque()
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="essl_fast-read")
        self.decoder = FrameDecoder(
            self._read, batch_size, side, device, threads, prefetch, self.pool, jpegs=shards.jpegs, clips=shards.clips
        )
        self.queue: queue.Queue = queue.Queue(prefetch)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, name="essl_fast-loader", daemon=True)
        _running.add(self)
        self.thread.start()

    def stop(self) -> None:
        """End the thread and free the pipeline."""
        self.stopped.set()
        if threading.current_thread() is not self.thread:  # its own garbage collection may be what stops it
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
        while True:
            positions = next(self.plan)
            if self.lost.all():  # else this might go on forever
                raise InputError(f"none of the {len(self.lost)} pairs decodes: run prepare again")
            positions = positions[~self.lost[positions]]
            kind = torch.float32 if self.shards.sound.kind == "f" else torch.int16
            pcm = torch.empty(len(positions), SAMPLES, dtype=kind, pin_memory=self.device.type == "cuda")
            pictures = self.shards.read(positions, pcm.numpy(), self.pool, self.threads)
            self.reading.append(_Reading(positions, pcm))
            if pictures:  # the decoder never sees a batch of which nothing is left
                return pictures

    def _run(self) -> None:
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        try:
            with torch.cuda.stream(stream):  # of None: nothing
                while not self.stopped.is_set():
                    try:
                        frames = next(self.decoder)
                    except StopIteration:
                        self._hand_over_empty()
                        return
                    except DecodeError as error:
                        self._lose(error)
                        continue
                    self._hand_over_empty()
                    self._hand_over(self.reading.popleft(), frames, stream)
        except BaseException as error:  # raised again where the batch is asked for
            self._put(error)
        finally:
            self.decoder.close()
            self.pool.shutdown()

    def _lose(self, error: DecodeError) -> None:
        """Leave out what did not decode, or raise InputError that names it."""
        self._hand_over_empty()
        batch = self.reading[0]
        if self.skip and error.faults:
            batch.drop(error.faults)
            self.lost[[position for position, _ in batch.lost]] = True
            self.decoder.drop(error.faults)
            return
        if not error.faults:
            raise InputError(
                f"a batch cannot be decoded here ({error}), though a CPU decodes each of its frames: "
                + (
                    "clips need a codec that this GPU's NVDEC knows and the driver's video library (in a container, "
                    "NVIDIA_DRIVER_CAPABILITIES with video); else prepare the data with --visual jpeg"
                    if self.shards.clips
                    else "is there memory left, and does the driver work?"
                )
            ) from error
        (first, reason), more = next(iter(error.faults.items())), len(error.faults) - 1
        names = self.shards.name(batch.positions[first]) + (f" and {more} more of its batch" if more else "")
        raise InputError(f"the frame of {names} cannot be decoded ({reason}): {self.shards.remedy()}") from error

    def _hand_over_empty(self) -> None:
        """The batches at the front of which nothing is left, and which the decoder does not know."""
        while self.reading and not len(self.reading[0].positions):
            self._hand_over(self.reading.popleft(), torch.empty(0, *self.shape, dtype=torch.uint8), None)

    def _hand_over(self, batch: _Reading, frames: torch.Tensor, stream: torch.cuda.Stream | None) -> None:
        pcm = batch.pcm if stream is None else batch.pcm.to(self.device, non_blocking=True)
        self._put(Decoded(batch.positions, frames, pcm, batch.lost, stream and stream.record_event()))

    def _put(self, item: Decoded | BaseException) -> None:
        while not self.stopped.is_set():
            try:
                return self.queue.put(item, timeout=0.1)
            except queue.Full:
                continue
