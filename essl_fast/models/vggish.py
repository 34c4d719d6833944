"""Audio networks: log-mel examples (B, E, 96, 64) to an embedding (B, 128) and its projection (B, out_dim)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from essl_fast.models.norm import ViewBatchNorm
from essl_fast.models.registry import register_audio


class VGGish(nn.Module):
    """VGGish (Hershey et al., 2017) with frozen layers, and a trained projection of two layers.

    forward: (B, E, 96, 64), or the output of ``embed`` for it, (B, E, 128) -> embedding (B, 128), the L2-normalised
    mean over the examples, and projection (B, out_dim), the mean of ``fc``'s output over them. The frozen parameters
    have the names of the published PyTorch port, so that its weight file can be loaded unchanged.
    """

    embedding_dim = 128

    def __init__(self, out_dim: int = 512) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        for entry in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool"):
            if isinstance(entry, str):  # "pool"
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(width, entry, 3, padding=1), nn.ReLU(inplace=True)]
                width = entry
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, self.embedding_dim),
            nn.ReLU(inplace=True),
        )
        self.fc = nn.Sequential(nn.Linear(self.embedding_dim, 512), nn.ReLU(inplace=True), nn.Linear(512, out_dim))
        self.features.requires_grad_(False)
        self.embeddings.requires_grad_(False)

    @torch.no_grad()
    def embed(self, log_mel: Tensor) -> Tensor:
        """(B, E, 96, 64) -> (B, E, 128), none negative. The result for a pair never changes, so it may be kept."""
        maps = self.features(log_mel.flatten(0, 1)[:, None])
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1)).unflatten(0, log_mel.shape[:2])

    def forward(self, sound: Tensor) -> tuple[Tensor, Tensor]:
        if sound.ndim not in (3, 4) or (sound.ndim == 3 and sound.shape[2] != self.embedding_dim):
            raise ValueError(f"VGGish takes (B, E, 96, 64) or (B, E, {self.embedding_dim}), got {tuple(sound.shape)}")
        examples = self.embed(sound) if sound.ndim == 4 else sound
        return F.normalize(examples.mean(dim=1), dim=1), self.fc(examples).mean(dim=1)


class SmallAudioNet(nn.Module):
    """An audio network that is trained from scratch, for the demo.

    (B, E, 96, 64) -> embedding (B, 128) of norm 1, and projection (B, out_dim). Strided convolutions, then the mean
    over time, which keeps the spectrum. Like VGGish it treats the examples one by one and averages the results.
    """

    embedding_dim = 128

    def __init__(self, out_dim: int = 128, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
            conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
            layers += [conv, ViewBatchNorm(outputs), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.embedding = nn.Linear(4 * width * 8, self.embedding_dim)
        self.fc = nn.Linear(self.embedding_dim, out_dim)

    def examples(self, log_mel: Tensor) -> Tensor:
        """(B, E, 96, 64) -> (B, E, 128), none negative: each example by itself."""
        maps = self.features(log_mel.flatten(0, 1)[:, None])  # (B E, 64, 12, 8)
        return F.relu(self.embedding(maps.mean(dim=2).flatten(1))).unflatten(0, log_mel.shape[:2])

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        examples = self.examples(log_mel)
        return F.normalize(examples.mean(dim=1), dim=1), self.fc(examples).mean(dim=1)


class FrozenSmallAudioNet(SmallAudioNet):
    """A :class:`SmallAudioNet` that keeps the weights that `essl_fast.pretrain` made, up to its projection.

    The projection is trained, and has two layers, as VGGish's here has. Input and output are :class:`VGGish`'s; the
    projection's last layer has ``out_dim`` channels.
    """

    def __init__(self, out_dim: int = 128, width: int = 16, hidden: int = 512) -> None:
        super().__init__(out_dim, width)
        self.fc = nn.Sequential(  # type: ignore[assignment]  # the base class has one layer
            nn.Linear(self.embedding_dim, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out_dim)
        )
        self.features.requires_grad_(False)
        self.embedding.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenSmallAudioNet":
        return super().train(False)  # its batch norms use their running statistics

    @torch.no_grad()
    def embed(self, log_mel: Tensor) -> Tensor:
        """(B, E, 96, 64) -> (B, E, 128). The result for a pair never changes, so it may be kept."""
        return self.examples(log_mel)

    def forward(self, sound: Tensor) -> tuple[Tensor, Tensor]:
        examples = self.embed(sound) if sound.ndim == 4 else sound
        return F.normalize(examples.mean(dim=1), dim=1), self.fc(examples).mean(dim=1)


@register_audio("vggish", frozen_front=True, weights="vggish")
def _vggish(config, channels: int) -> VGGish:
    return VGGish(channels)


@register_audio("small")
def _small(config, channels: int) -> SmallAudioNet:
    return SmallAudioNet(channels)


@register_audio("small_frozen", frozen_front=True, made=True)
def _small_frozen(config, channels: int) -> FrozenSmallAudioNet:
    return FrozenSmallAudioNet(channels)
