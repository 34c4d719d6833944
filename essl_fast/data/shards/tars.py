"""A shard: a WebDataset tar file of pairs and its DALI index file, written and read.

The frame of a pair is a picture (JPEG or PNG) or a clip: a tiny MP4 of packets that were copied from the video, up to
the frame. The members of a pair are, in this order,

    {key}.jpg            {key}.s16  {key}.json  {key}.row     a picture
    {key}.png            {key}.s16  {key}.json  {key}.row     a picture that is stored without loss
    {key}.mp4 {key}.fid  {key}.s16  {key}.json  {key}.row     a clip

`.s16` is the sound, 48,000 little-endian int16 samples at 16 kHz; where 16 bits are not enough, it is `.f32`, as many
little-endian float32 samples. `.json` is what the annotations say. `.row` is the pair's row in the manifest, a
little-endian int64. `.fid` is two little-endian int32: which of the clip's frames, counted from 0 in display order, and
how many quarter turns counterclockwise put it upright. A shard may hold pictures and clips.

A shard is written under a temporary name, synced and renamed. The same pairs give the same bytes, whatever the time,
the user or the machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

import numpy as np

from essl_fast.common.errors import InputError, short
from essl_fast.common.files import atomic_file, parse_json, sync_folder

SPLITS = ("train", "val", "test")
JPEG, CLIP, PNG = 0, 1, 2  # the kinds of frame
_FRAMES = (("jpg",), ("mp4", "fid"), ("png",))  # the members of each kind
SOUNDS: dict[str, np.dtype] = {"s16": np.dtype("<i2"), "f32": np.dtype("<f4")}  # the types of sound
EXTENSIONS = tuple((*frame, sound, "json", "row") for sound in SOUNDS for frame in _FRAMES)
SAMPLES = 48_000  # 3 s at 16 kHz
PCM_BYTES = 2 * SAMPLES
INDEX_VERSION = "v1.2"  # the version of DALI's wds2idx format that is written here

_BLOCK = 512
_RECORD = 10_240  # tar files end on a multiple of this
_SPECIAL = re.compile(rb"[^A-Za-z0-9_-]")
_FID = struct.Struct("<ii")
LARGEST_FRAME = 1 << 28  # bytes; a JPEG of the largest picture that is decoded has a third of it
_SIZES = {"row": 8, "fid": 8, "json": 1 << 24} | {name: SAMPLES * of.itemsize for name, of in SOUNDS.items()}
_SIZES |= {names[0]: LARGEST_FRAME for names in _FRAMES}  # extension → most bytes
_LARGEST_INDEX = 1 << 30  # bytes; a pair takes 150
_GAP = 1 << 16  # most bytes between a frame and its sound: headers, the rest of a block, and `.fid`
_LONGEST_NAME = 1 << 16
_STEM = re.compile(r"[A-Za-z0-9_%-]+\.\w+")
_MAGIC = {b"\xff\xd8": JPEG, b"\x89P": PNG}  # how these files begin


def encode_key(key: str) -> str:
    """The key as the stem of a member's name: every byte except A-Za-z0-9_- is percent-encoded, so that no dot comes
    before the extension."""
    return _SPECIAL.sub(lambda byte: b"%%%02X" % ord(byte[0]), key.encode()).decode("ascii")


def decode_key(stem: str) -> str:
    """The key that `encode_key` made this stem of."""
    return unquote(stem, errors="strict")


def pair_crc(visual: bytes | memoryview, sound: bytes | memoryview) -> int:
    """CRC-32 of the stored bytes of a pair: its frame, then its sound."""
    return zlib.crc32(sound, zlib.crc32(visual))


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """A line of JSON in UTF-8 (or several, indented), with sorted keys: equal values give equal bytes."""
    separators = (",", ": ") if indent else (",", ":")
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)
    return text.encode() + b"\n"


class ShardWriter:
    """Writes the pairs of one split, in order, into shards of `pairs_per_shard`, each with its index file.

    It is a context manager: when the block ends, the last shard is closed; when it raises, the open shard is dropped.
    """

    def __init__(self, out: Path, split: str, pairs_per_shard: int = 1024, finished: Sequence[Mapping] = ()):
        """Begin. A manifest in the folder is removed, because the shards change from now on.

        Args:
            out: the folder.
            split: train, val or test.
            pairs_per_shard: at least 1.
            finished: entries, as `close` returns them, of the split's first shards, if these exist. The writer
                continues after them.

        Raises:
            InputError: `pairs_per_shard` is below 1.
            ValueError: there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"split is one of {SPLITS}, not {split!r}")
        if pairs_per_shard < 1:
            raise InputError(f"pairs_per_shard is at least 1, not {pairs_per_shard}")
        self.out, self.split, self.pairs_per_shard = Path(out), split, pairs_per_shard
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "manifest.json").unlink(missing_ok=True)
        self._shards: list[dict] = [dict(entry) for entry in finished]
        self._keys: set[str] = set()  # of the open shard
        self._next_row: int | None = None
        self._file: BinaryIO | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def add(
        self,
        key: str,
        visual: bytes,
        sound: bytes,
        meta: Mapping[str, Any],
        row: int,
        clip: tuple[int, int] | None = None,
    ) -> dict | None:
        """Append a pair.

        Args:
            key: unique in the folder.
            visual: a JPEG or PNG file or, if `clip` is given, an MP4 file.
            sound: 48,000 little-endian samples at 16 kHz, int16 or float32.
            meta: the content of the pair's .json.
            row: the pair's row in the manifest, one more than that of the pair before.
            clip: (which frame of the MP4, quarter turns counterclockwise that put it upright).

        Returns:
            The entry of the shard that this pair filled, which is synced; None if the shard is not full yet.

        Raises:
            ValueError: an argument is not as described.
        """
        if not key or key in self._keys:
            raise ValueError(f"{self.split}: key {key!r} is empty or was written before")
        kind = _MAGIC.get(bytes(visual[:2])) if clip is None else CLIP if visual[4:8] == b"ftyp" else None
        if kind is None:
            raise ValueError(f"{key}: the frame is not {'a JPEG or PNG' if clip is None else 'an MP4'} file")
        if clip is not None and not (clip[0] >= 0 and 0 <= clip[1] <= 3):
            raise ValueError(f"{key}: frame {clip[0]}, {clip[1]} quarter turns: no place in a clip")
        kept = next((name for name, of in SOUNDS.items() if len(sound) == SAMPLES * of.itemsize), None)
        if kept is None:
            raise ValueError(f"{key}: the sound has {len(sound)} bytes instead of {PCM_BYTES} (or twice that: float32)")
        if row < 0 or (self._next_row is not None and row != self._next_row):
            raise ValueError(f"{key}: row {row} does not follow row {(self._next_row or 0) - 1}")
        stem = encode_key(key)
        picture = (visual,) if clip is None else (visual, _FID.pack(*clip))
        members = (*picture, sound, json_bytes(dict(meta)), struct.pack("<q", row))
        if self._file is None:
            self._open()
        named = zip((*_FRAMES[kind], kept, "json", "row"), members, strict=True)
        self._lines.append(" ".join([self._member(f"{stem}.{ext}", ext, data) for ext, data in named]))
        self._keys.add(key)
        self._next_row = row + 1
        return self._finish() if len(self._lines) == self.pairs_per_shard else None

    def close(self) -> list[dict]:
        """Finish the last shard. Returns the manifest's entries of the split's shards: file, index, pairs, bytes,
        sha256."""
        if self._file is not None:
            self._finish()
        return self._shards

    def abort(self) -> None:
        """Drop the open shard. The finished ones stay."""
        if self._file is not None:
            self._file.close()
            self._partial.unlink(missing_ok=True)
            self._file = None

    def _open(self) -> None:
        name = f"{self.split}-{len(self._shards):05d}"
        self._tar, self._idx = self.out / f"{name}.tar", self.out / f"{name}.idx"
        self._partial = self.out / f".{name}.tar.partial"
        self._file = open(self._partial, "wb")
        self._hash, self._size = hashlib.sha256(), 0
        self._lines: list[str] = []

    def _write(self, data: bytes) -> None:
        assert self._file is not None  # `_open` has opened it
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    def _member(self, name: str, ext: str, data: bytes) -> str:
        info = tarfile.TarInfo(name)  # its mtime, uid and gid are 0, its names empty: the same bytes everywhere
        info.size = len(data)
        self._write(info.tobuf(tarfile.GNU_FORMAT))
        entry = f"{ext} {self._size} {len(data)} {name}"
        self._write(data + bytes(-len(data) % _BLOCK))
        return entry

    def _finish(self) -> dict:
        self._write(bytes(2 * _BLOCK))
        self._write(bytes(-self._size % _RECORD))
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        with atomic_file(self._idx) as file:
            file.write("\n".join([f"{INDEX_VERSION} {len(self._lines)}", *self._lines, ""]).encode())
        os.replace(self._partial, self._tar)
        sync_folder(self.out)
        self._keys.clear()
        self._shards.append(
            {
                "file": self._tar.name,
                "index": self._idx.name,
                "pairs": len(self._lines),
                "bytes": self._size,
                "sha256": self._hash.hexdigest(),
            }
        )
        return self._shards[-1]


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where the n pairs of a shard are. Offsets and sizes are (n,) int64, in bytes of the tar file."""

    stems: tuple[str, ...]  # of the members' names
    visual: np.ndarray  # (n,) uint8: JPEG, CLIP or PNG
    visual_offset: np.ndarray  # of .jpg, .mp4 or .png
    visual_size: np.ndarray
    s16_offset: np.ndarray  # of .s16 or .f32
    s16_size: np.ndarray


def read_index(path: Path) -> ShardIndex:
    """Read an index file that `ShardWriter` wrote (or DALI's wds2idx for its shards). InputError if it is not one."""
    try:
        if path.stat().st_size > _LARGEST_INDEX:
            raise ValueError(f"it has more than {_LARGEST_INDEX:,} bytes")
        lines = path.read_text(encoding="utf-8").splitlines()
        version, count = lines[0].split()
        if version != INDEX_VERSION or int(count) != len(lines) - 1:
            raise ValueError(f"it says {lines[0]!r} and has {len(lines) - 1} entries")
        stems, kinds = [], []
        places: list[str] = []
        for number, line in enumerate(lines[1:], 2):
            words = line.split()  # extension, offset, size, name of each member
            extensions = tuple(words[0::4])
            if extensions not in EXTENSIONS:
                known = " or ".join(", ".join(names) for names in EXTENSIONS)
                raise ValueError(f"line {number} does not list {known}")
            sound = 4 * (len(extensions) - 3)
            stems.append(words[3].removesuffix("." + extensions[0]))
            kinds.append(EXTENSIONS.index(extensions) % len(_FRAMES))
            places += words[1], words[2], words[sound + 1], words[sound + 2]
        columns = np.array(list(map(int, places)), np.int64).reshape(-1, 4).T.copy()
        frame, frame_size, sound_at, sound_size = columns
        ends = np.maximum(frame + frame_size, sound_at + sound_size)
        if (columns < 0).any() or (columns >= 1 << 62).any() or (frame[1:] < ends[:-1]).any():
            raise ValueError("its pairs do not follow one another")
        gap = sound_at - frame - frame_size
        if (frame_size > LARGEST_FRAME).any() or not ((gap >= 0) & (gap <= _GAP)).all():
            raise ValueError(f"a frame has more than {LARGEST_FRAME:,} bytes, or its sound is not behind it")
    except (OSError, ValueError, IndexError, OverflowError) as error:
        raise InputError(f"index file {path} cannot be used ({error}): run prepare again on {path.parent}") from error
    return ShardIndex(tuple(stems), np.array(kinds, np.uint8), *columns)


def iterate(tar_path: str | Path) -> Iterator[dict[str, Any]]:
    """The pairs of a shard, in order. One pair at a time is read.

    Yields:
        {"key": str, "s16" or "f32": bytes, "json": dict, "row": int} with "jpg" or "png": bytes, or with "mp4": bytes,
        "target": int, "quarters": int.

    Raises:
        InputError: the file has anything that `ShardWriter` does not write: links, devices, folders, sparse files,
            extended headers, names with a path, members without a pair, twice, or larger than the file.
    """
    path, seen = Path(tar_path), set()
    try:
        with open(path, "rb") as file:
            group: list[tuple[str, bytes]] = []
            stem = ""
            for name, data in _members(file):
                if name in seen:
                    raise ValueError(f"it has {name!r} twice")
                seen.add(name)
                begin, _, ext = name.partition(".")
                if begin != stem and group:
                    yield _pair(stem, group)
                    group = []
                stem = begin
                group.append((ext, data))
            if group:
                yield _pair(stem, group)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise InputError(f"shard {path} cannot be read ({error}): run prepare again") from error


def _members(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each member. ValueError or TarError for anything that `ShardWriter` does not write.

    `tarfile` only parses the headers, one at a time. It does not search the members, because it follows links, sparse
    maps and extended headers, and trusts any size.
    """
    left, long_name = os.fstat(file.fileno()).st_size, None
    while (block := file.read(_BLOCK)) != bytes(_BLOCK):
        left -= len(block)
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        name = info.name if long_name is None else long_name
        _, _, ext = name.partition(".")
        most = _LONGEST_NAME if info.type == tarfile.GNUTYPE_LONGNAME else _SIZES.get(ext, -1)
        if most < 0 or (info.type != tarfile.GNUTYPE_LONGNAME and not _is_member(info, name)):
            raise ValueError(f"it has {short(name)}, no member of a shard")
        if not 0 <= info.size <= min(most, left):
            raise ValueError(f"{short(name)} has {info.size:,} bytes")
        data = file.read(info.size)
        left -= len(data) + len(file.read(-info.size % _BLOCK))
        if info.type == tarfile.GNUTYPE_LONGNAME:
            if long_name is not None:
                raise ValueError(f"{short(name)} has two names")
            long_name = data.rstrip(b"\0").decode("ascii")
            continue
        yield name, data
        long_name = None
    if long_name is not None:
        raise ValueError(f"it ends where {short(long_name)} should be")


def _is_member(info: tarfile.TarInfo, name: str) -> bool:
    return info.type == tarfile.REGTYPE and _STEM.fullmatch(name) is not None


def _pair(stem: str, group: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    members = dict(group)
    if tuple(members) not in EXTENSIONS or len(members["row"]) != 8 or len(members.get("fid", bytes(8))) != 8:
        known = " or ".join(", ".join(names) for names in EXTENSIONS)
        raise ValueError(f"{short(stem)} has {', '.join(members)} instead of {known}")
    pair = {"key": decode_key(stem), **members, "json": parse_json(members["json"])}
    if not isinstance(pair["json"], dict):
        raise ValueError(f"{short(stem)}.json is no object")
    sound = tuple(members)[-3]
    if len(members[sound]) != SAMPLES * SOUNDS[sound].itemsize:
        raise ValueError(f"{short(stem)}.{sound} has {len(members[sound])} bytes, not {SAMPLES} samples")
    pair["row"] = struct.unpack("<q", members["row"])[0]
    if "fid" in members:
        pair["target"], pair["quarters"] = _FID.unpack(pair.pop("fid"))
    return pair
