"""Restore a localizer from a checkpoint, ours or the published code's."""

from collections.abc import Mapping
from pathlib import Path

import torch

from essl_fast import config, models
from essl_fast.checkpoints import sspl
from essl_fast.checkpoints.files import checkpoint_of, load
from essl_fast.checkpoints.model_state import load_trained, settings_of
from essl_fast.runtime.devices import pick_device


def load_checkpoint(
    path: str | Path, device: str | torch.device = "auto", weights: Mapping[str, str] | None = None
) -> tuple[models.Localizer, config.Config]:
    """The trained localizer of a run, in training mode as PyTorch builds it, and the settings that it was trained with.

    Args:
        path: a run directory, whose best.pt is taken, a checkpoint file, a file or folder of `essl_fast.export --to
            safetensors` or hub, or hf://org/name, a model of the Hugging Face Hub.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:N", or a torch device.
        weights: {"vgg16": path, "vggish": path} where the published files have moved since.

    Raises:
        InputError: the checkpoint cannot be used, or there is no such device.
        WeightsError: a published weight file is missing or damaged.
    """
    where = device if isinstance(device, torch.device) else pick_device(device)
    return restore(load(checkpoint_of(path)), where, weights)


def restore(
    state: dict, device: torch.device, weights: Mapping[str, str] | None = None
) -> tuple[models.Localizer, config.Config]:
    """The localizer of a checkpoint's dict, and the settings that it was trained with.

    Args:
        state: what :func:`essl_fast.checkpoints.load` gave. The modules that its settings name in ``imports`` are
            imported first.
        device: where the localizer is put.
        weights: as in :func:`load_checkpoint`; empty paths are ignored.

    Raises:
        InputError: the dict is of no localizer that this version, with these modules, can build.
        WeightsError: a published weight file is missing or damaged.
    """
    settings = settings_of(state)
    for name, file in (weights or {}).items():
        if file:
            setattr(settings.model, f"{name}_weights", str(file))
    model = models.build(settings.model)
    if not state.get("complete"):
        models.load_pretrained(model, settings.model)
    if not models.objectives.facts(settings.objective.method).trains_head:
        model.head.requires_grad_(False)  # version 0.1.0 left it out of such checkpoints
    load_trained(model, state["model"])
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's stub lacks memory_format
    return model, settings


def restore_published(folder: Path, device: torch.device) -> tuple[models.Localizer, config.Config]:
    """The localizer of a folder of the published SSPL code's files, and settings of its architecture.

    Raises:
        InputError: a file is missing, damaged, or of another architecture.
    """
    parts = sspl.read_files(folder)
    shape = sspl.shape_of(parts)
    model = config.ModelConfig(trunk="vgg16", audio="vggish", vgg16_weights="none", vggish_weights="none", **shape)
    settings = models.check(config.check(config.Config(model=model)))
    localizer = models.build(model)
    sspl.load_sspl(localizer, parts)  # the frozen networks, too
    localizer.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's stub lacks memory_format
    return localizer, settings
