"""A lock that one process holds at a time. It ends with the process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # of a file system that has none


def is_at(file: int, path: Path) -> bool:
    """Whether an open file is still the one at a path, in one look: others may remove and make it at any time."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[str], None], say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Hold a lock while the context lasts.

    Args:
        path: of the lock's file, which is made, and removed at the end; its folder must exist.
        busy: called with a word on the holder if another process holds it. It may raise; if it returns, this process
            waits until the lock is free.
        say: called with a warning if the file system has no locks; the block then runs without one.

    Raises:
        OSError: the file cannot be made.
    """
    path = Path(path)
    held = _take(path, busy, say)
    try:
        yield
    finally:
        if held is not None:
            with contextlib.suppress(OSError):  # the folder is gone, or is read-only by now
                os.unlink(path)  # while it is held, so that one who waits sees that this file is no longer at the path
            os.close(held)


def _take(path: Path, busy: Callable[[str], None], say: Callable[[str], None]) -> int | None:
    waits = fcntl.LOCK_NB
    while True:
        held = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | waits)
            if is_at(held, path):
                os.ftruncate(held, 0)
                os.write(held, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
                return held
            os.close(held)  # its owner removed it between our two calls: once more
        except BlockingIOError:
            who = os.pread(held, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(held)
            busy(who)
            waits = 0
        except OSError as error:
            os.close(held)
            if error.errno not in NO_LOCKS:
                raise
            why = f"the file system of {path.parent} has no locks ({error.strerror})"
            say(f"warning: {why}: let no other process work there")
            return None
        except BaseException:  # Ctrl-C while it waits
            os.close(held)
            raise
