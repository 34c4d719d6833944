"""From JPEG files and clips to frames (B, S, S, 3): DALI decodes, one bicubic resize (`resize`) follows.

A PNG file goes wherever a JPEG does: DALI tells them apart by how they begin, and decodes PNG on the CPU.

| decodes        | JPEG                            | clip (a tiny MP4, of which one frame is wanted)                  |
| -------------- | ------------------------------- | ---------------------------------------------------------------- |
| on a GPU       | nvJPEG and its engine (`mixed`) | NVDEC (`mixed`), all engines at once, `CLIPS_TOGETHER` at a time |
| on a CPU       | DALI's threads                  | FFmpeg in the executor's threads (DALI has no H.264 there)       |

`graph` builds what DALI runs, `host_frames` is the CPU's part beside it, `clip_guard` holds what the GPU makes of clips
against PyAV, `decode_faults` finds out what does not decode. This file keeps account of the batches on their way: the
graph pulls several ahead, and fails as a whole.

Exif orientation is ignored: `prepare` stores frames upright, and boxes refer to the pixels as stored.
"""

from __future__ import annotations

import functools
import gc
import io
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
import torch
from nvidia.dali import Pipeline
from nvidia.dali.plugin.pytorch import feed_ndarray
from PIL import Image

from essl_fast.data.loading.clip_guard import ClipGuard, Plan
from essl_fast.data.loading.decode_faults import DecodeError, find_faults, visible_fault
from essl_fast.data.loading.graph import build_graph, graph_input
from essl_fast.data.loading.host_frames import collect_clips, resize_into
from essl_fast.data.media import MediaError
from essl_fast.data.media.colours import IDENTITY
from essl_fast.data.media.hardware import CLIPS_TOGETHER, short_reason
from essl_fast.data.media.jpeg import picture_size
from essl_fast.data.shards import Picture


class _Batch(NamedTuple):
    """A batch that is being decoded."""

    pictures: list[Picture]
    plans: list[Plan]
    faults: dict[int, str]  # place -> reason: DALI gets another file in place of these

    def without(self, places: Iterable[int]) -> _Batch:
        keep = sorted(set(range(len(self.pictures))) - set(places))
        faults = {at: self.faults[i] for at, i in enumerate(keep) if i in self.faults}
        return _Batch([self.pictures[i] for i in keep], [self.plans[i] for i in keep], faults)

    def by_dali(self) -> list[int]:
        """The places that DALI decodes, in order."""
        return [i for i, plan in enumerate(self.plans) if plan.frame is None]

    def for_dali(self) -> list[tuple[Picture, np.ndarray]]:
        """The files that DALI decodes, in order, and the corrections of their colours: at least one, since DALI has no
        empty batches. A file at fault is replaced by another one."""
        todo = [(i, (self.pictures[i], self.plans[i].turn)) for i in self.by_dali()]
        other = next((one for i, one in todo if i not in self.faults), (_stand_in(), IDENTITY))
        return [other if i in self.faults else one for i, one in todo] or [other]


