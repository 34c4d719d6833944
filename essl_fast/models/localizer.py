"""The localizer: visual trunk, audio network, optional PCM, audio-guided attention, head."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from essl_fast import kernels
from essl_fast.models.pcm import PCM
from essl_fast.models.registry import AUDIO, HEADS, TRUNKS, trunk_facts


class Forward(NamedTuple):
    """The output of a forward pass; the first axis of each tensor is the view."""

    p: Tensor  # (V, B, 2048) predictions; with LSS's head (V, B, D) embeddings of the pooled features; see ClassesHead
    z: Tensor  # (V, B, 2048) projections, without gradient; with LSS's head (V, B, D) embeddings of the sound
    similarity: Tensor  # (V, B, h, w) cosine maps
    attention: Tensor  # (V, B, h, w) the same, min-max scaled; with LSS's head their softmax; see ClassesHead


def _samples(x: Tensor) -> int:
    """How many samples a tensor holds. In a graph that is exported, that is not one number: `len` would fix it."""
    return x.shape[0] if torch.compiler.is_exporting() else len(x)


class Localizer(nn.Module):
    """views (V, B, 3, H, W) and log-mel (B, 3, 96, 64) -> :class:`Forward`.

    Instead of the log-mel, an audio network with a frozen front also takes its own embeddings (B, 3, E), which may be
    kept from an earlier pass. The head decides the attention: min-max scaled for SimSiam's, softmax for LSS's, and for
    the classes' head (V, B, K, h, w), a min-max scaled map for each of K classes.

    Args:
        trunk, audio, head: modules as in essl_fast/models/registry.py.
        pcm: the predictive coding module, or None.
        freeze_trunk: the trunk runs without gradients and is in no optimizer group, as VGG-16 in the recipe.
    """

    # What they have beyond a module is said in registry.py: who registers one decides it.
    trunk: Any
    audio: Any
    head: Any

    def __init__(
        self, trunk: nn.Module, audio: nn.Module, pcm: PCM | None, head: nn.Module, freeze_trunk: bool
    ) -> None:
        super().__init__()
        self.trunk, self.audio, self.pcm, self.head = trunk, audio, pcm, head
        self.freeze_trunk = freeze_trunk
        if freeze_trunk:
            trunk.requires_grad_(False)

    def prepare(self, dtype: torch.dtype) -> None:
        """Make a frozen trunk's form for inference on views of ``dtype``, or update it after weights have changed."""
        if self.freeze_trunk and hasattr(self.trunk, "prepare"):
            self.trunk.prepare(dtype)

    def frame_maps(self, views: Tensor) -> Tensor:
        """The trunk's maps (V * B, C, h, w), view after view. They do not depend on the sound."""
        # All views in one pass; batch norms keep them apart.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_trunk):
            return self.trunk(views.flatten(0, 1), len(views))

    def attend_maps(self, maps: Tensor, log_mel: Tensor, views: int = 0) -> tuple[kernels.Attention, Tensor]:
        """Audio-guided attention of the sounds over the maps, after the PCM if there is one.

        Args:
            maps: (V * B, C, h, w) of :meth:`frame_maps`.
            log_mel: (B, 3, 96, 64), or embeddings, one sound for each pair.
            views: V; 0 finds it from the maps.

        Returns:
            The attention: pooled (V, B, C), similarity and attention (V, B, h, w); and the sounds' embedding (B, D).
        """
        embedding, projection = self.audio(log_mel)
        batch = _samples(projection)
        count = views or len(maps) // batch
        if self.pcm is not None:
            maps = self.pcm(maps, embedding.repeat(count, 1), count)
        if self.head.attention == "classes":
            attention = self.head.attend(maps, *(each.repeat(count, 1) for each in (embedding, projection)))
        elif self.head.attention == "softmax":
            # LSS's features are rectified, and VGG-16 here ends before its last ReLU. Without it a similarity map could
            # be negative everywhere: relu(s) would be 0, its softmax uniform, and its gradient zero.
            attention = kernels.softmax_attention(maps.relu(), projection.relu().repeat(count, 1))
        else:
            attention = kernels.audio_guided_attention(maps, projection.repeat(count, 1))
        return kernels.Attention(*(part.unflatten(0, (count, batch)) for part in attention)), embedding

    def attend(self, views: Tensor, log_mel: Tensor) -> kernels.Attention:
        """Everything before the head: pooled (V, B, C), similarity and attention (V, B, h, w)."""
        return self.attend_maps(self.frame_maps(views), log_mel, len(views))[0]

    def forward(self, views: Tensor, log_mel: Tensor) -> Forward:
        attention, embedding = self.attend_maps(self.frame_maps(views), log_mel)
        p, z = self.head.compare(attention.pooled, embedding)
        return Forward(p, z, attention.similarity, attention.attention)

    def parameter_groups(self, optim) -> list[dict]:
        """The optimizer's groups, in the published order: audio, PCM, the PCM's rates, head; then a trained trunk.

        Args:
            optim: has lr_sound, lr_pcm, lr_head, lr_trunk and weight_decay. The PCM's rates have no weight decay.
        """
        decay = optim.weight_decay
        groups: list[tuple[str, Iterable[nn.Parameter], float, float]]
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
    """The localizer that ``config`` (a ModelConfig) describes, with random weights from PyTorch's generator.

    :func:`essl_fast.models.load_pretrained` then loads the published VGG-16 and VGGish.

    Raises:
        InputError: a part is unknown.
    """
    trunk = TRUNKS.get(config.trunk)(config)
    channels = config.out_dim if config.pcm else trunk.channels
    audio = AUDIO.get(config.audio)(config, channels)
    pcm = None
    if config.pcm:
        pcm = PCM(config.pcm_cycles, audio.embedding_dim, channels, trunk.channels, config.pcm_checkpoint)
    head = HEADS.get(config.head)(config, channels, audio.embedding_dim)
    return Localizer(trunk, audio, pcm, head, freeze_trunk=trunk_facts(config.trunk).frozen)
