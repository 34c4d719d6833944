"""Checkpoints: ours, written atomically and checked when read, and the published SSPL code's state dicts.

A file is what ``torch.save`` writes, then 20 bytes: ``ESSLCRC1``, the length of what is before them (uint64) and its
CRC-32 (uint32), little-endian. PyTorch reads no checksum of its own, so a flipped bit would pass for a weight.
"""

import os
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from essl_fast import models
from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_file, refuse_packed, sync_folder
from essl_fast.config.settings import Config, from_dict

FORMAT = "essl_fast checkpoint"
VERSION = 2  # 1 had no checksum and no count of steps that were not finite
_SEAL = struct.Struct("<8sQI")
_MAGIC = b"ESSLCRC1"
UNSEALED = "it was cut short"


class _Summing:
    """Passes what is written on to a file, and knows its length and CRC-32."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.length, self.crc = file, 0, 0

    def write(self, data) -> int:
        self.crc = zlib.crc32(data, self.crc)
        self.length += memoryview(data).nbytes
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def numbered(path: Path, number: int) -> Path:
    """Where the checkpoint is that was ``path`` so many writes ago: last.pt, last-1.pt, last-2.pt."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path


def save(path: Path, state: dict, keep: int = 1) -> None:
    """Write ``state`` (tensors and plain values) so that ``path`` is at every moment the old file or the new one.

    keep: how many there are to be, with those before it (see :func:`numbered`). What is on the disk counts: an old file
    leaves its place only when the new one is complete and synced.
    """
    path = Path(path)
    with atomic_file(path, sync=False) as file:
        summing = _Summing(file)
        torch.save({"format": FORMAT, "version": VERSION, **state}, summing)
        file.write(_SEAL.pack(_MAGIC, summing.length, summing.crc))
        file.flush()
        os.fsync(file.fileno())
        if keep > 1 and path.exists():
            _pass_on(path, keep)
    sync_folder(path.parent)


def _pass_on(path: Path, keep: int) -> None:
    """Give ``path`` and its forerunners their next numbers; ``path`` stays as well, until it is replaced."""
    for number in range(keep - 1, 1, -1):
        if numbered(path, number - 1).exists():
            os.replace(numbered(path, number - 1), numbered(path, number))
    link = path.with_name(f".{path.name}.link")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without links: for a moment there is only the numbered one, which is as good
        os.replace(path, numbered(path, 1))
    else:
        os.replace(link, numbered(path, 1))


def checkpoint_of(given: Path) -> Path:
    """The checkpoint that a path stands for: the file itself, or the best.pt of a run directory.

    Raises:
        InputError: there is nothing, or the directory has no best.pt.
    """
    given = Path(given)
    if not given.exists():
        raise InputError(f"there is no checkpoint {given}; train writes last.pt and best.pt into its run directory")
    if given.is_dir() and not (given / "best.pt").is_file():
        raise InputError(f"{given} has no best.pt; wait for the run's first evaluation, or give {given / 'last.pt'}")
    return given / "best.pt" if given.is_dir() else given


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint file as far as its checksum tells, None if nothing. A file of version 1 has none;
    :func:`load` knows these. Reads it once, in pieces."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _SEAL.size))
            seal = file.read()
            if len(seal) < _SEAL.size or not seal.startswith(_MAGIC):
                return UNSEALED
            _, length, crc = _SEAL.unpack(seal)
            if length != size - _SEAL.size:
                return f"it has {size - _SEAL.size} bytes where {length} were written"
            file.seek(0)
            found = 0
            while length:
                data = file.read(min(length, 1 << 20))
                if not data:
                    return "it became shorter while it was read"
                found, length = zlib.crc32(data, found), length - len(data)
            return None if found == crc else "its CRC-32 is another than when it was written"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def forerunners(path: Path) -> list[Path]:
    """The numbered checkpoints beside ``path``, the newest first."""
    path = Path(path)
    found = {}
    for other in path.parent.glob(f"{path.stem}-*{path.suffix}"):
        if match := re.fullmatch(r"\d+", other.stem.removeprefix(f"{path.stem}-")):
            found[int(match[0])] = other
    return [found[number] for number in sorted(found)]


