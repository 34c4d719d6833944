"""The published SSPL code's checkpoints: reading them into our modules, and writing our modules as its files.

    part       file              published module    ours
    frame      frame_best.pth    VGG-16              trunk
    sound      sound_best.pth    VGGish              audio
    pcm        pcm_best.pth      PCNet, if any       pcm
    ssl_head   ssl_head_best.pth SimSiam             head

Its training saves modules that DDP wraps: every key of sound, pcm and ssl_head begins with ``module.``, and no key of
frame does. Its test loads them, strictly, into modules wrapped in the same way. So the files written here have the same
prefixes; files that are read may have them or not, and those of torch.compile, in any order. One table, ``_PREFIXES``,
serves both directions.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from essl_fast.checkpoints.files import dump
from essl_fast.checkpoints.model_state import unwrapped
from essl_fast.common.errors import InputError, memory_is_short
from essl_fast.common.files import atomic_file, refuse_packed

if TYPE_CHECKING:
    from essl_fast.models import Localizer

FILES = {part: f"{part}_best.pth" for part in ("frame", "sound", "pcm", "ssl_head")}
_WRAPPED = ("sound", "pcm", "ssl_head")  # saved from DDP
_DDP = "module."

# By part: the beginning of an entry's name in the published module, and in ours. The rest of the name is the same.
_PREFIXES = {
    "frame": {"feat_extractor.": "features."},
    "sound": {name: name for name in ("features.", "embeddings.", "fc.")},
    "pcm": {
        "PredProcess.0.": "predict.0.",
        "PredProcess.1.conv2d.": "predict.1.",
        "PredProcess.2.conv2d.": "predict.2.",
        "ErrorProcess.0.": "correct.0.",
        "ErrorProcess.1.": "correct.1.",
        "ErrorProcess.2.convtrans2d.": "correct.2.",
        "ErrorProcess.3.": "correct.3.",
        "b0.": "blend.",
        "a0.": "gain.",
        "BNPred.": "predict_norm.",
        "BNError.": "correct_norm.",
        "BNPred_step.": "cycle_predict_norm.",
        "BNError_step.": "cycle_correct_norm.",
    },
    "ssl_head": {
        "projector.layer1.0.": "projector.0.",
        "projector.layer1.1.": "projector.1.",
        "projector.layer2.0.": "projector.3.",
        "projector.layer2.1.": "projector.4.",
        "projector.layer3.0.": "projector.6.",
        "projector.layer3.1.": "projector.7.",
        "predictor.layer1.0.": "predictor.0.",
        "predictor.layer1.1.": "predictor.1.",
        "predictor.layer2.": "predictor.3.",
    },
}


def _renamed(name: str, prefixes: dict[str, str]) -> str | None:
    """The name with its prefix replaced; None if it has none of the prefixes. No prefix is the beginning of another."""
    return next((new + name[len(old) :] for old, new in prefixes.items() if name.startswith(old)), None)


def from_sspl_name(part: str, name: str) -> str | None:
    """Our name for an entry of the published code's ``part`` (frame, sound, pcm, ssl_head), or None if it has none."""
    return _renamed(unwrapped(name), _PREFIXES[part])


def to_sspl_name(part: str, name: str) -> str | None:
    """The published module's name, without DDP's prefix, for an entry of ours, or None if it has none."""
    return _renamed(name, {ours: published for published, ours in _PREFIXES[part].items()})


def load_sspl_part(module: nn.Module, part: str, sd: dict) -> None:
    """Load one published state dict into one of our modules.

    Args:
        module: a VGG16Trunk, VGGish, PCM or SimSiamHead.
        part: "frame", "sound", "pcm" or "ssl_head", in that order.
        sd: tensors or arrays by name; names may begin with DDP's ``module.``. Batch norm's ``num_batches_tracked`` may
            be missing and is then 0.

    Raises:
        InputError: an entry is unknown, missing or of another shape.
    """
    if part not in _PREFIXES:
        raise InputError(f"SSPL has the parts {', '.join(_PREFIXES)}, not {part!r}")
    own = module.state_dict()
    state = {}
    for name, value in sd.items():
        ours = from_sspl_name(part, name)
        if ours not in own:
            raise InputError(
                f"SSPL part {part!r}: {name} has no place in {type(module).__name__}; is it another architecture?"
            )
        if ours in state:
            raise InputError(f"SSPL part {part!r} has {unwrapped(name)} twice, with DDP's prefix and without")
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


def _modules(model: Localizer) -> dict[str, nn.Module]:
    """The modules of a Localizer by part, without those that it does not have."""
    modules: dict[str, nn.Module | None]
    modules = {"frame": model.trunk, "sound": model.audio, "pcm": model.pcm, "ssl_head": model.head}
    return {part: module for part, module in modules.items() if module is not None}