class FrameDecoder:
    """Iterates over frames (B, side, side, 3) uint8 on `device`: a batch for each batch of `source`, in its order.

    On a GPU the frames are ready in the order of the CUDA stream that is current at `next`.
    """

    def __init__(
        self,
        source: Callable[[], list[Picture]],
        batch_size: int,
        side: int,
        device: torch.device,
        threads: int,
        depth: int,
        executor: Executor,
        *,
        jpegs: bool = True,
        clips: bool = False,
        clips_by_dali: bool | None = None,
        name: Callable[[int], str] = str,
        remember: Callable[[int, np.ndarray], None] = lambda position, value: None,
    ):
        """
        Args:
            source: gives the pictures of the next batch, 1 to `batch_size` of them. It is called `depth` batches ahead
                of need. What it raises comes out of `next`; StopIteration ends the iteration.
            threads: CPU threads of DALI, and parts in which a CPU resizes a batch.
            executor: runs what a CPU does beside DALI.
            jpegs, clips: the kinds of files that will come.
            clips_by_dali: whether DALI decodes clips; None: on a GPU.
            name, remember: see `ClipGuard`.
        """
        self.side, self.device, self.threads = side, device, threads
        self._source, self._executor = source, executor
        self._gpu = device.type == "cuda"
        self._clips_by_dali = self._gpu if clips_by_dali is None else clips_by_dali
        # With clips, a graph takes JPEGs, too: a batch whose clips are all PyAV's gives DALI a stand-in.
        dali_clips = clips and self._clips_by_dali
        self._kinds = {"jpegs": jpegs or dali_clips or not self._gpu, "clips": dali_clips}
        self._together = min(batch_size, CLIPS_TOGETHER) if dali_clips else batch_size
        self._depth = depth * -(-batch_size // self._together)
        self._guard = ClipGuard(side, self._clips_by_dali, executor, name, remember)
        self._in_pipeline: deque[_Batch] = deque()  # batches that DALI has taken, the oldest first
        self._parts: deque[list[tuple[Picture, np.ndarray]]] = deque()  # of the youngest, what DALI has not taken yet
        self._before_source: deque[_Batch] = deque()  # batches that DALI takes before any of `source`
        self._source_error: RuntimeError | None = None
        self._pipeline: Pipeline | None = None

    def __iter__(self) -> FrameDecoder:
        return self

    def __next__(self) -> torch.Tensor:
        """The next batch, in memory of its own.

        Raises:
            DecodeError: pictures of it cannot be decoded. After `drop`, which leaves them out, iteration can go on.
        """
        if self._pipeline is None:
            self._start()
        assert self._pipeline is not None
        stream = torch.cuda.current_stream(self.device) if self._gpu else None
        frames, done, parts = None, 0, 1
        while done < parts:
            try:
                (images,) = self._pipeline.run(stream)
            except RuntimeError as error:
                if error is self._source_error:
                    raise
                batch = self._in_pipeline[0]
                faults = find_faults(batch.pictures, batch.faults, self._clips_by_dali)
                raise DecodeError(faults, short_reason(error)) from error
            batch = self._in_pipeline[0]
            _stop_at(batch.faults)
            if frames is None:
                shape = len(batch.pictures), self.side, self.side, 3
                frames = torch.empty(shape, dtype=torch.uint8, device=self.device)
                places = batch.by_dali()
                parts = max(1, -(-len(places) // self._together))
            self._take(images, frames, places[done * self._together : (done + 1) * self._together], stream)
            done += 1
        assert frames is not None  # there is one part at least
        faults = collect_clips(frames, [plan.frame for plan in batch.plans])
        self._turn(batch, frames)
        _stop_at(faults | self._guard.settle(batch.pictures, batch.plans, frames))
        self._in_pipeline.popleft()
        return frames

    def _take(self, images, frames: torch.Tensor, places: list[int], stream: torch.cuda.Stream | None) -> None:
        """Put DALI's images into frames[places]; where there is no place, they are a stand-in that nobody wants."""
        if stream is None:
            for task in resize_into(frames.numpy(), places, images, self._executor, self.threads):
                task.result()
        elif len(places) == len(frames):
            feed_ndarray(images.as_tensor(), frames, cuda_stream=stream)
        elif places:
            some = torch.empty((len(places), *frames.shape[1:]), dtype=torch.uint8, device=self.device)
            feed_ndarray(images.as_tensor(), some, cuda_stream=stream)
            frames[places] = some

    def _turn(self, batch: _Batch, frames: torch.Tensor) -> None:
        """Put the frames of clips upright that DALI decoded. They are square by now."""
        for i in batch.by_dali():
            if quarters := batch.pictures[i].quarters:
                frames[i] = torch.rot90(frames[i], quarters)

    def drop(self, places: Iterable[int]) -> None:
        """After a DecodeError: leave these files out of its batch. `next` gives what is left of it, if anything is."""
        left = self._in_pipeline.popleft().without(places)
        self._before_source.extendleft(reversed([left] * bool(left.pictures) + list(self._in_pipeline)))
        self._stop()  # after an error a DALI pipeline cannot be used any more

    def close(self) -> None:
        """Free the pipeline, its threads and its memory."""
        for batch in (*self._in_pipeline, *self._before_source):
            for plan in batch.plans:
                plan.cancel()
        self._before_source.clear()
        self._stop()

    def _start(self) -> None:
        if not self._before_source:
            self._before_source.append(self._begin(self._source()))  # taken now: the graph needs the size of a picture
        jpegs = [picture.file for picture, _ in self._before_source[0].for_dali() if picture.target is None]
        self._pipeline = build_graph(
            self._next_input,
            self._together,
            self.side,
            self.device,
            self.threads,
            self._depth,
            **self._kinds,
            size_hint=picture_size(jpegs[0]) if self._gpu and jpegs else (0, 0),
        )

    def _stop(self) -> None:
        self._pipeline = None
        self._in_pipeline.clear()
        self._parts.clear()
        gc.collect()  # a pipeline and its operators refer to each other: else 100 MB would stay for a while

    def _next_input(self) -> object:
        """The graph's source: a batch, or the next part of one that has many clips."""
        if not self._parts:
            try:
                batch = self._before_source.popleft() if self._before_source else self._begin(self._source())
            except RuntimeError as error:  # kept, to tell it from DALI's own
                self._source_error = error
                raise
            self._in_pipeline.append(batch)
            files = batch.for_dali()
            self._parts.extend(files[at : at + self._together] for at in range(0, len(files), self._together))
        pictures, turns = zip(*self._parts.popleft(), strict=True)
        return graph_input(list(pictures), **self._kinds, turns=turns)

    def _begin(self, pictures: list[Picture]) -> _Batch:
        """Look at the files, and begin to decode those that DALI does not."""
        faults = {i: fault for i, picture in enumerate(pictures) if (fault := visible_fault(picture))}
        plans = [Plan()] * len(pictures)
        for i, picture in enumerate(pictures):
            try:
                plans[i] = Plan() if picture.altered else self._guard.plan(picture)
            except (MediaError, ValueError) as error:
                faults[i] = str(error)
        return _Batch(pictures, plans, faults)


def _stop_at(faults: dict[int, str]) -> None:
    if faults:
        raise DecodeError(faults, "; ".join(faults.values()))


@functools.cache
def _stand_in() -> Picture:
    """A picture for a batch that has none that decodes."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return Picture(np.frombuffer(file.getvalue(), np.uint8))
