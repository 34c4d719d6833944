"""The log of a run: one JSON object per line."""

import contextlib
import json
import os
import time
from pathlib import Path

from essl_fast.common.errors import InputError


class RunLog:
    """Appends one JSON object per line to a file: {"event": ..., "time": seconds since 1970, ...}.

    If a crash has cut the last line short, it is removed first, because nothing can be appended to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if self.path.is_file():  # a device has no end, and a FIFO gives nothing to a reader
            text = self.path.read_bytes()
            if not text.endswith(b"\n"):
                os.truncate(self.path, text.rfind(b"\n") + 1)
        self._file = self.path.open("ab", buffering=0)

    def write(self, event: str, **values) -> None:
        """Append a line, which is in the file when this returns. If the disk is full: OSError, and no part of it."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values}).encode() + b"\n"
        before = os.fstat(self._file.fileno()).st_size
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), before)
            error.filename = error.filename or str(self.path)
            raise

    def close(self) -> None:
        self._file.close()


def read_log(path: Path) -> list[dict]:
    """The objects of a JSON-lines file, without empty lines and a last line that a crash has cut short.

    Raises:
        InputError: a line is no JSON object; the message names file and line.
        OSError: the file cannot be read.
    """
    found = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        if not line.strip():  # an editor's
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path} cannot be read: line {number} is no JSON ({error}); restore it, or delete the line"
            ) from None
        if not isinstance(value, dict):
            raise InputError(f"{path} cannot be read: line {number} is no JSON object; restore it, or delete the line")
        found.append(value)
    return found
