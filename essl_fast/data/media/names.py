"""Finds files by name where the same name may be written in two ways.

Unicode has two forms of an "é": one character (NFC), as Linux and Windows write it, and an "e" with an accent after it
(NFD), as archives made on a Mac hold it. To the eye they are the same, to the file system they are not.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from essl_fast.data.media import opening
from essl_fast.data.media.errors import MISSING, MediaError

EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov")


def one_form(name: str) -> str:
    """A name in the one form (NFC) that all its spellings share."""
    return unicodedata.normalize("NFC", name)


def find_file(folder: Path, name: str, extensions: Sequence[str]) -> Path | None:
    """The file `name` + one of `extensions` (lower case), in any case and in either form of its letters.

    The name as it is written counts first, then the order of `extensions`. None if there is none.

    Raises:
        OSError: the folder cannot be read.
    """
    for extension in extensions:
        for spelling in (extension, extension.upper()):
            path = folder / f"{name}{spelling}"
            if path.is_file():
                return path
    found = [
        (stem != name, extensions.index(kind.lower()), entry)
        for entry in _files(folder)
        for stem, kind in [os.path.splitext(entry)]
        if kind.lower() in extensions and one_form(stem) == one_form(name)
    ]
    return folder / min(found)[2] if found else None


def find_video(folder: str | Path, video: str) -> Path:
    """The file `video` + one of EXTENSIONS, as `find_file` finds it.

    Raises:
        MediaError: there is none, or the folder cannot be read.
    """
    folder = Path(folder)
    try:
        path = find_file(folder, video, EXTENSIONS)
        if path is not None:
            return path
        alike = [entry for entry in _files(folder) if _alike(os.path.splitext(entry)[0]) == _alike(video)]
    except OSError as error:
        raise opening.unreadable(folder / video, error) from error
    near = f"; there is {ascii(alike[0])}, and the name asked for is {ascii(video)}" if alike else ""
    raise MediaError(MISSING, f"{video}{{{','.join(EXTENSIONS)}}} is not in {folder.name}/{near}")


def _files(folder: Path) -> list[str]:
    """The names of the files of a folder, sorted; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _alike(name: str) -> str:
    """What is left of a name without case, spaces around it and the variants of letters that look the same."""
    return unicodedata.normalize("NFKC", name).casefold().strip()
