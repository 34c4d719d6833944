"""Where a clip may begin: at a packet from which a decoder that has seen nothing else gives correct pictures.

| codec | begins at                                             | put in front of it where it is missing              |
| ----- | ----------------------------------------------------- | --------------------------------------------------- |
| H.264 | an IDR picture, or a recovery point that counts 0     | SPS and PPS, at a recovery point (open groups)      |
| HEVC  | IDR, BLA or CRA; `groups` leaves out leading pictures | nothing: DALI's `hevc_mp4toannexb` does at all three |
| VP9   | a key frame                                           | nothing: it holds all settings                      |
| AV1   | a key frame that is shown                             | the sequence header                                 |
| MJPEG | every picture                                         | nothing                                             |

Files mark key frames themselves, and not always such. Why the parameter sets: NVDEC's parser begins with those in the
stream. DALI 2.4 (dali/operators/video/frames_decoder_gpu.cc) gives it the avcC box as it is, which the parser cannot
read, and passes packets through FFmpeg's `h264_mp4toannexb`, which puts SPS and PPS in front of IDR pictures only. At
another start the parser finds no settings and calls no decoder; at the end of the file `ReadNextFrameWithIndex` returns
as if it had a frame, and the output holds whatever was in that memory.
"""

from __future__ import annotations

from essl_fast.data.media.headers import parameter_sets
from essl_fast.data.media.packets import is_gradual, is_recovery_point, length_size, units

_H264_IDR, _H264_SPS, _H264_DELIMITER, _H264_SLICES = 5, 7, 9, range(1, 6)
_HEVC_SLICES, _HEVC_STARTS = range(32), range(16, 22)
_AV1_SEQUENCE, _AV1_DELIMITER, _AV1_FRAMES = 1, 2, (3, 6)
_NO_START = "its key frame is none that decoding can begin at"


def as_first(codec: str, data: bytes, settings: bytes | None) -> tuple[bytes, str]:
    """A packet as the first of a clip.

    Args:
        codec: FFmpeg's name.
        data: the packet, as the video or an older clip holds it.
        settings: the decoder's, as the file states them.

    Returns:
        (the packet, with what a decoder needs in front of its picture; "" or why no clip can begin with it).
    """
    if codec in ("h264", "hevc"):
        size = length_size(codec, settings)
        return (_h264 if codec == "h264" else _hevc)(data, settings or b"", size)
    if codec == "vp9":
        first = data[0] if data else 0
        kind = first >> (2 if first >> 4 & 3 != 3 else 1) & 3  # show_existing_frame and frame_type, both 0
        return data, "" if first >> 6 == 2 and not kind else _NO_START
    if codec == "av1":
        return _av1(data, settings or b"")
    return data, ""


def has_two_pictures(codec: str, data: bytes, settings: bytes | None) -> bool:
    """Whether an H.264 packet holds two fields, each coded as a picture: two slices begin at the first macroblock."""
    if codec != "h264":
        return False
    found = units(data, length_size(codec, settings))
    return sum(data[unit] & 31 in _H264_SLICES and data[unit + 1] >> 7 for unit, _ in found) > 1


def _h264(data: bytes, settings: bytes, size: int) -> tuple[bytes, str]:
    kinds = [(data[unit] & 31, end) for unit, end in units(data, size)]
    if any(kind == _H264_IDR for kind, _ in kinds):
        return data, ""
    if not is_recovery_point(data, size) or is_gradual("h264", data, settings):
        return data, _NO_START
    if any(kind == _H264_SPS for kind, _ in kinds):
        return data, ""
    try:
        sets = list(parameter_sets("h264", settings))
    except (IndexError, ValueError):
        sets = []
    if len(sets) < 2:
        return data, "its parameter sets are missing"
    at = kinds[0][1] if kinds[0][0] == _H264_DELIMITER else 0  # a delimiter stays the first unit
    return data[:at] + b"".join(len(unit).to_bytes(size) + unit for unit in sets) + data[at:], ""


def _hevc(data: bytes, settings: bytes, size: int) -> tuple[bytes, str]:
    kinds = (data[unit] >> 1 & 63 for unit, _ in units(data, size))
    first = next((kind for kind in kinds if kind in _HEVC_SLICES), None)
    return data, "" if first in _HEVC_STARTS else _NO_START


def _av1(data: bytes, settings: bytes) -> tuple[bytes, str]:
    """AV1 bitstream specification, 5.3 and 5.9.2; the av1C box: AV1 in ISO-BMFF, 2.3."""
    at, begin, sequence = 0, 0, False
    while at + 1 < len(data):
        head, unit = data[at], at + 1 + (data[at] >> 2 & 1)
        kind, length = head >> 3 & 15, len(data) - unit
        if head & 2:
            length, unit = _leb128(data, unit)
        if kind == _AV1_DELIMITER:
            begin = unit + length
        sequence = sequence or kind == _AV1_SEQUENCE
        if kind in _AV1_FRAMES:
            shown = unit < len(data) and data[unit] >> 4 == 0b0001  # no repeat, a key frame, and it is shown
            if not shown:
                return data, _NO_START
            if sequence:
                return data, ""
            if not settings[4:]:
                return data, "its sequence header is missing"
            return data[:begin] + settings[4:] + data[begin:], ""
        at = unit + length
    return data, _NO_START


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """A number of AV1 and where the next byte is."""
    value = 0
    for place in range(8):
        byte = data[at + place] if at + place < len(data) else 0
        value |= (byte & 127) << 7 * place
        if not byte & 128:
            return value, at + place + 1
    return value, at + 8
