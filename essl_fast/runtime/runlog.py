"""What a run leaves behind: JSON lines, the environment, progress on the terminal."""

import json
import os
import time
from pathlib import Path


class RunLog:
    """Appends one JSON object a line to a file: {"event": ..., "time": seconds since the epoch, ...}.

    A last line that a crash cut short is removed first: nothing can be appended to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if self.path.exists():
            held = self.path.read_bytes()
            os.truncate(self.path, held.rfind(b"\n") + 1)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, event: str, **values) -> None:
        self._file.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class NoLog:
    """In place of a RunLog, where another rank writes it."""

    def write(self, event: str, **values) -> None:
        """Writes nothing."""

    def close(self) -> None:
        """Has nothing to close."""


def read_log(path: Path) -> list[dict]:
    """The objects of a JSON-lines file; a last line cut short by a crash is left out."""
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
