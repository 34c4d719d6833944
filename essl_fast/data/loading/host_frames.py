"""What a CPU does beside DALI: FFmpeg decodes clips, PyTorch resizes frames, both in the threads of an executor."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future

import numpy as np
import torch

from essl_fast.data.loading.resize import resize_host
from essl_fast.data.media import MediaError, decode_clip
from essl_fast.data.shards import Picture


def frame_of_clip(picture: Picture, side: int) -> np.ndarray:
    """The frame that is meant, upright: (side, side, 3) uint8.

    Raises:
        MediaError, ValueError: it does not decode.
    """
    assert picture.target is not None  # of a clip
    frame = decode_clip(picture.file.tobytes(), picture.target)
    return resize_host(torch.from_numpy(frame)[None], side)[0].numpy()


def resize_into(frames: np.ndarray, places: Sequence[int], images, executor: Executor, threads: int) -> list[Future]:
    """Begin to resize DALI's images to frames[places]. The tasks are done when the results are there.

    Args:
        frames: (B, side, side, 3) uint8.
        places: where each image goes. Where there is none, `images` is a stand-in that nobody wants.
        images: DALI's output on a CPU, (H, W, 3) uint8 each.
        threads: number of tasks, at most.
    """
    side = frames.shape[1]
    if not places:
        groups = []
    elif images.is_dense_tensor():  # of one size: eight at a time is faster than each alone or all at once
        groups = torch.from_dlpack(images.as_tensor()).split(8)
    else:
        groups = [torch.from_dlpack(image)[None] for image in images]
    ends = np.cumsum([0, *map(len, groups)])

    def resize(first: int) -> None:
        for number in range(first, len(groups), threads):
            resized = resize_host(groups[number], side).numpy()
            for at, frame in zip(places[ends[number] : ends[number + 1]], resized, strict=True):
                frames[at] = frame  # a tensor's copy_ would wake all of PyTorch's threads

    return [executor.submit(resize, first) for first in range(min(threads, len(groups)))]


def collect_clips(frames: torch.Tensor, decoding: Sequence[Future | None]) -> dict[int, str]:
    """Put the frames of `frame_of_clip` into frames (B, side, side, 3) on any device, as they come. Returns place ->
    reason of those that do not decode."""
    faults = {}
    for place, task in enumerate(decoding):
        if task is not None:
            try:
                frames[place] = torch.from_numpy(task.result())
            except (MediaError, ValueError) as error:
                faults[place] = str(error)
    return faults
