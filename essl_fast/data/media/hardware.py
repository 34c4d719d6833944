"""Frames of a video from the GPU's video decoder (NVDEC), for `prepare --visual jpeg --decoder nvdec`.

    requests ──cut_clips──▶ clips ──DALI, `BATCH` at a time on all engines──▶ frames (H, W, 3) uint8 on the host

Which packets a frame needs and which of the decoded pictures it is, `clips` knows, as for training on clips: so the
frames are those that `media.decode_frames` gives, and only their pixels are the decoder's (the conversion to RGB
differs by a grey level or two). Frames that no clip can be cut of come from `media.decode_frames`: that depends on the
file alone, so a folder's bytes are the same each time it is made with the same decoder.

A frame in the middle of a group of pictures is decoded from its key frame on, for each request anew: where every frame
of a video is wanted, PyAV's one pass over it does less work.

Not run on a GPU yet: tests run the same graph with DALI's decoder for CPUs, which knows VP9 and MJPEG.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from essl_fast.data.media import nvdec, video
from essl_fast.data.media.clips import NO_CLIP, Clip, cut_clips, decode_clip
from essl_fast.data.media.video import MediaError, Probe, probe

BACKEND = "mixed"  # DALI's name for NVDEC; "cpu" in tests
BATCH = 16  # clips; 100 MB of decoded 1080p frames
ENGINES = 8  # NVDEC's on the GPUs that have most; one of DALI's threads waits for each


def decode_reels(files: DataNode, targets: DataNode, backend: str) -> DataNode:
    """Of clips (n,) uint8, the frames at the places `targets` (F,) int32: (F, H, W, 3) uint8 RGB, not yet upright."""
    # pad_mode: with any other, a frame that is not there comes out black instead of failing.
    return fn.decoders.video(files, device=backend, frames=targets, pad_mode="none")


def decode_clips(files: DataNode, targets: DataNode, backend: str) -> DataNode:
    """As `decode_reels`, of one frame each: (H, W, 3)."""
    return fn.squeeze(decode_reels(files, targets, backend), axes=[0])


def decode_frames(
    path: str | Path, requests: Sequence[tuple[int, float]], found: Probe | None = None
) -> Iterator[tuple[int, np.ndarray | MediaError]]:
    """As `media.decode_frames`, but not in the order of showing. Where NVDEC fails at a clip that PyAV decodes, a
    MediaError of the reason `nvdec.FAILED`."""
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
    for at, frame in video.decode_frames(path, [requests[index] for index in others], found) if others else ():
        yield others[at], frame


def _decode(
    waiting: list[tuple[Clip, list[int]]], others: list[int], found: Probe
) -> Iterator[tuple[int, np.ndarray | MediaError]]:
    """The frames of a batch. What does not decode as a clip at all goes to `others`: PyAV tells why, or does better."""
    for (clip, indexes), frame in zip(waiting, _frames([clip for clip, _ in waiting]), strict=True):
        if isinstance(frame, RuntimeError):
            try:
                decode_clip(clip.data, clip.target)
            except (MediaError, ValueError):
                others += indexes
                continue
            told = f"{found.path.name}: {reason(frame)}"
            frame = MediaError(nvdec.FAILED, f"{told}; prepare with --decoder pyav, which decodes it")
        for index in indexes:
            yield index, frame


def _frames(clips: list[Clip]) -> list[np.ndarray | RuntimeError]:
    """The clips' frames, upright; where one fails, its error."""
    try:
        (images,) = _pipeline(BACKEND).run(
            files=[np.frombuffer(clip.data, np.uint8) for clip in clips],
            targets=[np.array([clip.target], np.int32) for clip in clips],
        )
        images = images.as_cpu()
        return [np.rot90(np.array(images[i]), clip.quarters) for i, clip in enumerate(clips)]
    except RuntimeError as error:
        _pipeline.cache_clear()  # a pipeline is of no use after an error
        if len(clips) == 1:
            return [error]
        return [frame for clip in clips for frame in _frames([clip])]


def reason(error: RuntimeError) -> str:
    """What DALI's error says went wrong, without where in the graph and in its source that was."""
    said = " ".join(str(error).partition("encountered:")[2].partition("C++ context:")[0].split())
    return (said or " ".join(str(error).split()))[:200]


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
