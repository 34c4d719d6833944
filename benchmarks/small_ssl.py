"""Does SSPL learn without boxes where the frozen networks are pretrained? A search on features that are computed once.

    python -m benchmarks.small_ssl --objects one

It prints success at cIoU 0.5 and AUC on the test split: of SSPL under several learning rates; of the object prior (the
trunk's activation energy, which does not hear) and the centre; of LSS; of the supervised loss with all boxes; of the
best direction for each class, which boxes find without any sound; and of two oracles for SSPL: every sound's projection
at the mean direction of its class's object, and where the supervised loss has led it. The features of three pairs of
random views a training pair are kept, so a trial takes seconds. The head is 512 wide. Numbers of 2026-11-30:
benchmarks/records/2026-11-30_small_ssl.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from essl_fast import config, kernels, models
from essl_fast.data.loading import Loader
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import centre_view, metrics
from essl_fast.models import audio_input, objectives
from essl_fast.pretrain import small_weights
from essl_fast.train import demo_data

VIEWS, BATCH, EPOCHS, GRID = 3, 8, 10, 14  # batch and epochs are those of configs/worlds.yaml


@dataclass
class Split:
    """Features and truth of N pairs."""

    maps: Tensor  # (V, N, C, 14, 14) of the frozen trunk
    sound: Tensor  # (N, 3, 128) embeddings
    boxes: Tensor  # (V, N, K, 4) in each view
    kinds: Tensor  # (N,) classes


@torch.no_grad()
def features(
    manifest: Manifest, split: str, model: models.Localizer, settings: config.Config, truth: Tensor | None = None
) -> Split:
    """The features of a split: of random views for training, of the whole frame for testing.

    truth: boxes (P, K, 4) of all pairs; None takes the manifest's.
    """
    train = split == "train"
    side = config.STORED_SIDE if train else config.SIZE
    truth = torch.from_numpy(np.array(manifest.boxes)) if truth is None else truth
    sound = audio_input.sound_of(settings, model, torch.float32)
    same = {"shuffle": False, "epochs": 1, "least": 0, "seed": 0, "sound": sound}
    maps, sounds, boxes = [], [], []
    loader = Loader(manifest, [split], batch_size=32, side=side, device=torch.device("cpu"), **same)
    with loader:
        for raw in loader:
            if train:
                made = []
                for epoch in range(VIEWS):
                    window = kernels.view_params(0, epoch, raw.index, side - config.SIZE)
                    views = kernels.two_views(raw.frames, raw.rows, *window, config.SIZE, torch.float32)
                    shown = kernels.view_boxes(truth[raw.index], *window, side, config.SIZE)
                    made.append((model.trunk(views.flatten(0, 1), 2).unflatten(0, (2, -1)), shown))
                maps.append(torch.cat([one for one, _ in made]))
                boxes.append(torch.cat([one for _, one in made]))
            else:
                maps.append(model.trunk(centre_view(raw.frames, torch.float32, raw.rows)[0])[None])
                boxes.append(truth[raw.index][None])
            sounds.append(raw.sound)
    kinds = torch.from_numpy(np.array(manifest.class_id[manifest.rows(split)], np.int64))
    return Split(torch.cat(maps, 1), torch.cat(sounds), torch.cat(boxes, 1), kinds)


def score(similarity: Tensor, boxes: Tensor) -> str:
    """Success and AUC of maps (N, h, w) in words."""
    found = metrics.summarize(metrics.ciou(similarity, boxes))
    return f"success {100 * found.success_at_half:5.1f}%, AUC {100 * found.auc:5.1f}%"


def oracle(model: models.Localizer, train: Split) -> None:
    """Fit the sound's projection to the mean object feature of its class, less the mean background."""
    at = (torch.arange(GRID) + 0.5) * config.SIZE / GRID
    left, top, right, bottom = train.boxes[0, :, 0].float().unbind(1)
    across = (at > left[:, None]) & (at < right[:, None])
    down = (at > top[:, None]) & (at < bottom[:, None])
    inside = (down[:, :, None] & across[:, None, :]).float()[:, None]
    seen = (train.maps[0] * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1)
    ground = ((train.maps[0] * (1 - inside)).sum((2, 3)) / (1 - inside).sum((2, 3))).mean(0)
    wanted = torch.stack([seen[train.kinds == kind].mean(0) - ground for kind in range(8)])[train.kinds]
    optimizer = torch.optim.Adam(model.audio.fc.parameters(), 3e-3)
    for _ in range(300):
        loss = 1 - F.cosine_similarity(model.audio.fc(train.sound).mean(1), wanted).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def taught(model: models.Localizer, train: Split, steps: int = 330, rate: float = 5e-3) -> None:
    """Fit the sound's projection by the supervised loss alone."""
    fit(model.audio.fc.parameters(), train, lambda chosen: model.audio(train.sound[chosen])[1], steps, rate, BATCH)


