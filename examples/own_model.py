"""Networks and an objective of one's own, chosen by name in the settings. In this folder:

    python -m essl_fast.train --config demo --data.root FOLDER --import own_model \
        --model.trunk strides --model.audio spectrum --objective.method contrast --out runs/own

FOLDER is what `python -m essl_fast.prepare --out FOLDER` made, or demo. Every other command takes the run up again, as
long as this module can be imported.
"""

import torch
from torch import nn
from torch.nn import functional

from essl_fast import register_audio, register_objective, register_trunk
from essl_fast.models.norm import ViewBatchNorm


@register_trunk("strides")
class Strides(nn.Module):
    """images (V * B, 3, 224, 224), view after view -> maps (V * B, C, 14, 14): four convolutions of stride 2."""

    def __init__(self, config):
        super().__init__()
        self.channels = config.out_dim
        widths = (3, 16, 32, 48, self.channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.norms = nn.ModuleList(ViewBatchNorm(width) for width in widths[1:])  # statistics of each view by itself

    def forward(self, images, views=1):
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            images = norm(convolution(images), views).relu()
        return images


@register_audio("spectrum")
class Spectrum(nn.Module):
    """log-mel (B, 3, 96, 64) -> embedding (B, 64), the mean spectrum; projection (B, channels)."""

    embedding_dim = 64

    def __init__(self, config, channels):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, channels))

    def forward(self, log_mel):
        spectrum = log_mel.mean(dim=(1, 2))
        return functional.normalize(spectrum, dim=1), self.project(spectrum)


@register_objective("contrast", uses_boxes=False, trains_head=False)
def contrast(config):
    """Both views of a frame agree on where its sound comes from; the views' maps are not flat."""

    def objective(forward, boxes, labelled, shares=None):
        first, second = forward.p.float().unbind(0)
        agreement = -functional.cosine_similarity(first, second, dim=1).mean()
        similarity = forward.similarity.float().flatten(2)  # (V, B, 14 * 14)
        spread = similarity.max(dim=2).values - torch.median(similarity, dim=2).values
        return {"loss": agreement - spread.mean(), "spread": spread.mean()}

    return objective
