"""A localizer out of a checkpoint, ours or the published code's."""

from pathlib import Path

import torch

from essl_fast import config, models
from essl_fast.checkpoints import sspl
from essl_fast.checkpoints.saving import load_trained, settings_of


def restore(state: dict, device: torch.device) -> tuple[models.Localizer, config.Config]:
    """The localizer of a checkpoint's dict, and the config that it was trained with."""
    settings = settings_of(state)
    model = models.build(settings.model)
    models.load_pretrained(model, settings.model)
    load_trained(model, state["model"])
    return model.to(device, memory_format=torch.channels_last), settings


def published(folder: Path, device: torch.device) -> tuple[models.Localizer, config.Config]:
    """The localizer of a folder of the published SSPL code's files, and a config of its architecture. InputError."""
    parts = sspl.read_files(folder)
    shape = sspl.shape_of(parts)
    model = config.ModelConfig(trunk="vgg16", audio="vggish", vgg16_weights="none", vggish_weights="none", **shape)
    settings = config.check(config.Config(model=model))
    localizer = models.build(model)
    sspl.load_sspl(localizer, parts)  # the frozen networks, too
    return localizer.to(device, memory_format=torch.channels_last), settings
