"""Files that are there whole or not at all, also after a crash or a power cut."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path, tag: str = "", sync: bool = True) -> Iterator[BinaryIO]:
    """A binary file that appears under ``path``, complete and synced, when the block ends well, else not at all.

    Until then it is ``.NAME.partial`` beside it, which a later attempt overwrites; with a ``tag`` of its own,
    ``.NAME.TAG.partial``, several processes may make the same file. Without ``sync`` that holds for a process that
    dies, but not for a machine that does: for files that nobody needs after that.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}{tag and '.' + tag}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)
