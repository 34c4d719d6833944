"""The data of a run: the loader, the pools that keep decoded pairs, and boxes and labels on the device."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from essl_fast import config, models
from essl_fast.common.errors import InputError
from essl_fast.data import datasets
from essl_fast.data.loading import Exchange, Loader, Pools
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import evaluation_loader, loader_settings
from essl_fast.models import objectives
from essl_fast.runtime.distributed import World


class Labels(NamedTuple):
    """What is known of every pair of the manifest, on the device."""

    boxes: Tensor  # (P, K, 4) int32 xyxy on the 224 grid, as the stored frame shows them; padded with empty boxes
    labelled: Tensor  # (P,) bool: the boxes may be used in training


def training_splits(settings: config.Config, manifest: Manifest) -> list[str]:
    """The splits that are trained on. The published protocol selects on the test set and trains on all other videos."""
    return ["train", "val"] if settings.select_on == "test" and manifest.pairs("val") else ["train"]


def evaluated_splits(settings: config.Config, manifest: Manifest) -> list[str]:
    """The splits that the run evaluates and that the data has."""
    return [split for split in sorted({settings.select_on, "test"}) if manifest.pairs(split)]


class TrainingData:
    """The data of a run, on this rank.

    Args:
        on_fault: called with the row and the reason of a pair that does not decode and is left out.

    Attributes:
        splits: what is trained on.
        pools: decoded pairs that stay in memory, of training and evaluation.
        loader: the batches.
        labels: boxes and labels on the device.
        excluded: quarantined pairs that are left out.
        labels_dropped: labelled pairs that train without their boxes (`data.labelled_fraction`).

    Raises:
        InputError: the data cannot be trained on with these settings.
    """

    def __init__(
        self,
        settings: config.Config,
        manifest: Manifest,
        model: models.Localizer,
        dtype: torch.dtype,
        device: torch.device,
        world: World,
        on_fault: Callable[[int, str], None],
    ) -> None:
        data = settings.data
        refuse_large_parts(settings, world)
        refuse_own_statistics(settings, model, world)
        refuse_wide_statistics(settings, model, world)
        self.splits = training_splits(settings, manifest)
        turns = config.turns(settings, world.size)
        exchanges = world.size > 1 and "never" not in (data.resident, data.resident_shared)
        exchange = Exchange(world.rank, world.size, device) if exchanges else None
        self.pools = Pools(data.resident, data.resident_budget_gb, device, data.resident_shared, exchange)
        self.loader = Loader(
            manifest,
            self.splits,
            batch_size=config.own_batch(settings, world.size),
            global_batch=config.shared_batch(settings),
            turns=turns,
            side=config.STORED_SIDE,
            device=device,
            shuffle=True,
            last_batch=data.last_batch,
            epochs=settings.epochs,
            least=1
            if world.size > 1 and not turns
            else 2,  # batch norm needs two pairs, over all ranks that share a batch
            pools=self.pools,
            on_fault=on_fault,
            rank=world.rank,
            world_size=world.size,
            **loader_settings(settings, model, dtype),
        )
        # The evaluated splits get their place in memory now, so that what does not fit is known at once.
        evaluated = [
            evaluation_loader(manifest, split, settings, model, device, dtype, self.pools, world=world)
            for split in evaluated_splits(settings, manifest)
        ]
        self.excluded = sum(loader.excluded for loader in [self.loader, *evaluated])
        refuse_batch_of_one(settings, self.loader.pairs, world)
        labelled = datasets.labelled(manifest, self.splits, data.labelled_fraction)
        refuse_no_labels(settings, manifest, labelled)
        self.labels_dropped = int((manifest.labelled & ~labelled).sum())
        self.labels = Labels(boxes_of(settings, manifest).to(device), torch.from_numpy(labelled).to(device))


def boxes_of(settings: config.Config, manifest: Manifest) -> Tensor:
    """The boxes (P, K, 4) int32 of every pair, as the objective takes them.

    InputError if it has a map for each class, and the model another number of them than the data.
    """
    if not objectives.facts(settings.objective.method).per_class:
        return torch.from_numpy(np.array(manifest.boxes))
    if settings.model.classes != len(manifest.classes):
        names = ", ".join(manifest.classes[:8]) + ", …" * (len(manifest.classes) > 8)
        raise InputError(
            f"model.classes: {manifest.place} has {len(manifest.classes)} classes ({names}), got "
            f"{settings.model.classes}; give --model.classes {len(manifest.classes)}"
        )
    return torch.from_numpy(datasets.boxes_by_class(manifest)).flatten(1, 2)


def refuse_batch_of_one(settings: config.Config, pairs: int, world: World) -> None:
    """InputError if the last batch of an epoch is one pair: batch norm needs two."""
    size, name = config.own_batch(settings), "global_batch" if settings.data.global_batch else "batch_size"
    if settings.data.last_batch == "keep" and world.size == 1 and pairs % size == 1:
        raise InputError(
            f"data.{name}: {pairs} training pairs leave a last batch of one pair, and batch norm needs two; "
            f"choose another size, or --data.last_batch drop"
        )


def refuse_large_parts(settings: config.Config, world: World) -> None:
    """InputError if a process's part of a global batch is more pairs than it takes at once."""
    own, most, whole = config.own_batch(settings, world.size), settings.data.batch_size, settings.data.global_batch
    if not whole or own <= most:
        return
    fitting = config.fewest_parts(whole, max(2, -(-whole // (most * world.size))))
    raise InputError(
        f"data.global_batch: a batch of {config.shared_batch(settings)} pairs is {own} on each of {world.size} "
        f"process{'es' * (world.size > 1)}, and data.batch_size allows {most}: take more processes, or give "
        f"--data.batch_size {own} if memory holds that many"
        + (f"; a run that begins may take --optim.accumulate {fitting}" if fitting else "")
    )


def refuse_own_statistics(settings: config.Config, model: models.Localizer, world: World) -> None:
    """InputError if several processes share a global batch, and a loss or a norm takes its own process's part alone."""
    if world.size == 1 or not settings.data.global_batch or config.turns(settings, world.size):
        return
    method, remedy = settings.objective.method, "train it in one process, or without data.global_batch"
    pairs, most = settings.data.global_batch, settings.data.batch_size
    if fitting := config.fewest_parts(pairs, max(world.size, -(-pairs // most))):
        remedy += f"; a run that begins may take whole batches by turns: --optim.accumulate {fitting}"
        remedy += " --data.last_batch drop" * (settings.data.last_batch != "drop")
    if objectives.facts(method).compares_pairs:
        raise InputError(
            f"data.global_batch: objective.method {method} compares a pair with others of its process's part, which "
            f"depends on the number of processes; {remedy}"
        )
    synced = models.norm.ViewBatchNorm, nn.SyncBatchNorm
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and not isinstance(module, synced):
            raise InputError(
                f"data.global_batch: {name} ({type(module).__name__}) takes the statistics of one process's part; use "
                f"essl_fast.models.norm.ViewBatchNorm, or {remedy}"
            )


def meets_within_a_batch(settings: config.Config, model: models.Localizer, world: World) -> bool:
    """Whether several processes exchange something within the forward pass of a batch: statistics over all of them."""
    if world.size == 1 or config.turns(settings, world.size):
        return False
    synced = models.norm.ViewBatchNorm, nn.SyncBatchNorm
    norms = any(isinstance(module, synced) and module.training for module in model.modules())
    return norms or (bool(settings.data.global_batch) and objectives.facts(settings.objective.method).compares_views)


def refuse_wide_statistics(settings: config.Config, model: models.Localizer, world: World) -> None:
    """InputError if processes take batches by turns, and a norm knows more than its own batch and a momentum."""
    if not config.turns(settings, world.size):
        return
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or not module.training:
            continue
        synced = isinstance(module, nn.SyncBatchNorm)
        if synced or (module.running_mean is not None and module.momentum is None):
            raise InputError(
                f"data.global_batch: {name} ({type(module).__name__}) "
                + ("takes its statistics over all processes" if synced else "has no momentum: it averages all batches")
                + ", and these take batches by turns; use essl_fast.models.norm.ViewBatchNorm"
            )


def refuse_no_labels(settings: config.Config, manifest: Manifest, labelled: np.ndarray) -> None:
    """InputError if the objective needs boxes and no training pair has any."""
    method, fraction = settings.objective.method, settings.data.labelled_fraction
    if objectives.facts(method).needs_labels and not labelled[manifest.rows("train")].any():
        raise InputError(
            f"{manifest.place}: objective.method {method} needs labelled pairs, and none has a box"
            + (f" at data.labelled_fraction {fraction:g}" if fraction < 1 else "")
        )
