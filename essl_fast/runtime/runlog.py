"""The log of a run: one JSON object per line."""

import json
import os
import time
from pathlib import Path


class RunLog:
    """Appends one JSON object per line to a file: {"event": ..., "time": seconds since 1970, ...}.

    If a crash has cut the last line short, it is removed first, because nothing can be appended to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if self.path.exists():
            text = self.path.read_bytes()
            os.truncate(self.path, text.rfind(b"\n") + 1)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, event: str, **values) -> None:
        """Append a line, which is in the file when this returns."""
        self._file.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_log(path: Path) -> list[dict]:
    """The objects of a JSON-lines file, without a last line that a crash has cut short."""
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
