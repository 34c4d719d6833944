"""What the headers of a video stream say, read without a decoder: coded size, range and matrix of its colours.

H.264 (ITU-T H.264, 7.3.2.1 and E.1.1), HEVC (ITU-T H.265, 7.3.2.2 and E.2.1) and VP9 (bitstream specification, 6.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from essl_fast.data.media.bits import Bits, unescaped

_HIGH = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}  # profiles of H.264 that state their chroma
_SHAPED_ASPECT = 255
_VP9_MATRICES = (2, 5, 1, 6, 7, 9, 3, 0)  # VP9's number of a colour space → H.273's of the matrix
_VP9_HEADER = 64  # bytes of a packet that are looked at
_BROKEN = (IndexError, ValueError)


class StreamHeader(NamedTuple):
    """What a stream says of its pictures.

    Attributes:
        width, height: as coded, pixels; a picture may be cut out of that.
        full: full range; None where it does not say.
        matrix: as H.273 numbers it; 2 where it does not say.
        fields: a picture may be coded as two fields.
        halved: chroma has half the size in both directions (4:2:0).
    """

    width: int
    height: int
    full: bool | None
    matrix: int
    fields: bool
    halved: bool


class H264Sequence(NamedTuple):
    """A sequence parameter set of H.264.

    Attributes:
        header: what it says of the pictures.
        planes: the planes of a picture are coded one by one.
        number_bits: of `frame_num` in a slice header.
        order_kind: `pic_order_cnt_type`; 2: pictures are shown in the order in which they are decoded.
        order_bits: of `pic_order_cnt_lsb` in a slice header, where the kind is 0.
    """

    header: StreamHeader
    planes: bool
    number_bits: int
    order_kind: int
    order_bits: int


def stream_header(codec: str, settings: bytes | None, packet: bytes) -> StreamHeader | None:
    """The header of a stream; None for another codec, and for a damaged one.

    Args:
        settings: the avcC or hvcC box.
        packet: a key frame.
    """
    try:
        if codec == "vp9":
            return _vp9(Bits(packet[:_VP9_HEADER]))
        if codec in ("h264", "hevc"):
            unit = next(parameter_sets(codec, settings or b""))
            return h264_sequence(unit).header if codec == "h264" else _hevc(Bits(unescaped(unit)))
    except (*_BROKEN, StopIteration):
        return None
    return None


def parameter_sets(codec: str, settings: bytes) -> Iterator[bytes]:
    """The sequence parameter sets, then the picture parameter sets, of an avcC box (ISO/IEC 14496-15, 5.3.3.1); the
    sequence parameter sets of an hvcC box (8.3.3.1). IndexError or ValueError if it is cut off."""
    if codec == "h264":
        at = 5
        for mask in (31, 255):
            count, at = settings[at] & mask, at + 1
            for _ in range(count):
                unit, at = _sized(settings, at)
                yield unit
        return
    at = 23
    for _ in range(settings[22]):
        kind, count, at = settings[at] & 63, int.from_bytes(settings[at + 1 : at + 3]), at + 3
        for _ in range(count):
            unit, at = _sized(settings, at)
            if kind == 33:
                yield unit


def _sized(data: bytes, at: int) -> tuple[bytes, int]:
    size = int.from_bytes(data[at : at + 2])
    if not 0 < size <= len(data) - at - 2:
        raise ValueError("a parameter set is cut off")
    return data[at + 2 : at + 2 + size], at + 2 + size


def h264_sequence(unit: bytes) -> H264Sequence:
    """Read a sequence parameter set, with its NAL header. IndexError or ValueError if it is damaged."""
    sps = Bits(unescaped(unit))
    sps.bits(8)
    profile = sps.bits(8)
    sps.bits(16)
    sps.ue()
    chroma, planes = 1, 0
    if profile in _HIGH:
        chroma = sps.ue()
        planes = sps.bits(chroma == 3)
        sps.skip_ue(2)
        sps.bits(1)
        if sps.bits(1):
            for number in range(12 if chroma == 3 else 8):
                if sps.bits(1):
                    _skip_scaling(sps, 16 if number < 6 else 64)
    number_bits = sps.ue() + 4
    order_kind, order_bits = sps.ue(), 0
    if order_kind == 0:
        order_bits = sps.ue() + 4
    elif order_kind == 1:
        sps.bits(1)
        sps.skip_ue(2)
        sps.skip_ue(sps.ue())
    sps.ue()
    sps.bits(1)
    width, rows = 16 * (sps.ue() + 1), 16 * (sps.ue() + 1)
    frames = sps.bits(1)
    sps.bits(not frames)
    sps.bits(1)
    if sps.bits(1):
        sps.skip_ue(4)
    full, matrix = _signal(sps) if sps.bits(1) else (None, 2)
    header = StreamHeader(width, rows * (2 - frames), full, matrix, not frames, chroma == 1)
    return H264Sequence(header, bool(planes), number_bits, order_kind, order_bits)


def _skip_scaling(sps: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + sps.se()) % 256
        last = following or last


def _signal(vui: Bits) -> tuple[bool | None, int]:
    """Full range and matrix out of the usability information, which begins alike in H.264 and HEVC."""
    if vui.bits(1) and vui.bits(8) == _SHAPED_ASPECT:
        vui.bits(32)
    if vui.bits(1):
        vui.bits(1)
    if not vui.bits(1):
        return None, 2
    vui.bits(3)
    full = bool(vui.bits(1))
    if not vui.bits(1):
        return full, 2
    vui.bits(16)
    return full, vui.bits(8)


def _hevc(sps: Bits) -> StreamHeader:
    sps.bits(16 + 4)
    layers = sps.bits(3)  # beside the first
    sps.bits(1)
    sps.bits(96)  # the general profile, tier and level
    present = [(sps.bits(1), sps.bits(1)) for _ in range(layers)]
    sps.bits(2 * (8 - layers) if layers else 0)
    for profile, level in present:
        sps.bits(88 * profile + 8 * level)
    sps.ue()
    chroma = sps.ue()
    sps.bits(chroma == 3)
    width, height = sps.ue(), sps.ue()
    if sps.bits(1):
        sps.skip_ue(4)
    sps.skip_ue(2)
    order_bits = sps.ue() + 4
    sps.skip_ue(3 * (layers + 1 if sps.bits(1) else 1))
    sps.skip_ue(6)
    if sps.bits(1) and sps.bits(1):
        _skip_hevc_scaling(sps)
    sps.bits(2)
    if sps.bits(1):
        sps.bits(8)
        sps.skip_ue(2)
        sps.bits(1)
    _skip_reference_sets(sps)
    if sps.bits(1):
        for _ in range(sps.ue()):
            sps.bits(order_bits + 1)
    sps.bits(2)
    full, matrix = _signal(sps) if sps.bits(1) else (None, 2)
    return StreamHeader(width, height, full, matrix, False, chroma == 1)


def _skip_hevc_scaling(sps: Bits) -> None:
    for size in range(4):
        for _ in range(2 if size == 3 else 6):
            if not sps.bits(1):
                sps.ue()
                continue
            if size > 1:
                sps.se()
            for _ in range(min(64, 1 << (4 + 2 * size))):
                sps.se()


def _skip_reference_sets(sps: Bits) -> None:
    """The short-term reference picture sets (H.265, 7.3.7)."""
    pictures: list[int] = []
    for number in range(sps.ue()):
        if number and sps.bits(1):
            sps.bits(1)
            sps.ue()
            kept = 0
            for _ in range(pictures[-1] + 1):
                used = sps.bits(1)
                kept += used or sps.bits(1)
            pictures.append(kept)
        else:
            count = sps.ue() + sps.ue()
            for _ in range(count):
                sps.ue()
                sps.bits(1)
            pictures.append(count)


def _vp9(frame: Bits) -> StreamHeader:
    if frame.bits(2) != 2:
        raise ValueError("no frame of VP9")
    profile = frame.bits(1) | frame.bits(1) << 1
    if profile == 3:
        frame.bits(1)
    if frame.bits(2):
        raise ValueError("no key frame")
    frame.bits(2 + 24)
    if profile >= 2:
        frame.bits(1)
    space = frame.bits(3)
    full = bool(frame.bits(1)) if space != 7 else True
    frame.bits((3 if space != 7 else 1) if profile & 1 else 0)
    return StreamHeader(frame.bits(16) + 1, frame.bits(16) + 1, full, _VP9_MATRICES[space], False, not profile & 1)
