"""From JPEG files and clips to frames (B, S, S, 3): DALI decodes, one bicubic resize follows.

A PNG file goes wherever a JPEG does: DALI tells them apart by how they begin, and decodes PNG on the CPU.

| decodes        | JPEG                               | clip (a tiny MP4, of which one frame is wanted)    |
| -------------- | ---------------------------------- | -------------------------------------------------- |
| on a GPU       | nvJPEG and its engine (`mixed`)    | NVDEC (`mixed`), all engines at once               |
| on a CPU       | DALI's threads                     | FFmpeg in `pool`'s threads (DALI has no H.264 here)|

One function builds the DALI graph for both devices; on a GPU a batch of both kinds is split, decoded and merged there.
The resize is DALI's on a GPU and PyTorch's on a CPU. It is Pillow's, as in the published recipe: antialiased bicubic
along the rows, **rounded to uint8**, then along the columns. That rounding clips overshoots, so it matters:

| resize of golden's frame to 246   | from Pillow, most | on average | CPU time of a 320x180 frame |
| --------------------------------- | ----------------- | ---------- | --------------------------- |
| DALI, both axes at once           | 16 grey levels    | 0.19       | 1.9 ms                      |
| DALI, one axis after the other    | 1                 | 0.007      | 3 ms                        |
| PyTorch on uint8, antialiased     | 1                 | 0.002      | 0.11 ms (Pillow: 0.94 ms)   |

(Measured on one AMD EPYC core; decoding that frame takes 0.4 ms, so on a CPU the resize decides.) DALI's filter is a
little wider than Pillow's where it shrinks, which shows on noise only.

Exif orientation is ignored: `prepare` stores frames upright, and boxes refer to the pixels as stored.
"""

from __future__ import annotations

import functools
import gc
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.plugin.pytorch import feed_ndarray
from PIL import Image

from essl_fast.data.media.clips import decode_clip
from essl_fast.data.media.hardware import decode_clips
from essl_fast.data.media.jpeg import picture_size
from essl_fast.data.media.video import MediaError
from essl_fast.data.shards.reading import ALTERED, Picture

# The share of a batch that the GPU's JPEG engine decodes, where it has one; nvJPEG's kernels, which need CPU threads,
# do the rest meanwhile. DALI's default; what suits a chip is found by measuring, which has not been done yet.
JPEG_ENGINE_SHARE = 0.65


def resize_dali(images: DataNode, side: int) -> DataNode:
    """DALI images (H, W, 3) uint8, any sizes -> (side, side, 3) uint8, Pillow's bicubic on video frames."""
    rows = fn.resize(images, resize_x=side, mode="stretch", interp_type=types.INTERP_CUBIC, antialias=True)
    hint = side * side * 3
    return fn.resize(
        rows, size=(side, side), interp_type=types.INTERP_CUBIC, antialias=True, bytes_per_sample_hint=hint
    )


def resize_host(images: torch.Tensor, side: int) -> torch.Tensor:
    """(N, H, W, 3) uint8 on the CPU -> (N, side, side, 3) uint8, Pillow's bicubic but for rounding."""
    nchw = images.permute(0, 3, 1, 2)  # channels_last in memory, for which PyTorch has vectorised integer arithmetic
    return F.interpolate(nchw, size=(side, side), mode="bicubic", antialias=True).permute(0, 2, 3, 1)


def _decode_jpegs(files: DataNode, backend: str, largest: tuple[int, int]) -> DataNode:
    sizes = {}
    if backend == "mixed":
        sizes = {
            "preallocate_width_hint": largest[0],
            "preallocate_height_hint": largest[1],
            "hw_decoder_load": JPEG_ENGINE_SHARE,
        }
    return fn.decoders.image(files, device=backend, output_type=types.RGB, adjust_orientation=False, **sizes)


@pipeline_def(enable_conditionals=True, exec_dynamic=True)  # dynamic: outputs can be ordered with a CUDA stream
def _graph(source, jpegs: bool, clips: bool, backend: str, side: int | None, largest: tuple[int, int]):
    count = 1 + clips + (clips and jpegs)  # what `feed` gives
    files, *about = fn.external_source(
        source=source, num_outputs=count, dtype=[types.UINT8, types.INT32, types.BOOL][:count], ndim=[1, 1, 0][:count]
    )
    if not clips:
        images = _decode_jpegs(files, backend, largest)
    elif not jpegs:
        images = decode_clips(files, about[0], backend)
    else:
        targets, is_clip = about
        if is_clip:  # a DALI value: the batch is split here and merged again
            images = decode_clips(files, targets, backend)
        else:
            images = _decode_jpegs(files, backend, largest)
    return images if side is None else resize_dali(images, side)


