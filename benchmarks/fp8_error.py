"""What 8-bit numbers in the trunk's 3x3 convolutions do to features, maps and success: rounding, not speed.

    python -m benchmarks.fp8_error runs/demo

It takes a run's trained localizer and the test split of its data, and evaluates it twice: as it is, in float32, and
with weights and activations of the trunk's 3x3 convolutions rounded to e4m3, each tensor with a scale of its own (as
`essl_fast/kernels/fp8.py` does; sums are float32). VGG-16 with random weights sees the same frames. A CPU suffices.
"""

import argparse
import contextlib
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from essl_fast import checkpoints, config, models
from essl_fast.common import commands, files
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import centre_view, evaluate, evaluation_loader
from essl_fast.kernels import fp8
from essl_fast.runtime import provenance

CPU = torch.device("cpu")


class Error(NamedTuple):
    """Of one network, over the frames of a split."""

    layers: int  # whose convolutions are rounded
    features: float  # ||rounded - exact|| / ||exact|| of a frame's map of features, the median over the frames
    map_mean: float  # |rounded - exact| of the similarity, which is in -1 to 1: mean over positions and frames
    map_most: float  # the largest


def convolutions(trunk: nn.Module) -> list[nn.Conv2d]:
    """A trunk's 3x3 convolutions but those that read the image, which stay as they are."""
    found = [each for each in trunk.modules() if isinstance(each, nn.Conv2d)]
    return [each for each in found if each.kernel_size == (3, 3) and each.in_channels > 3]


def vgg16s(trunk: nn.Module) -> list[models.VGG16Trunk]:
    """The trunk, if it is VGG-16."""
    return [each for each in trunk.modules() if isinstance(each, models.VGG16Trunk)]


@contextlib.contextmanager
def rounded(trunk: nn.Module) -> Iterator[int]:
    """Within the context the trunk's 3x3 convolutions compute with e4m3 numbers; yields how many they are."""
    layers: list[nn.Module] = [*convolutions(trunk)]
    prepared = vgg16s(trunk)

    def forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
        pairs = [fp8.quantize(each) for each in (x, layer.weight.detach())]
        values, weight = (each.float() * scale for each, scale in pairs)
        return F.conv2d(values, weight, layer.bias, layer.stride, layer.padding)

    def layer_by_layer(vgg16: models.VGG16Trunk, images: Tensor, views: int = 1) -> Tensor:
        return vgg16.features(images)  # its form for inference, which evaluation makes, calls no layer

    for layer in layers:
        layer.forward = forward.__get__(layer)  # type: ignore[method-assign]
    for each in prepared:
        each.forward = layer_by_layer.__get__(each)  # type: ignore[method-assign]
    try:
        yield len(layers)
    finally:
        for changed in (*layers, *prepared):
            del changed.forward


@torch.inference_mode()
def error_of(model: models.Localizer, manifest: Manifest, settings: config.Config, most: int) -> Error:
    """The error in the first ``most`` test pairs' features and similarity maps."""
    model.eval()
    apart, maps, layers, seen = list[float](), list[Tensor](), 0, 0
    with evaluation_loader(manifest, "test", settings, model, CPU, torch.float32) as loader:
        for raw in loader:
            rows = raw.rows[: most - seen]
            views = centre_view(raw.frames, torch.float32, rows)
            exact = model.frame_maps(views)
            with rounded(model.trunk) as layers:
                found = model.frame_maps(views)
            apart += ((found - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).tolist()
            sound = raw.sound[: len(rows)]
            similarity = [model.attend_maps(each, sound)[0].similarity for each in (exact, found)]
            maps.append((similarity[1] - similarity[0]).abs().flatten())
            seen += len(rows)
            if seen == most:
                break
    off = torch.cat(maps)
    return Error(layers, statistics.median(apart), off.mean().item(), off.max().item())


def scores(model: models.Localizer, manifest: Manifest, settings: config.Config) -> dict[str, float]:
    """Success at cIoU 0.5 and AUC on the test split."""
    result = evaluate(model, manifest, "test", settings, CPU, torch.float32).result(manifest)
    return {name: result[name] for name in ("success_at_half", "auc")}


def random_vgg16() -> models.Localizer:
    """VGG-16, VGGish and the recipe's projection with random weights."""
    torch.manual_seed(0)
    network = config.load("sspl", ["--model.vgg16_weights", "none", "--model.vggish_weights", "none"]).model
    return models.build(network)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fp8_error", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="a run directory or checkpoint")
    parser.add_argument("--data", help="prepared folder; by default the one that the run was trained on")
    parser.add_argument("--pairs", type=int, default=32, help="of VGG-16 with random weights (default: 32)")
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args(arguments)
    state = checkpoints.load(checkpoints.checkpoint_of(options.run))
    model, settings = checkpoints.restore(state, CPU)
    for trunk in vgg16s(model.trunk):
        trunk.fp8 = False  # or its evaluation would round by itself (`model.trunk_fp8`)
    manifest = Manifest.load(options.data or state.get("data_root", settings.data.root))
    trained = error_of(model, manifest, settings, sys.maxsize)
    exact = scores(model, manifest, settings)
    with rounded(model.trunk):
        eight = scores(model, manifest, settings)
    rows = {
        f"{settings.model.trunk}, trained": (trained, exact, eight),
        "vgg16, random": (error_of(random_vgg16(), manifest, settings, options.pairs), {}, {}),
    }
    table = Table(title="3x3 convolutions in e4m3 beside float32", caption="success at cIoU 0.5 and AUC: float32, e4m3")
    for column in ("network", "layers", "features", "map, mean", "map, most", "success, %", "AUC"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, (error, before, after) in rows.items():
        both = [f"{100 * before[k]:.1f}, {100 * after[k]:.1f}" if before else "" for k in ("success_at_half", "auc")]
        parts = (f"{error.features:.2%}", f"{error.map_mean:.4f}", f"{error.map_most:.4f}")
        table.add_row(name, str(error.layers), *parts, *both)
    commands.console().print(table)
    if options.json:
        values = {
            name: {"error": each._asdict(), "float32": before, "e4m3": after}
            for name, (each, before, after) in rows.items()
        }
        files.write_json(options.json, {"environment": provenance.environment(CPU), "networks": values})
    return 0


if __name__ == "__main__":
    sys.exit(commands.command(main, "python -m benchmarks.fp8_error"))
