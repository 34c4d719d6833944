"""The resident pool: every pair is decoded once, and stays where training reads it.

    first epoch    decoder ──▶ batch ──▶ pool.put      each pair is trained on as it comes, and kept
    later epochs   order ──▶ rows ──▶ two_views(pool.frames, rows, ...), pool.sound[rows]

A batch takes only row numbers from the pool: no frame is decoded, resized or copied again, and what is computed from
sound alone (the log-mel spectrogram) is computed once. The pool changes neither which pairs a batch holds nor their
values. It fills in whatever order pairs are asked for, and a pair that is not there yet is decoded when it is asked
for. So a run that is resumed within an epoch, or that turns the pool on later, continues with exactly the same batches.

A pair takes side * side * 3 bytes for the frame and 73,728 for the log-mel, or 1,536 for embeddings where the audio
network is frozen (half of that in bf16). At side 246 that is 249 or 179 KiB: 388 or 278 MiB for Chaotic World's 1,595
training pairs, 90 or 64 GiB for its 378,093 annotated instances.

With several ranks, each has a pool of all pairs where that fits. It fills it with the pairs that it meets itself: those
of `Order.of_rank`, which differ from epoch to epoch. After k epochs on w ranks, a share (1 - 1/w)^k of the pairs is
still decoded on demand. Where all pairs do not fit, each rank keeps a share of them, and ranks exchange rows
(`shared_pool`). The same happens where the order is the same in every epoch, since a rank then needs only its share.
All of that is exact: batches are those of streaming, for any number of ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from essl_fast.data.loading.resident import Resident
from essl_fast.data.loading.rows import gather_rows, index_tensor
from essl_fast.data.loading.sounds import SoundLayout
from essl_fast.data.loading.source import Contents, StepPlan

if TYPE_CHECKING:
    from essl_fast.data.loading.decode_queue import DecodeQueue


class Pool(Resident):
    """Memory for all n pairs: the pair at position p is in row p. Batches' `frames` are the pool's."""

    held = True

    def __init__(self, n: int, side: int, layout: SoundLayout, device: torch.device | str = "cpu"):
        super().__init__(n, n, side, layout, device)

    def rows_of(self, positions: np.ndarray) -> np.ndarray:
        return positions

    def kept_elsewhere(self) -> np.ndarray:
        return np.zeros(len(self.present), bool)

    def contents(self, step: StepPlan, following: StepPlan | None, decoded: DecodeQueue) -> Contents:
        self.fill(step, decoded)
        rows = index_tensor(self.frames.device, decoded.skipped.left_of(step.batch))
        return Contents(self.frames, rows, gather_rows(self.sound, rows))
