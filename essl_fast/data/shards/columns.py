"""The columns of a prepared folder: NumPy files of plain values, one value for each pair."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from essl_fast.common.errors import InputError

COLUMNS = {  # name of the file → type of its values
    "key": "S",
    "split": "<u1",
    "class_id": "<i4",
    "labelled": "?",
    "boxes": "<i4",
    "time": "<f8",
    "visual": "<u1",
    "target": "<i4",
    "quarters": "<u1",
    "crc": "<u4",
}
# Those that a folder may have; its header names them.
FURTHER = {"mask": "|u1", "negative": "?", "scene": "<i4", "box_class": "<i4"}
MASK_BYTES = 224 * 224 // 8  # of a pair's mask, a bit a pixel of the grid
_NPY_HEADER = re.compile(  # as `np.save` writes it (numpy.lib.format, version 1.0), for the types above
    rb"\{'descr': '([<|](?:b1|u1|u4|i4|f8|S\d{1,4}))', 'fortran_order': False, "
    rb"'shape': \((\d{1,12},(?: \d{1,12},?)*)\), \}\s*\n"
)
_LONGEST_NPY_HEADER = 1024  # bytes


def split_column(counts: Sequence[int]) -> np.ndarray:
    """(N,) uint8: the index of each pair's split. counts: pairs of each split."""
    return np.repeat(np.arange(len(counts), dtype=np.uint8), counts)


def read_column(path: Path, count: int, again: str) -> np.ndarray:
    """A column of `count` pairs, memory-mapped; its name is that of the file.

    The header is compared with what prepare writes, and with the size of the file, before anything is allocated.
    Nothing in it is evaluated or unpickled.

    Args:
        path: the file.
        count: pairs of the folder.
        again: how to mend the folder, for messages.

    Raises:
        InputError: the file is missing, cannot be read, or is no such column.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_LONGEST_NPY_HEADER)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {again}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): {again}") from error
    begin = 10 + int.from_bytes(head[8:10], "little")
    match = _NPY_HEADER.fullmatch(head[10:begin])
    if not head.startswith(b"\x93NUMPY\1\0") or match is None:
        raise InputError(f"{path} is not a NumPy file of plain values, as prepare writes them: {again}")
    dtype, shape = np.dtype(match[1].decode()), tuple(int(side) for side in match[2].split(b",") if side)
    fits = (
        dtype.kind == "S" and dtype.itemsize
        if path.stem == "key"
        else dtype == np.dtype((COLUMNS | FURTHER)[path.stem])
    )
    wanted = (count, *{"boxes": (*shape[1:2], 4), "mask": (MASK_BYTES,), "box_class": shape[1:2]}.get(path.stem, ()))
    if not fits or shape != wanted or size - begin != math.prod(shape) * dtype.itemsize:
        what = f"{dtype} {shape} in {size - begin} bytes"
        raise InputError(f"{path} has {what} where {count} pairs should be: {again}")
    try:
        return np.memmap(path, dtype, "r", begin, shape) if size > begin else np.empty(shape, dtype)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): {again}") from error
