"""Prepared data on disk: WebDataset shards with DALI index files, and the manifest that describes them.

A pair is four members of a shard, in this order: `{key}.jpg`, `{key}.s16`, `{key}.json`, `{key}.row`. Everything is
written under a temporary name, synced and renamed, and the manifest comes last: a folder that has a manifest is
complete. The same pairs give the same bytes, whatever the time, the user or the machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

import numpy as np

from essl_fast.config import InputError
from essl_fast.files import atomic_file, sync_folder

FORMAT = "essl_fast"
VERSION = 1
SPLITS = ("train", "val", "test")
EXTENSIONS = ("jpg", "s16", "json", "row")
SAMPLES = 48_000  # 3 s at 16 kHz
PCM_BYTES = 2 * SAMPLES
INDEX_VERSION = "v1.2"  # the version of DALI's wds2idx format that is written here

_BLOCK = 512
_RECORD = 10_240  # tar files end on a multiple of this
_SPECIAL = re.compile(rb"[^A-Za-z0-9_-]")
_COLUMNS = {"key": "S", "split": "u1", "class_id": "i4", "labelled": "b1", "boxes": "i4", "time": "f8"}


def encode_key(key: str) -> str:
    """The key as a member's stem: every byte but A-Za-z0-9_- percent-encoded, so no dot comes before the extension."""
    return _SPECIAL.sub(lambda byte: b"%%%02X" % ord(byte[0]), key.encode()).decode("ascii")


def decode_key(stem: str) -> str:
    return unquote(stem, errors="strict")


def _json_bytes(value: Any, indent: int | None = None) -> bytes:
    separators = (",", ": ") if indent else (",", ":")
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)
    return text.encode() + b"\n"


class ShardWriter:
    """Writes one split's pairs, in order, into shards of `pairs_per_shard`, each with its index file.

    A context manager: leaving it by an exception drops the shard begun, leaving it well closes it. Since the folder's
    shards change from here on, a manifest that is there is removed first; `write_manifest` puts the new one when all
    splits are written.
    """

    def __init__(self, out: Path, split: str, pairs_per_shard: int = 1024):
        if split not in SPLITS:
            raise ValueError(f"split is one of {SPLITS}, not {split!r}")
        if pairs_per_shard < 1:
            raise InputError(f"pairs_per_shard is at least 1, not {pairs_per_shard}")
        self.out, self.split, self.pairs_per_shard = Path(out), split, pairs_per_shard
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "manifest.json").unlink(missing_ok=True)
        self._shards: list[dict] = []
        self._keys: set[str] = set()
        self._next_row: int | None = None
        self._file: BinaryIO | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def add(self, key: str, jpg: bytes, s16: bytes, meta: Mapping[str, Any], row: int) -> None:
        """Append a pair: `jpg` a JPEG file, `s16` 48,000 int16 little-endian samples at 16 kHz, `meta` what its .json
        holds, `row` its row in the manifest, one more than the pair's before it. ValueError if that does not hold."""
        if not key or key in self._keys:
            raise ValueError(f"{self.split}: key {key!r} is empty or was written before")
        if not jpg.startswith(b"\xff\xd8"):
            raise ValueError(f"{key}: the frame is not a JPEG file")
        if len(s16) != PCM_BYTES:
            raise ValueError(f"{key}: the sound has {len(s16)} bytes instead of {PCM_BYTES}")
        if row < 0 or (self._next_row is not None and row != self._next_row):
            raise ValueError(f"{key}: row {row} does not follow row {(self._next_row or 0) - 1}")
        stem = encode_key(key)
        members = dict(zip(EXTENSIONS, (jpg, s16, _json_bytes(dict(meta)), struct.pack("<q", row)), strict=True))
        if self._file is None:
            self._open()
        self._lines.append(" ".join(self._member(f"{stem}.{ext}", ext, data) for ext, data in members.items()))
        self._keys.add(key)
        self._next_row = row + 1
        if len(self._lines) == self.pairs_per_shard:
            self._finish()

    def close(self) -> list[dict]:
        """Finish the last shard. -> the split's "shards" entries of the manifest: file, index, pairs, bytes, sha256."""
        if self._file is not None:
            self._finish()
        return self._shards

    def abort(self) -> None:
        """Drop the shard begun; the finished ones stay."""
        if self._file is not None:
            self._file.close()
            self._partial.unlink(missing_ok=True)
            self._file = None

    def _open(self) -> None:
        name = f"{self.split}-{len(self._shards):05d}"
        self._tar, self._idx = self.out / f"{name}.tar", self.out / f"{name}.idx"
        self._partial = self.out / f".{name}.tar.partial"
        self._file = open(self._partial, "wb")
        self._hash, self._size, self._lines = hashlib.sha256(), 0, []

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    def _member(self, name: str, ext: str, data: bytes) -> str:
        info = tarfile.TarInfo(name)  # mtime, uid and gid 0, mode 0644, no names: nothing of this machine gets in
        info.size = len(data)
        self._write(info.tobuf(tarfile.GNU_FORMAT))
        entry = f"{ext} {self._size} {len(data)} {name}"
        self._write(data + bytes(-len(data) % _BLOCK))
        return entry

    def _finish(self) -> None:
        self._write(bytes(2 * _BLOCK))
        self._write(bytes(-self._size % _RECORD))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        with atomic_file(self._idx) as file:
            file.write("\n".join([f"{INDEX_VERSION} {len(self._lines)}", *self._lines, ""]).encode())
        os.replace(self._partial, self._tar)
        sync_folder(self.out)
        self._shards.append(
            {
                "file": self._tar.name,
                "index": self._idx.name,
                "pairs": len(self._lines),
                "bytes": self._size,
                "sha256": self._hash.hexdigest(),
            }
        )


