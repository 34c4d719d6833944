"""What the header of a video packet tells without decoding: is it shown, do others need it, can decoding start here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# NAL unit types: slices, which hold the picture; and units that change nothing (SEI, delimiter, filler).
_H264_SLICES, _H264_OTHERS = range(1, 6), (6, 9, 12)
_HEVC_SLICES, _HEVC_OTHERS = range(32), (35, 38, 39, 40)
HIDING = ("vp8", "vp9")  # codecs whose packets may hold a picture that is not shown
_SEI, _HEVC_SEI, _RECOVERY_POINT, _USER_DATA = 6, (39, 40), 6, b"\5"


class Packet(NamedTuple):
    """A packet of one picture. pts: tick at which it is shown; key: is it a key frame; layer, needed: as `layer_of`."""

    pts: int
    key: bool
    data: bytes
    layer: int
    needed: bool


def is_hidden(codec: str, data) -> bool:
    """Whether a packet (bytes-like) of VP8 or VP9 is not shown; it only changes later pictures.

    VP8: RFC 6386, 9.1. VP9: bitstream specification, 6.2; a superframe (Annex B), which its last byte marks, is shown.
    """
    first, last = memoryview(data)[0], memoryview(data)[-1]
    if codec == "vp8":
        return not first >> 4 & 1
    if codec != "vp9" or last >> 5 == 0b110:
        return False
    return not _shows_again(first) and not first >> (1 if first >> 4 & 3 != 3 else 0) & 1


def is_repeat(codec: str, data) -> bool:
    """Whether a packet of VP9 holds no picture but shows one that was decoded before (show_existing_frame)."""
    return codec == "vp9" and _shows_again(memoryview(data)[0])


def _shows_again(first: int) -> bool:
    return bool(first >> (3 if first >> 4 & 3 != 3 else 2) & 1)  # profile 3 has a reserved bit before it


def lean_settings(codec: str, settings: bytes) -> bytes:
    """An hvcC box (ISO/IEC 14496-15, 8.3.3.1) without the texts of encoders about themselves (x265: 2 KB).

    Settings of other codecs, and damaged ones, are returned as they are.
    """
    if codec != "hevc" or not length_size(codec, settings):
        return settings
    kept, at = [], 23
    for _ in range(int.from_bytes(settings[22:23])):
        begin, kind, count = at, int.from_bytes(settings[at : at + 1]) & 63, int.from_bytes(settings[at + 1 : at + 3])
        about, at = kind in _HEVC_SEI, at + 3
        for _ in range(count):
            about = about and settings[at + 4 : at + 5] == _USER_DATA  # after the NAL unit's length and header
            at += 2 + int.from_bytes(settings[at : at + 2])
        if not about:
            kept.append(settings[begin:at])
    return settings[:22] + bytes([len(kept)]) + b"".join(kept) if at == len(settings) else settings


def length_size(codec: str, settings: bytes | None) -> int:
    """Bytes of the length field before each NAL unit, from the stream's avcC or hvcC box; 0 if it is neither."""
    at = {"h264": 4, "hevc": 21}.get(codec)
    return (settings[at] & 3) + 1 if at and settings and settings[0] == 1 and len(settings) > at else 0


def is_gradual(codec: str, data: bytes, settings: bytes | None) -> bool:
    """Whether an H.264 packet that its file calls a key frame only begins a gradual refresh.

    Then a stripe of every picture is intra-coded, but no whole picture, and a decoder gives correct pictures only some
    frames later. H.264, D.1.8: the SEI message 6 (recovery point) counts these frames.
    """
    if codec != "h264":
        return False
    flag = _recovery_flag(data, length_size(codec, settings))
    return flag is not None and flag & 0x80 == 0  # an Exp-Golomb code: 1 means 0, 0... means more


def is_recovery_point(data: bytes, size: int) -> bool:
    """Whether an H.264 packet, with `size` bytes before each unit, says that decoding can begin at it (D.1.8)."""
    return _recovery_flag(data, size) is not None


def _recovery_flag(data: bytes, size: int) -> int | None:
    """The first byte of the recovery point in an H.264 packet; None if it has none. size 0: units have start codes."""
    for unit, end in units(data, size) if size else marked_units(data):
        at = unit + 1
        while data[unit] & 31 == _SEI and at + 2 < end:  # up to the trailing bits
            kind, at = _sei_number(data, at)
            length, at = _sei_number(data, at)
            if kind == _RECOVERY_POINT and at < end:
                return data[at]
            at += length
    return None


def layer_of(codec: str, data: bytes, settings: bytes | None) -> tuple[int, bool]:
    """The temporal layer of a picture, and whether later pictures of the same layer may refer to it.

    A picture refers to no layer above its own. H.264, 7.4.1: nal_ref_idc, and all pictures count as one layer here.
    HEVC, 7.4.2.2: TemporalId, and the sub-layer non-reference pictures. The second answer is True for packets that also
    hold parameter sets, for damaged ones, for other codecs, and for packets in another layout than MP4 and Matroska's.
    """
    layer, needed, found = 0, None, list(units(data, length_size(codec, settings)))
    for unit, _ in found:
        others: tuple[int, ...]
        if codec == "h264":
            kind, slices, others = data[unit] & 31, _H264_SLICES, _H264_OTHERS
            refers = data[unit] & 0x60 != 0
        else:
            kind, slices, others = data[unit] >> 1, _HEVC_SLICES, _HEVC_OTHERS
            refers = kind >= 16 or kind & 1 == 1
        if kind in slices:
            needed = needed or refers
            layer = layer if codec == "h264" else (data[unit + 1] & 7) - 1
        elif kind not in others:
            needed = True
    return layer, needed or needed is None or found[-1][1] != len(data)


def units(data: bytes, size: int) -> Iterator[tuple[int, int]]:
    """Where each NAL unit of at least two bytes begins and ends in a packet of H.264 or HEVC; the last may end past the
    data. size: bytes of the length before each; 0 gives none."""
    at = 0
    while size and at + size + 2 <= len(data):
        unit = at + size
        at = unit + int.from_bytes(data[at:unit])
        if at > unit:
            yield unit, at


def marked_units(data: bytes) -> Iterator[tuple[int, int]]:
    """As `units`, where start codes stand before them (Annex B, as in transport streams)."""
    at = data.find(b"\0\0\1")
    while 0 <= at < len(data) - 3:
        following = data.find(b"\0\0\1", at + 3)
        yield at + 3, following if following >= 0 else len(data)
        at = following


def _sei_number(data: bytes, at: int) -> tuple[int, int]:
    """The type or size of an SEI message, and where the next byte is. Bytes missing from a damaged one count as 0."""
    total = 0
    while at < len(data) - 1 and data[at] == 255:
        total, at = total + 255, at + 1
    return total + (data[at] if at < len(data) else 0), at + 1
