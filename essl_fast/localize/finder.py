"""A trained checkpoint as a function: frames and the sound around them in, heatmaps out.

    finder = SoundFinder.open("runs/semipl")
    heat = finder.heatmap(image, sound, rate)      # (224, 224) in [0, 1]

Frames and sound are treated as in evaluation: one bicubic resize to 224 x 224, 16 kHz mono PCM16, VGGish log-mel. The
heatmap is what the metric thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from essl_fast import checkpoints, config, kernels, models
from essl_fast.common.errors import InputError
from essl_fast.data.loading import resize_host
from essl_fast.data.media.audio import SAMPLES, to_pcm16, to_stored
from essl_fast.localize.heat import heat_of
from essl_fast.localize.trust import Trust
from essl_fast.runtime.devices import pick_device, pick_precision


def stored_frame(image: np.ndarray) -> np.ndarray:
    """An RGB image (H, W, 3) uint8 at the size that evaluation uses, (224, 224, 3) uint8."""
    image = np.require(image, np.uint8, ["C", "W"])
    return resize_host(torch.from_numpy(image)[None], config.SIZE)[0].numpy()


@dataclass(frozen=True, eq=False)
class SoundFinder:
    """A trained localizer, ready to use; :meth:`open` makes one.

    path: the checkpoint's. trust: how far it may be believed.
    """

    model: models.Localizer
    settings: config.Config
    device: torch.device
    dtype: torch.dtype
    path: Path
    trust: Trust

    @classmethod
    def open(
        cls, run: str | Path, device: str = "auto", precision: str = "auto", weights: dict[str, str] | None = None
    ) -> SoundFinder:
        """The localizer of a run directory or of a checkpoint file.

        Args:
            run: a run directory (its best.pt is taken), or a checkpoint.
            device: auto, cpu, cuda or cuda:N.
            precision: auto, bf16, fp16 or fp32.
            weights: {"vgg16": path, "vggish": path}, where the published weight files have moved since training.

        Raises:
            InputError: there is no such checkpoint or device, or this version cannot restore the checkpoint.
            models.WeightsError: a published weight file is missing.
        """
        path = checkpoints.checkpoint_of(run)
        where = pick_device(device)
        dtype = pick_precision(precision, where)
        state = checkpoints.load(path)
        try:
            model, settings = checkpoints.restore(state, where, weights)
        except InputError as error:
            raise InputError(
                f"{path}: {error}; give a checkpoint that this version of essl_fast wrote, or train again"
            ) from error
        return cls(model.eval(), settings, where, dtype, path, Trust.of(state, path))

    @torch.inference_mode()
    def similarity(self, frames: np.ndarray | torch.Tensor, pcm: np.ndarray) -> np.ndarray:
        """The cosine of each place in each frame with the frame's sound: (B, h, w) float32 in [-1, 1].

        Args:
            frames: (B, 224, 224, 3) uint8, made by :func:`stored_frame`, or a tensor on any device.
            pcm: (B, 48000) int16, 3 s at 16 kHz.

        Raises:
            ValueError: another shape or dtype.
        """
        frames = torch.as_tensor(frames)
        if frames.dtype != torch.uint8 or frames.shape[1:] != (config.SIZE, config.SIZE, 3):
            raise ValueError(f"frames: expected (B, 224, 224, 3) uint8, got {tuple(frames.shape)} {frames.dtype}")
        if pcm.dtype != np.int16 or pcm.shape != (len(frames), SAMPLES):
            raise ValueError(f"pcm: expected ({len(frames)}, {SAMPLES}) int16, got {pcm.shape} {pcm.dtype}")
        views = kernels.centre_view(frames.to(self.device), self.dtype)
        sound = kernels.log_mel(torch.from_numpy(pcm).to(self.device))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model.attend(views, sound).similarity[0].float().cpu().numpy()

    def heatmap(self, image: np.ndarray, sound: np.ndarray, rate: int) -> np.ndarray:
        """Where an image's sound comes from: (224, 224) float64 in [0, 1]; the metric's threshold is 0.5.

        Args:
            image: (H, W, 3) uint8 RGB.
            sound: (n,) float32 mono in [-1, 1]; the middle 3 s are used.
            rate: of the sound, Hz.
        """
        pcm = to_pcm16(to_stored(np.asarray(sound, np.float32), rate))
        return heat_of(self.similarity(stored_frame(image)[None], pcm[None])[0])
