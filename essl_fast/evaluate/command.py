"""What `python -m essl_fast.evaluate` does: a checkpoint on a split of a prepared folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console

from essl_fast import checkpoints, config, models
from essl_fast.common import commands, places
from essl_fast.common.errors import InputError
from essl_fast.common.progress import PassProgress
from essl_fast.common.urls import is_url, lacks, placed
from essl_fast.data.shards import Manifest
from essl_fast.evaluate.consensus import consensus_of, warn_of_consensus
from essl_fast.evaluate.evaluation import evaluate
from essl_fast.runtime.devices import pick_device, pick_precision


def evaluate_checkpoint(
    checkpoint: str | Path,
    data: str | Path | None = None,
    split: str = "test",
    device: str = "auto",
    precision: str = "auto",
    extra: bool = False,
    weights: Mapping[str, str] | None = None,
    console: Console | None = None,
) -> dict:
    """How well a checkpoint localizes the pairs of a split.

    Args:
        checkpoint: a run directory, whose best.pt is taken, or a checkpoint file.
        data: prepared folder, or its URL; by default the one that the run was trained on.
        split: "train", "val" or "test".
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".
        precision: "auto" (bf16 on a GPU, fp32 on a CPU), "bf16", "fp16", "fp32" or "tf32".
        extra: also the further metrics, as "extra": see :meth:`Evaluation.extra`. Its universal threshold is chosen on
            the validation split; without one, what needs it is left out.
        weights: {"vgg16": path, "vggish": path} where the published files have moved since the training.
        console: warnings and skipped pairs are printed here; by default nothing is printed.

    Returns:
        Plain values: checkpoint, split, what :meth:`Evaluation.result` gives, min_score (see
        :meth:`Evaluation.trusted_from`), extra if asked for, and each, a list of
        the key and the cIoU of every pair.

    Raises:
        InputError: the checkpoint, the data or the device cannot be used.
    """
    where, path = pick_device(device), checkpoints.checkpoint_of(checkpoint)
    state = checkpoints.load(path)
    if not data and "data_root" not in state:
        raise InputError(f"{path} does not say where its data is; say which folder to evaluate on with --data DIR")
    root = placed(data or state["data_root"])
    if lacks(root):
        raise InputError(f"there is no folder {root}, which {path} was trained on; say where it is with --data DIR")
    model, settings = checkpoints.restore(state, where, weights)
    cache = settings.data.cache, settings.data.cache_gb
    if is_url(root) and settings.data.cache and not places.writable(Path(settings.data.cache)):
        cache = "", 0.0  # it is a folder of the machine that trained
    manifest = Manifest.load(root, cache)
    if not data and state["data"] != manifest.header:
        raise InputError(
            f"{manifest.place} is no longer the data set that {path} was trained on; say which one to evaluate on with "
            "--data DIR"
        )
    console = console or commands.console(quiet=True)
    commands.say_imports(console, settings.imports)
    return _evaluate(str(path), model, settings, manifest, split, where, precision, extra, console)


def evaluate_published(
    folder: str | Path,
    data: str | Path,
    split: str = "test",
    device: str = "auto",
    precision: str = "auto",
    extra: bool = False,
    console: Console | None = None,
) -> dict:
    """The same as :func:`evaluate_checkpoint` for a folder of the published SSPL code's files."""
    where = pick_device(device)
    model, settings = checkpoints.restore_published(Path(folder), where)
    console = console or commands.console(quiet=True)
    manifest = Manifest.load(placed(data))
    return _evaluate(str(folder), model, settings, manifest, split, where, precision, extra, console)


def _evaluate(
    name: str,
    model: models.Localizer,
    settings: config.Config,
    manifest: Manifest,
    split: str,
    device: torch.device,
    precision: str,
    extra: bool,
    console: Console,
) -> dict:
    warn_of_consensus(settings, manifest, console)

    def skipped(row: int, reason: str) -> None:
        console.print(f"skipped {manifest.key(row)}, which does not decode: {reason}", soft_wrap=True, markup=False)

    dtype = pick_precision(precision, device)
    with PassProgress(console) as progress:
        told = progress.over(f"evaluating {split}", manifest.pairs(split))
        wanted = model, manifest, split, settings, device, dtype
        classes = extra and manifest.box_class is not None
        found = evaluate(*wanted, on_fault=skipped, foreign=extra, guidance=extra, by_class=classes, on_batch=told)
    result = {"checkpoint": name, "split": split, **found.result(manifest), "min_score": found.trusted_from(manifest)}
    if extra:
        threshold, why = None, "a threshold for all sounds is chosen on a validation split, and there is none"
        if manifest.pairs("val"):  # also where that is what is evaluated: the result then says so
            with PassProgress(console) as progress:
                told = progress.over("evaluating val", manifest.pairs("val"))
                wanted = model, manifest, "val", settings, device, dtype
                chosen = evaluate(*wanted, on_fault=skipped, foreign=True, on_batch=told)
            threshold = chosen.universal_threshold(manifest)
        else:
            console.print(f"{manifest.place}: {why}", soft_wrap=True, markup=False, highlight=False)
        result["extra"] = found.extra(manifest, consensus_of(settings, manifest), threshold)
    return result | {"each": found.each(manifest)}
