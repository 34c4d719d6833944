"""Shards that were fetched, in a folder of this machine: bounded, and shared by all processes of the host.

    CACHE/<SHA-256>.tar               a shard, by what is in it: equal shards of two places are one file
    CACHE/.<SHA-256>.tar.partial      one on its way, locked by the process that fetches it
    CACHE/folders/<name>/             what describes a folder: its manifest, columns and index files
    CACHE/.lock                       held while room is made

Locks are the kernel's (flock), so they end with their process, however that ends. Whoever reads a shard holds it open
with a shared lock. Room is made by removing what was used the longest ago and can be locked alone: so nothing goes that
is in use. What a killed process left half is removed first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from essl_fast.common import places
from essl_fast.common.errors import InputError, Notice, reason
from essl_fast.common.locks import NO_LOCKS, is_at
from essl_fast.data.remote.store import Stopped, Store

PART = 1 << 23  # bytes that are asked for at a time: 20 ms at 400 MB/s; what is cut is asked for again from there on
SHARE = 0.8  # of the disk that is free, for a cache without a bound of its own
COPIES = 3  # times that a shard is fetched whose bytes are not its manifest's
_POLL = 0.05  # seconds between looks at a shard that another process fetches
_FOLDER = ".lock"  # in a folder of `folders/`
_GONE = ".gone-"  # begins the name of a folder of `folders/` that is being removed


@dataclass(frozen=True)
class Cache:
    """A folder for shards.

    Attributes:
        folder: where it is; None: essl_fast/shards in the user's cache folder.
        limit: most bytes in it; 0: what it has, and 80% of what is free on its disk.
    """

    folder: Path | None = None
    limit: int = 0

    @property
    def path(self) -> Path:
        """The folder, made if need be. InputError if that fails."""
        path = self.folder or places.any_folder() / "shards"
        try:
            (path / "folders").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the cache {path} cannot be made ({error.strerror}): name another folder with {_option(self)}"
            ) from error
        if not os.access(path, os.W_OK | os.X_OK):
            raise InputError(f"the cache {path} cannot be written: name another folder with {_option(self)}")
        return path

    @property
    def bound(self) -> int:
        """Most bytes in the folder."""
        return self.limit or self._used() + int(SHARE * shutil.disk_usage(self.path).free)

    def refuse_too_small(self, size: int, name: str) -> None:
        """InputError if the shards of a folder, of `size` bytes together, do not fit at the same time."""
        with self.usable():
            bound, most = self.bound, self._used() + shutil.disk_usage(self.path).free
        if size > min(bound, most):
            more = _more(self) if size > bound else "free some of its disk, "
            raise InputError(
                f"the shards of {name} that are read together take {_gb(size)}, and the cache {self.path} may hold "
                f"{_gb(min(bound, most))}: {more}or a folder on a larger disk with {_option(self)}"
            )

    def held(self, sha: str, size: int) -> int | None:
        """A descriptor of a shard, which stays in the cache while that is open; None if it is not there."""
        path = self._shard(sha)
        while True:
            try:
                held = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe of that name would keep us for ever
            except FileNotFoundError:
                return None
            with _closed_unless_given(held) as give:
                _lock(held, fcntl.LOCK_SH)
                if not is_at(held, path):  # it was removed between our two calls
                    continue
                if os.fstat(held).st_size != size or not stat.S_ISREG(os.fstat(held).st_mode):
                    path.unlink(missing_ok=True)
                    return None
                with contextlib.suppress(OSError):  # another user's file
                    os.utime(path)
                return give()

    def fetch(self, store: Store, entry: dict, stop: threading.Event | None = None, waits: bool = True) -> int | None:
        """A descriptor of a shard, as `held`; it is fetched unless it is there, and its SHA-256 is compared.

        Args:
            store: where it comes from.
            entry: of the manifest.
            stop: ends the wait.
            waits: for another process that fetches it; otherwise None is returned then.

        Raises:
            InputError: it cannot be had: it is gone, is not what the manifest says, or has no room.
            Stopped: `stop` was set.
        """
        with self.usable():
            return self._fetched(store, entry, stop, waits)

    def _fetched(self, store: Store, entry: dict, stop: threading.Event | None, waits: bool) -> int | None:
        sha, size, partial = entry["sha256"], entry["bytes"], self.path / f".{entry['sha256']}.tar.partial"
        while True:
            if (held := self.held(sha, size)) is not None:
                return held
            mine = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
            # Closed it has no lock any more, for which this process would else wait for ever.
            with _closed_unless_given(mine) as give:
                if not _lock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    if not waits:
                        return None
                elif is_at(mine, partial) and not self._shard(sha).exists():
                    try:
                        self._fill(mine, store, entry, stop)
                        os.replace(partial, self._shard(sha))
                        _lock(mine, fcntl.LOCK_SH)
                        return give()
                    except BaseException:
                        with contextlib.suppress(OSError):  # what is left there counts for nothing
                            partial.unlink(missing_ok=True)
                        raise
                else:
                    continue  # another process has finished it meanwhile
            if (stop or threading.Event()).wait(_POLL):
                raise Stopped

    def unusable(self, error: OSError) -> InputError:
        """What an error of the system at the cache's own files is for people: what is elsewhere has no fault."""
        where = self.folder or places.any_folder() / "shards"
        return InputError(
            f"the cache {where} cannot be used ({reason(error)}): free some of its disk, mend it, or name another "
            f"folder with {_option(self)}"
        )

    @contextlib.contextmanager
    def usable(self) -> Iterator[None]:
        """An OSError of the block is the cache's: InputError."""
        try:
            yield
        except OSError as error:
            raise self.unusable(error) from error

    def drop(self, sha: str) -> None:
        """Remove a shard whose file was damaged here. Who has it open keeps it."""
        self._shard(sha).unlink(missing_ok=True)

    def folder_of(self, name: str) -> tuple[Path, int]:
        """A folder under `folders/`, and a descriptor that keeps it there while it is open."""
        folder = self.path / "folders" / name
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held = os.open(folder / _FOLDER, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                continue
            with _closed_unless_given(held) as give:
                _lock(held, fcntl.LOCK_SH)
                if is_at(held, folder / _FOLDER):
                    with contextlib.suppress(OSError):
                        os.utime(folder / _FOLDER)
                    return folder, give()

    def _shard(self, sha: str) -> Path:
        return self.path / f"{sha}.tar"

    def _fill(self, file: int, store: Store, entry: dict, stop: threading.Event | None) -> None:
        name, size = store.name_of(entry["file"]), entry["bytes"]
        self._reserve(file, size, name)
        for copy in range(1, COPIES + 1):
            digest = hashlib.sha256()
            for begin, data in parts_of(store, entry, stop):
                digest.update(data)
                _write(file, data, begin)
            if digest.hexdigest() == entry["sha256"]:
                return  # not synced: what a power cut spoils shows by its CRC-32 when it is read, and is fetched again
            refuse_or_warn(store, entry["file"], copy)

    def _reserve(self, file: int, size: int, name: str) -> None:
        """Make room for a file, and give it the room."""
        while True:
            with self._alone():
                used, bound = self._used(), self.bound
                room = bound - used + os.fstat(file).st_blocks * 512
                if size <= room:
                    try:
                        os.ftruncate(file, size)
                        os.posix_fallocate(file, 0, size)
                        return
                    except OSError as error:
                        os.ftruncate(file, 0)
                        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                            raise self.unusable(error) from error
                        why = f"the disk of the cache {self.path} is full"
                else:
                    why = f"the cache {self.path} may hold {_gb(bound)}"
                if _remove_oldest(self.path):
                    continue
            raise InputError(
                f"{name} has no room: {why}, {_gb(used)} are there, and nothing more can be removed, since it is in "
                f"use or its disk fails; {_more(self)}free some of the disk, or name another folder with "
                f"{_option(self)}"
            )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _used(self) -> int:
        """Bytes on the disk."""
        return sum(_size(entry) for entry in os.scandir(self.path))


def _option(cache: Cache) -> str:
    """What names another folder, for people: some commands, such as prepare, have no settings."""
    return "--data.cache" if cache.folder else "--data.cache (train), or the variable XDG_CACHE_HOME (every command)"


def _more(cache: Cache) -> str:
    """What makes the cache larger, for people."""
    return f"give more with --data.cache_gb{'' if cache.limit else ' (train)'}, "


def parts_of(store: Store, entry: dict, stop: threading.Event | None = None) -> Iterator[tuple[int, bytes]]:
    """(where they begin, some bytes) of a shard where it lies, in order. InputError if it is not there."""
    begin, size = 0, entry["bytes"]
    while begin < size:
        end = min(begin + PART, size) if store.gives_parts else size  # or each part would bring the whole file
        try:
            data = store.read(entry["file"], begin, end, stop)
        except FileNotFoundError:
            raise InputError(
                f"{store.name_of(entry['file'])} is gone, though the manifest of {store.name} lists it: put it back, "
                "or prepare again"
            ) from None
        yield begin, data
        begin = end


def refuse_or_warn(store: Store, file: str, copy: int) -> None:
    """Say that a file came with other bytes than its manifest says. InputError if this was the last copy, from 1."""
    name = store.name_of(file)
    if copy < COPIES:
        told = f"{name} came with other bytes than its manifest says (SHA-256): fetched again, {copy + 1} of {COPIES}"
        warnings.warn(told, Notice, stacklevel=3)
        return
    raise InputError(
        f"{name} is not what the manifest of {store.name} says: its SHA-256 differs, {COPIES} times. Upload it again, "
        "or prepare again"
    )


def _remove_oldest(cache: Path) -> bool:
    """Remove what a killed process left, or what was used the longest ago. False: all is in use."""
    shards = [path for path in cache.iterdir() if path.suffix in (".tar", ".partial")]
    folders = list((cache / "folders").iterdir())
    left = [path for path in folders if path.name.startswith(_GONE)]
    if any(map(_remove_rest, left)):
        return True
    found = []
    for path in [*shards, *(set(folders) - set(left))]:
        lock = path / _FOLDER if path.is_dir() else path
        with contextlib.suppress(OSError):  # gone by now
            found.append((path.suffix != ".partial", lock.stat().st_mtime, path, lock))
    return any(_remove(path, lock) for _, _, path, lock in sorted(found))


def _remove(path: Path, lock: Path) -> bool:
    """Remove a shard, or a folder with its lock, unless somebody uses it. Whether it is gone."""
    try:
        held = os.open(lock, os.O_RDWR)
    except OSError:
        return False
    try:
        if not _lock(held, fcntl.LOCK_EX | fcntl.LOCK_NB, without=False) or not is_at(held, lock):
            return False
        if path == lock:
            lock.unlink()
            return True
        # At once, so that nobody finds a folder that is half removed, or puts files into it.
        os.rename(path, gone := path.with_name(f"{_GONE}{path.name}"))
        return _remove_rest(gone)
    except OSError:
        return False
    finally:
        os.close(held)


@contextlib.contextmanager
def _closed_unless_given(file: int) -> Iterator[Callable[[], int]]:
    """Close an open file at the end of the block, with its lock, however that ends; unless the file was given away."""
    given = False

    def give() -> int:
        nonlocal given
        given = True
        return file

    try:
        yield give
    finally:
        if not given:
            os.close(file)


def _remove_rest(folder: Path) -> bool:
    """Remove a folder that nobody can use any more. Whether it is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def _lock(file: int, how: int, without: bool = True) -> bool:
    """Lock an open file; False if another process has it. `without`: the answer on a file system that has no locks."""
    try:
        fcntl.flock(file, how)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return without


def _size(entry: os.DirEntry) -> int:
    """Bytes on the disk of a file, or of all files in a folder."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return sum(map(_size, os.scandir(entry.path)))
        return entry.stat(follow_symlinks=False).st_blocks * 512
    except OSError:  # gone by now
        return 0


def _write(file: int, data: bytes, begin: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, begin)
        left, begin = left[written:], begin + written


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