def write_manifest(
    out: Path,
    *,
    keys: Sequence[str],
    split: np.ndarray,
    class_id: np.ndarray,
    labelled: np.ndarray,
    boxes: np.ndarray,
    time: np.ndarray,
    classes: Sequence[str],
    splits: Mapping[str, Mapping[str, Any]],
    left_out: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> None:
    """Write pairs/*.npy, left_out.jsonl and, last, manifest.json.

    Of N pairs: `keys` (N,) unique; `split` (N,) index into train, val, test, in that order; `class_id` (N,) index into
    `classes`, sorted names; `labelled` (N,) bool; `boxes` (N,K,4) int32 xyxy on the 224 grid; `time` (N,) seconds.
    `splits` has for each split "pairs", "videos" and "shards" (from `ShardWriter.close`); `left_out` has objects with
    "video", "key", "reason", "detail". ValueError where these do not fit together.
    """
    out, count = Path(out), len(keys)
    columns = {
        "key": np.array([key.encode() for key in keys], dtype="S") if count else np.empty(0, "S1"),
        "split": np.asarray(split, "u1"),
        "class_id": np.asarray(class_id, "<i4"),
        "labelled": np.asarray(labelled, "b1"),
        "boxes": np.asarray(boxes, "<i4"),
        "time": np.asarray(time, "<f8"),
    }
    for name, column in columns.items():
        if len(column) != count or column.shape[1:] != (() if name != "boxes" else (*column.shape[1:2], 4)):
            raise ValueError(f"{name} has shape {column.shape} for {count} pairs")
    if len(set(keys)) != count:
        raise ValueError(f"keys are not unique: {[key for key, n in Counter(keys).items() if n > 1][:3]}")
    if list(classes) != sorted(set(classes)):
        raise ValueError("classes are not sorted and unique")
    if count and not 0 <= columns["class_id"].min() <= columns["class_id"].max() < len(classes):
        raise ValueError("a class_id is out of range")
    if set(splits) != set(SPLITS):
        raise ValueError(f"splits are {sorted(splits)} instead of {sorted(SPLITS)}")
    if not np.array_equal(columns["split"], _split_column([splits[name]["pairs"] for name in SPLITS])):
        raise ValueError("split is not in the order train, val, test, with the counts of `splits`")
    for name in SPLITS:
        if sum(shard["pairs"] for shard in splits[name]["shards"]) != splits[name]["pairs"]:
            raise ValueError(f"the shards of {name} do not hold its {splits[name]['pairs']} pairs")

    (out / "pairs").mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)  # the old one must not describe new columns
    for name, column in columns.items():
        with atomic_file(out / "pairs" / f"{name}.npy") as file:
            np.save(file, np.ascontiguousarray(column), allow_pickle=False)
    with atomic_file(out / "left_out.jsonl") as file:
        for entry in left_out:
            file.write(_json_bytes(dict(entry)))
    header = {
        "format": FORMAT,
        "version": VERSION,
        "pairs": count,
        "classes": list(classes),
        "splits_order": list(SPLITS),
        "splits": {name: dict(splits[name]) for name in SPLITS},
        "left_out": dict(Counter(entry["reason"] for entry in left_out)),
        "settings": dict(settings),
    }
    with atomic_file(out / "manifest.json") as file:
        file.write(_json_bytes(header, indent=1))


