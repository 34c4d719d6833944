"""Files that are complete or not there, also after a crash or a power cut; and JSON that others may have written."""

import errno
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from essl_fast.common import outputs

PACKAGE = Path(__file__).resolve().parents[1]  # the folder essl_fast/; in a clone, configs/ and .git are beside it


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk, so that renames in it survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path, tag: str = "", sync: bool = True) -> Iterator[BinaryIO]:
    """A binary file that appears under ``path``, complete, if the block ends without an error, or not at all.

    A symbolic link is followed: what it names is replaced, and the link stays. What is no file (a device, a FIFO, a
    socket, /dev/stdout) is written to as it is when the block has ended.

    Args:
        path: the file. Until the end it is ``.NAME.partial`` beside it, which a later attempt overwrites. While another
            process writes the same file, this one's has another name.
        tag: makes that name ``.NAME.TAG.partial``, so that several processes can make the same file.
        sync: write it to the disk before it appears. Without that, it may be incomplete after a power cut, but not
            after the death of the process.

    Raises:
        OSError: it cannot be written; ``filename`` is ``path``, and not the temporary name.
    """
    path = Path(path)
    if outputs.is_stream(path):
        with outputs.named(path, ""), outputs.stream(path) as file:
            yield file
        return
    with atomic_path(path, tag) as partial, outputs.named(path, partial), open(partial, "wb") as file:
        yield file
        file.flush()
        if sync:
            os.fsync(file.fileno())
    if sync:
        sync_folder(Path(os.path.realpath(path)).parent)


@contextmanager
def atomic_path(path: Path, tag: str = "") -> Iterator[Path]:
    """The name of a file to write, which takes the place of ``path`` if the block ends without an error.

    For libraries that open files by name; everything else uses :func:`atomic_file`, with the same ``path`` and ``tag``.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    target = path if outputs.is_stream(path) else outputs.followed(path)
    with outputs.named(path, outputs.partial_of(target, tag)), outputs.claimed(target, tag) as partial:
        try:
            with outputs.named(path, partial):
                yield partial
                outputs.put(partial, target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, is nested too deep, has numbers that JSON does not have (NaN, Infinity), or text that
            no file can hold (half of a surrogate pair).
    """
    try:
        value = json.loads(data, parse_constant=_refuse)
        if b"\\u" in data if isinstance(data, bytes) else "\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def sealed(values: dict[str, Any]) -> bytes:
    """The values as JSON, with a CRC-32 of them all as the entry "seal"."""
    return json.dumps(values | {"seal": _seal(values)}).encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """The values that :func:`sealed` was given. ValueError if the text has changed since."""
    values = parse_json(data)
    if not isinstance(values, dict) or values.pop("seal", None) != _seal(values):
        raise ValueError("it is not as it was written: its CRC-32 differs")
    return values


def _seal(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def refuse_packed(path: Path) -> None:
    """ValueError if a file is a ZIP archive with compressed or overlapping records.

    PyTorch does not compress its archives. A compressed one of kilobytes could fill gigabytes of memory.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
    if packed or sum(record.file_size for record in records) > path.stat().st_size:
        raise ValueError("its archive is packed, or has records that overlap")


def write_json(path: Path, value: dict) -> None:
    """Write a JSON file that is complete or not there."""
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=1, allow_nan=False).encode() + b"\n")
