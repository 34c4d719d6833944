"""The end of a run: columns, the list of what was left out, and the manifest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from essl_fast.common.errors import InputError
from essl_fast.data.datasets import Annotations, Dataset, LeftOut, Pairs, pair_key
from essl_fast.data.shards import SPLITS, split_column, write_manifest
from essl_fast.prepare import notes
from essl_fast.prepare.rows import Rows


def finish(
    out: Path, dataset: Dataset, rows: Rows, shards: Mapping[str, list[dict]], settings: Mapping[str, Any]
) -> None:
    """Write the columns and the manifest of the folder `out`.

    Args:
        out: the folder with its shards.
        dataset: what was prepared.
        rows: of all shards.
        shards: split → entries of the manifest.
        settings: what the manifest says of them.
    """
    pairs, index = dataset.annotations.pairs, np.frombuffer(rows.pair, np.int64)
    counts = [sum(shard["pairs"] for shard in shards[split]) for split in SPLITS]
    split = split_column(counts)
    names = [(video, span.stop) for video, _, span in pairs.videos()]
    video = np.searchsorted(np.array([end for _, end in names]), index, "right")  # of each row, index into `names`
    fids = pairs.fid[index].tolist()
    keys = [pair_key(names[at][0], fid).encode() for at, fid in zip(video, fids, strict=True)]
    zero = {left.video for left in dataset.annotations.left_out if left.key == pair_key(left.video, 0)}
    told = notes.header(rows.notes, dataset.annotations.sizes.doubt(), zero if dataset.from_videos else ())
    boxes, labelled = _boxes(pairs, index)
    texts = [key.decode() for key in keys]
    of_boxes = {name for key in texts for name in dataset.further.box_classes.get(key, ())}
    classes, class_id = _classes(pairs, index, of_boxes)
    write_manifest(
        out,
        keys=np.array(keys, "S"),
        split=split,
        class_id=class_id,
        labelled=labelled,
        boxes=boxes,
        time=pairs.time[index],
        **{name: np.frombuffer(column, column.typecode) for name, column in rows.columns.items()},
        **dataset.further.columns(texts, classes, class_id, boxes),
        classes=classes,
        splits={
            name: {
                "pairs": counts[number],
                "videos": len(set(video[split == number].tolist())),
                "shards": shards[name],
            }
            for number, name in enumerate(SPLITS)
        },
        left_out=(left.as_json() for left in _all_left_out(dataset.annotations, rows)),
        settings=settings,
        more={"jpeg_instead": rows.jpeg_instead, **told, **dataset.header(), **_coverage(dataset, counts)},
    )


def _coverage(dataset: Dataset, counts: list[int]) -> dict[str, Any]:
    """For the manifest: how many pairs of each split the public lists name, and how many of them are in the shards."""
    if not dataset.listed:
        return {}
    asked = {split: len(dataset.annotations.videos.get(split, ())) for split in SPLITS}
    held = dict(zip(SPLITS, counts, strict=True))
    return {"coverage": {split: {"listed": count, "held": held[split]} for split, count in asked.items() if count}}


def refuse_empty_split(split: str, annotations: Annotations, rows: Rows, listing: Path) -> None:
    """Raise InputError if a split without a pair needs some. `listing`: a file that will say what was left out."""
    videos = set(annotations.videos.get(split, ()))
    if not videos or split == "val":
        return
    left_out = list(_all_left_out(annotations, rows))
    listing.write_text(
        "".join(json.dumps(left.as_json(), ensure_ascii=False) + "\n" for left in left_out), encoding="utf-8"
    )
    mine = [left for left in left_out if left.video in videos]
    (reason, count), *_ = Counter(left.reason for left in mine).most_common(1)
    first = next(left.detail for left in mine if left.reason == reason)
    raise InputError(
        f"no pair is left for the split {split} of {len(videos)} video{'s' * (len(videos) != 1)}; most often: "
        f"{reason} ({count} times; first: {first}). All reasons are in {listing}"
    )


def _all_left_out(annotations: Annotations, rows: Rows) -> Iterator[LeftOut]:
    """What the annotations and the files left out, in the order of video and key."""
    found: dict[str, list[LeftOut]] = {}
    for left in annotations.left_out:
        found.setdefault(left.video, []).append(left)
    for video in sorted(found.keys() | rows.left_out.keys()):
        of_files = [LeftOut(video, *entry) for entry in rows.left_out.get(video, ())]
        yield from sorted([*found.get(video, ()), *of_files])


def _classes(pairs: Pairs, index: np.ndarray, of_boxes: set[str]) -> tuple[list[str], np.ndarray]:
    """(names of the classes that occur, sorted; (N,) int32 class of each row).

    Args:
        pairs: of the annotations.
        index: (N,) the pairs.
        of_boxes: further classes, which only some boxes have.
    """
    first = [classes[0] for classes in pairs.class_sets]
    names = sorted({first[at] for at in set(pairs.class_id[index].tolist())} | of_boxes)
    number = np.array([names.index(name) if name in names else -1 for name in first], np.int32)
    return names, number[pairs.class_id[index]]


def _boxes(pairs: Pairs, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((N, K, 4) int32 boxes, padded with zeros; (N,) bool, whether there are any). index (N,): the pairs."""
    end = pairs.box_end[index]
    begin = np.where(index > 0, pairs.box_end[index - 1], 0)
    boxes = np.zeros((len(index), max(1, int((end - begin).max())), 4), np.int32)
    for number in range(boxes.shape[1]):
        has = begin + number < end
        boxes[has, number] = pairs.boxes[begin[has] + number]
    return boxes, end > begin
