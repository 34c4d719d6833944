"""Files of fields, and H.264 that no encoder of PyAV makes: a packet a field, and P pictures that change their order.

That is written bit by bit. Every macroblock is I_PCM, so what is drawn comes out of the decoder as it was. ITU-T H.264:
7.3.2.1 (sequence parameter set), 7.3.2.2 (picture parameter set), 7.3.3 (slice header), 7.3.5 (macroblocks), E.1.1
(usability information).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.tools.media import make_video, numbered

_GROUP = 5  # pictures from one key frame to the next, of fields
_ORDER_BITS = 6


class _Writer:
    """Collects bits."""

    def __init__(self):
        self.bits: list[str] = []

    def fixed(self, value: int, count: int) -> None:
        self.bits.append(f"{value:0{count}b}")

    def golomb(self, *values: int) -> None:
        for value in values:
            code = f"{value + 1:b}"
            self.bits.append("0" * (len(code) - 1) + code)

    def align(self) -> None:
        self.bits.append("0" * (-len("".join(self.bits)) % 8))

    def unit(self, head: int, tail: bytes = b"") -> bytes:
        """A NAL unit with a start code; `tail`: bytes after the bits, which are aligned."""
        if not tail:
            self.bits.append("1")
            self.align()
        text = "".join(self.bits)
        payload = bytes([head]) + int(text, 2).to_bytes(len(text) // 8, "big") + tail
        if tail:
            payload += b"\x80"
        safe = bytearray()
        for byte in payload:
            if byte <= 3 and safe[-2:] == b"\0\0":
                safe.append(3)
            safe.append(byte)
        return b"\0\0\0\1" + bytes(safe)


def _settings(width: int, height: int, fields: bool, held: int | None = None) -> bytes:
    """Parameter sets of pictures that are shown as decoded, or, if each is whole, as their slices say. held: how many
    pictures a decoder holds back, if that is to be stated."""
    sequence = _Writer()
    for value in (77, 0, 30):
        sequence.fixed(value, 8)
    sequence.golomb(0, 0, *([2] if fields else [0, _ORDER_BITS - 4]), 1 if fields else 4)  # ..., reference frames
    sequence.fixed(0, 1)
    sequence.golomb(width // 16 - 1, height // (32 if fields else 16) - 1)
    sequence.fixed(0b0010 if fields else 0b110, 4 if fields else 3)  # pictures may be fields; direct_8x8; no cropping
    sequence.fixed(held is not None, 1)
    if held is not None:
        sequence.fixed(0b000000001, 9)  # of the usability information, only the restrictions of the stream
        sequence.fixed(1, 1)
        sequence.golomb(0, 0, 10, 10, held, 4)
    picture = _Writer()
    picture.golomb(0, 0)
    picture.fixed(0, 2)
    picture.golomb(0, 0, 0)
    picture.fixed(0, 3)
    picture.golomb(0, 0, 0)
    picture.fixed(0b100, 3)  # deblocking is controlled, and then switched off, by each slice
    return sequence.unit(0x67) + picture.unit(0x68)


def _field(planes: Sequence[np.ndarray], number: int, bottom: int | None) -> bytes:
    """One field of picture `number`, from 0; bottom None: both at once. planes: Y, U, V of the whole picture."""
    is_key = number % _GROUP == 0 and not bottom
    header = _Writer()
    header.golomb(0, 7, 0)
    header.fixed(number % _GROUP, 4)
    header.fixed(*((0, 1) if bottom is None else (0b10 + bottom, 2)))
    if is_key:
        header.golomb(number // _GROUP % 2)
        header.fixed(0, 2)
    else:
        header.fixed(0, 1)
    header.golomb(0, 1)
    lines = slice(None) if bottom is None else slice(bottom, None, 2)
    return header.unit(0x65 if is_key else 0x61, _blocks(header, [plane[lines] for plane in planes], 25))


def _blocks(header: _Writer, planes: Sequence[np.ndarray], *begin: int) -> bytes:
    """The macroblocks of a slice, each after these numbers; the first begins in `header`, the rest is returned."""
    luma, *chroma = planes
    between = _Writer()
    between.golomb(*begin)
    between.align()
    code = "".join(between.bits)
    tail, written = b"", False
    for y in range(0, luma.shape[0], 16):
        for x in range(0, luma.shape[1], 16):
            block = luma[y : y + 16, x : x + 16].tobytes()
            block += b"".join(plane[y // 2 : y // 2 + 8, x // 2 : x // 2 + 8].tobytes() for plane in chroma)
            if not written:
                header.golomb(*begin)
                header.align()
                written = True
            else:
                tail += int(code, 2).to_bytes(len(code) // 8)
            tail += block
    return tail


def field_coded(
    path: Path, pictures: int = 20, width: int = 160, height: int = 96, fps: int = 10, whole: int = 0
) -> Path:
    """A file (.ts, .mp4, .mkv, .avi) whose n-th picture shows n (`numbered`), in packets of a field each, without
    sound. whole: each `whole`-th picture is one packet."""
    packets = []
    for number in range(pictures):
        planes = _planes(number + 1, width, height)
        parts = (None,) if whole and number % whole == whole - 1 else (0, 1)
        packets += [
            (_field(planes, number, bottom), number % _GROUP == 0 and not bottom, len(parts)) for bottom in parts
        ]
    stamps = np.cumsum([0, *(3 - parts for _, _, parts in packets[:-1])]).tolist()
    return _stored(path, _settings(width, height, True), [packet[:2] for packet in packets], 2 * fps, stamps)


def _planes(number: int, width: int, height: int) -> list[np.ndarray]:
    """`numbered` as Y, U, V."""
    frame = av.VideoFrame.from_ndarray(numbered(number, width, height), format="rgb24").reformat(format="yuv420p")
    y, u, v = np.split(frame.to_ndarray().reshape(-1), [width * height, width * height * 5 // 4])
    return [y.reshape(height, width), u.reshape(height // 2, -1), v.reshape(height // 2, -1)]


def hevc_fields(path: Path, seconds: float = 4.0, **more) -> Path:
    """A file of H.265 that says of each picture that it is a field; the n-th shows n, 10 a second."""
    options = {"preset": "ultrafast", "x265-params": "interlace=tff:log-level=none:bframes=2:keyint=10"}
    return make_video(path, seconds=seconds, codec="libx265", options=options, **more)


def _stored(
    path: Path, settings: bytes, packets: Sequence[tuple[bytes, bool]], rate: int, stamps: Sequence[int] | None = None
) -> Path:
    """A file of (data, is it a key frame), stamped in this order, in 1 / rate s; one after another if not said."""
    raw = io.BytesIO(settings + b"".join(data for data, _ in packets[:2]))
    with av.open(raw, format="h264") as source, av.open(str(path), "w") as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for place, (data, is_key) in enumerate(packets):
            packet = av.Packet(settings + data if is_key else data)
            packet.stream, packet.time_base = stream, Fraction(1, rate)
            packet.pts = packet.dts = place if stamps is None else stamps[place]
            packet.duration, packet.is_keyframe = 1, is_key
            file.mux(packet)
    return path


PAIRWISE = [0, 2, 1, 4, 3, 6, 5, 8, 7, 9]  # each picture but the first and the last is decoded with the next one


def reordered(
    path: Path,
    order: Sequence[int] = PAIRWISE,
    groups: int = 4,
    held: int | None = 2,
    width: int = 160,
    height: int = 96,
) -> Path:
    """A file of 10 pictures a second without B pictures, whose n-th shown picture shows n; without sound. Packets are
    stamped in the order of decoding.

    Args:
        order: places in the order of showing of a group's pictures, as they are decoded; the first is 0.
        groups: how many.
        held: as in `_settings`.
    """
    packets = []
    for group in range(groups):
        for place, shown in enumerate(order):
            header = _Writer()
            header.golomb(0, 5 if place else 7, 0)  # P, or I at the start
            header.fixed(place % 16, 4)
            if not place:
                header.golomb(group % 2)
            header.fixed(2 * shown, _ORDER_BITS)
            header.fixed(0, 3 if place else 2)  # references as they are, and they are kept; at the start nothing is
            header.golomb(0, 1)
            planes = _planes(group * len(order) + shown + 1, width, height)
            tail = _blocks(header, planes, *([0, 30] if place else [25]))
            packets.append((header.unit(0x61 if place else 0x65, tail), not place))
    return _stored(path, _settings(width, height, False, held), packets, 10)
