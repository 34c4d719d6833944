"""How much GPU memory the clips of a loader need while they are decoded."""

from __future__ import annotations

import numpy as np
import torch

from essl_fast.data.media import MediaError, hardware, nvdec
from essl_fast.data.media.mp4 import read_index
from essl_fast.data.shards import Shards

_LOOKED_AT = 64  # clips, spread evenly over the pairs


def clip_memory(shards: Shards, device: torch.device) -> int:
    """Bytes that DALI takes at most, by the largest of some clips; 0 without clips."""
    sizes = [size for file in shards.some_clips(_LOOKED_AT) if (size := _size(file))]
    if not sizes:
        return 0
    engines = nvdec.engines(device.index or 0)
    return max(hardware.decoding_memory(width, height, engines) for width, height in sizes)


def _size(file: np.ndarray) -> tuple[int, int] | None:
    try:
        index = read_index(file)
    except MediaError:  # `prepare --verify` and the loader tell
        return None
    return index.width, index.height
