"""The loaders of a run: what all of them are given, and the one of a split that is evaluated."""

from collections.abc import Callable

import numpy as np
import torch

from essl_fast import config, models
from essl_fast.common.errors import InputError
from essl_fast.data.loading.loader import Loader
from essl_fast.data.loading.pool import Pools
from essl_fast.data.shards import BAD, Manifest
from essl_fast.models.audio_input import sound_of
from essl_fast.runtime.distributed import ALONE, World


def loader_settings(settings: config.Config, model: models.Localizer, dtype: torch.dtype) -> dict:
    """What every loader of a run is given."""
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
    """Every pair of a split once, in the manifest's order, at the size that evaluation sees. InputError if none is.

    Ranks share the pairs, unless these are too few for each to have one: then every rank sees all.
    """
    pairs = manifest.pairs(split)
    if not pairs:
        raise InputError(
            f"{manifest.root}: the {split} split is empty; prepare the data with one, or choose another split"
        )
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
        **_part(manifest, split, settings, world),
        **loader_settings(settings, model, dtype),
    )


def _part(manifest: Manifest, split: str, settings: config.Config, world: World) -> dict[str, int]:
    """Which part of a split's pairs this rank's loader gives; {} for all of them."""
    if world.size == 1:
        return {}
    exclude = settings.data.exclude_quarantined
    listed = {} if exclude == "none" else manifest.quarantine()
    out = [row for row, reason in listed.items() if exclude == "all" or reason in BAD]
    enough = manifest.pairs(split) - np.isin(manifest.rows(split), out).sum() >= world.size
    return {"rank": world.rank, "world_size": world.size} if enough else {}
