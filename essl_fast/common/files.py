"""Files that are there whole or not at all, also after a crash or a power cut; and JSON that others may have made."""

import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PACKAGE = Path(__file__).resolve().parents[1]  # the folder essl_fast/: in a clone, configs/ and .git lie beside it


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path, tag: str = "", sync: bool = True) -> Iterator[BinaryIO]:
    """A binary file that appears under ``path``, complete and synced, when the block ends well, else not at all.

    Until then it is ``.NAME.partial`` beside it, which a later attempt overwrites; with a ``tag`` of its own,
    ``.NAME.TAG.partial``, several processes may make the same file. Without ``sync`` that holds for a process that
    dies, but not for a machine that does: for files that nobody needs after that.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}{tag and '.' + tag}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a write or a sync that failed says no name
            error.filename = str(path)
        raise
    if sync:
        sync_folder(path.parent)


def parse_json(data: bytes | str) -> Any:
    """What a JSON text says. ValueError for anything wrong with it: nested too deep, too, or with numbers that JSON
    does not have (NaN, Infinity), or text that no file can hold (half a surrogate pair)."""
    try:
        value = json.loads(data, parse_constant=_refuse)
        if (b"\\u" if isinstance(data, bytes) else "\\u") in data:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def sealed(values: dict[str, Any]) -> bytes:
    """A JSON object with a CRC-32 of all the rest in it, as "seal"."""
    return json.dumps(values | {"seal": _seal(values)}).encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """What :func:`sealed` was given. ValueError if that is not it any more."""
    values = parse_json(data)
    if not isinstance(values, dict) or values.pop("seal", None) != _seal(values):
        raise ValueError("it is not as it was written: its CRC-32 differs")
    return values


def _seal(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def refuse_packed(path: Path) -> None:
    """ValueError for a ZIP archive that unpacks to more than the file's own size: PyTorch writes its archives unpacked,
    and would read one of kilobytes into gigabytes of memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
    if packed or sum(record.file_size for record in records) > path.stat().st_size:
        raise ValueError("its archive is packed, or has records that overlap")


def write_json(path: Path, value: dict) -> None:
    """Write JSON so that the file is whole or not there."""
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=1, allow_nan=False).encode() + b"\n")
