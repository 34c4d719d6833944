"""What a run keeps of its test pairs, so that a report can be made later from nothing but the run directory.

test_pairs.jsonl    a line {"key", "class", "ciou"} for each pair; cIoU is null where map and boxes are both empty
gallery.npz         the pairs with the best, the middle and the worst scores: frame (JPEG), similarity map, boxes, and
                    the 3 s of sound (AAC in MP4), which an earlier version did not keep
"""

import io
import json
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_file
from essl_fast.data.media.audio import to_pcm16
from essl_fast.data.shards import Shards
from essl_fast.report.sounds import encode_sound

GROUPS = ("best", "median", "worst")
QUALITY = 85  # of the JPEG: about 10 KB per frame of 224 x 224
PAIRS, GALLERY = "test_pairs.jsonl", "gallery.npz"
WITHOUT = "the page lacks what it holds; mend that, and run report again"


@dataclass(frozen=True)
class Picture:
    """A pair of the gallery."""

    group: str  # one of GROUPS
    key: str
    class_name: str
    ciou: float  # NaN if neither the map nor the boxes cover anything
    jpeg: bytes  # (224, 224) pixels
    similarity: np.ndarray  # (h, w) float32
    boxes: np.ndarray  # (K, 4) int32 xyxy on the 224 grid; padding has no area
    sound: bytes = b""  # the 3 s around the frame, see sounds.py; b"" if it was not kept


def pick(ciou: np.ndarray, each: int) -> dict[str, np.ndarray]:
    """Choose the pairs of a gallery by their scores.

    Args:
        ciou: (N,) float64; NaN counts as the lowest score.
        each: how many per group. Of fewer than three times as many pairs, all are chosen.

    Returns:
        Group name -> indices into ``ciou``, the better ones first; none is chosen twice, ties go to the earlier one.
    """
    order = np.argsort(-np.nan_to_num(ciou, nan=-1.0), kind="stable")
    each = min(each, -(-len(order) // 3))
    best, rest = order[:each], order[each:]
    worst = rest[len(rest) - min(each, len(rest)) :]
    between = rest[: len(rest) - len(worst)]
    first = max(0, min(len(order) // 2 - each // 2 - len(best), len(between) - each))
    return dict(zip(GROUPS, (best, between[first : first + each], worst), strict=True))


def frames_of(loader: Iterable, rows: Iterable[int]) -> dict[int, np.ndarray]:
    """Frames (S, S, 3) uint8 of some rows of the manifest, by row, from another epoch of a loader.

    The epoch is read until all are found. It is a second pass over the split, because the pairs are chosen only after
    all have been scored. If the split is kept in memory, this pass decodes nothing.
    """
    wanted, found = {int(row) for row in rows}, {}
    for raw in loader if wanted else ():
        for at, row in enumerate(raw.index.tolist()):
            if row in wanted:
                found[row] = raw.frames[raw.rows[at]].cpu().numpy()
        if len(found) == len(wanted):
            break
    return found


def sounds_of(manifest, rows: list[int]) -> dict[int, bytes]:
    """The sounds of some rows of the test split, encoded, by row."""
    shards = Shards(manifest, ["test"])
    pcm = shards.read_sound(np.searchsorted(shards.rows, np.array(rows, np.int64)))
    pcm = pcm if pcm.dtype == np.int16 else to_pcm16(pcm)
    return {row: encode_sound(samples) for row, samples in zip(rows, pcm, strict=True)}


def save(path: Path, pictures: list[Picture]) -> None:
    """Write a gallery. At every moment, ``path`` is the old file or the new one. ValueError if there is no picture."""
    if not pictures:
        raise ValueError("a gallery needs a picture")
    jpegs = [np.frombuffer(picture.jpeg, np.uint8) for picture in pictures]
    with atomic_file(path) as file:
        np.savez(
            file,
            group=np.array([picture.group for picture in pictures]),
            key=np.array([picture.key for picture in pictures]),
            class_name=np.array([picture.class_name for picture in pictures]),
            ciou=np.array([picture.ciou for picture in pictures], np.float64),
            similarity=np.stack([picture.similarity for picture in pictures]).astype(np.float32),
            boxes=np.stack([picture.boxes for picture in pictures]).astype(np.int32),
            jpeg=np.concatenate(jpegs),
            jpeg_end=np.cumsum([len(jpeg) for jpeg in jpegs]),
            sound=np.frombuffer(b"".join(picture.sound for picture in pictures), np.uint8),
            sound_end=np.cumsum([len(picture.sound) for picture in pictures]),
        )


def load(path: Path) -> list[Picture]:
    """The pictures that :func:`save` wrote. InputError if the file cannot be read, is damaged, or of another kind."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): {WITHOUT}") from error
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
        jpegs = np.split(held["jpeg"], held["jpeg_end"][:-1])
        sounds = [np.empty(0, np.uint8)] * len(jpegs)
        if "sound" in held:
            sounds = np.split(held["sound"], held["sound_end"][:-1])
        columns = (held[name] for name in ("group", "key", "class_name", "ciou", "similarity", "boxes"))
        return [
            Picture(str(group), str(key), str(name), float(ciou), jpeg.tobytes(), similarity, boxes, sound.tobytes())
            for group, key, name, ciou, similarity, boxes, jpeg, sound in zip(*columns, jpegs, sounds, strict=True)
        ]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is not what train wrote ({error}): delete it, the report does without") from error


def encode(frame: np.ndarray) -> bytes:
    """A frame (S, S, 3) uint8 as a JPEG."""
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def write(out: Path, manifest, found, loader: Iterable, each: int) -> None:
    """Write both files.

    Args:
        out: the run directory.
        manifest: of the data, a `data.shards.Manifest`.
        found: the test split's `evaluate.Evaluation`.
        loader: batches of the test split, for the frames.
        each: pictures per group; 0 writes no gallery, and removes one that an earlier end of the run wrote.
    """
    rows, ciou = found.rows, found.ciou
    names = [manifest.classes[number] for number in manifest.class_id[rows]]
    keys = [manifest.key(row) for row in rows]
    with atomic_file(out / PAIRS) as file:
        for key, name, score in zip(keys, names, ciou.tolist(), strict=True):
            entry = {"key": key, "class": name, "ciou": None if np.isnan(score) else score}
            file.write(json.dumps(entry).encode() + b"\n")
    chosen = [(group, at) for group, places in pick(ciou, each).items() for at in places.tolist()]
    frames = frames_of(loader, (rows[at] for _, at in chosen))
    sounds = sounds_of(manifest, sorted(frames))
    pictures = [
        Picture(
            group,
            keys[at],
            names[at],
            float(ciou[at]),
            encode(frames[int(rows[at])]),
            found.similarity[at],
            np.asarray(manifest.boxes[rows[at]]),
            sounds[int(rows[at])],
        )
        for group, at in chosen
        if int(rows[at]) in frames
    ]
    if pictures:
        save(out / GALLERY, pictures)
    else:
        (out / GALLERY).unlink(missing_ok=True)