def build(
    source: Callable[[], object] | Iterator,
    batch_size: int,
    side: int,
    device: torch.device,
    threads: int,
    depth: int,
    *,
    jpegs: bool = True,
    clips: bool = False,
    largest: tuple[int, int] = (0, 0),
) -> Pipeline:
    """The graph: batches of files from `source` in, images out, `depth` batches on their way at a time.

    `source` gives `feed` of the batch's pictures; jpegs, clips: the kinds that may come; largest: a JPEG's width and
    height, for which the GPU's engine gets its memory at once (a larger one gets its own when it comes).
    On a GPU the images are (side, side, 3) uint8 there; on a CPU they keep their size, for `resize_host`.
    """
    gpu = device.type == "cuda"
    pipeline = _graph(
        source,
        jpegs,
        clips,
        "mixed" if gpu else "cpu",
        side if gpu else None,
        largest,
        batch_size=batch_size,
        num_threads=threads,
        device_id=device.index if gpu else None,
        prefetch_queue_depth=depth,
    )
    pipeline.build()
    return pipeline


def feed(pictures: list[Picture], jpegs: bool, clips: bool) -> list:
    """A batch as the source of a graph with these kinds gives it: files, and with clips in it their targets, and with
    both kinds which of them are clips."""
    parts = [[picture.file for picture in pictures]]
    if clips:
        parts.append(np.array([[picture.target or 0] for picture in pictures], np.int32))
    if clips and jpegs:
        parts.append(np.array([picture.target is not None for picture in pictures]))
    return parts


class DecodeError(RuntimeError):
    """A batch that could not be decoded; `faults` has those in it that are at fault, with the reason (empty: each of
    them decodes alone)."""

    def __init__(self, faults: dict[int, str], cause: str):
        super().__init__(cause)
        self.faults = faults


class _Batch(NamedTuple):
    pictures: list[Picture]
    decoding: list[Future | None]  # of clips on a CPU: frames (side, side, 3)
    faults: dict[int, str]  # files that are no JPEG: DALI gets something else in their place

    def without(self, positions: Iterable[int]) -> _Batch:
        keep = sorted(set(range(len(self.pictures))) - set(positions))
        faults = {at: self.faults[i] for at, i in enumerate(keep) if i in self.faults}
        return _Batch([self.pictures[i] for i in keep], [self.decoding[i] for i in keep], faults)

    def for_dali(self) -> list[Picture]:
        """What DALI decodes of it, in order, never nothing, since DALI has no empty batches."""
        todo = [(i, picture) for i, picture in enumerate(self.pictures) if self.decoding[i] is None]
        # In the place of one at fault another of the batch: where there are clips alone, a JPEG is none.
        other = next((picture for i, picture in todo if i not in self.faults), None) or _stand_in()
        return [other if i in self.faults else picture for i, picture in todo] or [other]


