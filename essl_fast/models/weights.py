"""Published weights of the frozen networks: found or downloaded, and checked by their hash."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from essl_fast.common.errors import InputError, Notice, memory_is_short, reason
from essl_fast.models.registry import audio_facts, made_parts, trunk_facts

if TYPE_CHECKING:
    from essl_fast.models.localizer import Localizer

# By torch.hub's convention the eight digits in a file's name are the beginning of its SHA-256.
SOURCES = {
    "vgg16": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "vggish": "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
}


class WeightsError(InputError):
    """A weight file is missing or damaged; the message says which file to put where."""


def check_hash(path: Path, name: str) -> None:
    """Raise WeightsError unless the file's SHA-256 begins with the digits in the published file's name."""
    expected = Path(SOURCES[name]).stem.rsplit("-", 1)[1]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(expected):
        raise WeightsError(
            f"{path} is damaged or not the published file: its SHA-256 begins {digest[:8]}, not {expected}. "
            f"Delete it and fetch {SOURCES[name]} again."
        )


def _download(name: str, to: Path, timeout: float) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=to.parent, prefix=to.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as out, urllib.request.urlopen(SOURCES[name], timeout=timeout) as response:
            while chunk := response.read(1 << 20):
                out.write(chunk)
        check_hash(Path(part), name)
        os.replace(part, to)
    finally:
        Path(part).unlink(missing_ok=True)


def find(name: str, setting: str = "auto", timeout: float = 20.0) -> Path | None:
    """The weight file of a published network, its hash checked; None for the setting "none".

    Args:
        name: "vgg16" or "vggish".
        setting: "none", "auto" (torch.hub's cache, else a download), or a path.
        timeout: of the download, in seconds.

    Raises:
        WeightsError: the file is missing, damaged, or cannot be downloaded.
    """
    if setting == "none":
        return None
    file_name = Path(SOURCES[name]).name
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if setting != "auto":
        path = Path(setting).expanduser()
        if not path.is_file():
            raise WeightsError(
                f"model.{name}_weights: there is no file {path}. Fetch {SOURCES[name]} and give its path, "
                f"or put it at {cached} and use auto."
            )
    elif cached.is_file():
        path = cached
    else:
        try:
            _download(name, cached, timeout)
        except (urllib.error.URLError, OSError) as error:
            raise WeightsError(
                f"{file_name} is not at {cached}, and fetching {SOURCES[name]} failed ({error}). Put the file there, "
                f"give its path with --model.{name}_weights PATH, or, to try the commands, take random weights: "
                f"--model.{name}_weights none."
            ) from error
        return cached
    check_hash(path, name)
    return path


def _load(module: nn.Module, path: Path, wanted: dict[str, str], name: str) -> None:
    """Copy the entries ``wanted`` (our name -> name in the file) into the module; all must be there and fit."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    missing = [theirs for theirs in wanted.values() if theirs not in state]
    if missing:
        raise WeightsError(
            f"{path} has no {missing[0]} ({len(missing)} entries are missing); fetch {SOURCES[name]} again."
        )
    module.load_state_dict({**module.state_dict(), **{ours: state[theirs] for ours, theirs in wanted.items()}})


def load_pretrained(model: Localizer, config) -> list[str]:
    """Load the published VGG-16 and VGGish into a Localizer's frozen parts.

    Args:
        model: the localizer.
        config: a ModelConfig. The weights "none" leave a frozen part with random weights, and warn: that is for
            tests only.

    Returns:
        What was loaded, in words.

    Raises:
        WeightsError: a file is missing or damaged.
    """
    done = []
    for module, name in (
        (model.trunk, trunk_facts(config.trunk).weights),
        (model.audio, audio_facts(config.audio).weights),
    ):
        if not name:
            continue
        path = find(name, getattr(config, f"{name}_weights"))
        if path is None:
            warnings.warn(
                f"model.{name}_weights is none: the frozen {name} keeps random weights, which no published result does",
                Notice,
                stacklevel=2,
            )
            continue
        names = [key for key in module.state_dict() if not key.startswith("fc.")]
        _load(module, path, {key: key for key in names}, name)
        done.append(f"{name} from {path}")
    return done


def load_made(model: Localizer, config, path: Path) -> str:
    """Load what `python -m essl_fast.pretrain` wrote into the parts of a Localizer that are registered as ``made``.

    Args:
        model: the localizer.
        config: a ModelConfig.
        path: the file, {"trunk": state dict, "audio": state dict}. Its hash was checked by who found it.

    Returns:
        What was loaded, in words.

    Raises:
        WeightsError: the file is not of that kind, or of networks of other sizes.
    """
    again = "make it again with python -m essl_fast.pretrain --overwrite, or give another file"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for part in made_parts(config):
            module = getattr(model, part)
            wanted = [key for key in module.state_dict() if not key.startswith("fc.")]
            module.load_state_dict({**module.state_dict(), **{key: state[part][key] for key in wanted}})
    except FileNotFoundError as error:
        raise WeightsError(f"model.small_weights: there is no file {path}; use auto, or {again}") from error
    except Exception as error:  # torch raises a dozen types for a damaged file
        if memory_is_short(error):
            raise MemoryError(f"to read {path}") from error
        raise WeightsError(f"model.small_weights: {path} does not fit ({reason(error)}); {again}") from error
    return f"{' and '.join(made_parts(config))} from {path}"
