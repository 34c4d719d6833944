"""Two objects that sound at once: `objective.method multisource`, which has a map for each class, beside SemiPL.

    python -m benchmarks.two_sources --seeds 0 1 2

Both are trained on the demo world of which both objects sound (`demo.objects both`), with all its boxes, and scored
by the class-aware IoU. SemiPL has one map for all sounds, so it is scored with that map for every class. The frozen
trunk's features are computed once, as in benchmarks/small_worlds.py: the settings, rates, epochs and batches of
configs/worlds.yaml, three pairs of random views a training frame, the last weights. Numbers of 2026-11-30:
benchmarks/records/2026-11-30_small_worlds.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.small_ssl import EPOCHS, Split, features, learn
from benchmarks.small_worlds import built
from essl_fast import config, models
from essl_fast.data.datasets import boxes_by_class
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import class_aware
from essl_fast.pretrain import small_weights
from essl_fast.reproduce import results
from essl_fast.train import demo_data

CLASSES = 8
METHODS = {
    "SemiPL, all labels, one map": ("--objective.method", "semipl"),
    "multisource, a map for each class": (
        "--objective.method",
        "multisource",
        "--model.head",
        "classes",
        "--model.classes",
        str(CLASSES),
    ),
}
FIGURES = {
    "success_at_half": "success at CIoU 0.5",
    "success_at_earlier": "at 0.3",
    "auc": "AUC",
    "mean": "mean CIoU",
    "all_found": "both found",
}


def tested(model: models.Localizer, test: Split) -> dict[str, float]:
    """The class-aware figures of a model."""
    model.eval()
    with torch.no_grad():
        attention = model.attend_maps(test.maps[0], test.sound)[0]
    each = class_aware.of_each_class(attention, by_class(test.boxes[0]), 1)
    return class_aware.class_aware(each.numpy())


def by_class(boxes: Tensor) -> Tensor:
    """Boxes (N, K * M, 4), class after class, as (N, K, M, 4)."""
    return boxes.unflatten(1, (CLASSES, -1))


def packed(boxes: Tensor) -> Tensor:
    """Boxes (..., K, 4) without those that are empty in every frame: (..., M, 4), M the most that a frame has."""
    covers = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    order = covers.byte().sort(dim=-1, descending=True, stable=True).indices[..., : int(covers.sum(-1).max())]
    return boxes.gather(-2, order[..., None].expand(*order.shape, 4))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    asked = parser.parse_args(arguments)
    weights = small_weights("auto", print)
    assert weights is not None  # "auto" makes them
    settings = config.load("worlds", ["--demo.objects", "both"])
    manifest = Manifest.load(demo_data(settings.demo, print, progress=False)[0])
    assert len(manifest.classes) == CLASSES
    model = models.build(settings.model).eval()
    models.load_made(model, settings.model, weights)
    truth = torch.from_numpy(boxes_by_class(manifest)).flatten(1, 2)
    train, test = (features(manifest, split, model, settings, truth) for split in ("train", "test"))
    plain = replace(train, boxes=packed(train.boxes))
    print(f"{len(train.sound)} training pairs, {len(test.sound)} test pairs")
    found: dict[str, list[dict[str, float]]] = {label: [] for label in METHODS}
    for seed in asked.seeds:
        for label, words in METHODS.items():
            model, settings = built(words, seed, weights)
            own = train if settings.model.classes else plain
            learn(model, settings, own, torch.ones(len(train.sound), dtype=torch.bool), EPOCHS)
            found[label].append(tested(model, test))
            print(f"seed {seed}, {label}: {found[label][-1]}", flush=True)
    print(f"| {' | '.join(['', *FIGURES.values()])} |\n| --- |{' ---: |' * len(FIGURES)}")
    for label, each in found.items():
        cells = [results.mean_and_spread([one[key] for one in each]) for key in FIGURES]
        print(f"| {' | '.join([label, *cells])} |")


if __name__ == "__main__":
    main()