def _split_column(counts: Sequence[int]) -> np.ndarray:
    return np.repeat(np.arange(len(counts), dtype=np.uint8), counts)


@dataclass(frozen=True, eq=False)
class Manifest:
    """A prepared folder of N pairs. The columns are memory-mapped, read-only; a pair's row in them is its `index`.

    keys (N,) bytes; split (N,) uint8 index into train, val, test; class_id (N,) int32 index into `classes`; labelled
    (N,) bool; boxes (N,K,4) int32 xyxy half-open on the 224 grid, padding of zero area; time (N,) float64 seconds.
    """

    root: Path
    header: dict = field(repr=False)
    keys: np.ndarray = field(repr=False)
    split: np.ndarray = field(repr=False)
    class_id: np.ndarray = field(repr=False)
    labelled: np.ndarray = field(repr=False)
    boxes: np.ndarray = field(repr=False)
    time: np.ndarray = field(repr=False)
    classes: tuple[str, ...]

    @classmethod
    def load(cls, out: str | Path) -> Manifest:
        """Open the folder that `prepare` wrote. InputError if a file is missing, outdated or does not fit."""
        root = Path(out)
        path = root / "manifest.json"
        again = f"run `python -m essl_fast.prepare ... --out {root}` again"
        try:
            header = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{path} is not there, so {root} is not a complete prepared folder: {again}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}): {again}") from error
        if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("version") != VERSION:
            raise InputError(f"{path} is not a manifest of format {FORMAT}, version {VERSION}: {again}")
        try:
            counts = [header["splits"][name]["pairs"] for name in SPLITS]
            shards = [
                (shard["file"], shard["index"], shard["bytes"], shard["sha256"], shard["pairs"])
                for name in SPLITS
                for shard in header["splits"][name]["shards"]
            ]
            count, classes = int(header["pairs"]), tuple(header["classes"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} lacks an entry or has one of another kind ({error!r}): {again}") from error
        columns = {name: _column(root / "pairs" / f"{name}.npy", kind, count, again) for name, kind in _COLUMNS.items()}
        if not np.array_equal(columns["split"], _split_column(counts)):
            raise InputError(f"{root / 'pairs' / 'split.npy'} does not fit the counts in {path}: {again}")
        for file, index, size, _, _ in shards:
            if Path(file).name != file or Path(index).name != index:
                raise InputError(f"{path} names a shard outside its folder ({file!r}, {index!r}): {again}")
            found = (root / file).stat().st_size if (root / file).is_file() else None
            if found != size:
                wrong = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise InputError(f"shard {root / file} {wrong}: {again}")
            if not (root / index).is_file():
                raise InputError(f"index file {root / index} is missing: {again}")
        return cls(root, header, columns.pop("key"), **columns, classes=classes)

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        return self.keys[row].decode()

    def pairs(self, split: str) -> int:
        """How many pairs the split has."""
        return self._entry(split)["pairs"]

    def rows(self, split: str) -> np.ndarray:
        """(pairs,) int64: the split's rows, in the order of its shards."""
        count = self.pairs(split)
        first = sum(self.pairs(name) for name in SPLITS[: SPLITS.index(split)])
        return np.arange(first, first + count, dtype=np.int64)

    def shards(self, splits: str | Sequence[str]) -> list[tuple[Path, Path]]:
        """[(tar, idx), ...] of the splits, in the order of their rows."""
        names = (splits,) if isinstance(splits, str) else splits
        entries = [shard for name in names for shard in self._entry(name)["shards"]]
        return [(self.root / shard["file"], self.root / shard["index"]) for shard in entries]

    def verify(self) -> None:
        """Read every shard and compare its SHA-256. InputError names the first that differs."""
        for name in SPLITS:
            for shard in self._entry(name)["shards"]:
                with open(self.root / shard["file"], "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                if digest != shard["sha256"]:
                    raise InputError(
                        f"shard {self.root / shard['file']} was changed or damaged (its SHA-256 differs): "
                        f"run `python -m essl_fast.prepare ... --out {self.root}` again"
                    )

    def _entry(self, split: str) -> dict:
        if split not in SPLITS:
            raise InputError(f"there is no split {split!r}: choose from {', '.join(SPLITS)}")
        return self.header["splits"][split]


def _column(path: Path, kind: str, count: int, again: str) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r" if count else None, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {again}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): {again}") from error
    fits = array.dtype.kind == "S" if kind == "S" else array.dtype == np.dtype(kind)
    shape = (count,) if path.stem != "boxes" else (count, *array.shape[1:2], 4)
    if not fits or array.shape != shape:
        raise InputError(f"{path} has {array.dtype} {array.shape} where {count} pairs should be: {again}")
    return array


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where a shard's pairs are: stems (n,) str; offset and size in bytes of .jpg and .s16, each (n,) int64."""

    stems: tuple[str, ...]
    jpg_offset: np.ndarray
    jpg_size: np.ndarray
    s16_offset: np.ndarray
    s16_size: np.ndarray


def read_index(path: Path) -> ShardIndex:
    """Read an index file of `ShardWriter` (or of DALI's wds2idx over its shards). InputError if it is not one."""
    try:
        lines = path.read_text().splitlines()
        version, count = lines[0].split()
        if version != INDEX_VERSION or int(count) != len(lines) - 1:
            raise ValueError(f"it says {lines[0]!r} and has {len(lines) - 1} entries")
        stems, places = [], np.empty((len(lines) - 1, 4), np.int64)
        for number, line in enumerate(lines[1:]):
            words = line.split()
            if tuple(words[0::4]) != EXTENSIONS:
                raise ValueError(f"line {number + 2} does not list {', '.join(EXTENSIONS)}")
            places[number] = words[1], words[2], words[5], words[6]
            stems.append(words[3].removesuffix(".jpg"))
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"index file {path} cannot be used ({error}): run prepare again on {path.parent}") from error
    return ShardIndex(tuple(stems), *places.T.copy())