def fit(parameters, train: Split, queries: Callable[[Tensor], Tensor], steps: int, rate: float, batch: int) -> None:
    """Minimise L_S of the maps that queries (B, C) of some pairs (B,) make, with a rate that falls to 0."""
    optimizer = torch.optim.AdamW(parameters, rate)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    labelled = torch.ones(batch, dtype=torch.bool)
    for _ in range(steps):
        chosen, view = torch.randint(len(train.sound), (batch,)), int(torch.randint(len(train.maps), ()))
        attention = kernels.audio_guided_attention(train.maps[view, chosen], queries(chosen)).attention
        loss = kernels.pixel_bce(attention, train.boxes[view, chosen], labelled, 1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        falling.step()


def directions(train: Split, test: Split) -> str:
    """Success with the best direction for each class, which is told the class: what one direction can reach at most."""
    torch.manual_seed(0)
    wanted = torch.nn.Parameter(0.1 * torch.randn(8, train.maps.shape[2]))
    fit([wanted], train, lambda chosen: wanted[train.kinds[chosen]], 500, 1e-2, 32)
    with torch.no_grad():
        similarity = kernels.audio_guided_attention(test.maps[0], wanted[test.kinds]).similarity
    boxes = test.boxes[0]
    adaptive = metrics.summarize(metrics.ciou_adaptive(similarity, boxes)).success_at_half
    later = metrics.summarize(metrics.ciou(similarity, boxes, threshold=0.6)).success_at_half
    more = f"with threshold 0.6 {100 * later:.1f}%, with an adaptive one {100 * adaptive:.1f}%"
    return f"{score(similarity, boxes)}; success {more}"


def trial(
    train: Split,
    test: Split,
    weights,
    *words: str,
    epochs: int = EPOCHS,
    begin: Callable[[models.Localizer, Split], None] | None = None,
) -> str:
    """Train the parts that are not frozen on the features; success before and after, the last loss and the seconds."""
    settings = config.load("worlds", [*words, "--data.batch_size", str(BATCH)])
    torch.manual_seed(0)
    model = models.build(settings.model)
    models.load_made(model, settings.model, weights)
    if begin:
        begin(model, train)
    before, began = judged(model, test), time.monotonic()
    loss = learn(model, settings, train, torch.ones(len(train.sound), dtype=torch.bool), epochs)
    seconds = time.monotonic() - began
    return f"{before} -> {judged(model, test)}; last loss {loss:.3f}; {seconds:.0f} s"


def learn(model: models.Localizer, settings: config.Config, train: Split, labelled: Tensor, epochs: int) -> float:
    """Train the parts of a model that are not frozen on the features; labelled (N,) bool. The last loss."""
    objective = objectives.build(settings.objective)
    optimizer = torch.optim.AdamW(model.train().parameter_groups(settings.optim))
    count = len(train.sound)
    steps = epochs * (count // BATCH)
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=20)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    schedule = torch.optim.lr_scheduler.ChainedScheduler([rising, falling])
    loss = torch.zeros(())
    for _ in range(epochs):
        for chosen in torch.randperm(count).split(BATCH)[: count // BATCH]:
            view = 2 * int(torch.randint(VIEWS, ()))
            both = slice(view, view + 2)
            attention, embedding = model.attend_maps(train.maps[both, chosen].flatten(0, 1), train.sound[chosen])
            p, z = model.head.compare(attention.pooled, embedding)
            forward = models.Forward(p, z, attention.similarity, attention.attention)
            loss = objective(forward, train.boxes[both, chosen], labelled[chosen])["loss"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return loss.item()


def maps_of(model: models.Localizer, test: Split) -> Tensor:
    """The model's similarity maps (N, h, w) as it is."""
    model.eval()
    with torch.no_grad():
        similarity = model.attend_maps(test.maps[0], test.sound)[0].similarity[0]
    model.train()
    return similarity


def judged(model: models.Localizer, test: Split) -> str:
    """Success and AUC of the model as it is."""
    return score(maps_of(model, test), test.boxes[0])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", default="one", choices=("one", "two", "several"))
    parser.add_argument("--weights", default="auto", help="a file that essl_fast.pretrain wrote (default: auto)")
    parser.add_argument("--set", default="", metavar="OPTIONS", help="options of essl_fast.train, as one text")
    asked = parser.parse_args(arguments)
    settings = config.load("worlds", ["--demo.objects", asked.objects, *shlex.split(asked.set)])
    weights = small_weights(asked.weights, print)
    root, _ = demo_data(settings.demo, print, progress=False)
    manifest = Manifest.load(root)
    model = models.build(settings.model).eval()
    models.load_made(model, settings.model, weights)
    train, test = (features(manifest, split, model, settings) for split in ("train", "test"))
    centre = torch.zeros(len(test.sound), config.SIZE, config.SIZE)
    centre[:, 56:168, 56:168] = 1
    print(f"{len(train.sound)} training pairs, {len(test.sound)} test pairs")
    print(f"object prior: {score(test.maps[0].abs().mean(1), test.boxes[0])}")
    print(f"centre: {score(centre, test.boxes[0])}")

    def show(label: str, *words: str, **more) -> None:
        print(f"{label}: {trial(train, test, weights, *words, **more)}", flush=True)

    sspl = ("--objective.method", "sspl")
    for sound, head in ((5e-4, 2e-3), (5e-3, 2e-3), (5e-3, 2e-4), (2e-2, 2e-3)):
        rates = ("--optim.lr_sound", f"{sound:g}", "--optim.lr_head", f"{head:g}")
        show(f"SSPL, sound {sound:g}, head {head:g}", *sspl, *rates)
    show("SSPL, head alone", *sspl, "--optim.lr_sound", "0")
    for name, begin in (("mean directions", oracle), ("what boxes taught", taught)):
        show(f"SSPL from {name}, head alone", *sspl, "--optim.lr_sound", "0", begin=begin)
        show(f"SSPL from {name}", *sspl, "--optim.lr_sound", "5e-4", begin=begin)
    show("LSS", "--objective.method", "lss", "--model.head", "lss")
    for sound in (5e-3, 2e-2):
        words = ("--objective.method", "supervised", "--optim.lr_sound", f"{sound:g}")
        show(f"supervised, all boxes, sound {sound:g}", *words)
    print(f"the best direction for each class: {directions(train, test)}")


if __name__ == "__main__":
    main()
