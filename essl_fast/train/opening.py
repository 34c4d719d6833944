"""The lines that a run prints before its first step."""

import re
from collections.abc import Iterator
from pathlib import Path

from essl_fast import config
from essl_fast.kernels import native
from essl_fast.train.ending import ended_early
from essl_fast.train.optimizer import learning_rate_factor
from essl_fast.train.rundir import RunDirectory
from essl_fast.train.trainer import Trainer


def opening_lines(
    trainer: Trainer, directory: RunDirectory, resumed_from: Path | None, changed: list[str], passed: list[str]
) -> Iterator[str]:
    """Lines for the user.

    Args:
        resumed_from: the checkpoint that the run goes on from.
        changed: settings that differ from the checkpoint's.
        passed: checkpoints that were passed over, with the reasons.
    """
    settings, world, shared = trainer.settings, trainer.world, config.shared_batch(trainer.settings)
    how = "take turns with" if config.turns(settings, world.size) else "share"
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad) / 1e6
    yield (
        f"{settings.name}: {settings.objective.method}, {trainer.loader.pairs} training pairs, {trained:.1f} M trained "
        f"parameters, {trainer.device}, {str(trainer.dtype).removeprefix('torch.')}"
        + (f", {world.size} processes" if world.size > 1 else "")
        + (f", which {how} batches of {shared} pairs" if shared and world.size > 1 else "")
        + f"; run directory {directory.path}"
    )
    yield from (f"differs from the checkpoint: {line}" for line in changed)
    yield from other_schedule(trainer, changed)
    yield from (f"passed over: {line}" for line in passed)
    if passed and resumed_from:
        yield f"goes on from {resumed_from}, step {trainer.steps}"
    if ended_early(trainer):
        yield f"the run has ended early (patience {settings.patience}): it is evaluated again; --patience 0 goes on"
    if trainer.epoch >= settings.epochs:
        why = f"the run has already trained {trainer.epoch} epochs, so with --epochs {settings.epochs}"
        yield f"{why} there is nothing to train: it is evaluated again"
    yield from slower_parts(trainer)
    if trainer.data.excluded:
        yield f"{trainer.data.excluded} quarantined pairs are left out"
    if trainer.data.labels_dropped:
        yield f"{trainer.data.labels_dropped} labelled pairs train without their boxes (data.labelled_fraction)"


def other_schedule(trainer: Trainer, changed: list[str]) -> Iterator[str]:
    """What another number of epochs does to the learning rates of a run that goes on."""
    found = next(
        (re.fullmatch(r"epochs: (\d+) -> (\d+)", line) for line in changed if line.startswith("epochs: ")), None
    )
    if found is None or trainer.epoch >= trainer.settings.epochs:
        return
    optim, per_epoch = trainer.settings.optim, trainer.step.steps_per_epoch
    if optim.schedule == "constant":
        yield "the learning rates are constant: another number of epochs does not change them"
        return
    warmup = round(optim.warmup * per_epoch)
    before, now = (
        100 * learning_rate_factor(optim.schedule, trainer.steps, int(epochs) * per_epoch, warmup)
        for epochs in found.groups()
    )
    yield (
        f"the {optim.schedule} schedule now ends with epoch {found[2]} instead of {found[1]}: the learning rates go on "
        f"at {now:.0f}% of their highest value, where they were at {before:.0f}%"
    )


def slower_parts(trainer: Trainer) -> Iterator[str]:
    """A line, with the remedy, for each part that runs more slowly here than it could."""
    on_gpu = trainer.device.type == "cuda"
    if not native.available():
        yield f"PyTorch alone makes the views, more slowly: {native.why_unavailable()}"
    elif on_gpu and not native.has_cuda():
        yield f"PyTorch alone makes the views, more slowly: {native.why_no_cuda()}"
    elif not native.has_cuda() and "ESSL_CUDA=0" not in native.left_out():
        yield f"on a GPU, PyTorch alone would make the views: {native.why_no_cuda()}"
    if on_gpu and trainer.settings.compile == "auto" and not trainer.step.compiled:
        yield "the step runs uncompiled, more slowly: torch.compile needs a C compiler and Python's headers"
    yield from trainer.data.pools.notes
