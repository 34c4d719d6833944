"""A localizer with its preprocessing inside, of PyTorch's own operators alone, which torch.export and ONNX know."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from essl_fast import config, models
from essl_fast.kernels import reference

WINDOW, HOP, FFT, FRAMES = 400, 160, 512, 288  # samples, samples, points, frames of the spectrogram that are used
SAMPLES = 48_000


class Portable(nn.Module):
    """frames uint8 (B, 224, 224, 3) and sound int16 (B, 48000) -> similarity float32 (B, h, w).

    The spectrum is a product with a matrix in float64, since ONNX has no FFT that every runtime knows.
    """

    mean: Tensor
    std: Tensor
    places: Tensor
    spectrum: Tensor
    mel: Tensor

    def __init__(self, model: models.Localizer) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(reference.IMAGENET_MEAN))
        self.register_buffer("std", torch.tensor(reference.IMAGENET_STD))
        # Which samples each frame of the spectrogram takes: (288, 400).
        self.register_buffer("places", torch.arange(FRAMES)[:, None] * HOP + torch.arange(WINDOW))
        turns = np.outer(np.arange(WINDOW), np.arange(FFT // 2 + 1)) * (2 * np.pi / FFT)
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
        basis = np.concatenate([np.cos(turns), np.sin(turns)], axis=1) * window[:, None]  # (400, 514)
        self.register_buffer("spectrum", torch.from_numpy(basis))
        self.register_buffer("mel", torch.from_numpy(reference.mel_matrix()))

    def forward(self, frames: Tensor, sound: Tensor) -> Tensor:
        views = ((frames.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
        return self.model.attend(views[None], self.log_mel(sound)).similarity[0].float()

    def log_mel(self, sound: Tensor) -> Tensor:
        """int16 (B, 48000) -> (B, 3, 96, 64) float32, as `kernels.log_mel` computes it."""
        wave = reference.normalize_pcm(sound.float() / 32768).double()
        parts = wave[:, self.places] @ self.spectrum  # (B, 288, 514)
        real, imaginary = parts[..., : FFT // 2 + 1], parts[..., FFT // 2 + 1 :]
        bands = (real * real + imaginary * imaginary).sqrt() @ self.mel
        return (bands + 0.01).log().float().unflatten(1, (3, 96))


def sample_inputs(batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Frames and sounds to try a model with: smooth pictures, and tones in noise."""
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.uniform(0, 255, (batch, 3, 12, 12)).astype(np.float32))
    wide = nn.functional.interpolate(small, (config.SIZE, config.SIZE), mode="bilinear")
    time = np.arange(SAMPLES) / 16_000
    tones = np.sin(2 * np.pi * rng.uniform(100, 4000, (batch, 1)) * time) * rng.uniform(0.1, 0.9, (batch, 1))
    sound = tones + rng.normal(0, 0.05, tones.shape)
    pcm = torch.from_numpy((np.clip(sound, -1, 1) * 32767).astype(np.int16))
    return wide.permute(0, 2, 3, 1).round().to(torch.uint8).contiguous(), pcm
