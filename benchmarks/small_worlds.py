"""Every method of `python -m essl_fast.reproduce worlds` on every world, on features that are computed once.

    python -m benchmarks.small_worlds --seeds 0 1 2 --out small_worlds

`reproduce worlds` trains each of its 72 runs as `essl_fast.train` does. Here the frozen trunk sees each training
frame in three pairs of random views and never again, so the same table takes a fraction of the time: the same
methods, settings, rates, epochs and batches, but fewer views, and the last weights are tested in place of those that
a validation split chose. OUT/cells.json has every cell; an interrupted command goes on where it was. OUT/table.md is
the table, mean ± standard deviation over the seeds. Numbers of 2026-11-30:
benchmarks/records/2026-11-30_small_worlds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.small_ssl import BATCH, EPOCHS, Split, features, learn, maps_of
from essl_fast import config, models
from essl_fast.common.files import write_json
from essl_fast.data.datasets import boxes_to_grid, labelled
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import metrics
from essl_fast.kernels import box_weights
from essl_fast.pretrain import small_weights
from essl_fast.reproduce import results, worlds
from essl_fast.train import demo_data

PRIORS = {
    "untrained": "untrained",
    "centre": "centre",
    "object": "object prior (trunk, without sound)",
    "largest": "largest object (told the objects)",
}
Cells = dict[str, dict[str, float]]  # "world method seed" -> success, auc, seconds


def scored(maps: Tensor, boxes: Tensor) -> dict[str, float]:
    """Success and AUC of maps (N, h, w) with boxes (N, K, 4)."""
    found = metrics.summarize(metrics.ciou(maps, boxes))
    return {"success": found.success_at_half, "auc": found.auc}


def built(words: tuple[str, ...], seed: int, weights: Path) -> tuple[models.Localizer, config.Config]:
    """A model with the pretrained frozen networks, and its settings."""
    settings = config.load("worlds", [*words, "--data.batch_size", str(BATCH)])
    torch.manual_seed(seed)
    model = models.build(settings.model)
    models.load_made(model, settings.model, weights)
    return model, settings


def priors(test: Split, largest: Tensor, weights: Path) -> Cells:
    """What needs no training; largest (N, 4) are the boxes of the largest objects."""
    centre = torch.tensor([[56, 56, 168, 168]], dtype=torch.int32).expand(len(test.sound), 1, 4).contiguous()
    guesses = {"centre": centre, "largest": largest[:, None].contiguous()}
    found = {name: scored(box_weights(boxes, config.SIZE), test.boxes[0]) for name, boxes in guesses.items()}
    found["object"] = scored(test.maps[0].abs().mean(1), test.boxes[0])
    found["untrained"] = scored(maps_of(built(worlds.METHODS[0].settings, 0, weights)[0], test), test.boxes[0])
    return found


def cell(
    method: worlds.Method, seed: int, train: Split, test: Split, manifest: Manifest, weights: Path
) -> dict[str, float]:
    """Train a method on a world's features, and test it."""
    began = time.monotonic()
    model, settings = built(method.settings, seed, weights)
    kept = labelled(manifest, ["train"], settings.data.labelled_fraction)[manifest.rows("train")]
    learn(model, settings, train, torch.from_numpy(kept), EPOCHS)
    return scored(maps_of(model, test), test.boxes[0]) | {"seconds": time.monotonic() - began}


def table(cells: Cells, columns: list[str], seeds: list[int], key: str) -> str:
    """The lines of a table in Markdown."""
    lines = [f"| | {' | '.join(worlds.WORLDS[world] for world in columns)} |", "| --- |" + " ---: |" * len(columns)]
    for name, label in [*((each.name, each.label) for each in worlds.METHODS), *PRIORS.items()]:
        found = []
        for world in columns:
            places = [f"{world} {name} {seed}" for seed in seeds] if name not in PRIORS else [f"{world} {name}"]
            found.append(results.mean_and_spread([cells[place][key] for place in places if place in cells]))
        lines.append(f"| {label} | {' | '.join(found)} |")
    return "\n".join(lines)


def world_of(name: str, weights: Path) -> tuple[Manifest, Split, Split, Tensor]:
    """A world's manifest, its features for training and testing, and the largest object (N, 4) of each test frame."""
    settings = config.load("worlds", ["--demo.objects", name])
    root, objects = demo_data(settings.demo, print, progress=False)
    manifest = Manifest.load(root)
    model = models.build(settings.model).eval()
    models.load_made(model, settings.model, weights)
    train, test = (features(manifest, split, model, settings) for split in ("train", "test"))
    things = [objects[manifest.key(row)] for row in manifest.rows("test")]
    largest = [max(each, key=lambda thing: thing["area"])["box"] for each in things]
    return manifest, train, test, torch.from_numpy(boxes_to_grid(largest, 320, 180)).int()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", nargs="+", default=list(worlds.WORLDS), choices=tuple(worlds.WORLDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("small_worlds"))
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    kept = asked.out / "cells.json"
    cells: Cells = json.loads(kept.read_text()) if kept.exists() else {}
    weights = small_weights("auto", print)
    assert weights is not None  # "auto" makes them
    made: dict[str, tuple[Manifest, Split, Split, Tensor]] = {}
    every = [(world, method, seed) for world in asked.worlds for seed in asked.seeds for method in worlds.METHODS]
    for world, method, seed in sorted(every, key=lambda each: "--model.pcm" in each[1].settings):  # the slow ones last
        if f"{world} {method.name} {seed}" in cells:
            continue
        if world not in made:
            made[world] = world_of(world, weights)
            manifest, train, test, largest = made[world]
            cells |= {f"{world} {name}": found for name, found in priors(test, largest, weights).items()}
        manifest, train, test, _ = made[world]
        found = cell(method, seed, train, test, manifest, weights)
        cells[f"{world} {method.name} {seed}"] = found
        write_json(kept, cells)
        told = f"{100 * found['success']:.1f}%, {found['seconds']:.0f} s"
        print(f"{world}, {method.label}, seed {seed}: {told}", flush=True)
    text = [f"{title}\n\n{table(cells, asked.worlds, asked.seeds, key)}" for key, title in TITLES.items()]
    (asked.out / "table.md").write_text("\n\n".join(text) + "\n")
    print("\n\n".join(text))


TITLES = {"success": "Success at cIoU 0.5 on the test split, %", "auc": "AUC, %"}

if __name__ == "__main__":
    main()
