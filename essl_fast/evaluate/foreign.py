"""Sounds that do not belong to a frame: a model that listens is less confident with them."""

import numpy as np
import torch

from essl_fast.data.loading import Loader, RawBatch

FOREIGN = {  # kind -> what to call it
    "silent": "silence",
    "mismatched": "another pair's sound",
}


class ForeignSounds:
    """Silence, and the sound of the pair half a split further on, for the frames of a loader's batches.

    The choice of the other pair does not depend on batches or ranks, and its frame is not decoded. A split of one pair
    has no other sound; ``kinds`` is then silence alone.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader, self._silence = loader, loader.silence()
        self.kinds = [kind for kind in FOREIGN if kind == "silent" or loader.pairs > 1]

    def of(self, raw: RawBatch) -> dict[str, torch.Tensor]:
        """The sounds for a batch's frames, by kind, in the form of the batch's own sound (log-mel or embeddings)."""
        loader = self._loader
        sounds = {"silent": self._silence.expand_as(raw.sound)}
        if "mismatched" in self.kinds:
            at = np.searchsorted(loader.rows, raw.index.cpu().numpy())
            sounds["mismatched"] = loader.sound_of(loader.rows[(at + loader.pairs // 2) % loader.pairs])
        return sounds
