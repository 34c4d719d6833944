"""Prepared data on disk: shards and the manifest that describes them.

    manifest.json               settings, splits, shards with their SHA-256, what was left out: written last
    pairs/<column>.npy          one value a pair, in the order of train, val, test and their shards
    <split>-<number>.tar, .idx  the pairs' frames and sound (see `tars`)
    left_out.jsonl              what the annotations ask for and the folder does not hold, an object a line
    quarantine.jsonl            where `prepare --verify` has looked: what it found wrong, an object a line

Everything is written under a temporary name, synced and renamed, and the manifest comes last: a folder that has a
manifest is complete. The same pairs give the same bytes, whatever the time, the user or the machine.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_file, parse_json
from essl_fast.config.settings import SIZE
from essl_fast.data.shards.tars import (
    CLIP,
    EXTENSIONS,
    INDEX_VERSION,
    JPEG,
    PCM_BYTES,
    PNG,
    SAMPLES,
    SOUNDS,
    SPLITS,
    ShardIndex,
    ShardWriter,
    decode_key,
    encode_key,
    iterate,
    json_bytes,
    pair_crc,
    read_index,
)

__all__ = [
    "BAD",
    "BLACK",
    "CLIP",
    "CORRUPT",
    "EXTENSIONS",
    "FORMAT",
    "INDEX_VERSION",
    "JPEG",
    "NO_AUDIO",
    "PCM_BYTES",
    "PNG",
    "QUARANTINE",
    "REASONS",
    "SAMPLES",
    "SILENT",
    "SOUNDS",
    "SPLITS",
    "TRUNCATED",
    "VERSION",
    "Manifest",
    "ShardIndex",
    "ShardWriter",
    "decode_key",
    "encode_key",
    "iterate",
    "pair_crc",
    "read_index",
    "write_manifest",
]

FORMAT = "essl_fast"
VERSION = 2
QUARANTINE = "quarantine.jsonl"
CORRUPT, TRUNCATED, NO_AUDIO = "corrupt", "truncated", "missing audio"  # nothing can be trained on such a pair
BLACK, SILENT = "black", "silent"  # such a pair can be trained on, for what it is worth
REASONS = (CORRUPT, TRUNCATED, NO_AUDIO, BLACK, SILENT)  # the worst first
BAD = frozenset({CORRUPT, TRUNCATED, NO_AUDIO})

_NPY_HEADER = re.compile(  # of what `np.save` writes (numpy.lib.format, version 1.0), in rows, of the types below
    rb"\{'descr': '([<|](?:b1|u1|u4|i4|f8|S\d{1,4}))', 'fortran_order': False, "
    rb"'shape': \((\d{1,12},(?: \d{1,12},?)*)\), \}\s*\n"
)
_LONGEST_NPY_HEADER = 1024
_COLUMNS = {
    "key": "S",
    "split": "<u1",
    "class_id": "<i4",
    "labelled": "?",
    "boxes": "<i4",
    "time": "<f8",
    "visual": "<u1",
    "target": "<i4",
    "quarters": "<u1",
    "crc": "<u4",
}


def write_manifest(
    out: Path,
    *,
    keys: Sequence[str] | np.ndarray,
    split: np.ndarray,
    class_id: np.ndarray,
    labelled: np.ndarray,
    boxes: np.ndarray,
    time: np.ndarray,
    visual: np.ndarray,
    target: np.ndarray,
    quarters: np.ndarray,
    crc: np.ndarray,
    classes: Sequence[str],
    splits: Mapping[str, Mapping[str, Any]],
    left_out: Iterable[Mapping[str, Any]],
    settings: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write pairs/*.npy, left_out.jsonl and, last, manifest.json.

    The columns, of N pairs, are those of `Manifest`; `keys` may be N str, too. `splits` has for each split "pairs",
    "videos" and "shards" (from `ShardWriter.close`); `left_out` has objects with "video", "key", "reason", "detail";
    `more` joins the header. ValueError where these do not fit together.
    """
    out, count = Path(out), len(keys)
    if not isinstance(keys, np.ndarray):
        keys = np.array([key.encode() for key in keys], "S") if count else np.empty(0, "S1")
    given = {
        "split": split,
        "class_id": class_id,
        "labelled": labelled,
        "boxes": boxes,
        "time": time,
        "visual": visual,
        "target": target,
        "quarters": quarters,
        "crc": crc,
    }
    columns = {"key": keys} | {name: np.asarray(column, _COLUMNS[name]) for name, column in given.items()}
    for name, column in columns.items():
        if len(column) != count or column.shape[1:] != (() if name != "boxes" else (*column.shape[1:2], 4)):
            raise ValueError(f"{name} has shape {column.shape} for {count} pairs")
    ordered = np.sort(keys)
    if (twice := ordered[1:][ordered[1:] == ordered[:-1]]).size:
        raise ValueError(f"keys are not unique: {twice[:3].tolist()}")
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
    (out / QUARANTINE).unlink(missing_ok=True)  # nor the old list new pairs
    for name, column in columns.items():
        with atomic_file(out / "pairs" / f"{name}.npy") as file:
            np.save(file, np.ascontiguousarray(column), allow_pickle=False)
    with atomic_file(out / "left_out.jsonl") as file:
        reasons = Counter()
        for entry in left_out:
            file.write(json_bytes(dict(entry)))
            reasons[entry["reason"]] += 1
    header = {
        "format": FORMAT,
        "version": VERSION,
        "pairs": count,
        "classes": list(classes),
        "splits_order": list(SPLITS),
        "splits": {name: dict(splits[name]) for name in SPLITS},
        "left_out": dict(reasons),
        "settings": dict(settings),
        **(more or {}),
    }
    with atomic_file(out / "manifest.json") as file:
        file.write(json_bytes(header, indent=1))