def iterate(tar_path: str | Path) -> Iterator[dict[str, Any]]:
    """The pairs of a shard, in order: {"key": str, "jpg": bytes, "s16": bytes, "json": dict, "row": int}.

    InputError on anything that `ShardWriter` does not write: links, devices, folders, absolute or parent paths,
    duplicate or missing members.
    """
    path, seen = Path(tar_path), set()
    try:
        with tarfile.open(path, "r:") as tar:
            group: list[tuple[str, bytes]] = []
            stem = None
            for member in tar:
                name, _, ext = member.name.partition(".")
                if not member.isreg() or "/" in member.name or "\\" in member.name or ext not in EXTENSIONS:
                    raise InputError(f"shard {path} has {member.name!r}, no member of a shard: run prepare again")
                if member.name in seen:
                    raise InputError(f"shard {path} has {member.name!r} twice: run prepare again")
                seen.add(member.name)
                if name != stem and group:
                    yield _pair(path, stem, group)
                    group = []
                stem = name
                group.append((ext, tar.extractfile(member).read()))
            if group:
                yield _pair(path, stem, group)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"shard {path} cannot be read ({error}): run prepare again") from error


def _pair(path: Path, stem: str, group: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    members = dict(group)
    if tuple(members) != EXTENSIONS or len(members["row"]) != 8:
        wrong = f"{stem!r} has {', '.join(members)} instead of {', '.join(EXTENSIONS)}"
        raise InputError(f"shard {path}: {wrong}: run prepare again")
    return {
        "key": decode_key(stem),
        "jpg": members["jpg"],
        "s16": members["s16"],
        "json": json.loads(members["json"]),
        "row": struct.unpack("<q", members["row"])[0],
    }
