"""From JPEG files and clips to frames (B, S, S, 3): DALI decodes, one bicubic resize (`resize`) follows.

A PNG file goes wherever a JPEG does: DALI tells them apart by how they begin, and decodes PNG on the CPU.

| decodes        | JPEG                            | clip (a tiny MP4, of which one frame is wanted)                  |
| -------------- | ------------------------------- | ---------------------------------------------------------------- |
| on a GPU       | nvJPEG and its engine (`mixed`) | NVDEC (`mixed`), all engines at once                             |
| on a CPU       | DALI's threads                  | FFmpeg in the executor's threads (DALI has no H.264 there)       |

`graph` builds what DALI runs, `host_frames` is the CPU's part beside it, `decode_faults` finds out what does not
decode. This file keeps account of the batches on their way: the graph pulls several ahead, and fails as a whole.

Exif orientation is ignored: `prepare` stores frames upright, and boxes refer to the pixels as stored.
"""

from __future__ import annotations

import functools
import gc
import io
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import NamedTuple

import numpy as np
import torch
from nvidia.dali import Pipeline
from nvidia.dali.plugin.pytorch import feed_ndarray
from PIL import Image

from essl_fast.data.loading.decode_faults import DecodeError, find_faults, visible_fault
from essl_fast.data.loading.graph import build_graph, graph_input
from essl_fast.data.loading.host_frames import collect_clips, frame_of_clip, resize_into
from essl_fast.data.media.hardware import short_reason
from essl_fast.data.media.jpeg import picture_size
from essl_fast.data.shards import Picture


class _Batch(NamedTuple):
    """A batch that is being decoded."""

    pictures: list[Picture]
    decoding: list[Future | None]  # for clips on a CPU, outside DALI: their frames (side, side, 3)
    faults: dict[int, str]  # place -> reason: DALI gets another file in place of these

    def without(self, places: Iterable[int]) -> _Batch:
        keep = sorted(set(range(len(self.pictures))) - set(places))
        faults = {at: self.faults[i] for at, i in enumerate(keep) if i in self.faults}
        return _Batch([self.pictures[i] for i in keep], [self.decoding[i] for i in keep], faults)

    def for_dali(self) -> list[Picture]:
        """The files that DALI decodes, in order: at least one, since DALI has no empty batches."""
        todo = [(i, picture) for i, picture in enumerate(self.pictures) if self.decoding[i] is None]
        # A file at fault is replaced by another one of the batch: where a graph takes clips alone, a JPEG would fail.
        other = next((picture for i, picture in todo if i not in self.faults), None) or _stand_in()
        return [other if i in self.faults else picture for i, picture in todo] or [other]


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
    ):
        """
        Args:
            source: gives the pictures of the next batch, 1 to `batch_size` of them. It is called `depth` batches ahead
                of need. What it raises comes out of `next`; StopIteration ends the iteration.
            threads: CPU threads of DALI, and parts in which a CPU resizes a batch.
            executor: runs what a CPU does beside DALI.
            jpegs, clips: the kinds of files that will come.
        """
        self.batch_size, self.side, self.device, self.threads, self.depth = batch_size, side, device, threads, depth
        self._source, self._executor = source, executor
        self._gpu = device.type == "cuda"
        self._kinds = {"jpegs": jpegs, "clips": clips} if self._gpu else {"jpegs": True, "clips": False}
        self._in_pipeline: deque[_Batch] = deque()  # batches that DALI has taken, the oldest first
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
        stream = torch.cuda.current_stream(self.device) if self._gpu else None
        try:
            (images,) = self._pipeline.run(stream)
        except RuntimeError as error:
            if error is self._source_error:
                raise
            batch = self._in_pipeline[0]
            raise DecodeError(find_faults(batch.pictures, batch.faults, self._gpu), short_reason(error)) from error
        batch = self._in_pipeline[0]
        _stop_at(batch.faults)
        frames = torch.empty(len(batch.pictures), self.side, self.side, 3, dtype=torch.uint8, device=self.device)
        if stream is not None:
            feed_ndarray(images.as_tensor(), frames, cuda_stream=stream)
            for i, picture in enumerate(batch.pictures):
                if picture.quarters:  # frames are square by now
                    frames[i] = torch.rot90(frames[i], picture.quarters)
        else:
            places = [i for i, task in enumerate(batch.decoding) if task is None]
            resizing = resize_into(frames.numpy(), places, images, self._executor, self.threads)
            faults = collect_clips(frames.numpy(), batch.decoding)
            for task in resizing:
                task.result()
            _stop_at(faults)
        self._in_pipeline.popleft()
        return frames

    def drop(self, places: Iterable[int]) -> None:
        """After a DecodeError: leave these files out of its batch. `next` gives what is left of it, if anything is."""
        left = self._in_pipeline.popleft().without(places)
        self._before_source.extendleft(reversed([left] * bool(left.pictures) + list(self._in_pipeline)))
        self._stop()  # after an error a DALI pipeline cannot be used any more

    def close(self) -> None:
        """Free the pipeline, its threads and its memory."""
        for batch in (*self._in_pipeline, *self._before_source):
            for task in batch.decoding:
                if task is not None:
                    task.cancel()
        self._before_source.clear()
        self._stop()

    def _start(self) -> None:
        if not self._before_source:
            self._before_source.append(self._begin(self._source()))  # taken now: the graph needs the size of a picture
        jpegs = [picture.file for picture in self._before_source[0].for_dali() if picture.target is None]
        self._pipeline = build_graph(
            self._next_input,
            self.batch_size,
            self.side,
            self.device,
            self.threads,
            self.depth,
            **self._kinds,
            size_hint=picture_size(jpegs[0]) if self._gpu and jpegs else (0, 0),
        )

    def _stop(self) -> None:
        self._pipeline = None
        self._in_pipeline.clear()
        gc.collect()  # a pipeline and its operators refer to each other: else 100 MB would stay for a while

    def _next_input(self) -> object:
        """The graph's source."""
        try:
            batch = self._before_source.popleft() if self._before_source else self._begin(self._source())
        except RuntimeError as error:  # kept, to tell it from DALI's own
            self._source_error = error
            raise
        self._in_pipeline.append(batch)
        return graph_input(batch.for_dali(), **self._kinds)

    def _begin(self, pictures: list[Picture]) -> _Batch:
        """Look at the files; on a CPU, begin to decode clips."""
        faults = {i: fault for i, picture in enumerate(pictures) if (fault := visible_fault(picture))}
        decoding: list[Future | None] = [None] * len(pictures)
        for i, picture in enumerate(pictures):
            if picture.target is not None and not self._gpu and not picture.altered:
                decoding[i] = self._executor.submit(frame_of_clip, picture, self.side)
        return _Batch(pictures, decoding, faults)


def _stop_at(faults: dict[int, str]) -> None:
    if faults:
        raise DecodeError(faults, "; ".join(faults.values()))


@functools.cache
def _stand_in() -> Picture:
    """A picture for a batch that has none that decodes."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return Picture(np.frombuffer(file.getvalue(), np.uint8))