def _split_column(counts: Sequence[int]) -> np.ndarray:
    return np.repeat(np.arange(len(counts), dtype=np.uint8), counts)


@dataclass(frozen=True, eq=False)
class Manifest:
    """A prepared folder of N pairs. The columns are memory-mapped, read-only; a pair's row in them is its `index`.

    keys (N,) bytes, unique; split (N,) uint8 index into train, val, test, ascending; class_id (N,) int32 index into
    `classes`, sorted names; labelled (N,) bool; boxes (N,K,4) int32 xyxy half-open on the 224 grid, padding of zero
    area; time (N,) float64 seconds; visual (N,) uint8, JPEG, CLIP or PNG; target (N,) int32 and quarters (N,) uint8,
    which of a clip's frames and its quarter turns counterclockwise, 0 for a picture; crc (N,) uint32, `pair_crc`.
    """

    root: Path
    header: dict = field(repr=False)
    keys: np.ndarray = field(repr=False)
    split: np.ndarray = field(repr=False)
    class_id: np.ndarray = field(repr=False)
    labelled: np.ndarray = field(repr=False)
    boxes: np.ndarray = field(repr=False)
    time: np.ndarray = field(repr=False)
    visual: np.ndarray = field(repr=False)
    target: np.ndarray = field(repr=False)
    quarters: np.ndarray = field(repr=False)
    crc: np.ndarray = field(repr=False)
    classes: tuple[str, ...]

    @classmethod
    def load(cls, out: str | Path) -> Manifest:
        """Open the folder that `prepare` wrote. InputError if a file is missing, outdated or does not fit."""
        root = Path(out)
        path = root / "manifest.json"
        again = f"run `python -m essl_fast.prepare ... --out {root}` again"
        try:
            header = parse_json(path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{path} is not there, so {root} is not a complete prepared folder: {again}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}): {again}") from error
        if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("version") != VERSION:
            raise InputError(f"{path} is not a manifest of format {FORMAT}, version {VERSION}: {again}")
        try:
            counts, shards = _check_header(header)
            count, classes = header["pairs"], tuple(header["classes"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} lacks an entry or has one of another kind ({error!r}): {again}") from error
        columns = {name: _column(root / "pairs" / f"{name}.npy", kind, count, again) for name, kind in _COLUMNS.items()}
        if not np.array_equal(columns["split"], _split_column(counts)):
            raise InputError(f"{root / 'pairs' / 'split.npy'} does not fit the counts in {path}: {again}")
        if count and (columns["visual"].max() > PNG or columns["quarters"].max() > 3 or columns["target"].min() < 0):
            raise InputError(f"visual, target or quarters in {root / 'pairs'} has a value out of range: {again}")
        if count and not 0 <= columns["class_id"].min() <= columns["class_id"].max() < len(classes):
            raise InputError(f"{root / 'pairs' / 'class_id.npy'} has a class that {path} does not name: {again}")
        if columns["boxes"].size and not 0 <= columns["boxes"].min() <= columns["boxes"].max() <= SIZE:
            raise InputError(f"{root / 'pairs' / 'boxes.npy'} has a box outside of its grid: {again}")
        if not np.isfinite(columns["time"]).all():
            raise InputError(f"{root / 'pairs' / 'time.npy'} has a time that is no number: {again}")
        for file, index, size in shards:
            found = (root / file).stat().st_size if (root / file).is_file() else None
            if found != size:
                wrong = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise InputError(f"shard {root / file} {wrong}: {again}")
            if not (root / index).is_file():
                raise InputError(f"index file {root / index} is missing: {again}")
        return cls(root, header, columns.pop("key"), **columns, classes=classes)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def consensus(self) -> int:
        """How many annotators must agree for a pixel to count fully in this data set."""
        return self.header.get("consensus", 1)

    @property
    def sound(self) -> np.dtype:
        """What a pair's 48,000 samples are: little-endian int16, or float32."""
        return SOUNDS[self.header.get("sound", "s16")]

    def key(self, row: int) -> str:
        try:
            return self.keys[row].decode()
        except UnicodeDecodeError as error:
            path = self.root / "pairs" / "key.npy"
            raise InputError(f"{path} has a key in row {row} that is no UTF-8 ({error}): run prepare again") from error

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

    def quarantine(self) -> dict[int, str]:
        """Row → its worst reason, one of REASONS, of the pairs that `prepare --verify` listed; empty if it never ran.

        InputError if the list cannot be read or is not of these pairs.
        """
        path, listed = self.root / QUARANTINE, {}
        again = f"run `python -m essl_fast.prepare --verify --out {self.root}` again"
        try:
            for line in path.read_bytes().split(b"\n"):
                if not line:
                    continue
                entry = parse_json(line)
                row, reason = entry["row"], entry["reason"]
                if row is None:  # a fault of a shard, not of a pair
                    continue
                if type(row) is not int or not 0 <= row < len(self) or self.key(row) != entry["key"]:
                    raise InputError(f"{path} is not of these pairs (row {row}, {entry['key']!r}): {again}")
                if row not in listed or REASONS.index(reason) < REASONS.index(listed[row]):
                    listed[row] = REASONS[REASONS.index(reason)]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} cannot be used ({error}): {again}") from error
        return listed

    def _entry(self, split: str) -> dict:
        if split not in SPLITS:
            raise InputError(f"there is no split {split!r}: choose from {', '.join(SPLITS)}")
        return self.header["splits"][split]


