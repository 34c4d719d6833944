"""Frames of a video from the GPU's video decoder (NVDEC), for `prepare --visual jpeg --decoder nvdec`.

    requests ──cut_clips──▶ clips ──DALI, `BATCH` at a time on all engines──▶ frames (H, W, 3) uint8 on the host

`clips` knows which packets a frame needs and which of the decoded pictures it is, as for training on clips. So the
frames are those of `decoding.decode_frames`; only their pixels come from another decoder. NVDEC's pictures are those of
any decoder, but DALI's conversion to RGB rounds in another way, and makes chroma smooth where FFmpeg repeats it: 1 to 2
grey levels on average, more at edges of colour, and some levels in colours that `colours.correction` cannot restore.
Where no clip of a frame can be cut, or NVDEC may not get it (`nvdec_clips`), `decoding.decode_frames` decodes it. That
depends only on the file, so a folder has the same bytes each time it is made with the same decoder.

Each batch is decoded twice, the second time in another order. Memory that was never written would differ, or be of one
colour; then PyAV decodes the frame.

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

from essl_fast.data.media import decoding, nvdec, nvdec_clips
from essl_fast.data.media.clip_decoding import decode_clip
from essl_fast.data.media.clips import Clip, cut_clips
from essl_fast.data.media.errors import NO_CLIP, MediaError
from essl_fast.data.media.probing import Probe, Requests, probe

BACKEND = "mixed"  # DALI's name for NVDEC; "cpu" in tests
BATCH = 16  # clips; 100 MB of decoded 1080p frames
CLIPS_TOGETHER = 24  # that DALI gets at a time in training: each takes memory (see `decoding_memory`) as long as any
_HELD_FRAMES = 8  # RGB frames that DALI 2.4 allocates for each clip (num_decode_surfaces_ of FramesDecoderGpu)
_SURFACES = 20  # most pictures that an NVDEC decoder holds, in 4:2:0
_KEPT_DECODERS = 100  # decoders that DALI keeps for clips to come (CACHE_SIZE_LIMIT of NVDECCache)


def decode_reels(files: DataNode, targets: DataNode, turns: DataNode, backend: str) -> DataNode:
    """Decode some frames of a clip each, in a DALI graph.

    Args:
        files: (n,) uint8, a clip.
        targets: (F,) int32, positions of the frames among those that decode from it.
        turns: (3, 4) float32, the correction of its colours (`nvdec_clips.fit`).
        backend: "mixed" for NVDEC, or "cpu".

    Returns:
        (F, H, W, 3) uint8 RGB, not yet upright.
    """
    # With any other pad_mode, a frame that is not there comes out black instead of failing.
    pictures = fn.decoders.video(files, device=backend, frames=targets, pad_mode="none")
    return fn.coord_transform(pictures, MT=turns, dtype=types.UINT8)  # type: ignore[attr-defined]  # made by its C++ part


def decoding_memory(width: int, height: int, engines: int) -> int:
    """Bytes of GPU memory, at most, that DALI takes to decode clips of this size, `CLIPS_TOGETHER` at a time.

    Each clip of a batch has its frames in RGB and the one that is wanted. NVDEC's decoders work on as many clips as
    there are threads, which is a thread an engine here; where DALI cannot use them again, it keeps 100 of them.
    """
    coded = -(-width // 16) * 16, -(-height // 16) * 16
    decoders = engines if coded == (width, height) else _KEPT_DECODERS
    return (
        CLIPS_TOGETHER * (_HELD_FRAMES + 1) * width * height * 3 + decoders * _SURFACES * coded[0] * coded[1] * 3 // 2
    )


def decode_clips(files: DataNode, targets: DataNode, turns: DataNode, backend: str) -> DataNode:
    """As `decode_reels` for one frame of each clip: (H, W, 3)."""
    return fn.squeeze(decode_reels(files, targets, turns, backend), axes=[0])


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
        elif nvdec_clips.fit(clip.data).why:
            others.append(index)
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
    for (clip, indexes), frame in zip(waiting, _proven_frames([clip for clip, _ in waiting]), strict=True):
        if frame is None:
            others += indexes
            continue
        if isinstance(frame, RuntimeError):
            try:
                decode_clip(clip.data, clip.target)
            except (MediaError, ValueError):
                others += indexes
                continue
            what = f"{found.path.name}: {short_reason(frame)}"
            answer: np.ndarray | MediaError = MediaError(
                nvdec.FAILED, f"{what}; prepare with --decoder pyav, which decodes it"
            )
        else:
            answer = frame
        for index in indexes:
            yield index, answer


def _proven_frames(clips: list[Clip]) -> list[np.ndarray | RuntimeError | None]:
    """As `_frames`; None for a frame that nobody may have written: it came out differently, or is of one colour."""
    first, again = _frames(clips), _frames([*clips[1:], clips[0]])  # in a batch of one, memory may be the same
    found: list[np.ndarray | RuntimeError | None] = []
    for one, other in zip(first, [again[-1], *again[:-1]], strict=True):
        if isinstance(one, RuntimeError) or isinstance(other, RuntimeError):
            found.append(one if isinstance(one, RuntimeError) else other)
        else:
            sure = len(clips) > 1 and np.array_equal(one, other) and (one != one[0, 0]).any()
            found.append(one if sure else None)
    return found


def _frames(clips: list[Clip]) -> list[np.ndarray | RuntimeError]:
    """The frame of each clip, upright, or the error of a clip that fails."""
    try:
        (images,) = _pipeline(BACKEND).run(
            files=[np.frombuffer(clip.data, np.uint8) for clip in clips],
            targets=[np.array([clip.target], np.int32) for clip in clips],
            turns=[nvdec_clips.fit(clip.data).turn for clip in clips],
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
    threads, device = (1, None) if backend == "cpu" else (nvdec.engines(), 0)  # one thread waits for each engine

    @pipeline_def(batch_size=BATCH, num_threads=threads, device_id=device, prefetch_queue_depth=1)  # type: ignore[arg-type]  # None: no GPU
    def graph():
        files = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
        targets = fn.external_source(name="targets", dtype=types.INT32, ndim=1)
        turns = fn.external_source(name="turns", dtype=types.FLOAT, ndim=2)
        return decode_clips(files, targets, turns, backend)

    pipeline = graph(exec_dynamic=True)
    pipeline.build()
    return pipeline
