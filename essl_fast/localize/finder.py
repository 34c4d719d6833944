"""A trained checkpoint as a function: frames and the sound around them in, heatmaps out.

    finder = SoundFinder.open("runs/semipl")
    heat = finder.heatmap(image, sound, rate)      # (224, 224) in [0, 1]

Frames and sound go the way that evaluation sends them: one bicubic resize to 224 x 224, 16 kHz mono PCM16, VGGish
log-mel, and the heatmap is what the metric thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from essl_fast import checkpoints, config, kernels, models
from essl_fast.checkpoints.restoring import restore
from essl_fast.common.errors import InputError
from essl_fast.data.loading.pipeline import resize_host
from essl_fast.data.media.audio import SAMPLES, to_pcm16, to_stored
from essl_fast.evaluate.evaluation import centre_view
from essl_fast.runtime.devices import pick_device, pick_precision


def stored_frame(image: np.ndarray) -> np.ndarray:
    """An RGB image (H, W, 3) uint8 at the size that evaluation sees, (224, 224, 3) uint8."""
    image = np.require(image, np.uint8, ["C", "W"])
    return resize_host(torch.from_numpy(image)[None], config.SIZE)[0].numpy()


def resize_map(similarity: np.ndarray, size: int = config.SIZE) -> np.ndarray:
    """Cosine maps (..., h, w) on the grid of the metric: float64 (..., size, size), bilinear with half-pixel centres,
    each step rounded as in `kernels.reference`, so that a constant map stays constant."""
    maps = np.asarray(similarity, np.float64)
    for _ in range(2):  # the last axis, then the one before it
        n = maps.shape[-1]
        place = np.maximum((np.arange(size) + 0.5) * (n / size) - 0.5, 0)
        left = np.minimum(place.astype(np.int64), n - 1)
        before, after = maps[..., left], maps[..., np.minimum(left + 1, n - 1)]
        maps = (before + (place - left) * (after - before)).swapaxes(-1, -2)
    return maps


def heat_of(similarity: np.ndarray, size: int = config.SIZE) -> np.ndarray:
    """Cosine maps (..., h, w) as the metric thresholds them: resized, then min-max scaled to [0, 1], float64.

    A constant map is 0 everywhere."""
    maps = resize_map(similarity, size)
    low, high = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    return np.divide(maps - low, high - low, out=np.zeros_like(maps), where=high > low)


@dataclass(frozen=True, eq=False)
class SoundFinder:
    """A trained localizer, ready to use; `path` is the checkpoint's."""

    model: models.Localizer
    settings: config.Config
    device: torch.device
    dtype: torch.dtype
    path: Path

    @classmethod
    def open(
        cls, run: str | Path, device: str = "auto", precision: str = "auto", weights: dict[str, str] | None = None
    ) -> SoundFinder:
        """The localizer of a run directory (its best.pt) or of a checkpoint file.

        device, precision: as in training's settings. weights: {"vgg16": path, "vggish": path} where the published
        files have moved since. Raises InputError, or WeightsError where a published file is missing.
        """
        path = Path(run)
        if path.is_dir():
            path = path / "best.pt"
        where = pick_device(device)
        dtype = pick_precision(precision, where)
        state = checkpoints.load(path)
        for name, file in (weights or {}).items():
            state["config"]["model"][f"{name}_weights"] = file
        try:
            model, settings = restore(state, where)
        except InputError as error:
            raise InputError(
                f"{path}: {error}; give a checkpoint that this version of essl_fast wrote, or train again"
            ) from error
        return cls(model.eval(), settings, where, dtype, path)

    @torch.inference_mode()
    def similarity(self, frames: np.ndarray | torch.Tensor, pcm: np.ndarray) -> np.ndarray:
        """Cosine of each place in each frame with its sound: (B, h, w) float32 in [-1, 1].

        frames (B, 224, 224, 3) uint8, of :func:`stored_frame`, or a tensor on any device; pcm (B, 48000) int16, 3 s at
        16 kHz.
        """
        frames = torch.as_tensor(frames)
        if frames.dtype != torch.uint8 or frames.shape[1:] != (config.SIZE, config.SIZE, 3):
            raise ValueError(f"frames: expected (B, 224, 224, 3) uint8, got {tuple(frames.shape)} {frames.dtype}")
        if pcm.dtype != np.int16 or pcm.shape != (len(frames), SAMPLES):
            raise ValueError(f"pcm: expected ({len(frames)}, {SAMPLES}) int16, got {pcm.shape} {pcm.dtype}")
        views = centre_view(frames.to(self.device), self.dtype)
        sound = kernels.log_mel(torch.from_numpy(pcm).to(self.device))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model.attend(views, sound).similarity[0].float().cpu().numpy()

    def heatmap(self, image: np.ndarray, sound: np.ndarray, rate: int) -> np.ndarray:
        """Where an image's sound comes from: (224, 224) float64 in [0, 1]; the metric's threshold is 0.5.

        image (H, W, 3) uint8 RGB; sound (n,) float32 mono in [-1, 1], `rate` Hz, of which the middle 3 s count.
        """
        pcm = to_pcm16(to_stored(np.asarray(sound, np.float32), rate))
        return heat_of(self.similarity(stored_frame(image)[None], pcm[None])[0])
