"""The localizer: visual trunk, audio network, PCM if asked for, audio-guided attention, head."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from essl_fast import kernels
from essl_fast.models.pcm import PCM
from essl_fast.models.registry import AUDIO, HEADS, TRUNKS, trunk_facts


class Forward(NamedTuple):
    """What a forward pass gives, each led by the view axis."""

    p: Tensor  # (V, B, 2048) predictions; with LSS's head (V, B, D) embeddings of what the attention pooled
    z: Tensor  # (V, B, 2048) projections, without gradient; with LSS's head (V, B, D) embeddings of the sound
    similarity: Tensor  # (V, B, h, w) cosine maps
    attention: Tensor  # (V, B, h, w) the same, min-max scaled; with LSS's head their softmax


class Localizer(nn.Module):
    """views (V, B, 3, H, W) and log-mel (B, 3, 96, 64) -> :class:`Forward`.

    In place of the log-mel, VGGish also takes its own embeddings of it (B, 3, 128), which may be kept: it is frozen.

    ``freeze_trunk``: the trunk runs without gradients and is in no optimizer group, as VGG-16 in the recipe.
    The head decides the attention: min-max scaled for SimSiam's, softmax for LSS's.
    """

    def __init__(
        self, trunk: nn.Module, audio: nn.Module, pcm: PCM | None, head: nn.Module, freeze_trunk: bool
    ) -> None:
        super().__init__()
        self.trunk, self.audio, self.pcm, self.head = trunk, audio, pcm, head
        self.freeze_trunk = freeze_trunk
        if freeze_trunk:
            trunk.requires_grad_(False)

    def prepare(self, dtype: torch.dtype) -> None:
        """Bring a frozen trunk into its form for inference of views of ``dtype``, or that up to date."""
        if self.freeze_trunk and hasattr(self.trunk, "prepare"):
            self.trunk.prepare(dtype)

    def see(self, views: Tensor) -> Tensor:
        """The trunk's maps (V * B, C, h, w), view after view: what the sound has no part in."""
        # All views in one pass; batch norms keep them apart.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_trunk):
            return self.trunk(views.flatten(0, 1), len(views))

    def meet(self, maps: Tensor, log_mel: Tensor) -> tuple[kernels.Attention, Tensor]:
        """Maps of :meth:`see` under a sound a pair: pooled (V, B, C), similarity and attention (V, B, h, w); and the
        sound's embedding (B, D)."""
        embedding, projection = self.audio(log_mel)
        batch = len(projection)
        count = len(maps) // batch
        if self.pcm is not None:
            maps = self.pcm(maps, embedding.repeat(count, 1), count)
        if self.head.attention == "softmax":
            # Rectified first, as LSS's features are (VGG-16 here ends before its last ReLU): no cosine is negative.
            # Without that, a map could be negative everywhere: its relu(s) is 0, its softmax uniform, its gradient 0.
            attention = kernels.softmax_attention(maps.relu(), projection.relu().repeat(count, 1))
        else:
            attention = kernels.audio_guided_attention(maps, projection.repeat(count, 1))
        return kernels.Attention(*(part.unflatten(0, (count, batch)) for part in attention)), embedding

    def attend(self, views: Tensor, log_mel: Tensor) -> kernels.Attention:
        """Everything before the head: pooled (V, B, C), similarity and attention (V, B, h, w)."""
        return self.meet(self.see(views), log_mel)[0]

    def forward(self, views: Tensor, log_mel: Tensor) -> Forward:
        attention, embedding = self.meet(self.see(views), log_mel)
        p, z = self.head.compare(attention.pooled, embedding)
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
    trunk = TRUNKS.get(config.trunk)(config)
    channels = config.out_dim if config.pcm else trunk.channels
    audio = AUDIO.get(config.audio)(config, channels)
    pcm = None
    if config.pcm:
        pcm = PCM(config.pcm_cycles, audio.embedding_dim, channels, trunk.channels, config.pcm_checkpoint)
    head = HEADS.get(config.head)(config, channels, audio.embedding_dim)
    return Localizer(trunk, audio, pcm, head, freeze_trunk=trunk_facts(config.trunk).frozen)
