"""Decode everything of a prepared folder once, and list what is wrong with it in `quarantine.jsonl`.

    {"row": 17, "key": "V_000123", "reason": "black", "detail": "no pixel is brighter than 3 of 255"}

One object on each line, shard by shard. A pair may have several. `row` and `key` are null for a fault of a shard
outside of its pairs. Reasons:

    corrupt        the frame cannot be decoded, or frame or sound are not the bytes that `prepare` wrote (CRC-32)
    truncated      the frame's picture or clip ends too early
    missing audio  the sound is not 48,000 samples
    black          no pixel is brighter than blank.BLACK_UP_TO: most often a video before its first picture
    silent         no sample is louder than blank.SILENT_UP_TO, that is -60 dB

The first three are faults: such a pair cannot be used. The last two are warnings.

Of each clip, it also writes what its frame looks like (`clip_checks.npy`): training on a GPU compares its frames with
that, and then needs no decoding on the CPU beside it.
"""

from __future__ import annotations

import functools
import hashlib
import io
import mmap
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from essl_fast.common.errors import InputError, in_shell
from essl_fast.common.files import atomic_file
from essl_fast.data import media, shards
from essl_fast.data.media import blank, decode_clip
from essl_fast.data.media.jpeg import picture_size
from essl_fast.data.media.nvdec_clips import check_value
from essl_fast.data.shards import json_bytes
from essl_fast.prepare.reporting import Reporter

_CHUNK = 32  # pairs that a thread takes at a time


def verify(manifest: shards.Manifest, workers: int | None = None, say: Reporter | None = None) -> dict[str, int]:
    """Check every pair and write the list.

    Args:
        manifest: of the folder.
        workers: threads. None: one for each core that this process may use.
        say: the reporter. None: nothing is reported.

    Returns:
        Reason → how often it was found, the worst first. Empty if nothing is wrong; the list is empty then, too.

    Raises:
        InputError: a shard or its index cannot be read at all, or the list cannot be written.
    """
    say = say or Reporter()
    found: Counter[str] = Counter()
    checks = np.zeros(len(manifest), shards.CLIP_CHECK)
    workers = workers or len(os.sched_getaffinity(0))
    try:
        manifest.confirm()
        with (
            ThreadPoolExecutor(workers) as pool,
            atomic_file(manifest.root / shards.QUARANTINE) as file,
            say.bar("pairs verified", len(manifest)) as step,
        ):
            for fault in _description(manifest):
                file.write(json_bytes(fault))
                found[fault["reason"]] += 1
            row = 0
            for split in shards.SPLITS:
                for entry in manifest.header["splits"][split]["shards"]:
                    with manifest.shard(entry, confirmed=True) as tar:
                        for fault in _shard(manifest, entry, tar, row, checks, pool, workers, step):
                            file.write(json_bytes(fault))
                            found[fault["reason"]] += 1
                    row += entry["pairs"]
        manifest.publish(shards.QUARANTINE)
        if checks["known"].any():
            with atomic_file(manifest.root / shards.CLIP_CHECKS) as file:
                np.save(file, checks)
            manifest.publish(shards.CLIP_CHECKS)
    except OSError as error:
        raise InputError(
            f"{manifest.place} cannot be verified ({error}): mend that, then run --verify again"
        ) from error
    return {reason: found[reason] for reason in shards.REASONS if found[reason]}


def _description(manifest: shards.Manifest) -> Iterator[dict]:
    """The faults of the columns and index files, whose SHA-256 the manifest has; older versions wrote none."""
    for name, wanted in manifest.sums().items():
        if wanted and _sha256(manifest.root / name) != wanted:
            what = f"{name} was changed (its SHA-256 differs)"
            yield {"row": None, "key": None, "reason": shards.CORRUPT, "detail": what}