def _check_header(header: dict) -> tuple[list[int], list[tuple[str, str, int]]]:
    """([pairs of each split], [(file, index, bytes) of each shard]) of a manifest's header. Raises ValueError, or what
    comes of values of another kind, where the header is not as `write_manifest` writes it."""

    def whole(value: object, least: int = 0) -> int:
        if type(value) is not int or value < least:
            raise ValueError(f"{value!r} is not a count")
        return value

    counts, shards = [], []
    for name in SPLITS:
        entry = header["splits"][name]
        counts.append(whole(entry["pairs"]))
        whole(entry["videos"])
        for number, shard in enumerate(entry["shards"]):
            for kind, ending in (("file", "tar"), ("index", "idx")):  # so that none is outside of the folder
                if shard[kind] != f"{name}-{number:05d}.{ending}":
                    raise ValueError(f"{kind} {shard[kind]!r} is no name of a shard in its folder")
            if not re.fullmatch("[0-9a-f]{64}", shard["sha256"]):
                raise ValueError(f"{shard['sha256']!r} is no SHA-256")
            shards.append((shard["file"], shard["index"], whole(shard["bytes"])))
        if sum(whole(shard["pairs"], 1) for shard in entry["shards"]) != counts[-1]:
            raise ValueError(f"the shards of {name} do not hold its {counts[-1]} pairs")
    if sum(counts) != whole(header["pairs"]):
        raise ValueError(f"its splits hold {sum(counts)} pairs of {header['pairs']}")
    if not all(isinstance(name, str) for name in header["classes"]):
        raise ValueError("a class is no text")
    if header.get("sound", "s16") not in SOUNDS or whole(header.get("consensus", 1), 1) > 255:
        raise ValueError("no such sound or consensus")
    header["settings"].keys()
    for reasons in (header["left_out"], {reason: told["pairs"] for reason, told in _instead(header).items()}):
        for count in reasons.values():
            whole(count)
    return counts, shards


def _instead(header: dict) -> dict:
    """Why frames are stored as JPEG where clips were asked, of a header that says so."""
    told = header.get("jpeg_instead", {})
    if not all(isinstance(entry["first"], str) for entry in told.values()):
        raise ValueError("jpeg_instead has an entry without an example")
    return told


def _column(path: Path, kind: str, count: int, again: str) -> np.ndarray:
    """A column of `count` pairs, memory-mapped. What the file's header says is compared with what must be, and with the
    file's size, before anything is allocated; nothing in it is evaluated or unpickled."""
    try:
        with open(path, "rb") as file:
            head = file.read(_LONGEST_NPY_HEADER)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {again}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): {again}") from error
    begin = 10 + int.from_bytes(head[8:10], "little")
    told = _NPY_HEADER.fullmatch(head[10:begin])
    if not head.startswith(b"\x93NUMPY\1\0") or told is None:
        raise InputError(f"{path} is not a NumPy file of plain values, as prepare writes them: {again}")
    dtype, shape = np.dtype(told[1].decode()), tuple(int(side) for side in told[2].split(b",") if side)
    fits = dtype.kind == "S" and dtype.itemsize if path.stem == "key" else dtype == np.dtype(kind)
    wanted = (count,) if path.stem != "boxes" else (count, *shape[1:2], 4)
    if not fits or shape != wanted or size - begin != math.prod(shape) * dtype.itemsize:
        what = f"{dtype} {shape} in {size - begin} bytes"
        raise InputError(f"{path} has {what} where {count} pairs should be: {again}")
    return np.memmap(path, dtype, "r", begin, shape) if size > begin else np.empty(shape, dtype)
