"""Where a command may write: files of the user's choice, checked before the work, and what is no regular file.

A device, a FIFO, a socket and an open descriptor of this process (/dev/stdout, /dev/fd/N) are streams: they are written
to as they are. Renaming a finished file over one would replace it, and with it /dev/null for every program.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO, cast

from essl_fast.common.errors import InputError, short
from essl_fast.common.locks import NO_LOCKS, is_at

STDOUT = Path("/dev/stdout")
RUN_FILES = (  # in a run directory: what other commands read
    *("config.yaml", "log.jsonl", "summary.json", "test_pairs.jsonl", "gallery.npz"),
    *("last.pt", "last-1.pt", "best.pt", "best-ema.pt"),
)
_LONGEST = 255  # bytes of a file's name, on all usual file systems
_IN_MEMORY = 1 << 26  # bytes for a stream that are kept in memory until the end; more go into a temporary file


def is_stream(path: Path) -> bool:
    """Whether a path names something to write to as it is. Links are followed."""
    if descriptor_of(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def descriptor_of(path: Path) -> int | None:
    """The open descriptor of this process that a path such as /dev/stdout stands for.

    Where standard output goes into a file, /dev/stdout leads to that file: opening it again would write over what is
    there already.
    """
    at = os.fspath(path)
    for _ in range(40):
        folder = os.path.realpath(os.path.dirname(at) or ".")
        at = os.path.join(folder, os.path.basename(at))
        if found := re.fullmatch(rf"/proc/{os.getpid()}(?:/task/\d+)?/fd/(\d+)", at):
            return int(found[1])
        try:
            at = os.path.join(folder, os.readlink(at))
        except (OSError, ValueError):
            return None
    return None


def followed(path: Path) -> Path:
    """The file that a path names, links followed. OSError if they lead in a circle."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def to_stdout(path: Path | None) -> bool:
    """Whether what is written to a path arrives on standard output, where then nothing else should be printed."""
    return path is not None and descriptor_of(path) == 1


@contextmanager
def stream(path: Path) -> Iterator[BinaryIO]:
    """A file whose bytes go to a device, a FIFO, a socket or a descriptor, if the block ends without an error."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as kept:
        yield cast(BinaryIO, kept)
        kept.seek(0)
        _send(kept, path)


def _send(source: IO[bytes], path: Path) -> None:
    number = descriptor_of(path)
    if number is not None:
        if number in (1, 2) and (printed := (sys.stdout, sys.stderr)[number - 1]):
            printed.flush()
        with os.fdopen(os.dup(number), "wb") as out:
            shutil.copyfileobj(source, out)
    elif stat.S_ISSOCK(os.stat(path).st_mode):
        with socket.socket(socket.AF_UNIX) as out:
            out.connect(os.fspath(path))
            out.sendfile(source)
    else:
        with open(path, "wb") as out:
            shutil.copyfileobj(source, out)


def partial_of(target: Path, tag: str = "") -> Path:
    """The name of a file until it is complete. For a stream it is in the folder for temporary files."""
    folder = Path(tempfile.gettempdir()) if is_stream(target) else target.parent
    name = f".{target.name}{tag and '.' + tag}.partial"
    if len(os.fsencode(name)) > _LONGEST and len(os.fsencode(target.name)) <= _LONGEST:
        name = f".{zlib.crc32(os.fsencode(target.name)):08x}{tag and '.' + tag}.partial"
    if folder != target.parent:  # others may write there, too
        name = f"essl-{os.getpid()}{name}"
    return folder / name


@contextmanager
def claimed(target: Path, tag: str = "") -> Iterator[Path]:
    """:func:`partial_of`, for the context this thread's alone.

    Two commands may write the same file at the same time, as a run and `report` write its page: the one that comes
    second gets a name of its own. Then the last one to end has written the file.
    """
    partial = partial_of(target, tag)
    held = _claim(partial)
    if held is None:
        own = f"{os.getpid()}-{threading.get_ident():x}"
        partial = partial_of(target, f"{tag}.{own}" if tag else own)
        held = _claim(partial)
    try:
        yield partial
    finally:
        if held is not None:
            with suppress(OSError):  # of a file system without locks
                fcntl.flock(held, fcntl.LOCK_UN)
            os.close(held)


def _claim(partial: Path) -> int | None:
    """Make a file unless it is there, and lock it; None if another thread or process has."""
    while True:
        held = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(held).st_mode):  # a lock of a device would meet all who write to it
                return held
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(held, partial):  # else its owner has put it in its place between our two calls
                return held
        except BlockingIOError:
            os.close(held)
            return None
        except OSError as error:
            if error.errno in NO_LOCKS:
                return held
            os.close(held)
            raise
        os.close(held)


def put(partial: Path, target: Path) -> None:
    """Move a complete file to its place. It keeps the permissions of the file that it replaces."""
    if is_stream(target):
        with open(partial, "rb") as file:
            _send(file, target)
        partial.unlink()
        return
    try:
        os.chmod(partial, stat.S_IMODE(os.stat(target).st_mode))
    except OSError:
        pass  # there is no such file yet, or the file system has no permissions
    try:
        os.replace(partial, target)
    except OSError as error:
        if error.errno != errno.EBUSY:  # a file that a container mounts can be written, but not replaced
            raise
        shutil.copyfile(partial, target)
        partial.unlink()


@contextmanager
def named(path: Path, partial: Path | str) -> Iterator[None]:
    """Let an OSError of a block name the file that the user knows. Errors of write and sync have no name at all."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename) == str(partial):
            error.filename = str(path)
            del error.filename2  # of a rename; None would be printed
        raise


