"""A model as one safetensors file: every weight, the frozen ones too, and the settings in its metadata.

Such a file needs no published weights beside it, runs no code when it is read, and is what a hub's folder holds:

    model.safetensors    tensors by their names in the localizer; metadata "essl_fast": the JSON of `about`
    config.json          the same JSON, for readers
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from essl_fast import config
from essl_fast.checkpoints.form import FORMAT, VERSION
from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_file

MODEL_FILE, CONFIG_FILE = "model.safetensors", "config.json"
KEY = "essl_fast"  # of the metadata
INPUTS = {
    "frames": "uint8 (B, 224, 224, 3), RGB: each video frame by one antialiased bicubic resize, whatever its shape",
    "sound": "int16 (B, 48000): the 3 s around the frame, mono at 16 kHz, 32768 is full scale",
    "views": "frames / 255, minus mean (0.485, 0.456, 0.406), over std (0.229, 0.224, 0.225), as (B, 3, 224, 224)",
    "log_mel": "sound scaled to [-1, 1] by its minimum and maximum; periodic Hann of 400 samples every 160, 512-point "
    "FFT magnitude, 64 mel bands of 125 to 7500 Hz (VGGish's), log(mel + 0.01), as (B, 3, 96, 64)",
    "similarity": "float32 (B, h, w): the cosine of each place of the frame with the sound, -1 to 1",
    "heat": "similarity resized to 224 x 224, bilinear with half-pixel centres, then min-max scaled to [0, 1]",
}


def _package() -> Any:
    """The package safetensors. InputError if it is missing."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise InputError(
            "the package safetensors is missing: pip install safetensors (or pip install '.[export]' in the source "
            "folder)"
        ) from error
    return safetensors


def about(settings: config.Config, state: Mapping) -> dict:
    """What stands beside the weights, as plain values. It names no path of the machine that trained them.

    Args:
        settings: that the model was trained with.
        state: its checkpoint's dict.
    """
    plain = config.to_dict(settings)
    header = state.get("data") or {}
    root = "demo" if settings.data.root == "demo" else ""
    plain |= {"out": ""}
    plain["data"] |= {"root": root, "cache": ""}
    plain["demo"] |= {"cache": ""}
    plain["model"] |= {"vgg16_weights": "none", "vggish_weights": "none"}  # they are in the file
    return {
        "format": "essl_fast model",
        "version": 1,
        "config": plain,
        "best": state.get("best") if state.get("kind") == "best" else None,
        "data": {name: header[name] for name in ("dataset", "classes", "consensus") if name in header},
        "inputs": INPUTS,
    }


def save_safetensors(path: Path, model: nn.Module, settings: config.Config, state: Mapping) -> None:
    """Write a model; the file is complete or not there.

    Args:
        path: the file.
        model: the localizer.
        settings, state: as of :func:`about`.

    Raises:
        InputError: the package safetensors is missing.
        OSError: the file cannot be written.
    """
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    data = _package().torch.save(tensors, {"format": "pt", KEY: json.dumps(about(settings, state))})
    with atomic_file(path) as file:
        file.write(data)


def check_safetensors(path: Path, model: nn.Module) -> str:
    """Read a file back and compare it with the model; a line for the user.

    Raises:
        InputError: a weight is another one.
    """
    held, own = load_safetensors(path)["model"], model.state_dict()
    other = [name for name in own if name not in held or not torch.equal(held[name], own[name].cpu())]
    if other or len(held) != len(own):
        raise InputError(f"{path} does not hold the model's weights ({', '.join(other[:3])}); write it again")
    return f"{len(own)} tensors, read back and equal"


def load_safetensors(path: Path) -> dict:
    """The file as the dict of a checkpoint; no code is run.

    Raises:
        InputError: it is missing, damaged or not one of ours, or the package safetensors is missing.
    """
    package = _package()
    if not path.is_file():
        raise InputError(f"there is no file {path}; python -m essl_fast.export RUN --to safetensors writes one")
    try:
        with package.safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    except (package.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}); copy it again") from error
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise InputError(f"{path} holds no essl_fast model; give one of python -m essl_fast.export --to safetensors")
    if found.get("version") != 1:
        raise InputError(f"{path} has version {found.get('version')}, this essl_fast reads 1; use a newer essl_fast")
    state = {"format": FORMAT, "version": VERSION, "kind": "best", "config": found["config"], "model": tensors}
    state |= {"data": found.get("data") or {}, "complete": True}  # no published weights are needed
    return state | ({"best": found["best"]} if found.get("best") else {})
