"""The sound of a batch: log-mel examples, or the embeddings that a frozen audio network computes from them.

If the front of the audio network is frozen (VGGish without its projection), its output for a pair never changes. So it
is computed when the pair is decoded, and a pool keeps 1,536 bytes per pair (float32; 768 in bf16) instead of 73,728 of
log-mel or 96,000 of samples. Training and evaluation share this.

An embedding must not depend on the other pairs of the batch: a run that is resumed fills its pool in other batches, and
has to go on with the same bits. So the network always gets the same shape: one pair at a time on a CPU (0.09 s on one
core; 0.07 s in batches of 16), `CHUNK` pairs on a GPU, where the last chunk is filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from essl_fast import config, kernels
from essl_fast.models.localizer import Localizer

CHUNK = 32  # pairs at a time on a GPU: 96 images of 96 x 64, 75 MB of bf16 after the first convolution


def log_mel(pcm: Tensor) -> Tensor:
    """(B, 48000) int16 -> (B, 3, 96, 64) float32 (see :func:`kernels.log_mel`)."""
    return kernels.log_mel(pcm)


@dataclass(frozen=True)
class Embeddings:
    """(B, 48000) int16 -> (B, 3, E), the output of the frozen part of ``network`` for each pair's three examples.

    Two objects of the same network and dtype are equal, so that their loaders share a pool. On a CPU a pair's
    embedding does not depend on its neighbours, to the bit. On a GPU its place in a chunk may change the rounding.
    """

    network: Any  # an audio network (nn.Module) with embed((B, 3, 96, 64)) -> (B, 3, E)
    dtype: torch.dtype  # float32, or the type in which autocast computes, which is then the embeddings'

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
    """The function that turns samples into embeddings if settings and model allow it, otherwise into log-mel."""
    if settings.data.embeddings == "off" or not hasattr(model.audio, "embed"):
        return log_mel
    return Embeddings(model.audio, dtype)