class FrameDecoder:
    """Iterates over frames (B, side, side, 3) uint8 on `device`, a batch for each batch of `source`, in its order.

    `source` is called for the pictures of a batch, 1 to `batch_size` of them, `depth` batches ahead of need. What it
    raises comes out of `next`: StopIteration where it ends. `pool` runs what a CPU does besides DALI, the resize in
    `threads` parts. jpegs, clips: the kinds that will come. On a GPU the frames are ready in the order of the CUDA
    stream that is current at `next`.
    """

    def __init__(
        self,
        source: Callable[[], list[Picture]],
        batch_size: int,
        side: int,
        device: torch.device,
        threads: int,
        depth: int,
        pool: Executor,
        *,
        jpegs: bool = True,
        clips: bool = False,
    ):
        self.batch_size, self.side, self.device, self.threads, self.depth = batch_size, side, device, threads, depth
        self._source, self._pool = source, pool
        self._gpu = device.type == "cuda"
        self._kinds = {"jpegs": jpegs, "clips": clips} if self._gpu else {"jpegs": True, "clips": False}
        self._waiting: deque[_Batch] = deque()  # what the pipeline is at work on
        self._again: deque[_Batch] = deque()  # what comes before anything new
        self._source_error: RuntimeError | None = None
        self._pipeline: Pipeline | None = None

    def __iter__(self) -> FrameDecoder:
        return self

    def __next__(self) -> torch.Tensor:
        """The next batch, in memory of its own. DecodeError if a picture of it cannot be decoded; after `drop`, which
        leaves that out, it goes on."""
        if self._pipeline is None:
            self._start()
        stream = torch.cuda.current_stream(self.device) if self._gpu else None
        try:
            (images,) = self._pipeline.run(stream)
        except RuntimeError as error:
            if error is self._source_error:
                raise
            raise self._failure(error) from error
        batch = self._waiting[0]
        if batch.faults:
            raise DecodeError(batch.faults, "; ".join(batch.faults.values()))
        frames = torch.empty(len(batch.pictures), self.side, self.side, 3, dtype=torch.uint8, device=self.device)
        if stream is not None:
            feed_ndarray(images.as_tensor(), frames, cuda_stream=stream)
            for i, picture in enumerate(batch.pictures):
                if picture.quarters:  # a square by now
                    frames[i] = torch.rot90(frames[i], picture.quarters)
        else:
            self._finish_on_host(images, batch, frames)
        self._waiting.popleft()
        return frames

    def drop(self, positions: Iterable[int]) -> None:
        """After a DecodeError: leave these out of its batch. `next` gives what remains of it, if anything does."""
        left = self._waiting.popleft().without(positions)
        self._again.extendleft(reversed([left] * bool(left.pictures) + list(self._waiting)))
        self._stop()  # DALI's pipelines are of no use after an error

    def close(self) -> None:
        """Free the pipeline, its threads and its memory."""
        for batch in (*self._waiting, *self._again):
            for task in batch.decoding:
                if task is not None:
                    task.cancel()
        self._again.clear()
        self._stop()

    def _start(self) -> None:
        if not self._again:
            self._again.append(self._begin(self._source()))  # seen beforehand, for the size
        jpegs = [picture.file for picture in self._again[0].for_dali() if picture.target is None]
        self._pipeline = build(
            self._pull,
            self.batch_size,
            self.side,
            self.device,
            self.threads,
            self.depth,
            **self._kinds,
            largest=picture_size(jpegs[0]) if self._gpu and jpegs else (0, 0),
        )

    def _stop(self) -> None:
        self._pipeline = None
        self._waiting.clear()
        gc.collect()  # a pipeline and its operators refer to each other: else 100 MB would stay for a while

    def _pull(self) -> object:
        try:
            batch = self._again.popleft() if self._again else self._begin(self._source())
        except RuntimeError as error:  # not DALI's
            self._source_error = error
            raise
        self._waiting.append(batch)
        return feed(batch.for_dali(), **self._kinds)

    def _begin(self, pictures: list[Picture]) -> _Batch:
        """JPEG headers are looked at here; on a CPU, decoding of clips begins."""
        tasks: list[Future | None] = [None] * len(pictures)
        faults = {}
        for i, picture in enumerate(pictures):
            if picture.altered:
                faults[i] = ALTERED
            if picture.target is None:
                try:
                    picture_size(picture.file)
                except ValueError as error:  # says more
                    faults[i] = str(error)
            elif not self._gpu and not picture.altered:
                tasks[i] = self._pool.submit(_frame_of_clip, picture, self.side)
        return _Batch(pictures, tasks, faults)

    def _finish_on_host(self, images, batch: _Batch, frames: torch.Tensor) -> None:
        """Resize DALI's images into `frames`, and put the clips' frames beside them."""
        places = [i for i, task in enumerate(batch.decoding) if task is None]
        if not places:
            groups = []
        elif images.is_dense_tensor():  # one size: a few at a time, which is faster than each alone or all at once
            groups = torch.from_dlpack(images.as_tensor()).split(8)
        else:
            groups = [torch.from_dlpack(image)[None] for image in images]
        ends = np.cumsum([0, *map(len, groups)])
        out = frames.numpy()

        def resize(first: int) -> None:
            for number in range(first, len(groups), self.threads):
                resized = resize_host(groups[number], self.side).numpy()
                for at, frame in zip(places[ends[number] : ends[number + 1]], resized, strict=True):
                    out[at] = frame  # a tensor's copy_ would wake all of PyTorch's threads

        tasks = [self._pool.submit(resize, first) for first in range(min(self.threads, len(groups)))]
        faults = {}
        for i, task in enumerate(batch.decoding):
            if task is not None:
                try:
                    out[i] = task.result()
                except (MediaError, ValueError) as error:
                    faults[i] = str(error)
        for task in tasks:
            task.result()
        if faults:
            raise DecodeError(faults, "; ".join(faults.values()))

    def _failure(self, error: RuntimeError) -> DecodeError:
        """Find out which files are at fault. DALI does not always say, so each is decoded alone, in a pipeline of its
        own, since one that has failed is of no use any more."""
        faults: dict[int, str] = {}
        for i, picture in enumerate(self._waiting[0].pictures):
            if i in self._waiting[0].faults:
                faults[i] = self._waiting[0].faults[i]
                continue
            try:
                if picture.target is None:
                    build(repeat(feed([picture], True, False)), 1, self.side, torch.device("cpu"), 1, 1).run()
                elif self._gpu:
                    decode_clip(picture.file.tobytes(), picture.target)
            except (RuntimeError, ValueError) as alone:
                faults[i] = _reason(alone)
        return DecodeError(faults, _reason(error))


def _frame_of_clip(picture: Picture, side: int) -> np.ndarray:
    frame = decode_clip(picture.file.tobytes(), picture.target)
    return resize_host(torch.from_numpy(frame)[None], side)[0].numpy()


def _reason(error: Exception) -> str:
    """What went wrong in a line, without DALI's traceback of the graph and its advice."""
    text = str(error).partition("encountered:")[2] or str(error)
    for end in ("Current pipeline object", "C++ context:"):
        text = text.partition(end)[0]
    return " ".join(text.split())[:200].rstrip(" :") or type(error).__name__


@functools.cache
def _stand_in() -> Picture:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return Picture(np.frombuffer(file.getvalue(), np.uint8))
