"""The localizer: visual trunk, audio network, PCM if asked for, audio-guided attention, head."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from essl_fast import kernels
from essl_fast.models.heads import SimSiamHead
from essl_fast.models.pcm import PCM
from essl_fast.models.trunks import SmallTrunk, VGG16Trunk
from essl_fast.models.vggish import SmallAudioNet, VGGish


class Forward(NamedTuple):
    """What a forward pass gives, each led by the view axis."""

    p: Tensor  # (V, B, 2048) predictions
    z: Tensor  # (V, B, 2048) projections, without gradient
    similarity: Tensor  # (V, B, h, w) cosine maps
    attention: Tensor  # (V, B, h, w) the same, min-max scaled


class Localizer(nn.Module):
    """views (V, B, 3, H, W) and log-mel (B, 3, 96, 64) -> :class:`Forward`.

    ``freeze_trunk``: the trunk runs without gradients and is in no optimizer group, as VGG-16 in the recipe.
    """

    def __init__(
        self, trunk: nn.Module, audio: nn.Module, pcm: PCM | None, head: SimSiamHead, freeze_trunk: bool
    ) -> None:
        super().__init__()
        self.trunk, self.audio, self.pcm, self.head = trunk, audio, pcm, head
        self.freeze_trunk = freeze_trunk
        if freeze_trunk:
            trunk.requires_grad_(False)

    def attend(self, views: Tensor, log_mel: Tensor) -> kernels.Attention:
        """Everything before the head: pooled (V, B, C), similarity and attention (V, B, h, w)."""
        count, batch = views.shape[:2]
        # All views in one pass; batch norms keep them apart.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_trunk):
            maps = self.trunk(views.flatten(0, 1), count)
        embedding, projection = self.audio(log_mel)
        if self.pcm is not None:
            maps = self.pcm(maps, embedding.repeat(count, 1), count)
        attention = kernels.audio_guided_attention(maps, projection.repeat(count, 1))
        return kernels.Attention(*(part.unflatten(0, (count, batch)) for part in attention))

    def forward(self, views: Tensor, log_mel: Tensor) -> Forward:
        attention = self.attend(views, log_mel)
        p, z = self.head(attention.pooled)
        return Forward(p, z, attention.similarity, attention.attention)

    def parameter_groups(self, optim) -> list[dict]:
        """AdamW's groups in the published order: audio, PCM, PCM's rates (not decayed), head; then a trained trunk.

        ``optim`` has lr_sound, lr_pcm, lr_head, lr_trunk and weight_decay.
        """
        decay = optim.weight_decay
        groups = [("sound", self.audio.parameters(), optim.lr_sound, decay)]
        if self.pcm is not None:
            rates = self.pcm.rates()
            kept = {id(rate) for rate in rates}
            others = (p for p in self.pcm.parameters() if id(p) not in kept)
            groups += [("pcm", others, optim.lr_pcm, decay), ("pcm_rates", rates, optim.lr_pcm, 0.0)]
        groups.append(("head", self.head.parameters(), optim.lr_head, decay))
        if not self.freeze_trunk:
            groups.append(("trunk", self.trunk.parameters(), optim.lr_trunk, decay))
        return [
            {"name": name, "params": [p for p in params if p.requires_grad], "lr": lr, "weight_decay": wd}
            for name, params, lr, wd in groups
        ]


def build(config) -> Localizer:
    """The localizer that ``config`` (a ModelConfig) describes, with random weights.

    Pretrained VGG-16 and VGGish come from :func:`essl_fast.models.weights.load_pretrained`.
    """
    if config.trunk == "vgg16":
        trunk = VGG16Trunk()
    else:
        trunk = SmallTrunk(config.out_dim)
    channels = config.out_dim if config.pcm else trunk.channels
    if config.pcm and trunk.channels != 512:
        raise ValueError(
            f"model.pcm needs a trunk of 512 channels, got model.trunk={config.trunk!r} with {trunk.channels}"
        )
    audio = VGGish(channels) if config.audio == "vggish" else SmallAudioNet(channels)
    pcm = PCM(config.pcm_cycles, audio.embedding_dim, channels) if config.pcm else None
    return Localizer(trunk, audio, pcm, SimSiamHead(channels), freeze_trunk=config.trunk == "vgg16")
