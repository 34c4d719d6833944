"""How much GPU memory the clips of a loader need while they are decoded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from essl_fast.data.media import hardware, nvdec, nvdec_clips
from essl_fast.data.shards import SAMPLES, Shards

_LOOKED_AT = 64  # clips, spread evenly over the pairs


def clip_memory(shards: Shards, device: torch.device) -> int:
    """Bytes that DALI takes at most, by the largest of some clips; 0 without clips. InputError as `Shards.read`."""
    clips = shards.clips
    some = clips[np.unique(np.linspace(0, len(clips) - 1, min(_LOOKED_AT, len(clips))).round().astype(int))]
    with ThreadPoolExecutor(1) as executor:
        pictures = shards.read(some, np.empty((len(some), SAMPLES), shards.sound), executor, 1)
    sizes = [size for picture in pictures if (size := nvdec_clips.clip_size(picture.file))]
    if not sizes:
        return 0
    engines = nvdec.engines(device.index or 0)
    return max(hardware.decoding_memory(width, height, engines) for width, height in sizes)
