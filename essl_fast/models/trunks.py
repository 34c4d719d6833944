"""Visual trunks: images (B, 3, H, W) to feature maps (B, C, H/16, W/16)."""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from essl_fast import kernels
from essl_fast.kernels import fp8 as e4m3
from essl_fast.models.norm import ViewBatchNorm
from essl_fast.models.registry import register_trunk

VGG16_WIDTHS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)


class Prepared(NamedTuple):
    """Weights and biases, layer after layer, in the form that inference uses."""

    dtype: torch.dtype  # of the images
    tensors: list[Tensor]
    fused: list[bool]  # for each layer: convolution, bias and ReLU are one kernel
    scales: list[Tensor]  # of the e4m3 weights: of all layers but the first, or empty


class VGG16Trunk(nn.Module):
    """VGG-16 up to conv5_3, before its ReLU: (B, 3, H, W) -> (B, 512, H/16, W/16).

    Parameters have torchvision's names (``features.0.weight`` ...), so that its weight file can be loaded unchanged.

    :meth:`prepare` makes a form for inference, which :meth:`forward` then uses when gradients are off: weights are cast
    once instead of in every step under autocast, and bias and ReLU are part of the convolution where possible.
    """

    channels = 512

    def __init__(self, fp8: bool = False) -> None:
        """``fp8``: the form for inference computes in 8 bits, an experiment (see kernels/fp8.py)."""
        super().__init__()
        self.fp8 = fp8
        layers: list[nn.Module] = []
        width = 3
        for entry in VGG16_WIDTHS:
            if isinstance(entry, str):  # "pool"
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(width, entry, 3, padding=1), nn.ReLU(inplace=True)]
                width = entry
        self.features = nn.Sequential(*layers[:-1])
        self._ready: Prepared | None = None
        self.register_load_state_dict_post_hook(_prepare_again)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    @torch.inference_mode(False)
    @torch.no_grad()
    def prepare(self, dtype: torch.dtype) -> None:
        """Make the form for inference on images of ``dtype``, or update it in place if it exists.

        Call it again after the weights were moved or changed by hand; loading a state dict does that by itself.
        """
        layers = [layer for layer in self.features if isinstance(layer, nn.Conv2d)]
        own = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
        device = own[0].device
        fused = [self._may_fuse(dtype, w) and kernels.conv_relu_fuses(device, dtype, *w.shape[1::-1]) for w in own[::2]]
        ready = self._ready
        tensors, scales = [_cast(p, dtype) for p in own], []
        for at in range(2, len(own), 2) if self.fp8 else ():
            tensors[at], scale = e4m3.quantize(own[at])
            scales.append(scale)
        if ready is None or ready.dtype != dtype or ready.tensors[0].device != device:
            self._ready = Prepared(dtype, tensors, fused, scales)
            return
        for mine, given in zip([*ready.tensors, *ready.scales], [*tensors, *scales], strict=True):
            mine.copy_(given)  # in place, because a CUDA graph may hold the address

    def _may_fuse(self, dtype: torch.dtype, weight: Tensor) -> bool:
        """Not in 8 bits; with deterministic algorithms only our own kernel, for cuDNN promises no order of its sums."""
        own = kernels.for_images(dtype, weight.shape[1], weight.shape[0])
        return not self.fp8 and (own or not torch.are_deterministic_algorithms_enabled())

    def forward(self, images: Tensor, views: int = 1) -> Tensor:
        largest = VGG16_WIDTHS[0] * images.shape[2] * images.shape[3]  # elements of an image's first map
        parts = kernels.batches(images, largest)
        return self._maps(images) if len(parts) == 1 else torch.cat([self._maps(part) for part in parts])

    def _maps(self, images: Tensor) -> Tensor:
        ready = self._ready
        if ready is None or torch.is_grad_enabled() or ready.dtype != images.dtype:
            return self.features(images)
        if ready.scales:
            return self._in_8_bits(images, ready)
        tensors, fused = iter(ready.tensors), iter(ready.fused)
        for entry, following in pairwise(VGG16_WIDTHS):
            if entry != "pool":
                layer = kernels.conv_relu_pool if following == "pool" else kernels.conv_relu
                images = layer(images, next(tensors), next(tensors), next(fused))
        return F.conv2d(images, next(tensors), next(tensors), padding=1)

    def _in_8_bits(self, images: Tensor, ready: Prepared) -> Tensor:
        """The layers in e4m3, except the first one of 3 channels, which computes in the images' type."""
        weights, scales, first = iter(ready.tensors), iter(ready.scales), True
        with torch.autocast(images.device.type, enabled=False):
            for entry in VGG16_WIDTHS:
                if entry == "pool":
                    images = F.max_pool2d(images, 2)
                elif first:
                    images, first = F.conv2d(images, next(weights), next(weights), padding=1), False
                else:
                    weight, bias = next(weights), next(weights)
                    images = e4m3.conv(F.relu(images), weight, next(scales), bias)
        return images


def _cast(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter in ``dtype``, and a weight in channels_last; not a copy if the parameter is like that already."""
    layout = torch.channels_last if parameter.ndim == 4 else torch.preserve_format
    return parameter.detach().to(dtype, memory_format=layout)


def _prepare_again(trunk: VGG16Trunk, _) -> None:
    if trunk._ready is not None:
        trunk.prepare(trunk._ready.dtype)


class SmallTrunk(nn.Module):
    """A trunk that a CPU can train in minutes: 4x4 patches, then four stages of 3x3 convolutions, down to stride 16.

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

        self.stages: Any = nn.Sequential(  # of pairs, which type checkers cannot know
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


class FrozenSmallTrunk(SmallTrunk):
    """A :class:`SmallTrunk` that keeps the weights that `essl_fast.pretrain` made, as VGG-16 keeps ImageNet's.

    Its batch norms always use their running statistics, so that a frame's map depends on that frame alone.
    """

    def train(self, mode: bool = True) -> "FrozenSmallTrunk":
        return super().train(False)


@register_trunk("vgg16", frozen=True, channels=VGG16Trunk.channels, fp8=True, weights="vgg16")
def _vgg16(config) -> VGG16Trunk:
    return VGG16Trunk(config.trunk_fp8)


@register_trunk("small")
def _small(config) -> SmallTrunk:
    return SmallTrunk(config.out_dim)


@register_trunk("small_frozen", frozen=True, made=True)
def _small_frozen(config) -> FrozenSmallTrunk:
    return FrozenSmallTrunk(config.out_dim).eval()
