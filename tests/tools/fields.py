"""Field-coded H.264, written bit by bit, since no encoder that comes with PyAV makes it: each field is a packet.

Every macroblock is I_PCM, so what is drawn comes out of the decoder as it was. ITU-T H.264: 7.3.2.1 (sequence parameter
set), 7.3.2.2 (picture parameter set), 7.3.3 (slice header), 7.3.5 (macroblocks).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.tools.media import numbered

_GROUP = 5  # pictures from one key frame to the next


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


def _settings(width: int, height: int) -> bytes:
    sequence = _Writer()
    for value in (77, 0, 30):
        sequence.fixed(value, 8)
    sequence.golomb(0, 0, 2, 1)  # id, bits of frame_num - 4, order as decoded, reference frames
    sequence.fixed(0, 1)
    sequence.golomb(width // 16 - 1, height // 32 - 1)
    sequence.fixed(0b00100, 5)  # frame_mbs_only_flag 0, no MBAFF, direct_8x8, no cropping, no VUI
    picture = _Writer()
    picture.golomb(0, 0)
    picture.fixed(0, 2)
    picture.golomb(0, 0, 0)
    picture.fixed(0, 3)
    picture.golomb(0, 0, 0)
    picture.fixed(0b100, 3)  # deblocking is controlled, and then switched off, by each slice
    return sequence.unit(0x67) + picture.unit(0x68)


def _field(planes: Sequence[np.ndarray], number: int, bottom: int) -> bytes:
    """One field of picture `number`, from 0. planes: Y, U, V of the whole picture."""
    is_key = number % _GROUP == 0 and not bottom
    header = _Writer()
    header.golomb(0, 7, 0)
    header.fixed(number % _GROUP, 4)
    header.fixed(0b10 + bottom, 2)
    if is_key:
        header.golomb(number // _GROUP % 2)
        header.fixed(0, 2)
    else:
        header.fixed(0, 1)
    header.golomb(0, 1)
    luma, *chroma = [plane[bottom::2] for plane in planes]
    tail, written = b"", False
    for y in range(0, luma.shape[0], 16):
        for x in range(0, luma.shape[1], 16):
            block = luma[y : y + 16, x : x + 16].tobytes()
            block += b"".join(plane[y // 2 : y // 2 + 8, x // 2 : x // 2 + 8].tobytes() for plane in chroma)
            if not written:
                header.golomb(25)
                header.align()
                written = True
            else:
                tail += b"\x0d\x00"  # mb_type 25 as Exp-Golomb, and zeros up to a whole byte
            tail += block
    return header.unit(0x65 if is_key else 0x61, tail)


def field_coded(path: Path, pictures: int = 20, width: int = 160, height: int = 96, fps: int = 10) -> Path:
    """A file (.ts, .mp4, .mkv) whose n-th picture shows n (`numbered`), in packets of a field each, without sound."""
    fields = []
    for number in range(pictures):
        frame = av.VideoFrame.from_ndarray(numbered(number + 1, width, height), format="rgb24").reformat(
            format="yuv420p"
        )
        y, u, v = np.split(frame.to_ndarray().reshape(-1), [width * height, width * height * 5 // 4])
        planes = y.reshape(height, width), u.reshape(height // 2, -1), v.reshape(height // 2, -1)
        fields += [(_field(planes, number, bottom), number % _GROUP == 0 and not bottom) for bottom in (0, 1)]
    settings = _settings(width, height)
    raw = io.BytesIO(settings + b"".join(data for data, _ in fields[:2]))
    with av.open(raw, format="h264") as source, av.open(str(path), "w") as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for place, (data, is_key) in enumerate(fields):
            packet = av.Packet(settings + data if is_key else data)
            packet.stream, packet.time_base = stream, Fraction(1, 2 * fps)
            packet.pts = packet.dts = place
            packet.duration, packet.is_keyframe = 1, is_key
            file.mux(packet)
    return path
