"""Damage to bytes: at random, but a function of the generator alone. A part's suffix says what is worth damaging.

`mutate(rng, name, data, others)`: a few changes to a seed. JSON keeps being JSON, as a rule, and a tar's headers and a
checkpoint keep checksums that fit, or nothing behind the first check would ever be reached.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from pathlib import PurePath

NUMBERS = (
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    256,
    32767,
    65500,
    65535,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)
WORDS = (
    b"",
    b"0",
    b"-1",
    b"1e999",
    b"-1e308",
    b"nan",
    b"NaN",
    b"Infinity",
    b"1e-320",
    b"99999999999999999999",
    b"0x10",
    b"1_000",
    b"\xd9\xa3",
    b"true",
    b"null",
    b"[]",
    b"{}",
    b'"',
    b"'",
    b",",
    b"\n",
    b"\r\n",
    b"\0",
    b"\xff\xfe",
    b"\xe2\x80\xa8",
    b"..",
    b"../../x",
    b"/etc/hostname",
    b"C:\\x",
    b"a/b",
    b"[[1,2,3,4]]",
    b"(1, 2, 3, 4)",
    b"[" * 99,
    b"-" * 999,
    b"9" * 4999,
    b"[/x]",
    b"%2e%2e%2f",
    b"!!python/object/apply:os.system",
    b"&a [*a]",
    b"<<: *a",
    b"class_path: os.system",
    b"__import__('os')",
)
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1,
    0.5,
    3,
    255,
    2**31,
    -(2**31) - 1,
    2**63,
    2**64,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    "a",
    "..",
    "../x",
    "/etc/hostname",
    "a\0b",
    "[/x]",
    "\ud800",
    "x" * 5000,
    [],
    {},
    [None],
    [[]],
    {"a": 1},
    [1, 2, 3, 4],
    "manifest.json",
    "train-00000.tar",
)


def mutate(rng: random.Random, name: str, data: bytes, others: list[bytes]) -> bytes:
    """Some changes to `data`, a part of this name; `others`: parts to take pieces from."""
    by_kind = _KINDS.get(PurePath(name).suffix)
    if by_kind and rng.random() < 0.7:
        try:
            return by_kind(rng, data)
        except (ValueError, IndexError, struct.error, zipfile.BadZipFile, RecursionError):
            pass  # it was damaged beyond that already: damage its bytes
    for _ in range(1 << rng.randrange(4)):
        data = _bytes(rng, data, others)
    return data


def _bytes(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One change anywhere."""
    at = _place(rng, len(data))
    end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 16, 100, 1000)))
    how = rng.randrange(9)
    if how == 0 and data:
        return data[:at] + bytes([data[at % len(data)] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if how == 1:
        return data[:at] + rng.randbytes(end - at) + data[end:]
    if how == 2:
        number, kind = rng.choice(NUMBERS), rng.choice(("B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
        size = struct.calcsize(kind)
        return data[:at] + struct.pack(kind, number & ((1 << 8 * size) - 1)) + data[at + size :]
    if how == 3:
        return data[:at] + rng.choice(WORDS) + data[end:]
    if how == 4:
        return data[:at] + data[end:]
    if how == 5:
        return data[:end] + data[at:end] * rng.choice((1, 1, 1, 2, 50)) + data[end:]
    if how == 6:
        return data[:at]
    if how == 7 and others:
        other = rng.choice(others)
        begin = _place(rng, len(other))
        return data[:at] + other[begin : begin + rng.choice((4, 64, 4096))] + data[end:]
    return data[:at] + bytes(end - at) + data[end:]


def _place(rng: random.Random, size: int) -> int:
    """Headers are at the front."""
    return rng.randrange(min(size, rng.choice((64, 2048, 1 << 30))) + 1)


def _json(rng: random.Random, data: bytes) -> bytes:
    """One node of a document becomes something else."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        value = _node(rng, value)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _node(rng: random.Random, value):
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        value = value.copy()
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        how = rng.random()
        if how < 0.1:
            del value[key]
        elif how < 0.15 and isinstance(value, dict):
            value[rng.choice(("x", "", "..", "class_path"))] = value.pop(key)
        elif how < 0.2 and isinstance(value, list):
            value += value[: rng.choice((1, 1, 100))]
        else:
            value[key] = _node(rng, value[key])
        return value
    if isinstance(value, (int, float)) and rng.random() < 0.5:
        return rng.choice((-value, value + 1, value * 2, value / 3, str(value), [value]))
    return rng.choice(VALUES)


def _lines(rng: random.Random, data: bytes) -> bytes:
    """One line of a JSON-lines file."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = _json(rng, lines[at]) if rng.random() < 0.8 else rng.choice(WORDS)
    return b"\n".join(lines)


def _words(rng: random.Random, data: bytes) -> bytes:
    """One word of a text."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        begin = _place(rng, len(data))
        while begin and data[begin - 1 : begin].isalnum():
            begin -= 1
        end = begin
        while end < len(data) and (data[end : end + 1].isalnum() or data[end : end + 1] in b".-_"):
            end += 1
        data = data[:begin] + rng.choice((*WORDS, str(rng.choice(NUMBERS)).encode())) + data[end:]
    return data


_FIELDS = ((0, 100), (100, 8), (124, 12), (124, 12), (124, 12), (156, 1), (156, 1), (157, 100), (257, 8), (345, 155))
_TYPES = b"0\x0001234567LKxgSVNDMX"


def _tar(rng: random.Random, data: bytes) -> bytes:
    """One field of a header, or all of its kind, and the checksum to it; or a member of another kind put between."""
    at = 512 * rng.randrange(max(len(data) // 512, 1))
    while at and data[at + 257 : at + 262] != b"ustar":
        at -= 512
    header = bytearray(data[at : at + 512])
    if rng.random() < 0.15:
        return data[:at] + data[at : at + 512 * rng.choice((1, 2, 4, 300))] + data[at:]
    begin, size = rng.choice(_FIELDS)
    if begin == 156:
        field = bytes([rng.choice(_TYPES)])
    elif begin == 124 and rng.random() < 0.8:
        number = rng.choice((*NUMBERS, len(data), len(data) - at, -1, 8, 96_000))
        if rng.random() < 0.5:
            field = b"%011o\0" % (number & 0o77777777777)
        else:
            field = (b"\xff" if number < 0 else b"\x80") + (number & ((1 << 88) - 1)).to_bytes(11)
    else:
        field = rng.choice((*WORDS, b"../x.jpg", b"/x.s16", b"a/b.row", b"link.json", rng.randbytes(size)))
    header[begin : begin + size] = field[:size].ljust(size, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


def _npy(rng: random.Random, data: bytes) -> bytes:
    """The description in a NumPy file's header, at the same length as a rule."""
    size = int.from_bytes(data[8:10], "little")
    text = data[10 : 10 + size]
    old, new = rng.choice(
        (
            (b"'<", b"'>"),
            (b"'<i4'", b"'|O'"),
            (b"'<i4'", b"'<f8'"),
            (b"'|u1'", b"'|O'"),
            (b"'|S", b"'|S9999999"),
            (b"False", b"True"),
            (b"(", b"(-"),
            (b"(", b"(999999999999, "),
            (b"(", b"(9" + b"9" * 30),
            (b",)", b", 1 << 60)"),
            (b"{", b"{{"),
            (b"'shape'", b"'x'"),
            (b"'<f8'", b"[('a', '<f8')]"),
            (b"'<u4'", b"('<u4', (1 << 20,))"),
            (b"(", b"(0, "),
            (b"'", b"__import__('os')"),
            (b"}", b", 'x': " + b"[" * 90 + b"}"),
        )
    )
    changed = text.replace(old, new, 1)
    changed = changed.rstrip().ljust(size - 1)[: size - 1] + b"\n" if rng.random() < 0.7 else changed
    return data[:8] + struct.pack("<H", len(changed) & 65535) + changed + data[10 + size :]


def _checkpoint(rng: random.Random, data: bytes) -> bytes:
    """One record of a checkpoint's archive, in an archive that is right, with the seal that belongs to it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as copy:
        records = archive.namelist()
        hit = rng.choice(records[:2] + records)
        packed = rng.random() < 0.05
        for name in records:
            record = archive.read(name)
            if name == hit:
                for _ in range(rng.choice((1, 1, 3))):
                    record = _bytes(rng, record, [])
                record = bytes(8 << 20) if packed else record  # which a few kilobytes hold
            copy.writestr(name, record, zipfile.ZIP_DEFLATED if packed and name == hit else zipfile.ZIP_STORED)
    return seal(out.getvalue())


def seal(body: bytes) -> bytes:
    """A checkpoint's body with its length and CRC-32 behind it, as `essl_fast.checkpoints.files` writes them."""
    return body + struct.pack("<8sQI", b"ESSLCRC1", len(body), zlib.crc32(body))


_KINDS = {
    ".json": _json,
    ".jsonl": _lines,
    ".tar": _tar,
    ".npy": _npy,
    ".pt": _checkpoint,
    ".csv": _words,
    ".txt": _words,
    ".idx": _words,
    ".yaml": _words,
    ".xml": _words,
}
