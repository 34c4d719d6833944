"""Standard streams that may be closed, full, gone, or without a character: what a command does does not depend on them.

A terminal window is closed, `| head` has read enough, a log file's disk is full, or a service has no streams at all. A
run of days must not end for that: what cannot be printed is dropped, with one warning on the other stream.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

# What tables and lines of ours have beside ASCII, for terminals without it.
PLAIN = str.maketrans({"–": "-", "—": "-", "…": "...", "×": "x", "±": "+-", "·": "*", "≥": ">=", "≤": "<=", "’": "'"})


class KeptStream:
    """A text stream that never raises: after an error of writing it drops what it is given.

    A character that the stream's encoding lacks is written as its escape, such as \\u97f3.

    Attributes:
        lost: why the stream cannot be written; "" while it can be.
    """

    def __init__(self, stream: TextIO, name: str, other: TextIO | None = None) -> None:
        """``name`` is for the warning, which goes to the stream ``other``."""
        self._stream, self._name, self._other, self.lost = stream, name, other, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if not self.lost:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                coding = self._stream.encoding or "ascii"
                self.write(text.translate(PLAIN).encode(coding, "backslashreplace").decode(coding))
            except (OSError, ValueError) as error:  # ValueError: the stream is closed
                self._lose(error)
        return len(text)

    def isatty(self) -> bool:
        try:
            return not self.lost and self._stream.isatty()
        except ValueError:  # it is closed
            return False

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self.lost:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def _lose(self, error: Exception) -> None:
        self.lost = getattr(error, "strerror", None) or str(error)
        with contextlib.suppress(OSError, ValueError):  # else the interpreter's last flush of it fails once more
            if self._stream in (sys.__stdout__, sys.__stderr__):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
        if self._other is not None:
            text = f"{self._name} cannot be written ({self.lost}): going on without it"
            with contextlib.suppress(OSError, ValueError):  # it was on the same terminal
                print(text, file=self._other, flush=True)


def kept_stdout() -> KeptStream:
    """sys.stdout as it is now, kept from raising."""
    return sys.stdout if isinstance(sys.stdout, KeptStream) else _keep("stdout", "standard output", sys.stderr)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Within the context, printing to stdout and stderr raises no error."""
    before = sys.stdout, sys.stderr
    err = _keep("stderr", "standard error", None)
    out = _keep("stdout", "standard output", err)  # type: ignore[arg-type]  # it only writes
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _keep(stream: str, name: str, other: TextIO | None) -> KeptStream:
    """One of sys's streams as a KeptStream; Python has None in place of one that was closed when it started."""
    now = getattr(sys, stream) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for the whole process)
    return KeptStream(now, name, other)
