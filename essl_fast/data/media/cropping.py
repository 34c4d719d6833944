"""The part of a picture that its container asks players to show: Matroska's PixelCrop elements, and `clap` in MP4.

Players cut it out; FFmpeg's libraries only report it, and PyAV does not pass that on. So the header of the file is read
here. What cannot be read is not cropped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

Crop = tuple[int, int, int, int]  # pixels at the left, top, right and bottom
NO_CROP: Crop = (0, 0, 0, 0)

_LONGEST = 16 << 20  # bytes of a header
_BROKEN = (struct.error, IndexError, ValueError, OverflowError, ZeroDivisionError)
# Matroska (RFC 9559): Segment; Tracks, TrackEntry, Video; PixelCropLeft, Top, Right, Bottom.
_SEGMENT, _INSIDE, _CROPS = 0x18538067, (0x1654AE6B, 0xAE, 0xE0), (0x54CC, 0x54BB, 0x54DD, 0x54AA)
_TRACK, _VIDEO, _CLUSTER = 0xAE, 0xE0, 0x1F43B675


def of_file(path: Path, formats: set[str], width: int, height: int) -> Crop:
    """The cropping of a file's picture.

    Args:
        path: the file.
        formats: FFmpeg's names of its format.
        width, height: of the decoded picture, pixels.
    """
    try:
        with open(path, "rb") as file:
            if formats & {"matroska", "webm"}:
                found = _of_matroska(file)
            elif formats & {"mov", "mp4"}:
                found = _of_mp4(file, width, height)
            else:
                return NO_CROP
    except _BROKEN:
        return NO_CROP
    left, top, right, bottom = found
    return found if min(found) >= 0 and left + right < width and top + bottom < height else NO_CROP


# ---------------------------------------------------------------- Matroska


def _of_matroska(file) -> Crop:
    """The cropping of the first video track."""
    at, end = 0, file.seek(0, 2)
    while at < end:  # the header, then the segment, whose elements are looked through up to the first cluster
        kind, begin, size = _element(file, at)
        if kind == _CLUSTER:
            return NO_CROP
        if kind == _INSIDE[0]:
            file.seek(begin)
            return _of_tracks(file.read(min(size, _LONGEST)))
        at = begin if kind == _SEGMENT else begin + size
    return NO_CROP


def _element(file, at: int) -> tuple[int, int, int]:
    """(identifier, where the content begins, its bytes) of the element at `at`."""
    file.seek(at)
    head = file.read(12)
    kind, count = _number(head, 0, keep=True)
    size, more = _number(head, count)
    return kind, at + count + more, size


def _number(data: bytes, at: int, keep: bool = False) -> tuple[int, int]:
    """(an EBML number, its bytes); keep: with the bit that marks its length. An unknown size is a very large one."""
    count = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + count])
    return (value if keep else value & (1 << 7 * count) - 1), count


def _children(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        kind, count = _number(data, at, keep=True)
        size, more = _number(data, at + count)
        begin = at + count + more
        yield kind, data[begin : begin + size]
        at = begin + size


def _of_tracks(data: bytes) -> Crop:
    for kind, track in _children(data):
        video = dict(_children(track)).get(_VIDEO) if kind == _TRACK else None
        if video is not None:
            values = dict(_children(video))
            left, top, right, bottom = (int.from_bytes(values.get(name, b"")) for name in _CROPS)
            return left, top, right, bottom
    return NO_CROP


# ---------------------------------------------------------------- MP4


def _of_mp4(file, width: int, height: int) -> Crop:
    """The clean aperture of the first video track (ISO/IEC 14496-12, 12.1.4)."""
    at, end = 0, file.seek(0, 2)
    while at + 8 <= end:
        file.seek(at)
        size, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            (size,), head = struct.unpack(">Q", file.read(8)), 16
        size = size or end - at
        if kind == b"moov":
            return _of_movie(file.read(min(size - head, _LONGEST)), width, height)
        at += max(size, head)
    return NO_CROP


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8:
            return
        yield kind, data[at + 8 : at + size]
        at += size


def _of_movie(data: bytes, width: int, height: int) -> Crop:
    for kind, track in _boxes(data):
        media = dict(_boxes(track)).get(b"mdia", b"") if kind == b"trak" else b""
        parts = dict(_boxes(media))
        if parts.get(b"hdlr", b"")[8:12] != b"vide":
            continue
        table = dict(_boxes(dict(_boxes(parts[b"minf"])).get(b"stbl", b"")))
        entry = table[b"stsd"][16:]  # behind version, count, and the entry's size and type
        clap = dict(_boxes(entry[78:])).get(b"clap")
        return _of_aperture(struct.unpack(">8i", clap[:32]), width, height) if clap else NO_CROP
    return NO_CROP


def _of_aperture(clap: tuple[int, ...], width: int, height: int) -> Crop:
    """The cropping by a clean aperture: its width, height, and how far its centre is right of and below the middle."""
    wide, high, right, down = (clap[at] / clap[at + 1] for at in range(0, 8, 2))
    left, top = (width - wide) / 2 + right, (height - high) / 2 + down
    return round(left), round(top), round(width - wide - left), round(height - high - top)
