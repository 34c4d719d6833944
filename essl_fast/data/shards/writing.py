"""Writes what describes a prepared folder: the columns, the list of what was left out, and the manifest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from essl_fast.common.files import atomic_file
from essl_fast.data.shards.columns import COLUMNS, FURTHER, MASK_BYTES, split_column
from essl_fast.data.shards.manifest import CLIP_CHECKS, FORMAT, QUARANTINE, VERSION
from essl_fast.data.shards.tars import SPLITS, json_bytes


def write_manifest(
    out: Path,
    *,
    classes: Sequence[str],
    splits: Mapping[str, Mapping[str, Any]],
    left_out: Iterable[Mapping[str, Any]],
    settings: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
    **columns: Any,
) -> None:
    """Write pairs/*.npy, left_out.jsonl and, last, manifest.json.

    Args:
        out: the folder; its shards are there.
        classes: names of the classes, sorted.
        splits: for each split "pairs", "videos" and "shards" (from `ShardWriter.close`).
        left_out: objects with "video", "key", "reason", "detail".
        settings: what the folder was made of, as JSON values.
        more: further entries of the header.
        columns: the columns of `Manifest` by their names there, arrays or lists of N values; `keys` may be text. Those
            of `columns.FURTHER` may be left out.

    Raises:
        ValueError: these do not fit together.
    """
    out = Path(out)
    arrays = _as_arrays(columns)
    _check(arrays, classes, splits)
    (out / "pairs").mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)  # an old one must not describe new columns
    (out / QUARANTINE).unlink(missing_ok=True)  # nor an old list new pairs
    (out / CLIP_CHECKS).unlink(missing_ok=True)
    for old in FURTHER:
        (out / "pairs" / f"{old}.npy").unlink(missing_ok=True)
    for name, column in arrays.items():
        with atomic_file(out / "pairs" / f"{name}.npy") as file:
            np.save(file, np.ascontiguousarray(column), allow_pickle=False)
    reasons: Counter[str] = Counter()
    with atomic_file(out / "left_out.jsonl") as file:
        for entry in left_out:
            file.write(json_bytes(dict(entry)))
            reasons[entry["reason"]] += 1
    header = {
        "format": FORMAT,
        "version": VERSION,
        "pairs": len(arrays["key"]),
        "classes": list(classes),
        "splits_order": list(SPLITS),
        "splits": {name: dict(splits[name]) for name in SPLITS},
        "left_out": dict(reasons),
        "settings": dict(settings),
        **({"further": further} if (further := sorted(arrays.keys() & FURTHER.keys())) else {}),
        **(more or {}),
        "files": _sums(out, arrays, splits),
    }
    with atomic_file(out / "manifest.json") as file:
        file.write(json_bytes(header, indent=1))


def _sums(out: Path, columns: Iterable[str], splits: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The SHA-256 of the columns and the index files, by which one who copies the folder sees that they came whole."""
    names = [f"pairs/{name}.npy" for name in columns]
    found = {}
    for name in [*names, *(shard["index"] for split in splits.values() for shard in split["shards"])]:
        with open(out / name, "rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _as_arrays(columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """File name → column, in the types that are stored."""
    given = {"key" if name == "keys" else name: column for name, column in columns.items()}
    if given.keys() - FURTHER.keys() != COLUMNS.keys():
        raise ValueError(f"the columns are {', '.join(sorted(given))} instead of {', '.join(sorted(COLUMNS))}")
    keys = given.pop("key")
    if not isinstance(keys, np.ndarray):
        keys = np.array([key.encode() for key in keys], "S") if len(keys) else np.empty(0, "S1")
    kinds = {name: kind for name, kind in (COLUMNS | FURTHER).items() if name in given}
    return {"key": keys} | {name: np.asarray(given[name], kind) for name, kind in kinds.items()}


def _check(arrays: Mapping[str, np.ndarray], classes: Sequence[str], splits: Mapping[str, Mapping[str, Any]]) -> None:
    """ValueError if columns, classes and splits do not fit together."""
    keys, count = arrays["key"], len(arrays["key"])
    most = arrays["boxes"].shape[1:2]
    shapes = {"boxes": (*most, 4), "mask": (MASK_BYTES,), "box_class": most}
    for name, column in arrays.items():
        rest = shapes.get(name, ())
        if len(column) != count or column.shape[1:] != rest:
            raise ValueError(f"{name} has shape {column.shape} for {count} pairs")
    ordered = np.sort(keys)
    if (twice := ordered[1:][ordered[1:] == ordered[:-1]]).size:
        raise ValueError(f"keys are not unique: {twice[:3].tolist()}")
    if list(classes) != sorted(set(classes)):
        raise ValueError("classes are not sorted and unique")
    if count and not 0 <= arrays["class_id"].min() <= arrays["class_id"].max() < len(classes):
        raise ValueError("a class_id is out of range")
    if set(splits) != set(SPLITS):
        raise ValueError(f"splits are {sorted(splits)} instead of {sorted(SPLITS)}")
    if not np.array_equal(arrays["split"], split_column([splits[name]["pairs"] for name in SPLITS])):
        raise ValueError("split is not in the order train, val, test, with the counts of `splits`")
    for name in SPLITS:
        if sum(shard["pairs"] for shard in splits[name]["shards"]) != splits[name]["pairs"]:
            raise ValueError(f"the shards of {name} do not hold its {splits[name]['pairs']} pairs")
