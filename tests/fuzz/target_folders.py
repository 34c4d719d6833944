"""A prepared folder and its shards, as targets of `tests.fuzz.targets`."""

from __future__ import annotations

import contextlib
import io
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from essl_fast.common.errors import InputError
from essl_fast.data import media, shards
from essl_fast.data.media.jpeg import JPEG
from essl_fast.data.shards import Shards, tars
from tests.fuzz.target import Parts, changed
from tests.tools.media import clicks, make_video


@cache
def prepared_folder(place: Path) -> Path:
    """A prepared folder of pictures and clips, as `prepare` and `prepare --verify` leave it."""
    root = place / "prepared"
    video = make_video(place / "videos" / "v.mp4", sound=clicks(4, 16_000, at=(2.0,)))
    frame = next(rgb for _, rgb in media.decode_frames(video, [(17, 1.6)]))
    cut = next(clip for _, clip in media.cut_clips(video, [(15, 1.4)]))
    picture = io.BytesIO()
    Image.fromarray(frame).save(picture, "JPEG", **JPEG)
    sound = (np.sin(np.arange(48_000) / 9) * 9000).astype("<i2").tobytes()
    kinds, splits, row, crc = [], {}, 0, []
    for split in tars.SPLITS:
        with tars.ShardWriter(root, split, 2) as writer:
            for number in range(3):
                clip = (cut.target, 0) if number == 1 else None
                told = {"key": f"{split}.v_{number:06d}", "boxes": [[1, 2, 30, 40]], "classes": ["horn"]}
                data = picture.getvalue() if clip is None else cut.data
                writer.add(told["key"], data, sound, told, row, clip)
                kinds.append((tars.JPEG, 0) if clip is None else (tars.CLIP, cut.target))
                crc.append(tars.pair_crc(data, sound))
                row += 1
            splits[split] = {"pairs": 3, "videos": 1, "shards": writer.close()}
    visual, target = np.array(kinds).T
    shards.write_manifest(
        root,
        keys=[f"{split}.v_{n:06d}" for split in tars.SPLITS for n in range(3)],
        split=np.repeat(range(3), 3),
        class_id=np.zeros(row),
        labelled=np.ones(row, bool),
        boxes=np.tile(np.int32([1, 2, 30, 40]), (row, 1, 1)),
        time=np.full(row, 1.6),
        visual=visual,
        target=target,
        quarters=np.zeros(row),
        crc=np.array(crc, np.uint32),
        classes=["horn"],
        splits=splits,
        settings={"visual": "clip", "seed": 0},
        more={"jpeg_instead": {}},
        left_out=[{"video": "v", "key": None, "reason": media.WINDOW, "detail": "v.mp4: 3 s around 0 s"}],
    )
    entries = [
        {"row": 0, "key": "train.v_000000", "reason": "black", "detail": "x"},
        {"row": None, "key": None, "reason": "corrupt", "detail": "x"},
    ]
    (root / shards.QUARANTINE).write_bytes(b"".join(map(tars.json_bytes, entries)))
    return root


def folder(place: Path) -> Parts:
    root = prepared_folder(place)
    names = ["manifest.json", "left_out.jsonl", "quarantine.jsonl", "train-00000.idx"]
    names += [f"pairs/{path.name}" for path in sorted((root / "pairs").iterdir())]
    return {name: (root / name).read_bytes() for name in names}


def open_folder(place: Path, name: str, data: bytes) -> None:
    from essl_fast.prepare import folder, reporting

    root = prepared_folder(place)
    with changed(root / name, data), contextlib.redirect_stdout(io.StringIO()):
        with contextlib.suppress(InputError):
            folder.open_finished(root, {"visual": "clip", "seed": 0}, reporting.Reporter())
        manifest = shards.Manifest.load(root)
        assert all(0 <= number < len(manifest.classes) for number in manifest.class_id)
        assert not len(manifest) or (manifest.boxes.min() >= 0 and manifest.boxes.max() <= 224)
        assert np.isfinite(manifest.time).all()
        manifest.quarantine()
        reporting.print_summary(manifest)
        _read_pairs(manifest)


def _read_pairs(manifest: shards.Manifest) -> None:
    for splits in (["train", "val"], ["test"]):
        found = Shards(manifest, splits, "bad")
        pcm = np.empty((len(found), tars.SAMPLES), np.int16)
        with ThreadPoolExecutor(1) as pool:
            pictures = found.read(np.arange(len(found)), pcm, pool, 1)
        shard_bytes = sum(path.stat().st_size for path in found.paths)
        assert sum(len(picture.file) for picture in pictures) <= shard_bytes


def shard(place: Path) -> Parts:
    root = prepared_folder(place)
    return {"train-00000.tar": (root / "train-00000.tar").read_bytes()}


def walk_shard(place: Path, name: str, data: bytes) -> None:
    path = place / "walk.tar"
    path.write_bytes(data)
    for pair in tars.iterate(path):
        assert len(pair["s16"]) == tars.PCM_BYTES and len(pair.get("jpg", pair.get("mp4"))) <= len(data)
        assert isinstance(pair["json"], dict)


def verified(place: Path) -> Parts:
    root = prepared_folder(place)
    names = ("train-00000.tar", "train-00000.idx", "pairs/target.npy", "pairs/visual.npy", "manifest.json")
    return {name: (root / name).read_bytes() for name in names}


def verify_folder(place: Path, name: str, data: bytes) -> None:
    from essl_fast.prepare import verify

    root = prepared_folder(place)
    with changed(root / name, data), changed(root / shards.QUARANTINE):
        verify(shards.Manifest.load(root), workers=1)
