"""The frames and sounds that are wanted of one video, and the names of its files."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from essl_fast.data import media
from essl_fast.data.datasets import VIDEO
from essl_fast.data.media import nvdec
from essl_fast.data.media.jpeg import JPEG

VERSION = 5  # of what a part holds for a task


@dataclass(frozen=True)
class Task:
    """A video and the pairs that are wanted of it.

    Attributes:
        video: its name.
        path: file of its frames.
        requests: (key, frame number from 1, time in seconds) of each pair.
        clips: copy the packets of the frames, do not decode them.
        decoders: what the GPU decodes. With `clips`, only videos that it decodes become clips; without, it decodes the
            frames of these videos. None: the GPU does not matter.
        kind: of the files, as in `essl_fast.data.datasets.Files`.
        sound: file of its sound, for STILL and HDF5.
        rows: for HDF5, the row of each pair.
        float_sound: for STILL, store the sound as float32 and not as int16. The sound of HDF5 is always float32.
    """

    video: str
    path: str
    requests: tuple[tuple[str, int, float], ...]
    clips: bool = False
    decoders: nvdec.Decoders | None = None
    kind: str = VIDEO
    sound: str = ""
    rows: tuple[int, ...] = ()
    float_sound: bool = False

    def stem(self) -> str:
        """The name of its part's files, without the extension."""
        return stem_of(self.video)

    def fingerprint(self) -> str:
        """A hash of the task and of the names, sizes and times of its files. MediaError if a file is missing."""
        wanted = (
            self.clips,
            self.decoders and sorted(self.decoders.items()),
            self.requests,
            self.kind,
            self.rows,
            self.float_sound,
        )
        state = [VERSION, JPEG, wanted]
        for path in filter(None, (self.path, self.sound)):
            try:
                stat = os.stat(path)
            except OSError as error:
                raise media.unreadable(Path(path), error) from error
            state += Path(path).name, stat.st_size, stat.st_mtime_ns
        return hashlib.blake2b(repr(state).encode(), digest_size=16).hexdigest()

    def lost(self, reason: str, detail: str) -> dict:
        """The index of a part that has none of the pairs."""
        return lost_part(len(self.requests), reason, detail)


def stem_of(video: str) -> str:
    """A file name for a video of any name."""
    name = quote(video, safe="")
    return name if len(name) <= 100 else f"{name[:80]}-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"


def lost_part(pairs: int, reason: str, detail: str) -> dict:
    """The index of a part of a video that gives none of its pairs. Its empty fingerprint says that no part exists."""
    detail = f"{media.as_text(detail)} ({pairs} pair{'s' * (pairs != 1)})"
    return {
        "fingerprint": "",
        "bytes": 0,
        "members": {},
        "left_out": [["", reason, detail]],
        "pictures": [],
        "notes": [],
    }
