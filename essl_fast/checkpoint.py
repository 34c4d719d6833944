"""Checkpoints: ours, written atomically, and the published SSPL code's state dicts."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from essl_fast.config import InputError
from essl_fast.files import atomic_file

FORMAT = "essl_fast checkpoint"
VERSION = 1


def save(path: Path, state: dict) -> None:
    """Write ``state`` (tensors and plain values) so that ``path`` is at every moment the old file or the new one."""
    with atomic_file(path) as file:
        torch.save({"format": FORMAT, "version": VERSION, **state}, file)


def load(path: Path) -> dict:
    """Read a checkpoint without running any code in it; InputError if it is not one of ours."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; train writes last.pt and best.pt into its run directory")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for a damaged file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} is not a readable checkpoint ({reason}); resume from another one") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} is not an essl_fast checkpoint; give last.pt or best.pt of a run directory")
    if state["version"] != VERSION:
        raise InputError(
            f"{path} has checkpoint version {state['version']}, this essl_fast reads {VERSION}; "
            "use the version that wrote it"
        )
    return state


# Published name -> ours, by part. Patterns are tried in order; the first that matches the whole name wins.
_SSPL_NAMES = {
    "frame": [(r"feat_extractor\.(.+)", r"features.\1")],
    "sound": [(r"((?:features|embeddings|fc)\..+)", r"\1")],
    "pcm": [
        (r"PredProcess\.0\.(.+)", r"predict.0.\1"),
        (r"PredProcess\.([12])\.conv2d\.(.+)", r"predict.\1.\2"),
        (r"ErrorProcess\.([013])\.(weight|bias)", r"correct.\1.\2"),
        (r"ErrorProcess\.2\.convtrans2d\.(.+)", r"correct.2.\1"),
        (r"b0\.(\d)", r"blend.\1"),
        (r"a0\.(\d)", r"gain.\1"),
        (r"BNPred\.(.+)", r"predict_norm.\1"),
        (r"BNError\.(.+)", r"correct_norm.\1"),
        (r"BNPred_step\.(.+)", r"cycle_predict_norm.\1"),
        (r"BNError_step\.(.+)", r"cycle_correct_norm.\1"),
    ],
    "ssl_head": [
        (r"projector\.layer1\.0\.(.+)", r"projector.0.\1"),
        (r"projector\.layer1\.1\.(.+)", r"projector.1.\1"),
        (r"projector\.layer2\.0\.(.+)", r"projector.3.\1"),
        (r"projector\.layer2\.1\.(.+)", r"projector.4.\1"),
        (r"projector\.layer3\.0\.(.+)", r"projector.6.\1"),
        (r"projector\.layer3\.1\.(.+)", r"projector.7.\1"),
        (r"predictor\.layer1\.0\.(.+)", r"predictor.0.\1"),
        (r"predictor\.layer1\.1\.(.+)", r"predictor.1.\1"),
        (r"predictor\.layer2\.(.+)", r"predictor.3.\1"),
    ],
}


def from_sspl_name(part: str, name: str) -> str | None:
    """Our name for an entry of the published code's ``part`` (frame, sound, pcm, ssl_head), or None if it has none."""
    name = name.removeprefix("module.")  # DDP objects were saved, so their keys carry it
    for pattern, ours in _SSPL_NAMES[part]:
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    return None


def load_sspl_part(module: nn.Module, part: str, sd: dict) -> None:
    """Load one published state dict into one of our modules.

    ``part`` is "frame" (VGG16Trunk), "sound" (VGGish), "pcm" (PCM) or "ssl_head" (SimSiamHead); keys may carry DDP's
    ``module.``; values are tensors or arrays. Batch norm's ``num_batches_tracked`` may be absent and is then 0.
    Raises InputError if an entry is unknown, missing or of another shape.
    """
    if part not in _SSPL_NAMES:
        raise InputError(f"SSPL has the parts {', '.join(_SSPL_NAMES)}, not {part!r}")
    own = module.state_dict()
    state = {}
    for name, value in sd.items():
        ours = from_sspl_name(part, name)
        if ours not in own:
            raise InputError(
                f"SSPL part {part!r}: {name} has no place in {type(module).__name__}; is it another architecture?"
            )
        value = torch.as_tensor(value)
        if value.shape != own[ours].shape:
            raise InputError(
                f"SSPL part {part!r}: {name} has shape {tuple(value.shape)}, this model's is {tuple(own[ours].shape)}; "
                "check model.pcm_cycles and model.out_dim"
            )
        state[ours] = value
    counters = {name: torch.zeros_like(value) for name, value in own.items() if name.endswith("num_batches_tracked")}
    missing = [name for name in own if name not in state and name not in counters]
    if missing:
        raise InputError(
            f"SSPL part {part!r} lacks {len(missing)} entries of {type(module).__name__}, the first is {missing[0]}"
        )
    module.load_state_dict({**counters, **state})


def load_sspl(model: nn.Module, parts: dict[str, dict]) -> None:
    """Load the published code's state dicts {"frame", "sound", "pcm", "ssl_head"} into a Localizer, all or none.

    "pcm" is needed if, and allowed only if, the model has a PCM. Raises InputError.
    """
    modules = {"frame": model.trunk, "sound": model.audio, "pcm": model.pcm, "ssl_head": model.head}
    wanted = {part for part, module in modules.items() if module is not None}
    if set(parts) != wanted:
        raise InputError(f"this model needs the SSPL parts {sorted(wanted)}, got {sorted(parts)}; check model.pcm")
    before = {part: {k: v.clone() for k, v in modules[part].state_dict().items()} for part in parts}
    try:
        for part, sd in parts.items():
            load_sspl_part(modules[part], part, sd)
    except InputError:
        for part, sd in before.items():
            modules[part].load_state_dict(sd)
        raise


def trained_state(model: nn.Module, keep: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """The model's state without its frozen parameters, which published files hold; those named as ``keep`` stay."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad and not name.startswith(tuple(keep))}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_trained(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load :func:`trained_state` into a model whose frozen part is already in place; InputError if it does not fit."""
    own = model.state_dict()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    unknown = [name for name in state if name not in own]
    missing = [name for name in own if name not in state and name not in frozen]
    shapes = [name for name in state if name in own and state[name].shape != own[name].shape]
    if unknown or missing or shapes:
        raise InputError(
            f"the checkpoint is of another architecture: {len(unknown)} entries are unknown, {len(missing)} missing, "
            f"{len(shapes)} of another shape (the first: {(unknown + missing + shapes)[0]})"
        )
    model.load_state_dict({**own, **state})
