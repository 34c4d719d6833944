"""Sounds that do not belong to a frame: a model that listens is less confident with them."""

import numpy as np
import torch

from essl_fast.data.loading import Loader, RawBatch
from essl_fast.data.shards import SAMPLES

FOREIGN = {  # kind -> what to call it
    "silent": "silence",
    "noise": "white noise",
    "mismatched": "another pair's sound",
}


class ForeignSounds:
    """Silence, noise, and the sound of the pair half a split further on, for the frames of a loader's batches.

    The choice of the other pair does not depend on batches or ranks, and its frame is not decoded. A split of one pair
    has no other sound; ``kinds`` is then silence and noise alone.
    """

    def __init__(self, loader: Loader) -> None:
        noise = np.clip(np.random.default_rng(0).normal(0, 0.2, SAMPLES), -1, 1)  # the same for every frame
        self._loader = loader
        self._made = {"silent": loader.sound_from(np.zeros(SAMPLES)), "noise": loader.sound_from(noise)}
        self.kinds = [kind for kind in FOREIGN if kind in self._made or loader.pairs > 1]

    def rows(self, raw: RawBatch) -> np.ndarray:
        """The manifest rows (B,) of the pairs whose sound a batch's frames meet; their own in a split of one pair."""
        loader = self._loader
        at = np.searchsorted(loader.rows, raw.index.cpu().numpy())
        return loader.rows[(at + loader.pairs // 2) % loader.pairs]

    def of(self, raw: RawBatch) -> dict[str, torch.Tensor]:
        """The sounds for a batch's frames, by kind, in the form of the batch's own sound (log-mel or embeddings)."""
        sounds = {kind: sound.expand_as(raw.sound) for kind, sound in self._made.items()}
        if "mismatched" in self.kinds:
            sounds["mismatched"] = self._loader.sound_of(self.rows(raw))
        return sounds