def load_sspl(model: Localizer, parts: dict[str, dict]) -> None:
    """Load the published code's state dicts into a Localizer; if one does not fit, the model stays as it was.

    Args:
        model: the localizer.
        parts: state dicts by part: "frame", "sound", "ssl_head" and, if and only if the model has a PCM, "pcm".

    Raises:
        InputError: the parts are not those of the model, or an entry does not fit.
    """
    modules = _modules(model)
    if set(parts) != set(modules):
        raise InputError(f"this model needs the SSPL parts {sorted(modules)}, got {sorted(parts)}; check model.pcm")
    before = {part: {k: v.clone() for k, v in modules[part].state_dict().items()} for part in parts}
    try:
        for part, sd in parts.items():
            load_sspl_part(modules[part], part, sd)
    except InputError:
        for part, sd in before.items():
            modules[part].load_state_dict(sd)
        raise


def sspl_parts(model: Localizer) -> dict[str, dict[str, torch.Tensor]]:
    """The state dicts of a Localizer by part, with the published code's names, so that its strict loading takes them.

    Raises:
        InputError: the model is not of the published architecture.
    """
    modules = _modules(model)
    for part, module in modules.items():
        if None in (to_sspl_name(part, name) for name in module.state_dict()):
            raise InputError(
                f"{type(module).__name__} has no place in the published SSPL code: only models with model.trunk "
                "vgg16, model.audio vggish and model.head simsiam can be exported to it"
            )
    return {
        part: {
            f"{_DDP if part in _WRAPPED else ''}{to_sspl_name(part, name)}": value.detach().cpu().contiguous()
            for name, value in module.state_dict().items()
        }
        for part, module in modules.items()
    }


def write_files(folder: Path, parts: dict[str, dict]) -> list[Path]:
    """Write :func:`sspl_parts` as the published files, each of them completely or not at all; their paths.

    Raises:
        InputError: the folder holds one of the files already, or cannot be written.
    """
    folder = Path(folder)
    paths = {part: folder / FILES[part] for part in parts}
    # An old file of a part that this model does not have would be taken for this model's.
    if there := [name for name in FILES.values() if (folder / name).exists()]:
        raise InputError(f"{folder} holds {there[0]} already; give another folder, or move it away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, path in paths.items():
            with atomic_file(path) as file:
                dump(parts[part], file)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error}); give another folder with --out"
        ) from error
    return list(paths.values())


def read_files(folder: Path) -> dict[str, dict]:
    """The state dicts in a folder of published files, by part; "pcm" only if pcm_best.pth is there. No code is run.

    Raises:
        InputError: a file is missing, damaged or no state dict; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--sspl-checkpoint: there is no folder {folder}; it should hold {', '.join(FILES.values())}")
    missing = [name for part, name in FILES.items() if part != "pcm" and not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} has no {missing[0]}; a published checkpoint is {', '.join(FILES.values())} "
            f"(without {FILES['pcm']}: SSPL without PCM)"
        )
    present = [part for part, name in FILES.items() if (folder / name).is_file()]
    return {part: _read_file(folder / FILES[part]) for part in present}


def _read_file(path: Path) -> dict:
    try:
        refuse_packed(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for a damaged file
        if memory_is_short(error):
            raise MemoryError(f"to read {path}") from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} is not a readable state dict ({reason}); copy it again") from error
    if isinstance(state, dict):  # some save it as one entry among others
        state = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path} holds no state dict but {_what(state)}; give the file that the published code wrote")
    odd = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))]
    if odd:
        raise InputError(
            f"{path}: {odd[0]!r} is {_what(state[odd[0]])}, where a state dict has tensors; give the file that the "
            "published code wrote"
        )
    return state


def _what(value) -> str:
    return "an empty dict" if value == {} else f"a value of type {type(value).__name__}"


def shape_of(parts: dict[str, dict]) -> dict[str, Any]:
    """The settings of ModelConfig that follow from the state dicts: pcm, pcm_cycles (with a PCM), out_dim.

    Raises:
        InputError: they are not those of the published networks.
    """
    names = {from_sspl_name("sound", name): value for name, value in parts["sound"].items()}
    if "fc.2.weight" not in names or names["fc.2.weight"].ndim != 2:
        raise InputError(f"{FILES['sound']} has no fc.2.weight: it is not the published sound network")
    found = {"pcm": "pcm" in parts, "out_dim": len(names["fc.2.weight"])}
    if found["pcm"]:  # each cycle has two of these norms
        own = (from_sspl_name("pcm", name) or "" for name in parts["pcm"])
        numbers = {int(m[1]) for name in own if (m := re.fullmatch(r"cycle_predict_norm\.(\d+)\.weight", name))}
        found["pcm_cycles"] = len(numbers) // 2
    return found
