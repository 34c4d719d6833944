"""What a target is: one kind of input that others may have made, read the way that the commands read it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from essl_fast.common.errors import InputError

Parts = dict[str, bytes]


@dataclass(frozen=True)
class Target:
    """A way to read an input.

    Attributes:
        name: of the target.
        parts: makes sound inputs in a folder: file name -> bytes.
        run: reads bytes in place of the part of that name.
        allowed: what `run` may raise. Anything else is a failure. So is an AssertionError: it says that something was
            accepted that should not have been.
        native: a decoder that is not Python reads the bytes.
        slow: an execution takes 10 ms or more.
    """

    name: str
    parts: Callable[[Path], Parts]
    run: Callable[[Path, str, bytes], None]
    allowed: tuple[type[Exception], ...] = (InputError,)
    native: bool = False
    slow: bool = False


@contextlib.contextmanager
def changed(path: Path, data: bytes | None = None):
    """A file with other content, for a while."""
    before = path.read_bytes()
    path.write_bytes(before if data is None else data)
    try:
        yield
    finally:
        path.write_bytes(before)
