"""What a batch carries of its sound, made of the samples once a pair: log-mel examples, or their embeddings.

Where the audio network's front is frozen (VGGish but for its projection), what it makes of a pair never changes. So it
is computed where the pair is decoded, and a pool keeps 1,536 bytes (float32; 768 in bf16) instead of 73,728 of log-mel
or 96,000 of samples. Training and evaluation share it.

An embedding must not depend on which pairs it was computed with: a run that is resumed fills its pool in other batches,
and goes on with the same bits all the same. So a network sees one shape alone, whatever the batch: on a CPU a pair at a
time (0.09 s of one core; 0.07 s in batches of 16), on a GPU `CHUNK` pairs, the last ones filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from essl_fast import config, kernels
from essl_fast.models.localizer import Localizer

CHUNK = 32  # pairs at a time on a GPU: 96 images of 96 x 64, 75 MB of bf16 after the first convolution


def log_mel(pcm: Tensor) -> Tensor:
    """(B, 48000) int16 -> (B, 3, 96, 64) float32 (see :func:`kernels.log_mel`)."""
    return kernels.log_mel(pcm)


@dataclass(frozen=True)
class Embeddings:
    """(B, 48000) int16 -> (B, 3, 128), what the frozen part of ``network`` makes of each pair's three examples.

    ``dtype``: float32, or what autocast computes in and gives. Two of the same network and dtype are equal: loaders
    that are given them share a pool. Each pair is by itself, to the bit on a CPU; on a GPU its neighbours do not matter
    either, but its place in a chunk may change the rounding.
    """

    network: nn.Module
    dtype: torch.dtype

    @torch.no_grad()
    def __call__(self, pcm: Tensor) -> Tensor:
        device = pcm.device.type
        size = 1 if device == "cpu" else CHUNK
        found = []
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            for examples in kernels.log_mel(pcm).split(size):
                full = F.pad(examples, (0, 0, 0, 0, 0, 0, 0, size - len(examples)))
                found.append(self.network.embed(full)[: len(examples)])
        return torch.cat(found)


def sound_of(settings: config.Config, model: Localizer, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What the loaders of a run make of the samples: what `data.embeddings` and the model come to."""
    if settings.data.embeddings == "off" or not hasattr(model.audio, "embed"):
        return log_mel
    return Embeddings(model.audio, dtype)
