"""A run directory has one owner at a time."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from essl_fast.common.errors import InputError

LOCK = ".lock"


@contextlib.contextmanager
def owned(folder: Path, say=lambda line: None) -> Iterator[None]:
    """Own a run directory, which is there, for the time of the context; InputError if another training does.

    The lock ends with the process, however that ends. ``say`` is told where the file system knows no locks.
    """
    path = Path(folder) / LOCK
    held = _lock(path, folder, say)
    try:
        yield
    finally:
        if held is not None:
            with contextlib.suppress(OSError):  # the folder is gone, or nobody may write to it any more
                os.unlink(path)  # while it is held: whoever waits sees that it is no longer the one at this path
            os.close(held)


def _lock(path: Path, folder: Path, say) -> int | None:
    while True:
        held = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(held), os.stat(path)):
                os.ftruncate(held, 0)
                os.write(held, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
                return held
            os.close(held)  # its owner removed it between our two calls: once more
        except BlockingIOError:
            who = os.read(held, 200).decode(errors="replace").strip() or "another process"
            os.close(held)
            raise InputError(
                f"out: another training is at work in {folder} ({who}): wait for it, or choose another --out"
            ) from None
        except OSError as error:
            os.close(held)
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            why = f"the file system of {folder} has no locks ({error.strerror})"
            say(f"warning: {why}: let no other training work there")
            return None
