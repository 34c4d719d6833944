"""Clips as MP4 files (ISO/IEC 14496-12): writes packets into one, and reads its index.

The sample description (codec, size, colour, parameter sets) and the display matrix are what FFmpeg's MP4 muxer writes
for the stream, once per video. The sample table of each clip is written here. The pictures of a clip are spaced evenly:
only their order counts, so the gaps, edit lists and missing times of the original are not copied.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, groupby

import av

from essl_fast.data.media import colours, opening
from essl_fast.data.media.display import Matrix, quarters
from essl_fast.data.media.errors import NO_CLIP, UNREADABLE, MediaError
from essl_fast.data.media.headers import stream_header
from essl_fast.data.media.packets import Packet, lean_settings, length_size
from essl_fast.data.media.probing import Probe

_CODECS = {b"avc1": "h264", b"hev1": "hevc", b"vp09": "vp9", b"av01": "av1", b"mp4v": "mjpeg"}  # sample entry → codec
_SETTINGS = {"h264": b"avcC", "hevc": b"hvcC", "av1": b"av1C"}  # the box in it that the decoder reads
_PARENTS = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl"))  # boxes that hold only boxes
_FULL = 2  # FFmpeg's number of full range
_FTYP = b"\0\0\0\x18ftypisom\0\0\2\0isommp42"
_BROKEN = (struct.error, IndexError, KeyError, ValueError)  # raised where a box that is read is not there


@dataclass(frozen=True)
class ClipHeader:
    """What all clips of a video share.

    Attributes:
        name: of the video file, for errors.
        boxes: type → box of the MP4 header, complete.
        rate: mean frames per second.
        quarters: counterclockwise quarter turns that make a decoded frame upright.
        settings: the decoder's, as the video stream states them.
        fields: a packet may hold two fields, each coded as a picture.
    """

    name: str
    boxes: dict[bytes, bytes]
    rate: Fraction
    quarters: int
    settings: bytes
    fields: bool

    @classmethod
    def of(cls, container, found: Probe) -> ClipHeader:
        """The header for an open video. MediaError with NO_CLIP if an MP4 of its packets would decode differently."""
        name = found.path.name
        if found.codec not in _CODECS.values():
            raise MediaError(NO_CLIP, f"{name}: its codec {found.codec} is none of {', '.join(_CODECS.values())}")
        if found.counted:
            raise MediaError(NO_CLIP, f"{name}: its times do not tell which packet is which frame ({found.counted})")
        if any(found.crop):
            raise MediaError(NO_CLIP, f"{name}: its container crops the picture, which no decoder does")
        video = opening.video_stream(container, found.path)
        settings = video.codec_context.extradata or b""
        if found.codec in ("h264", "hevc") and not length_size(found.codec, settings):
            raise MediaError(NO_CLIP, f"{name}: its parameter sets are not stored as in MP4 and Matroska")
        options = {"fflags": "+bitexact", "movflags": "empty_moov", "write_btrt": "0"}
        written = io.BytesIO()
        try:
            with av.open(written, "w", format="mp4", options=options) as file:
                copy = file.add_stream_from_template(video, opaque=True)
                if settings:
                    copy.codec_context.extradata = lean_settings(found.codec, settings)
                file.start_encoding()
        except av.FFmpegError as error:
            what = opening.error_text(error)
            raise MediaError(NO_CLIP, f"{name}: its packets do not go into an MP4 ({what})") from error
        boxes = {kind: bytes(box) for kind, box in header_boxes(written.getvalue()).items()}
        turns = quarters(_matrix(boxes[b"tkhd"]))
        if turns is None:
            raise MediaError(NO_CLIP, f"{name}: it asks players to mirror it")
        rate = Fraction(found.frame_rate or 25).limit_denominator(1001)
        rate = min(max(rate, Fraction(1, 1000)), Fraction(1000))
        colour = video.codec_context.colorspace, video.codec_context.color_range
        boxes[b"stsd"] = _coloured(boxes[b"stsd"], found, *map(int, colour))
        stream = stream_header(found.codec, settings, b"")
        return cls(name, boxes, rate, turns, settings, stream is not None and stream.fields)

    def write(self, packets: Sequence[Packet], shown: Sequence[int]) -> bytes:
        """An MP4 file of packets, which are in the order of decoding; `shown`: position of each in that of showing."""
        payload = [packet.data for packet in packets]
        count, scale, step = len(payload), self.rate.numerator, self.rate.denominator
        late = max(place - rank for place, rank in enumerate(shown))  # frames that decoding is ahead of showing
        delays = [(rank - place + late) * step for place, rank in enumerate(shown)]
        sync = [place for place, packet in enumerate(packets, 1) if packet.key]
        duration = struct.pack(">I", count * step)
        pace = struct.pack(">I", scale) + duration
        table = [self.boxes[b"stsd"], _box(b"stts", struct.pack(">4I", 0, 1, count, step))]
        if late:
            runs = [(len(list(run)), delay) for delay, run in groupby(delays)]
            flat = [number for run in runs for number in run]
            table.append(_box(b"ctts", struct.pack(f">2I{len(flat)}I", 0, len(runs), *flat)))
        table += [
            _box(b"stss", struct.pack(f">2I{len(sync)}I", 0, len(sync), *sync)),
            _box(b"stsz", struct.pack(f">3I{count}I", 0, 0, count, *map(len, payload))),
            _box(b"stsc", struct.pack(">5I", 0, 1, 1, count, 1)),
            _box(b"stco", struct.pack(">3I", 0, 1, 0)),
        ]
        edit = struct.pack(">2I", 0, 1) + duration + struct.pack(">2I", late * step, 1 << 16)
        media_info = _box(b"minf", self.boxes[b"vmhd"], self.boxes[b"dinf"], _box(b"stbl", *table))
        track = _box(
            b"trak",
            _patched(self.boxes[b"tkhd"], 28, duration),
            _box(b"edts", _box(b"elst", edit)) if late else b"",
            _box(b"mdia", _patched(self.boxes[b"mdhd"], 20, pace), self.boxes[b"hdlr"], media_info),
        )
        head = _FTYP + _box(b"moov", _patched(self.boxes[b"mvhd"], 20, pace), track)
        begin = struct.pack(">2I4s", len(head) + 8, 8 + sum(map(len, payload)), b"mdat")  # head ends with stco's entry
        return b"".join([head[:-4], begin, *payload])


@dataclass(frozen=True)
class ClipIndex:
    """What the header of a clip says.

    Attributes:
        codec: FFmpeg's name.
        settings: the decoder's, or None if the codec has none.
        width, height: pixels, before the picture is turned.
        colour: primaries, transfer, matrix and range as FFmpeg numbers them, or None.
        matrix: the display matrix.
        begins: byte at which each packet begins, and the byte at which the last ends.
        shown: position of each packet, from 0, in the order of showing.
    """

    codec: str
    settings: bytes | None
    width: int
    height: int
    colour: tuple[int, int, int, int] | None
    matrix: Matrix
    begins: list[int]
    shown: list[int]


def read_index(data: bytes) -> ClipIndex:
    """The index of a clip. MediaError if `data` is no clip, or is cut off."""
    try:
        return _read_index(data)
    except _BROKEN as error:
        raise MediaError(UNREADABLE, f"a clip of {len(data)} bytes is cut off or no clip: {error!r}") from error


def _read_index(data: bytes) -> ClipIndex:
    boxes = header_boxes(data)
    stsd = boxes[b"stsd"][16:]
    inner = header_boxes(stsd[86:])
    codec = _CODECS[bytes(stsd[4:8])]
    settings = bytes(inner[_SETTINGS[codec]][8:]) if codec in _SETTINGS else None
    width, height = struct.unpack_from(">2H", stsd, 32)
    colour = None
    if b"colr" in inner and inner[b"colr"][8:12] == b"nclx":
        *kinds, full = struct.unpack_from(">3HB", inner[b"colr"], 12)
        colour = (*kinds, 2 if full >> 7 else 1)
    (count,) = struct.unpack_from(">I", boxes[b"stsz"], 16)
    sizes = struct.unpack_from(f">{count}I", boxes[b"stsz"], 20)
    (begin,) = struct.unpack_from(">I", boxes[b"stco"], 16)
    begins = list(accumulate(sizes, initial=begin))
    if begins[-1] != len(data):
        raise ValueError(f"its packets end at {begins[-1]}")
    shown = list(range(count))
    if b"ctts" in boxes:
        (step,) = struct.unpack_from(">I", boxes[b"stts"], 20)
        (runs,) = struct.unpack_from(">I", boxes[b"ctts"], 12)
        flat = struct.unpack_from(f">{2 * runs}I", boxes[b"ctts"], 16)
        if sum(flat[::2]) != count:
            raise ValueError(f"it says when {sum(flat[::2])} of its {count} frames are shown")
        delays = [delay for run, delay in zip(flat[::2], flat[1::2], strict=True) for _ in range(run)]
        times = [place * step + delay for place, delay in zip(range(count), delays, strict=True)]
        rank = {time: place for place, time in enumerate(sorted(times))}
        shown = [rank[time] for time in times]
    return ClipIndex(codec, settings, width, height, colour, _matrix(boxes[b"tkhd"]), begins, shown)


def _coloured(stsd: bytes, found: Probe, stated: int, range_: int) -> bytes:
    """A sample description that says by which matrix the pictures become RGB, wherever that is not BT.601."""
    matrix = colours.matrix_of(stated, found.height)
    if found.codec == "mjpeg" or b"colr" in header_boxes(stsd[16 + 86 :]) or not colours.differs(matrix):
        return stsd
    colr = _box(b"colr", b"nclx", struct.pack(">3HB", 2, 2, matrix, (range_ == _FULL) << 7))  # 2: not stated
    entry = stsd[16:] + colr
    return _patched(
        _patched(stsd[:16], 0, struct.pack(">I", 16 + len(entry))) + entry, 16, struct.pack(">I", len(entry))
    )


def header_boxes(data, parents: frozenset[bytes] = _PARENTS) -> dict[bytes, memoryview]:
    """Type → complete box, of the boxes in `data` (bytes-like) and in those of the types `parents`.

    A box inside another box of its own type is not entered. The first box of a type counts.
    ValueError: a box says that it has fewer bytes than its own header.
    """
    view, at = memoryview(data), 0
    found: dict[bytes, memoryview] = {}
    while at + 8 <= len(view):
        size, kind = struct.unpack_from(">I4s", view, at)
        if size < 8:
            raise ValueError(f"box {kind!r} has {size} bytes")
        if kind in parents:
            found = header_boxes(view[at + 8 : at + size], parents - {kind}) | found
        else:
            found.setdefault(kind, view[at : at + size])
        at += size
    return found


def _box(kind: bytes, *parts: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, parts)), kind) + b"".join(parts)


def _patched(box: bytes, at: int, new: bytes) -> bytes:
    return box[:at] + new + box[at + len(new) :]


def _matrix(tkhd) -> Matrix:
    """a, b, c, d of the display matrix in a track header box."""
    a, b, _, c, d = struct.unpack_from(">5i", tkhd, 48)
    return a, b, c, d