def _shard(
    manifest: shards.Manifest,
    entry: dict,
    tar: Path,
    first: int,
    checks: np.ndarray,
    pool: ThreadPoolExecutor,
    workers: int,
    step: Callable[[int], None],
) -> Iterator[dict]:
    """The faults of a shard, whose file is `tar`; its first pair is in row `first`. `checks`: as in
    `_pairs`. step: called with the number of pairs just checked."""
    index = shards.read_index(manifest.root / entry["index"])
    keys = [manifest.key(first + at) for at in range(entry["pairs"])]
    if index.stems != tuple(map(shards.encode_key, keys)):
        again = f"run `python -m essl_fast.prepare ... --out {in_shell(manifest.place)}` again"
        raise InputError(f"{manifest.named(entry['index'])} does not list the pairs of the manifest: {again}")
    digest, broken = pool.submit(_sha256, tar), False
    if not keys or not tar.stat().st_size:
        raise InputError(
            f"{manifest.named(entry['file'])} is empty: run prepare again"
        )  # an empty file cannot be mapped to memory
    with open(tar, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        check = functools.partial(_pairs, manifest, data, index, first, checks)
        chunks = [range(len(keys))[at : at + _CHUNK] for at in range(0, len(keys), _CHUNK)]
        for at in range(0, len(chunks), workers):  # not all at once, so that an interrupt ends the run soon
            some = chunks[at : at + workers]
            for chunk, faults in zip(some, pool.map(check, some), strict=True):
                for place, reason, detail in faults:
                    broken = broken or reason in shards.BAD
                    yield {"row": first + place, "key": keys[place], "reason": reason, "detail": detail}
                step(len(chunk))
    if digest.result() != entry["sha256"] and not broken:
        what = f"{entry['file']} was changed (its SHA-256 differs), outside of its frames and sounds"
        yield {"row": None, "key": None, "reason": shards.CORRUPT, "detail": what}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pairs(
    manifest: shards.Manifest,
    data: mmap.mmap,
    index: shards.ShardIndex,
    first: int,
    checks: np.ndarray,
    chunk: range,
) -> list[tuple[int, str, str]]:
    """(place in the shard, reason, detail) of each fault of the pairs at the places `chunk`. Into `checks`, (N,) of
    CLIP_CHECK, goes what the frames of its clips look like."""
    faults = []
    for at in chunk:
        row = first + at
        begin, sound_at = int(index.visual_offset[at]), int(index.s16_offset[at])
        frame, sound = data[begin : begin + index.visual_size[at]], data[sound_at : sound_at + index.s16_size[at]]
        if len(sound) != (size := shards.SAMPLES * manifest.sound.itemsize):
            faults.append((at, shards.NO_AUDIO, f"{len(sound)} bytes of sound instead of {size}"))
        elif shards.pair_crc(frame, sound) != manifest.crc[row]:
            faults.append((at, shards.CORRUPT, "frame or sound were changed (their CRC-32 differs)"))
        elif (loudest := _loudest(sound, manifest.sound)) is None:
            faults.append((at, shards.CORRUPT, "a sample of the sound is no number"))
        elif loudest <= blank.SILENT_UP_TO:
            faults.append((at, shards.SILENT, f"no sample is above {loudest} of 32767"))
        try:
            rgb = decode_frame(frame, int(index.visual[at]), int(manifest.target[row]))
        except (media.MediaError, ValueError, OSError) as error:
            reason = shards.TRUNCATED if _cut_off(error) else shards.CORRUPT
            faults.append((at, reason, f"the frame cannot be decoded: {error}"))
            continue
        if index.visual[at] == shards.CLIP:
            checks[row] = manifest.crc[row], True, check_value(rgb)
        if (brightest := int(rgb.max())) <= blank.BLACK_UP_TO:
            faults.append((at, shards.BLACK, f"no pixel is brighter than {brightest} of 255"))
    return faults


def read_pair(manifest: shards.Manifest, row: int) -> tuple[bytes, int, int, bytes]:
    """(the stored frame, its kind, which frame of a clip, the sound) of one pair. OSError if it cannot be read."""
    at = row
    for entry in manifest.entries(shards.SPLITS):
        if at >= entry["pairs"]:
            at -= entry["pairs"]
            continue
        index = shards.read_index(manifest.root / entry["index"])
        begin, sound_at = int(index.visual_offset[at]), int(index.s16_offset[at])
        places = (begin, begin + int(index.visual_size[at])), (sound_at, sound_at + int(index.s16_size[at]))
        parts = manifest.parts(entry, places)
        return parts[0], int(index.visual[at]), int(manifest.target[row]), parts[1]
    raise IndexError(f"row {row} of {len(manifest)}")


def decode_frame(frame: bytes, visual: int, target: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a stored frame.

    Args:
        frame: the stored bytes.
        visual: JPEG, CLIP or PNG.
        target: which frame of a clip.

    Raises:
        MediaError, ValueError, OSError: it is damaged.
    """
    if visual == shards.CLIP:
        return decode_clip(frame, target)
    picture_size(np.frombuffer(frame, np.uint8))  # raises if it is not one of our kinds; Pillow reads two dozen
    try:
        with Image.open(io.BytesIO(frame), formats=("JPEG", "PNG")) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:  # its text names an address in memory
        raise ValueError("Pillow does not know it as a JPEG or PNG file") from None
    except (SyntaxError, EOFError, struct.error, LookupError, TypeError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error  # Pillow raises all of these for damaged files


def _cut_off(error: Exception) -> bool:
    return getattr(error, "reason", "") == media.TRUNCATED or "truncated" in str(error)


def _loudest(sound: bytes, kind: np.dtype) -> int | None:
    """The largest absolute sample, scaled to 32767; None if one is no number."""
    samples = np.frombuffer(sound, kind)
    if not np.isfinite(samples).all():
        return None
    full = 1 if kind.kind == "i" else 32768
    return max(int(samples.max() * full), -int(samples.min() * full))
