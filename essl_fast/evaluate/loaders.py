"""Loaders: the arguments that all loaders of a run share, and a loader of a split that is evaluated."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from essl_fast import config, models
from essl_fast.common.errors import InputError
from essl_fast.data.loading import Loader, Pools
from essl_fast.data.shards import BAD, Manifest
from essl_fast.models.audio_input import sound_of
from essl_fast.runtime.distributed import ALONE, World


def loader_settings(settings: config.Config, model: models.Localizer, dtype: torch.dtype) -> dict:
    """The arguments of Loader that all loaders of a run share, by name."""
    data = settings.data
    return {
        "seed": settings.seed,
        "threads": data.threads or None,
        "prefetch": data.prefetch or None,
        "sound": sound_of(settings, model, dtype),
        "exclude": data.exclude_quarantined,
        "on_error": data.on_error,
        "max_errors": data.max_errors,
    }


def evaluation_loader(
    manifest: Manifest,
    split: str,
    settings: config.Config,
    model: models.Localizer,
    device: torch.device,
    dtype: torch.dtype,
    pools: Pools | None = None,
    on_fault: Callable[[int, str], None] | None = None,
    world: World = ALONE,
) -> Loader:
    """A loader of every pair of a split, once, in the manifest's order, at the size that evaluation sees.

    Ranks share the pairs, unless there are too few for each to have one: then every rank sees all. See
    :func:`essl_fast.evaluate.evaluate` for the arguments.

    Raises:
        InputError: the split is empty.
    """
    pairs = manifest.pairs(split)
    if not pairs:
        raise InputError(
            f"{manifest.place}: the {split} split is empty; prepare the data with one, or choose another split"
        )
    share: dict[str, Any] = {}
    if ranks_share(manifest, split, settings, world):
        share = {"rank": world.rank, "world_size": world.size}
    return Loader(
        manifest,
        [split],
        batch_size=min(max(2, settings.data.batch_size), pairs),
        side=config.SIZE,
        device=device,
        shuffle=False,
        epochs=1,
        pools=pools,
        on_fault=on_fault,
        least=0,
        **share,
        **loader_settings(settings, model, dtype),
    )


def ranks_share(manifest: Manifest, split: str, settings: config.Config, world: World) -> bool:
    """Whether each rank's loader gives a part of a split's pairs; if not, each gives all of them."""
    if world.size == 1:
        return False
    exclude = settings.data.exclude_quarantined
    listed = {} if exclude == "none" else manifest.quarantine()
    out = [row for row, reason in listed.items() if exclude == "all" or reason in BAD]
    return bool(manifest.pairs(split) - np.isin(manifest.rows(split), out).sum() >= world.size)
