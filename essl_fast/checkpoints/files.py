"""Our checkpoint files: written atomically, checked when read.

A file is the output of ``torch.save``, then a seal of 20 bytes: ``ESSLCRC1``, the length of that output (uint64) and
its CRC-32 (uint32), little-endian. PyTorch itself checks no checksum, so without the seal a flipped bit would pass for
a weight.
"""

import os
import re
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import torch

from essl_fast.checkpoints.form import FORMAT, VERSION
from essl_fast.checkpoints.hub import fetch, is_hub_name
from essl_fast.checkpoints.tensors import MODEL_FILE, load_safetensors
from essl_fast.common.errors import InputError, in_shell, memory_is_short
from essl_fast.common.files import atomic_file, refuse_packed, sync_folder

_SEAL = struct.Struct("<8sQI")
_MAGIC = b"ESSLCRC1"
UNSEALED = "it was cut short"  # the answer of damage() for a file that does not end in a seal


class _Summing:
    """A file to write to that also counts the bytes and their CRC-32, and keeps an error of writing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.length, self.crc = file, 0, 0
        self.error: OSError | None = None

    def write(self, data) -> int:
        self.crc = zlib.crc32(data, self.crc)
        self.length += memoryview(data).nbytes
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def dump(state: dict, file: BinaryIO) -> tuple[int, int]:
    """Write what ``torch.save`` makes of a dict into an open file: (how many bytes, their CRC-32).

    Raises:
        OSError: the file cannot be written. PyTorch raises an error of its own that does not say why.
    """
    summing = _Summing(file)
    try:
        torch.save(state, summing)  # type: ignore[arg-type]  # it only writes
    except Exception:
        if summing.error is not None:
            raise summing.error from None
        raise
    return summing.length, summing.crc


def numbered(path: Path, number: int) -> Path:
    """The current path of the checkpoint that was written to ``path`` ``number`` writes ago: last.pt, last-1.pt, ..."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path


def save(path: Path, state: dict, keep: int = 1) -> None:
    """Write a checkpoint, so that ``path`` is at every moment the old file or the new one, also on the disk.

    Args:
        path: the file.
        state: tensors and plain values.
        keep: how many checkpoints to keep, this one and the ones before it (see :func:`numbered`). An old file leaves
            its place only when the new one is complete and synced.
    """
    path = Path(path)
    with atomic_file(path, sync=False) as file:
        length, crc = dump({"format": FORMAT, "version": VERSION, **state}, file)
        file.write(_SEAL.pack(_MAGIC, length, crc))
        file.flush()
        os.fsync(file.fileno())
        if keep > 1 and path.exists():
            _renumber(path, keep)
    sync_folder(path.parent)


def _renumber(path: Path, keep: int) -> None:
    """Give ``path`` and the older ones their next numbers; ``path`` itself stays as well, until it is replaced."""
    for number in range(keep - 1, 1, -1):
        if numbered(path, number - 1).exists():
            os.replace(numbered(path, number - 1), numbered(path, number))
    link = path.with_name(f".{path.name}.link")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without links: for a moment there is only the numbered file, which serves as well
        os.replace(path, numbered(path, 1))
    else:
        os.replace(link, numbered(path, 1))


def checkpoint_of(given: str | Path) -> Path:
    """The checkpoint that a path stands for: the file itself, or the best.pt or model.safetensors of a folder.

    hf://org/name, a model of the Hugging Face Hub, is fetched into its cache.

    Raises:
        InputError: there is nothing, or the directory has neither file.
    """
    given = fetch(given) if is_hub_name(given) else Path(given)
    if given.is_dir() and not (given / "best.pt").is_file() and (given / MODEL_FILE).is_file():
        return given / MODEL_FILE
    if not given.exists():
        raise InputError(f"there is no checkpoint {given}; train writes last.pt and best.pt into its run directory")
    if given.is_dir() and not (given / "best.pt").is_file():
        raise InputError(f"{given} has no best.pt; wait for the run's first evaluation, or give {given / 'last.pt'}")
    return given / "best.pt" if given.is_dir() else given


def damage(path: Path) -> str | None:
    """How a checkpoint file is damaged, as far as its checksum shows; None if it is not.

    A file of version 1 has no checksum: the answer is then UNSEALED, and :func:`load` looks further. The file is read
    once, in pieces.
    """
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


def older(path: Path) -> list[Path]:
    """The older checkpoints beside ``path`` (last-1.pt, last-2.pt, ...), the newest first."""
    path = Path(path)
    found = {}
    for other in path.parent.glob(f"{path.stem}-*{path.suffix}"):
        if match := re.fullmatch(r"\d+", other.stem.removeprefix(f"{path.stem}-")):
            found[int(match[0])] = other
    return [found[number] for number in sorted(found)]


def existing(path: Path) -> list[Path]:
    """The checkpoint files that exist, of ``path`` and the older ones, the newest first."""
    return [file for file in (Path(path), *older(path)) if file.is_file()]


def _remedy(path: Path) -> str:
    """What to do when ``path`` cannot be used."""
    if whole := next((other for other in older(path) if damage(other) is None), None):
        run = in_shell(path.parent)
        return f"{whole} is whole: train --resume {run} goes on from there by itself, evaluate takes its path"
    if path.name == "best.pt" and damage(path.with_name("last.pt")) is None:
        return f"{path.with_name('last.pt')} is whole: evaluate that"
    return "no older one is whole: use a copy, or train again into another directory"


def load(path: Path) -> dict:
    """Read a checkpoint; no code in it is run. Files of version 1, which have no checksum, are read as well.

    A file of safetensors gives the same kind of dict, with all weights, but without the state of a training.

    Raises:
        InputError: it is missing, damaged, or not one of ours; the message names a whole one if there is one.
        MemoryError: this machine has too little for it.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; train writes last.pt and best.pt into its run directory")
    wrong = damage(path)
    if wrong not in (None, UNSEALED):
        raise InputError(f"{path} is not a readable checkpoint ({wrong}); {_remedy(path)}")
    try:
        refuse_packed(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for a damaged file
        if memory_is_short(error):  # which is no fault of the file: an older one must not take its place
            raise MemoryError(f"to read {path}") from error
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
    """Why PyTorch could not read a file. Its own message for foreign files advises to run the code in them."""
    said = str(error).strip().splitlines()
    with open(path, "rb") as file:
        head = file.read(4)
    if not head or (said and "central directory" in said[0]):  # which a zip file has at its end
        return UNSEALED
    if head != b"PK\x03\x04":
        return "it is no file of PyTorch's"
    if type(error).__name__ == "UnpicklingError":
        return "it holds more than tensors and plain values, which is never run"
    return said[0] if said else type(error).__name__


def newest(path: Path) -> tuple[Path, dict, list[str]]:
    """Load the newest checkpoint that is whole: ``path`` or, if it is gone or damaged, the next older one that is.

    Returns:
        Its path, its state, and a line for each one that was passed over.

    Raises:
        InputError: none is whole.
    """
    path = Path(path)
    passed: list[str] = []
    for candidate in [path, *older(path)]:
        try:
            return candidate, load(candidate), passed
        except InputError as error:
            passed.append(str(error).split("; ")[0])
    raise InputError(f"{'; '.join(passed)}: no checkpoint of {path.parent} is whole; use a copy, or train again")
