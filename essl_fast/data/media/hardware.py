"""Frames of a video from the GPU's video decoder (NVDEC), for `prepare --visual jpeg --decoder nvdec`.

    requests ──cut_clips──▶ clips ──DALI, `BATCH` at a time on all engines──▶ frames (H, W, 3) uint8 on the host

`clips` knows which packets a frame needs and which of the decoded pictures it is, as for training on clips. So the
frames are those of `decoding.decode_frames`; only their pixels come from another decoder, whose conversion to RGB
differs by one or two grey levels. Where no clip of a frame can be cut, `decoding.decode_frames` decodes it. That
depends only on the file, so a folder has the same bytes each time it is made with the same decoder.

A frame in the middle of a group of pictures is decoded from its key frame on, for each request again. If every frame of
a video is wanted, one pass with PyAV does less work.

Not run on a GPU yet: tests run the same graph with DALI's decoder for CPUs, which knows VP9 and MJPEG.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from essl_fast.data.media import decoding, nvdec
from essl_fast.data.media.clip_decoding import decode_clip
from essl_fast.data.media.clips import Clip, cut_clips
from essl_fast.data.media.errors import NO_CLIP, MediaError
from essl_fast.data.media.probing import Probe, Requests, probe

BACKEND = "mixed"  # DALI's name for NVDEC; "cpu" in tests
BATCH = 16  # clips; 100 MB of decoded 1080p frames
ENGINES = 8  # the most NVDEC engines that a GPU has; one of DALI's threads waits for each


def decode_reels(files: DataNode, targets: DataNode, backend: str) -> DataNode:
    """Decode some frames of a clip each, in a DALI graph.

    Args:
        files: (n,) uint8, a clip.
        targets: (F,) int32, positions of the frames among those that decode from it.
        backend: "mixed" for NVDEC, or "cpu".

    Returns:
        (F, H, W, 3) uint8 RGB, not yet upright.
    """
    # With any other pad_mode, a frame that is not there comes out black instead of failing.
    return fn.decoders.video(files, device=backend, frames=targets, pad_mode="none")


def decode_clips(files: DataNode, targets: DataNode, backend: str) -> DataNode:
    """As `decode_reels` for one frame of each clip: (H, W, 3)."""
    return fn.squeeze(decode_reels(files, targets, backend), axes=[0])


def decode_frames(
    path: str | Path, requests: Requests, found: Probe | None = None
) -> Iterator[tuple[int, np.ndarray | MediaError]]:
    """As `decoding.decode_frames`, but not in the order of showing.

    Where NVDEC fails at a clip that PyAV can decode, the answer is a MediaError with the reason `nvdec.FAILED`.
    """
    found = found or probe(path)
    waiting: list[tuple[Clip, list[int]]] = []
    others = []  # requests that no clip serves
    for index, clip in cut_clips(path, requests, found):
        if isinstance(clip, MediaError):
            if clip.reason == NO_CLIP:
                others.append(index)
            else:
                yield index, clip
        elif waiting and waiting[-1][0] is clip:
            waiting[-1][1].append(index)
        else:
            if len(waiting) == BATCH:
                yield from _decode(waiting, others, found)
                waiting = []
            waiting.append((clip, [index]))
    if waiting:
        yield from _decode(waiting, others, found)
    for at, frame in decoding.decode_frames(path, [requests[index] for index in others], found) if others else ():
        yield others[at], frame


def _decode(
    waiting: list[tuple[Clip, list[int]]], others: list[int], found: Probe
) -> Iterator[tuple[int, np.ndarray | MediaError]]:
    """The frames of a batch. Requests whose clip PyAV cannot decode either are added to `others`."""
    for (clip, indexes), frame in zip(waiting, _frames([clip for clip, _ in waiting]), strict=True):
        if isinstance(frame, RuntimeError):
            try:
                decode_clip(clip.data, clip.target)
            except (MediaError, ValueError):
                others += indexes
                continue
            what = f"{found.path.name}: {short_reason(frame)}"
            frame = MediaError(nvdec.FAILED, f"{what}; prepare with --decoder pyav, which decodes it")
        for index in indexes:
            yield index, frame


def _frames(clips: list[Clip]) -> list[np.ndarray | RuntimeError]:
    """The frame of each clip, upright, or the error of a clip that fails."""
    try:
        (images,) = _pipeline(BACKEND).run(
            files=[np.frombuffer(clip.data, np.uint8) for clip in clips],
            targets=[np.array([clip.target], np.int32) for clip in clips],
        )
        images = images.as_cpu()
        return [np.rot90(np.array(images[i]), clip.quarters) for i, clip in enumerate(clips)]
    except RuntimeError as error:
        _pipeline.cache_clear()  # after an error a pipeline cannot be used again
        if len(clips) == 1:
            return [error]
        return [frame for clip in clips for frame in _frames([clip])]


def short_reason(error: Exception) -> str:
    """What went wrong, in one line: a DALI error without its traceback of the graph, its C++ context and its advice."""
    text = str(error).partition("encountered:")[2] or str(error)
    for end in ("Current pipeline object", "C++ context:"):
        text = text.partition(end)[0]
    return " ".join(text.split())[:200].rstrip(" :") or type(error).__name__


@functools.cache
def _pipeline(backend: str) -> Pipeline:
    threads, device = (1, None) if backend == "cpu" else (ENGINES, 0)

    @pipeline_def(batch_size=BATCH, num_threads=threads, device_id=device, prefetch_queue_depth=1)
    def graph():
        files = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
        targets = fn.external_source(name="targets", dtype=types.INT32, ndim=1)
        return decode_clips(files, targets, backend)

    pipeline = graph(exec_dynamic=True)
    pipeline.build()
    return pipeline
