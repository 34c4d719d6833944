"""The frames of a video at many moments, at the network's size: for `localize`.

    places ──cut_reels──▶ reels ──DALI: NVDEC, `REELS` at a time; one bicubic resize──▶ (224, 224, 3) uint8 on the GPU

A reel is one group of pictures with all its moments, so its packets are decoded once for them, and a batch of reels
gives each engine of NVDEC one to work on. The next batch is decoded while the network runs on this one. Neither the
frames nor what is resized from them leaves the GPU, but where the whole picture is asked for.

Memory: `FRAME_BYTES` of decoded frames a reel, at most; long groups become several reels, each decoded from the key
frame on. What no reel can be cut of, and what NVDEC fails at, comes from PyAV, at its place in the order.

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
from essl_fast.data.media import MediaError, Reel, cut_reels
from essl_fast.data.media.footage import Footage, Video
from essl_fast.data.media.hardware import ENGINES, decode_reels, reason

REELS = ENGINES  # of a batch
FRAME_BYTES = 64 << 20  # 10 frames of 1080p; at most two batches are on their way beside the one that is looked at
PATIENCE = 3  # batches that NVDEC may fail at, until PyAV takes the rest


HOST = torch.device("cpu")


class Shown(NamedTuple):
    """frame: uint8 (side, side, 3). whole: a function that gives the picture, RGB uint8 (H, W, 3), upright, on the
    host; it must be called before the next one is asked for."""

    frame: torch.Tensor
    whole: Callable[[], np.ndarray]


def from_pyav(
    footage: Footage, places: Sequence[int], side: int, device: torch.device = HOST
) -> Iterator[tuple[int, Shown | MediaError]]:
    """(place, what is shown there, its frame on `device`, or why there is nothing) of each of ascending places."""
    for place, picture in footage.some(places):
        if isinstance(picture, MediaError):
            yield place, picture
        else:
            image = torch.from_numpy(np.require(picture, np.uint8, ["C", "W"]))
            yield place, Shown(resize_host(image[None], side)[0].to(device), image.numpy)


def from_dali(
    video: Video, places: Sequence[int], side: int, device: torch.device, say: Callable[[str], None] = lambda line: None
) -> Iterator[tuple[int, Shown | MediaError]]:
    """As `from_pyav`, with frames on `device`, in the order of the CUDA stream that was current at the first `next`.

    `say` is given a line for each batch of reels that DALI could not decode and PyAV did, or tried to.
    """
    found = video.found
    together = max(1, FRAME_BYTES // max(1, found.width * found.height * 3))
    batches = _batches(cut_reels(found, places, together))
    waiting: deque[list[_Item]] = deque()  # what the pipeline is at work on
    again = deque([next(batches)])  # what comes before anything new
    failures = 0 if any(isinstance(item, Reel) for item in again[0]) else PATIENCE

    def source() -> tuple[list[np.ndarray], list[np.ndarray]]:
        waiting.append(again.popleft() if again else next(batches))
        reels = [item for item in waiting[-1] if isinstance(item, Reel)]
        files, targets = [reel.data for reel in reels], [reel.targets for reel in reels]
        return [np.frombuffer(file, np.uint8) for file in files], [np.array(target, np.int32) for target in targets]

    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    pipeline = None
    while failures < PATIENCE:
        try:
            pipeline = pipeline or _pipeline(source, side, device)
            pictures, frames = pipeline.run(stream)
        except StopIteration:
            return
        except RuntimeError as error:
            pipeline = None  # of no use after an error
            failures = failures + 1 if waiting else PATIENCE
            failed = waiting.popleft() if waiting else []
            again.extendleft(reversed(waiting))
            waiting.clear()
            count = sum(len(item.places) for item in failed if isinstance(item, Reel))
            what = f"{count} frames from {video.times[_places(failed[0])[0]]:.2f} s on" if failed else "all frames"
            told = f"{found.path.name}: DALI could not decode {what} ({reason(error)}), PyAV decodes them"
            say(f"{told}; --decoder pyav would not try")
            yield from from_pyav(video, [place for item in failed for place in _places(item)], side, device)
        else:
            yield from _in_order(video, waiting.popleft(), pictures, frames, side, device, stream)
    rest = [place for batch in (*again, *batches) for item in batch for place in _places(item)]
    yield from from_pyav(video, rest, side, device)


_Item = Reel | tuple[int, ...]  # places that no reel was cut of


def _places(item: _Item) -> tuple[int, ...]:
    return item.places if isinstance(item, Reel) else item


def _batches(cut: Iterator[tuple[tuple[int, ...], Reel | MediaError | None]]) -> Iterator[list[_Item]]:
    """`REELS` reels each, with what is shown between and after them; without a reel only where there is none at all."""
    batch: list[_Item] = []
    count = 0
    for places, reel in cut:
        if isinstance(reel, Reel):
            if count == REELS:
                yield batch
                batch, count = [], 0
            count += 1
        batch.append(reel if isinstance(reel, Reel) else places)
    yield batch


def _in_order(video, batch, pictures, frames, side, device, stream) -> Iterator[tuple[int, Shown | MediaError]]:
    """A batch that DALI has decoded: `pictures` (F, H, W, 3) and `frames` (F, side, side, 3) of each of its reels."""
    number = 0
    for item in batch:
        if not isinstance(item, Reel):
            yield from from_pyav(video, item, side, device)
            continue
        resized = _tensor(frames[number], device, stream)
        for at, place in enumerate(item.places):

            def whole(which=pictures[number], at=at, quarters=item.quarters) -> np.ndarray:
                return np.rot90(_tensor(which, device, stream)[at].cpu().numpy(), quarters)

            yield place, Shown(torch.rot90(resized[at], item.quarters), whole)
        number += 1


def _tensor(one, device: torch.device, stream) -> torch.Tensor:
    """A copy of one of DALI's tensors."""
    copy = torch.empty(one.shape(), dtype=torch.uint8, device=device)
    feed_ndarray(one, copy, cuda_stream=stream)
    return copy


def _pipeline(source: Callable, side: int, device: torch.device) -> Pipeline:
    gpu = device.type == "cuda"

    @pipeline_def(
        batch_size=REELS,
        num_threads=ENGINES if gpu else 2,
        device_id=(device.index or 0) if gpu else None,
        prefetch_queue_depth=2,
        exec_dynamic=True,
    )
    def graph():
        files, targets = fn.external_source(source=source, num_outputs=2, dtype=[types.UINT8, types.INT32], ndim=[1, 1])
        pictures = decode_reels(files, targets, "mixed" if gpu else "cpu")
        return pictures, resize_dali(pictures, side)

    pipeline = graph()
    pipeline.build()
    return pipeline
