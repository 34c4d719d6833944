"""Files whose container asks players to crop the picture; the n-th shows n in what is left."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from essl_fast.data.media import cropping
from tests.tools.media import make_video, numbered, rewrite_header

LEFT, TOP, RIGHT, BOTTOM = 24, 6, 16, 10


def padded(number: int) -> np.ndarray:
    rgb = np.zeros((90 + TOP + BOTTOM, 160 + LEFT + RIGHT, 3), np.uint8)
    rgb[TOP : TOP + 90, LEFT : LEFT + 160] = numbered(number)
    return rgb


def element(name: int, data: bytes) -> bytes:
    """A Matroska element, its size in 8 bytes."""
    return name.to_bytes((name.bit_length() + 7) // 8) + (1 << 56 | len(data)).to_bytes(8) + data


def cropped_matroska(path: Path, **options) -> Path:
    """A live Matroska file, which has no positions that would change, with PixelCrop elements. options: as
    `make_video`."""
    make_video(path, picture=padded, container={"live": "1"}, **{"sound": None, **options})
    data = path.read_bytes()
    names = (0x54CC, LEFT), (0x54BB, TOP), (0x54DD, RIGHT), (0x54AA, BOTTOM)
    crops = b"".join(element(name, bytes([value])) for name, value in names)

    def again(data: bytes, inside: tuple[int, ...]) -> bytes:
        out = b""
        for name, content in cropping._children(data):
            if name == inside[0]:
                content = again(content, inside[1:]) if inside[1:] else content + crops
            out += element(name, content)
        return out

    begin = data.rindex(b"\x16\x54\xae\x6b")  # the first is the name in the list of contents
    size, count = cropping._number(data, begin + 4)
    end = begin + 4 + count + size
    tracks = element(0x1654AE6B, again(data[begin + 4 + count : end], (0xAE, 0xE0)))
    path.write_bytes(data[:begin] + tracks + data[end:])
    return path


def cropped_mp4(path: Path, **options) -> Path:
    """An MP4 with a clean aperture. options: as `make_video`."""
    make_video(path, picture=padded, **{"sound": None, **options})
    shift = (LEFT - RIGHT, 2), (TOP - BOTTOM, 2)
    clap = struct.pack(">I4s8i", 40, b"clap", 160, 1, 90, 1, *shift[0], *shift[1])

    def change(kind, content):
        if kind != b"stsd":
            return content
        size = int.from_bytes(content[8:12]) + len(clap)
        return content[:8] + size.to_bytes(4) + content[12:] + clap

    return rewrite_header(path, change)
