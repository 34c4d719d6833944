"""Visual trunks: images (B, 3, H, W) to feature maps (B, C, H/16, W/16)."""

import torch.nn.functional as F
from torch import Tensor, nn

from essl_fast.models.norm import ViewBatchNorm

VGG16_WIDTHS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)


class VGG16Trunk(nn.Module):
    """VGG-16 up to conv5_3, before its ReLU: (B, 3, H, W) -> (B, 512, H/16, W/16).

    Parameters carry torchvision's names (``features.0.weight`` ...), so that its weight file loads as it is.
    """

    channels = 512

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for entry in VGG16_WIDTHS:
            if entry == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(width, entry, 3, padding=1), nn.ReLU(inplace=True)]
                width = entry
        self.features = nn.Sequential(*layers[:-1])
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor, views: int = 1) -> Tensor:
        return self.features(images)


class SmallTrunk(nn.Module):
    """A trunk that a CPU trains in minutes: 4x4 patches, then four stages of 3x3 convolutions, down to stride 16.

    (V * B, 3, H, W) -> (V * B, channels, H/16, W/16); 0.15 GFLOP for 224 x 224. ``views`` is V: the batch norms take
    their statistics of each view by itself.
    """

    def __init__(self, channels: int = 128, width: int = 24) -> None:
        super().__init__()
        self.channels = channels

        def stage(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
            padding = 0 if kernel == stride else kernel // 2
            conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
            return nn.Sequential(conv, ViewBatchNorm(outputs))

        self.stages = nn.Sequential(
            stage(3, width, 4, 4),
            stage(width, 2 * width, 3, 2),
            stage(2 * width, 4 * width, 3, 2),
            stage(4 * width, 4 * width, 3, 1),
            stage(4 * width, 4 * width, 3, 1),
        )
        self.out = nn.Conv2d(4 * width, channels, 1)

    def forward(self, images: Tensor, views: int = 1) -> Tensor:
        for conv, norm in self.stages:
            images = F.relu(norm(conv(images), views), inplace=True)
        return self.out(images)
