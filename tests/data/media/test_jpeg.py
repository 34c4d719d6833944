"""JPEG headers: sizes as Pillow reads them, damage refused, and DALI's process alive."""

import io
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from essl_fast.data.media.jpeg import jpeg_size, picture_size
from tests.data.shards.test_shards import jpeg


def size_of(data: bytes) -> tuple[int, int]:
    return jpeg_size(np.frombuffer(data, np.uint8))


def encoded(mode: str = "RGB", size: tuple[int, int] = (57, 33), **settings) -> bytes:
    file, noise = io.BytesIO(), np.random.default_rng(1).integers(0, 256, (*size[::-1], 4), np.uint8)
    Image.fromarray(noise, "RGBA").convert("RGB").convert(mode).save(file, "JPEG", **settings)
    return file.getvalue()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 2},
        {"mode": "L"},
        {"comment": b"x" * 3000},
        {"icc_profile": b"p" * 150_000},
        {"restart_marker_blocks": 3},
        {"size": (1, 1)},
        {"size": (3001, 17)},
        {"optimize": True, "quality": 3},
    ],
    ids=str,
)
def test_the_size_is_pillows(settings):
    data = encoded(**settings)
    assert size_of(data) == Image.open(io.BytesIO(data)).size == settings.get("size", (57, 33))
    start = data.index(b"\xff\xc2" if settings.get("progressive") else b"\xff\xc0")
    assert size_of(data[:start] + b"\xff\xff\xff" + data[start:]) == size_of(data)  # padding is allowed there


def test_headers_that_are_none():
    data = encoded()
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    for end in range(scan + 2 + 12):
        with pytest.raises(ValueError, match="no JPEG|cut short|damaged"):
            size_of(data[:end])
    assert size_of(data[: scan + 14]) == (57, 33)

    def changed(at: int, value: int) -> bytes:
        return data[:at] + bytes([value]) + data[at + 1 :]

    for at, value, message in [
        (0, 0, "no JPEG"),
        (frame + 4, 12, "8 bits"),
        (frame + 9, 4, "1 or 3 channels"),
        (frame + 9, 2, "1 or 3"),
        (frame + 3, 16, "1 or 3"),
        (frame + 11, 0x05, "sampling"),
        (frame + 11, 0x51, "sampling"),
        (frame + 1, 0xC3, "damaged"),
        (frame + 1, 0x00, "damaged"),
        (frame + 2, 255, "damaged"),
        (2, 0, "damaged"),
        (scan + 1, 0xDB, "damaged"),
    ]:
        with pytest.raises(ValueError, match=message):
            size_of(changed(at, value))
    large = data[: frame + 5] + b"\xff\xff\xff\xff" + data[frame + 9 :]
    with pytest.raises(ValueError, match="a picture of 65535 x 65535"):
        size_of(large)
    with pytest.raises(ValueError, match="a picture of 0 x 33"):
        size_of(data[: frame + 7] + b"\0\0" + data[frame + 9 :])
    with pytest.raises(ValueError, match="no JPEG"):
        size_of(b"")


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage: bytes of the header changed, replaced or zeroed, the file cut, or its picture damaged."""
    out, kind, at = bytearray(data), rng.integers(5), int(rng.integers(620))
    if kind == 0:
        for place in rng.integers(0, 620, rng.integers(1, 4)):
            out[place] = rng.integers(256)
    elif kind == 1:
        out[at : at + 40] = rng.bytes(int(rng.integers(60)))
    elif kind == 2:
        out[at : at + 100] = bytes(100)
    elif kind == 3:
        del out[rng.integers(len(out)) :]
    else:
        out[-500:-400] = rng.bytes(100)
    return bytes(out)


def test_any_damage_is_a_value_error_or_the_right_size():
    """Pillow refuses a few more: what is in the tables is the decoder's to judge, and DALI reports that."""
    rng, whole, refused, agreed = np.random.default_rng(0), jpeg(1, (320, 180)), 0, 0
    for _ in range(2000):
        data = mutated(whole, rng)
        try:
            size = size_of(data)
            agreed += size == Image.open(io.BytesIO(data)).size
        except UnidentifiedImageError:
            continue
        except ValueError:
            refused += 1
    assert refused > 500 and agreed > 500 and refused + agreed > 1900


CODE = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np, torch
from essl_fast.data.loading import DecodeError, FrameDecoder
from essl_fast.data.shards import Picture
from tests.data.media.test_jpeg import mutated
from tests.data.shards.test_shards import jpeg

rng, good = np.random.default_rng(int(sys.argv[1])), jpeg(1, (320, 180))
batches = [[mutated(good, rng) if i % 4 == 0 else good for i in range(96)] for _ in range(4)]
feed = iter([[Picture(np.frombuffer(file, np.uint8)) for file in batch] for batch in batches])
with ThreadPoolExecutor(2) as pool:
    decoder, left = FrameDecoder(lambda: next(feed), 96, 32, torch.device("cpu"), 2, 2, pool), []
    while len(left) < 4:
        try:
            left.append(len(next(decoder)))
        except DecodeError as error:
            decoder.drop(error.faults)
    decoder.close()
print(left)
"""


@pytest.mark.slow
def test_damaged_files_do_not_end_the_process():
    """DALI 2.4 dies by a segmentation fault of a batch like these, unless the headers are looked at before."""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", CODE, "1"], cwd=root, capture_output=True, text=True, timeout=300, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-2000:]
    left = json.loads(done.stdout)
    assert len(left) == 4 and all(72 <= count < 96 for count in left)


def test_png():
    file = io.BytesIO()
    Image.new("RGB", (7, 5)).save(file, "PNG")
    data = bytearray(file.getvalue())
    assert picture_size(np.frombuffer(data, np.uint8)) == (7, 5)
    jpeg = io.BytesIO()
    Image.new("RGB", (9, 3)).save(jpeg, "JPEG")
    assert picture_size(np.frombuffer(jpeg.getvalue(), np.uint8)) == (9, 3)
    for at in (12, 16, 20, 30):  # each is covered by the header's own sum
        broken = bytearray(data)
        broken[at] ^= 1
        with pytest.raises(ValueError, match="header is damaged or cut short"):
            picture_size(np.frombuffer(broken, np.uint8))
    with pytest.raises(ValueError, match="header is damaged or cut short"):
        picture_size(np.frombuffer(data[:32], np.uint8))
    data[16:20] = (1 << 30).to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(ValueError, match="a picture of 1073741824 x 5"):
        picture_size(np.frombuffer(data, np.uint8))
