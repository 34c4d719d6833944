"""The frames of a video at many moments, at the network's size: for `localize`.

    places ──cut_reels──▶ reels ──DALI: NVDEC, `REELS` at a time; one bicubic resize──▶ (224, 224, 3) uint8 on the GPU

A place is a frame's position in the video, from 0. A reel is one group of pictures with all places in it, so its
packets are decoded once for all of them, and a batch of reels gives each engine of NVDEC one reel. The next batch is
decoded while the network runs on this one. Frames stay on the GPU; only where the whole picture is asked for does it go
to the host.

PyAV decodes the first frame of each reel, too. Where that is another picture, PyAV decodes the whole reel: DALI also
returns frames that NVDEC never gave (`starts` says how).

Memory: at most `FRAME_BYTES` of decoded frames a reel. Long groups become several reels, each decoded from the key
frame on. Where no reel can be cut, and where NVDEC fails, PyAV decodes the frames, and the order stays the same.

Not run on a GPU yet: tests run the same graph with DALI's decoder for CPUs, which knows VP9 and MJPEG.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import feed_ndarray

from essl_fast.data.loading.resize import resize_dali, resize_host
from essl_fast.data.media import MediaError, Reel, cut_reels, decode_clip, nvdec, nvdec_clips
from essl_fast.data.media.footage import Footage, Video
from essl_fast.data.media.hardware import decode_reels, short_reason

REELS = 0  # reels in a batch; 0: as many as the GPU has engines
FRAME_BYTES = 64 << 20  # 10 frames of 1080p; besides the batch in use, at most two are on their way
PATIENCE = 3  # batches that NVDEC may fail at before PyAV takes the rest

HOST = torch.device("cpu")

_Item = Reel | tuple[int, ...]  # a reel, or places that are in no reel


class Shown(NamedTuple):
    """What a video shows at a place.

    Attributes:
        frame: (side, side, 3) uint8 RGB, upright, on the device.
        whole: gives the picture in its own size, (H, W, 3) uint8 RGB, upright, on the host. Call it before asking for
            the next place.
    """

    frame: torch.Tensor
    whole: Callable[[], np.ndarray]


def from_pyav(
    footage: Footage, places: Sequence[int], side: int, device: torch.device = HOST
) -> Iterator[tuple[int, Shown | MediaError]]:
    """(place, what is shown there, or why nothing is) for each of ascending places, decoded by PyAV."""
    for place, picture in footage.some(places):
        if isinstance(picture, MediaError):
            yield place, picture
        else:
            image = torch.from_numpy(np.require(picture, np.uint8, ["C", "W"]))
            yield place, Shown(resize_host(image[None], side)[0].to(device), image.numpy)


def from_dali(
    video: Video, places: Sequence[int], side: int, device: torch.device, say: Callable[[str], None] = lambda line: None
) -> Iterator[tuple[int, Shown | MediaError]]:
    """As `from_pyav`, decoded by DALI.

    Args:
        device: where the frames are, in the order of the CUDA stream that was current at the first `next`.
        say: called with a line for each batch of reels that DALI could not decode and PyAV takes over.
    """
    found = video.found
    together = max(1, FRAME_BYTES // max(1, found.width * found.height * 3))
    batches = _batches(cut_reels(found, places, together), REELS or _engines(device))
    in_pipeline: deque[list[_Item]] = deque()  # batches that the pipeline has taken, the oldest first
    before_rest = deque([next(batches)])  # batches that it takes before the rest of `batches`
    failures = 0 if any(isinstance(item, Reel) for item in before_rest[0]) else PATIENCE

    def source() -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        in_pipeline.append(before_rest.popleft() if before_rest else next(batches))
        reels = [item for item in in_pipeline[-1] if isinstance(item, Reel)]
        files = [np.frombuffer(reel.data, np.uint8) for reel in reels]
        targets = [np.array(reel.targets, np.int32) for reel in reels]
        return files, targets, [nvdec_clips.fit(reel.data).turn for reel in reels]

    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    pipeline = None
    while failures < PATIENCE:
        try:
            pipeline = pipeline or _pipeline(source, side, device)
            pictures, frames = pipeline.run(stream)
        except StopIteration:
            return
        except RuntimeError as error:
            pipeline = None  # it cannot be used after an error
            failures = failures + 1 if in_pipeline else PATIENCE
            failed = in_pipeline.popleft() if in_pipeline else []
            before_rest.extendleft(reversed(in_pipeline))
            in_pipeline.clear()
            say(_failure(video, failed, error))
            yield from from_pyav(video, [place for item in failed for place in _places(item)], side, device)
        else:
            yield from _in_order(video, in_pipeline.popleft(), pictures, frames, side, device, stream, say)
    rest = [place for batch in (*before_rest, *batches) for item in batch for place in _places(item)]
    yield from from_pyav(video, rest, side, device)


def _engines(device: torch.device) -> int:
    return nvdec.engines(device.index or 0) if device.type == "cuda" else nvdec.MOST_ENGINES


def _failure(video: Video, batch: list[_Item], error: RuntimeError) -> str:
    """The line for the user about a batch that DALI could not decode. batch: [] if DALI did not get any."""
    count = sum(len(item.places) for item in batch if isinstance(item, Reel))
    what = f"{count} frames from {video.times[_places(batch[0])[0]]:.2f} s on" if batch else "all frames"
    return (
        f"{video.found.path.name}: DALI could not decode {what} ({short_reason(error)}), PyAV decodes them; "
        "--decoder pyav would not try"
    )


def _places(item: _Item) -> tuple[int, ...]:
    return item.places if isinstance(item, Reel) else item


def _batches(cut: Iterator[tuple[tuple[int, ...], Reel | MediaError | None]], most: int) -> Iterator[list[_Item]]:
    """Batches of `most` reels that NVDEC may get, with the places between and after them. Only if there is no such reel
    at all, a batch has none."""
    batch: list[_Item] = []
    count = 0
    for places, reel in cut:
        fitting = reel if isinstance(reel, Reel) and not nvdec_clips.fit(reel.data).why else None
        if fitting is not None:
            if count == most:
                yield batch
                batch, count = [], 0
            count += 1
        batch.append(places if fitting is None else fitting)
    yield batch


def _in_order(video, batch, pictures, frames, side, device, stream, say) -> Iterator[tuple[int, Shown | MediaError]]:
    """What a decoded batch shows: for each reel, DALI has its `pictures` (F, H, W, 3) and `frames` (F, side, side, 3).
    PyAV decodes the other places."""
    number = 0
    for item in batch:
        if not isinstance(item, Reel):
            yield from from_pyav(video, item, side, device)
            continue
        resized = _tensor(frames[number], device, stream)
        if not _is_proven(item, resized[0]):
            where = f"{video.found.path.name}, {video.times[item.places[0]]:.2f} s"
            say(
                f"{where}: NVDEC gave another picture than PyAV, or none; PyAV decodes {len(item.places)} frames from "
                "there on; --decoder pyav would not try"
            )
            yield from from_pyav(video, item.places, side, device)
            number += 1
            continue
        for at, place in enumerate(item.places):

            def whole(which=pictures[number], at=at, quarters=item.quarters) -> np.ndarray:
                return np.rot90(_tensor(which, device, stream)[at].cpu().numpy(), quarters)

            yield place, Shown(torch.rot90(resized[at], item.quarters), whole)
        number += 1


def _is_proven(reel: Reel, frame: torch.Tensor) -> bool:
    """Whether the first frame (side, side, 3) of a reel, not yet upright, is the one that PyAV decodes."""
    try:
        theirs = decode_clip(reel.data, reel.targets[0])
    except (MediaError, ValueError):
        return False
    ours = torch.rot90(frame, reel.quarters).cpu().numpy()
    return nvdec_clips.same_picture(nvdec_clips.check_value(ours), nvdec_clips.check_value(theirs))


def _tensor(one, device: torch.device, stream) -> torch.Tensor:
    """A copy of one of DALI's tensors."""
    copy = torch.empty(one.shape(), dtype=torch.uint8, device=device)
    feed_ndarray(one, copy, cuda_stream=stream)
    return copy


def _pipeline(source: Callable, side: int, device: torch.device) -> Pipeline:
    """The graph: reels and the places in them -> pictures (F, H, W, 3) and frames (F, side, side, 3) of each."""
    gpu = device.type == "cuda"

    @pipeline_def(  # type: ignore[call-overload]  # DALI's stub lacks exec_dynamic
        batch_size=REELS or _engines(device),
        num_threads=_engines(device) if gpu else 2,
        device_id=(device.index or 0) if gpu else None,
        prefetch_queue_depth=2,
        exec_dynamic=True,
    )
    def graph():
        kinds = [types.UINT8, types.INT32, types.FLOAT]
        files, targets, turns = fn.external_source(source=source, num_outputs=3, dtype=kinds, ndim=[1, 1, 2])
        pictures = decode_reels(files, targets, turns, "mixed" if gpu else "cpu")
        return pictures, resize_dali(pictures, side)

    pipeline = graph()
    pipeline.build()
    return pipeline