def kept(path: Path) -> list[Path]:
    """``path`` and its forerunners, those that are there, the newest first."""
    return [file for file in (Path(path), *forerunners(path)) if file.is_file()]


def _remedy(path: Path) -> str:
    """Where to go on when ``path`` is of no use."""
    older = forerunners(path)
    if whole := next((other for other in older if fault(other) is None), None):
        return f"{whole} is whole: train --resume {path.parent} goes on from there by itself, evaluate takes its path"
    if path.name == "best.pt" and fault(path.with_name("last.pt")) is None:
        return f"{path.with_name('last.pt')} is whole: evaluate that"
    return "no older one is whole: use a copy, or train again into another directory"


def load(path: Path) -> dict:
    """Read a checkpoint without running any code in it; InputError if it is not one of ours, or not as it was written.

    Files of version 1, which have no checksum, are read as well.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; train writes last.pt and best.pt into its run directory")
    wrong = fault(path)
    if wrong not in (None, UNSEALED):
        raise InputError(f"{path} is not a readable checkpoint ({wrong}); {_remedy(path)}")
    try:
        refuse_packed(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for a damaged file
        reason = _reason(path, error)
        raise InputError(f"{path} is not a readable checkpoint ({reason}); {_remedy(path)}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} is not an essl_fast checkpoint; give last.pt or best.pt of a run directory")
    if state.get("version") not in (1, VERSION):
        raise InputError(
            f"{path} has checkpoint version {state.get('version')}, this essl_fast reads {VERSION}; "
            "use the version that wrote it"
        )
    if wrong and state["version"] > 1:
        raise InputError(f"{path} is not a readable checkpoint ({wrong}); {_remedy(path)}")
    return state


def _reason(path: Path, error: Exception) -> str:
    """Why PyTorch did not read a file. Its own words on foreign files advise to run what is in them."""
    said = str(error).strip().splitlines()
    with open(path, "rb") as file:
        head = file.read(4)
    if not head or (said and "central directory" in said[0]):  # of the zip file that it is, at its end
        return UNSEALED
    if head != b"PK\x03\x04":
        return "it is no file of PyTorch's"
    if type(error).__name__ == "UnpicklingError":
        return "it holds more than tensors and plain values, which is never run"
    return said[0] if said else type(error).__name__


def newest(path: Path) -> tuple[Path, dict, list[str]]:
    """``path`` or, where it is gone or damaged, the newest forerunner that is whole: (its path, state, a line for each
    one that was passed over). InputError if none is."""
    path, passed = Path(path), []
    for candidate in [path, *forerunners(path)]:
        try:
            return candidate, load(candidate), passed
        except InputError as error:
            passed.append(str(error).split("; ")[0])
    raise InputError(f"{'; '.join(passed)}: no checkpoint of {path.parent} is whole; use a copy, or train again")


def trained_state(model: nn.Module, keep: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """The model's state without its frozen parameters, which published files hold; those named as ``keep`` stay."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad and not name.startswith(tuple(keep))}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def settings_of(state: dict) -> Config:
    """The settings that a checkpoint was trained with.

    The modules that registered its parts, ``imports`` of the settings, are imported.

    Raises:
        InputError: there are no settings or no model, a module cannot be imported, or a part is unknown.
    """
    if missing := [name for name in ("config", "model") if name not in state]:
        raise InputError(f"the checkpoint has no {missing[0]}; give last.pt or best.pt of a run directory")
    return models.check(from_dict(state["config"]))


def load_trained(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load :func:`trained_state` into a model whose frozen part is already in place; InputError if it does not fit."""
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type != "meta"
        for value in state.values()
    ):
        raise InputError("the checkpoint's model is no dict of tensors; it was made by something else")
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
