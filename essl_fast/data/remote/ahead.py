"""Shards are fetched while others are read: threads bring all that a loader needs, those first that it waits for."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import resource
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Sequence

from essl_fast.common.errors import InputError, Notice
from essl_fast.data.remote.folder import Folder
from essl_fast.data.remote.store import Stopped

THREADS = 8  # shards on their way at the same time


_all: weakref.WeakSet[Ahead] = weakref.WeakSet()  # of this process


class Ahead:
    """The shards of a loader, which stay in the cache as long as this does.

    Whoever asks for a shard waits for it. The first who asks starts the threads; `pause` ends them, and the next who
    asks after `go_on` starts them again.
    """

    def __init__(self, folder: Folder, entries: Sequence[dict], first: int = 0):
        """
        Args:
            folder: where they come from.
            entries: of the manifest, one for each shard.
            first: the shard to begin with. Processes of a host that begin with different ones share the work.

        Raises:
            InputError: the cache cannot hold them all, with those that this process reads already.
        """
        self._folder, self._entries = folder, entries
        _all.add(self)
        together = [each for each in _all if each._folder.cache.path == folder.cache.path]
        sizes = {entry["sha256"]: entry["bytes"] for each in together for entry in each._entries}
        try:
            folder.cache.refuse_too_small(sum(sizes.values()), folder.name)
        except InputError:
            _all.discard(self)
            raise
        _allow_open_files(len(entries))
        numbers = list(range(len(entries)))
        self._left = deque(numbers[first % max(len(numbers), 1) :] + numbers[: first % max(len(numbers), 1)])
        self._held: dict[int, int] = {}  # shard → its descriptor
        self._old: list[int] = []  # of files that are no longer in the cache
        self._whole: set[int] = set()  # shards whose file was seen to have the manifest's bytes
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._paused = threading.Event()
        self._threads: list[threading.Thread] = []

    def want(self, shards: Iterable[int]) -> None:
        """Fetch these before all others."""
        with self._changed:
            for shard in sorted(set(map(int, shards)) & set(self._left), reverse=True):
                self._left.remove(shard)
                self._left.appendleft(shard)

    def descriptor(self, shard: int) -> int:
        """The open file of a shard. It is not the caller's to close.

        Raises:
            InputError: it cannot be had.
            Stopped: `pause` was called meanwhile.
        """
        if (held := self._held.get(shard)) is not None:
            return held
        with self._changed:
            while True:
                if shard in self._held:
                    return self._held[shard]
                if self._error is not None:
                    # A copy: with the frames of who waits, this would keep the loader alive, and its files open.
                    raise copy.copy(self._error) from self._error
                if self._paused.is_set():
                    raise Stopped
                self._start()
                self._changed.wait(1)

    def mended(self, shard: int, held: int) -> int | None:
        """After a pair of a shard was seen to be damaged: the shard's open file, if it was fetched anew since.

        That happens where the file in the cache has other bytes than were fetched, as after a fault of the disk. If it
        has the manifest's, the data set itself is damaged: None.

        held: the open file that the pair was read from.
        """
        with self._changed:
            if self._held.get(shard) == held:
                if shard in self._whole:
                    return None
                entry = self._entries[shard]
                with open(f"/dev/fd/{held}", "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]:
                        self._whole.add(shard)
                        return None
                warnings.warn(f"{entry['file']} in the cache was damaged: it is fetched again", Notice, stacklevel=2)
                self._folder.cache.drop(entry["sha256"])
                self._old.append(self._held.pop(shard))  # another thread may read from it now
                self._left.appendleft(shard)
        return self.descriptor(shard)

    def pause(self) -> None:
        """Stop fetching, and let nobody wait."""
        with self._changed:
            self._paused.set()
            self._changed.notify_all()

    def go_on(self) -> None:
        """After `pause`, or after an error: fetch again when somebody asks."""
        with self._changed:
            self._error = None
            self._paused.clear()

    def close(self) -> None:
        """Stop, and let the shards go."""
        self.pause()
        with self._changed:
            for held in [*self._held.values(), *self._old]:
                with contextlib.suppress(OSError):
                    os.close(held)
            self._held.clear()
            self._old.clear()

    def _start(self) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for _ in range(min(THREADS, len(self._left)) - len(self._threads)):
            thread = threading.Thread(target=self._run, name="essl_fast-fetch", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self) -> None:
        elsewhere = 0  # shards in a row that another process fetches
        while True:
            with self._changed:
                if self._paused.is_set() or not self._left:
                    return
                shard, waits = self._left.popleft(), elsewhere > len(self._left)
            held = None
            try:
                held = self._folder.cache.fetch(self._folder.store, self._entries[shard], self._paused, waits)
            except Stopped:
                return
            except BaseException as error:  # raised again where somebody waits
                with self._changed:
                    self._error = error
                    self._paused.set()  # the others end, too
                return
            finally:
                with self._changed:
                    if held is None:
                        self._left.append(shard)
                    elif self._paused.is_set():
                        os.close(held)
                        self._left.append(shard)
                    else:
                        self._held[shard] = held
                    self._changed.notify_all()
            elsewhere = elsewhere + 1 if held is None else 0


def _allow_open_files(more: int) -> None:
    """Let this process have so many more files open, as far as the system admits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = more + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