def output_file(given: str | Path, option: str, reads: Iterable[Path] = ()) -> Path:
    """A file that a command is asked to write, checked before its work; the folders above it are made.

    Args:
        given: the path; "-" is standard output.
        option: that gave it, for messages: "--json".
        reads: files that the command reads, and must not replace; of a run directory, all that train writes.

    Raises:
        InputError: nothing can be written there.
    """
    if str(given) == "-":
        return STDOUT
    path = _usable(given, option)
    try:
        if path.is_dir():
            raise InputError(f"{option}: {given} is a folder; name a file")
        number = descriptor_of(path)
        if number is not None:
            _check_open(number)
        elif not is_stream(path):
            target = followed(path)
            _make(target.parent)
            if len(os.fsencode(target.name)) > _LONGEST:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            _probe(target.parent)
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if path.is_file() and any(path.samefile(read) for read in _files_of(reads)):
            raise InputError(f"{option}: {given} is read by this command and would be overwritten; give another file")
    except OSError as error:
        raise _refusal(given, option, error) from error
    return path


def output_folder(given: str | Path, option: str) -> Path:
    """A folder that a command is asked to write into, made and checked before its work.

    Raises:
        InputError: it cannot be made, or nothing can be written into it.
    """
    path = _usable(given, option)
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"{option}: {given} is no folder; choose another name")
        _make(path)
        _probe(path)
    except OSError as error:
        raise _refusal(given, option, error) from error
    return path


def _files_of(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        yield from (each for each in (place, *(place / name for name in RUN_FILES)) if os.path.isfile(each))


def _usable(given: str | Path, option: str) -> Path:
    text = str(given)
    if not text or any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise InputError(f"{option}: {short(text)} is no path to write to")
    return Path(given)


def _make(folder: Path) -> None:
    try:
        followed(folder).mkdir(parents=True, exist_ok=True)  # mkdir itself follows no link to a folder that is gone
    except FileExistsError as error:  # the name is a file's
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error


def _check_open(number: int) -> None:
    """OSError if this process has no such descriptor, or has it for reading alone."""
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "it is open for reading alone")


def _probe(folder: Path) -> None:
    """Write a block into a folder and remove it: permissions, read-only file systems and full disks show."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))
        file.flush()


def _refusal(given: str | Path, option: str, error: OSError) -> InputError:
    shown = str(given) if len(str(given)) <= 200 else f"{str(given)[:200]}..."
    reason = (error.strerror or str(error)).lower()
    return InputError(f"{option}: {shown} cannot be written ({reason}); give another place")
