"""A prepared folder that is elsewhere: what describes it is copied into the cache, its shards come when they are read.

What describes it lies in a folder of the cache that is named by the URL and by the SHA-256 of the manifest: if the data
set is prepared anew under the same URL, it gets another one. A process that reads the data set keeps that folder there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from essl_fast.common.errors import InputError, Notice, in_shell
from essl_fast.common.files import atomic_file
from essl_fast.data.remote.cache import COPIES, Cache, parts_of, refuse_or_warn
from essl_fast.data.remote.store import NoAccess, Store, is_page

MANIFEST = "manifest.json"
_AT_ONCE = 16  # small files that are asked for at the same time


class Folder:
    """A prepared folder by its URL.

    Attributes:
        store: where it is.
        cache: where its shards go.
        local: the folder in the cache that describes it.
        name: the URL without secrets.
    """

    def __init__(self, url: str, cache: Cache | None = None):
        """Read the manifest, as the text that it is. InputError if it cannot be read."""
        self.store, self.cache = Store(url), cache or Cache()
        self.name = self.store.name
        try:
            self.manifest = self.store.read(MANIFEST)
        except FileNotFoundError:
            raise InputError(
                f"{self.store.name_of(MANIFEST)} is not there, so {self.name} is not a complete prepared folder: check "
                "the name, or prepare it with `python -m essl_fast.prepare ... --out URL`"
            ) from None
        if is_page(self.manifest):
            raise InputError(
                f"{self.store.name_of(MANIFEST)} is a web page (HTML) and no manifest: check the URL, which must name "
                "the prepared folder, and whether one has to sign in there"
            )
        named = hashlib.sha256(self.name.encode()).hexdigest()[:16]
        self._key = f"{named}-{hashlib.sha256(self.manifest).hexdigest()[:16]}"
        self._settle()

    def _settle(self) -> None:
        """Have a folder in the cache, which stays there while this lives."""
        with self.cache.usable():
            self.local, held = self.cache.folder_of(self._key)
        weakref.finalize(self, os.close, held)

    def bring(self, sums: Mapping[str, str], optional: Sequence[str] = ()) -> None:
        """Copy the manifest and files into `local`: those of `sums` unless they are there whole, `optional` always.

        sums: name → SHA-256, or "" if nobody knows it.

        Raises:
            InputError: one of `sums` does not exist or has another SHA-256, or a file cannot be read or written.
        """
        if not self.local.is_dir():  # somebody has emptied the cache
            self._settle()
        with self.cache.usable(), self._alone():
            (self.local / "pairs").mkdir(exist_ok=True)
            lacking = [name for name, wanted in sums.items() if not self._is_here(name, wanted)]
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                reads = [pool.submit(self._read, name, sums[name]) for name in lacking]
                reads += [pool.submit(self._read_optional, name) for name in optional]
                for name, read in zip([*lacking, *optional], reads, strict=True):
                    self._keep(name, read.result(), optional=name in optional)
            self._keep(MANIFEST, self.manifest, optional=True)  # what lies there may have been changed

    def _is_here(self, name: str, wanted: str) -> bool:
        """Whether a file was copied, and is what came then. wanted: its SHA-256, or ""."""
        if not (self.local / name).is_file():
            return False
        with open(self.local / name, "rb") as file:
            if not wanted or hashlib.file_digest(file, "sha256").hexdigest() == wanted:
                return True
        warnings.warn(f"{name} in the cache was damaged: it is fetched again", Notice, stacklevel=3)
        return False

    def drop(self) -> None:
        """Remove the copies: they do not fit together, so one came damaged. Who opens the folder again gets others."""
        with self.cache.usable():
            (self.local / MANIFEST).unlink(missing_ok=True)
            for path in [*self.local.glob("pairs/*.npy"), *self.local.glob("*.idx"), *self.local.glob("*.npy")]:
                path.unlink(missing_ok=True)

    def told(self, error: InputError) -> InputError:
        """An error of reading the copies, for people: files by their URL, unless the cache's disk failed."""
        if isinstance(cause := error.__cause__, OSError) and not isinstance(cause, FileNotFoundError):
            return self.cache.unusable(cause)
        text = str(error)
        if not self.store.takes_files:
            again = f"run `python -m essl_fast.prepare ... --out {in_shell(self.local)}` again"
            text = text.replace(again, "copy the prepared folder there again")
        return InputError(text.replace(str(self.local), self.name))

    def publish(self, name: str) -> None:
        """Send a file of `local` to the store. If that takes none, the file stays here, and counts here."""
        own = self.local / f".own-{name}"
        try:
            if not self.store.takes_files:
                raise InputError(f"{self.name} takes no files")
            self.store.upload(name, str(self.local / name))
            own.unlink(missing_ok=True)
        except (InputError, FileNotFoundError) as error:
            own.touch()
            told = f"{name} stays in {self.local}, and counts on this machine alone: {error}"
            warnings.warn(told, Notice, stacklevel=2)

    def named(self, name: str) -> str:
        """Where a file is, for people."""
        own = (self.local / f".own-{name.replace('/', '-')}").exists()
        return str(self.local / name) if own else self.store.name_of(name)

    def confirm(self, sums: Mapping[str, str]) -> None:
        """Read files where they lie, also those of which there is a copy here, and compare their SHA-256.

        InputError if one is missing or differs. sums: as for `bring`.
        """
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for name, data in zip(sums, pool.map(self._read, sums, sums.values()), strict=True):
                if data is None:
                    raise self._lacking(name)

    @contextlib.contextmanager
    def shard(self, entry: dict, confirmed: bool = False) -> Iterator[Path]:
        """A shard's file in the cache, which stays there while the context lasts.

        entry: of the manifest. confirmed: where it was in the cache before, the one that lies there is read, too, and
            the one in the cache is fetched again if it was damaged.

        Raises:
            InputError: it cannot be had, or is not what the manifest says.
        """
        with self.cache.usable():
            held = self.cache.held(entry["sha256"], entry["bytes"])
        try:
            if held is not None and confirmed:
                self._confirm(entry)
                if not _is_whole(held, entry):
                    self.cache.drop(entry["sha256"])
                    os.close(held)
                    held = None
            if held is None:
                held = self.cache.fetch(self.store, entry)
        except BaseException:
            if held is not None:
                os.close(held)
            raise
        assert held is not None  # it waits
        try:
            yield Path(f"/dev/fd/{held}")
        finally:
            os.close(held)

    def _confirm(self, entry: dict) -> None:
        for copy in range(1, COPIES + 1):
            digest = hashlib.sha256()
            for _, data in parts_of(self.store, entry):
                digest.update(data)
            if digest.hexdigest() == entry["sha256"]:
                return
            refuse_or_warn(self.store, entry["file"], copy)

    def _lacking(self, name: str) -> InputError:
        return InputError(
            f"{self.store.name_of(name)} is missing, though the manifest names it: prepare {self.name} again"
        )

    def _read(self, name: str, wanted: str) -> bytes | None:
        """A file; None if it does not exist. wanted: its SHA-256, if that is known."""
        for copy in range(1, COPIES + 1):
            try:
                data = self.store.read(name)
            except FileNotFoundError:
                return None
            if not wanted or hashlib.sha256(data).hexdigest() == wanted:
                return data
            refuse_or_warn(self.store, name, copy)
        raise AssertionError  # the last copy returns or raises

    def _read_optional(self, name: str) -> bytes | None:
        """A file that need not exist; None if it does not, or if the store refuses it, which a line says."""
        try:
            return self._read(name, "")
        except NoAccess as error:
            warnings.warn(f"taken as not there, as where a store may not be listed: {error}", Notice, stacklevel=2)
            return None

    def _keep(self, name: str, data: bytes | None, optional: bool = False) -> None:
        path = self.local / name
        if data is None and not optional:
            raise self._lacking(name)
        if data is None:
            if not (self.local / f".own-{name}").exists():
                path.unlink(missing_ok=True)
            return
        if optional and path.is_file() and path.read_bytes() == data:
            return
        with atomic_file(path) as file:
            file.write(data)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process of the host copies, the others wait."""
        file = os.open(self.local / ".fetching", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with contextlib.suppress(OSError):  # of a file system without locks: each then copies for itself
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)


def _is_whole(held: int, entry: dict) -> bool:
    """Whether a shard in the cache, an open file, has the manifest's bytes. Otherwise a line says so."""
    with open(f"/dev/fd/{held}", "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]:
            return True
    warnings.warn(f"{entry['file']} in the cache was damaged: it is fetched again", Notice, stacklevel=3)
    return False


def open_folder(url: str, cache: str = "", gigabytes: float = 0.0) -> Folder:
    """The prepared folder at a URL. InputError if it cannot be read.

    Args:
        url: the folder's.
        cache: folder for its shards; "" is the user's cache folder.
        gigabytes: most that the cache may hold, in 10^9 bytes; 0 is what it has, and 80% of what is free on its disk.
    """
    return Folder(url, Cache(Path(cache) if cache else None, int(gigabytes * 1e9)))
