"""A disk whose n-th operation of a kind fails. It patches what Python's files and the os module are made of.

    kind     operations                                                            fails with
    open     a file or folder is opened                                            EIO, once
    read     bytes, or the names in a folder, are read                             EIO, once
    write    bytes are written, a file is cut                                      ENOSPC from there on; EIO, once
    sync     fsync                                                                 EIO, once
    name     rename, link, remove, make a folder                                   EIO, once; ENOSPC from there on
    memory   NumPy, PyTorch or a store allocate, called by our code; a file is     MemoryError or that of PyTorch,
             read whole                                                            once

Only files below a folder count. Buffers are those of Python, so a write fails where the kernel would get it: at a
flush, or when the file is closed. Files that C++ opens by itself (FFmpeg's) are not seen.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from fsspec.implementations.memory import MemoryFileSystem

KINDS = ("open", "read", "write", "sync", "name", "memory")
_BY_PATH = {
    "open": ("open",),
    "read": ("listdir", "scandir"),
    "write": ("truncate",),
    "name": ("replace", "rename", "link", "symlink", "unlink", "remove", "rmdir", "mkdir"),
}
_BY_NUMBER = {
    "read": ("read", "pread", "readv", "preadv"),
    "write": ("write", "pwrite", "writev", "pwritev", "ftruncate", "posix_fallocate", "sendfile"),
    "sync": ("fsync", "fdatasync"),
}
_MEMORY = (
    (np, ("empty", "zeros", "full", "array", "concatenate", "ascontiguousarray")),
    (torch, ("empty", "zeros", "load", "save")),
    (MemoryFileSystem, ("cat_file",)),  # what a store sends
)
_NO_MEMORY = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"


class Failure(NamedTuple):
    """Which operation fails: the `nth` (from 1) of a kind, with an error number; with `stays`, all after it, too."""

    kind: str
    nth: int
    error: int = errno.EIO
    stays: bool = False

    def __str__(self) -> str:
        how = "memory" if self.kind == "memory" else errno.errorcode[self.error]
        return f"{self.kind} {self.nth}: {how}{' from there on' * self.stays}"


VARIANTS = {  # kind -> (error, stays) of each way in which it is let fail
    "open": ((errno.EIO, False),),
    "read": ((errno.EIO, False),),
    "write": ((errno.ENOSPC, True), (errno.EIO, False)),
    "sync": ((errno.EIO, False),),
    "name": ((errno.EIO, False), (errno.ENOSPC, True)),
    "memory": ((errno.ENOMEM, False),),
}


class Disk:
    """Counts operations on what lies below a folder; one may fail.

    Attributes:
        counts: how many operations of each kind there were.
        failed: what was let fail first: the operation and its file; "" if nothing was.
    """

    def __init__(self, root: str | os.PathLike, failure: Failure | None = None) -> None:
        self._root, self._failure = os.path.realpath(root), failure
        self._lock = threading.Lock()
        self._real: dict[str, Callable] = {}
        self.counts = dict.fromkeys(KINDS, 0)
        self.failed = ""

    def note(self, kind: str, what: str, path: str, named: bool) -> None:
        """Count an operation. If it is the one that fails: OSError, or for memory MemoryError, PyTorch's RuntimeError.

        named: the error names the file.
        """
        with self._lock:
            self.counts[kind] += 1
            one, count = self._failure, self.counts[kind]
            if one is None or one.kind != kind or not (count == one.nth or (one.stays and count > one.nth)):
                return
            self.failed = self.failed or f"{what} {path}"
        if kind == "memory":
            raise RuntimeError(_NO_MEMORY) if what.startswith("torch.") else MemoryError
        raise OSError(one.error, os.strerror(one.error), *([path] if named else []))

    def _below(self, path: Any, folder: int | None = None) -> str | None:
        """The path if it is below the root; a number is an open file's."""
        with contextlib.suppress(OSError, TypeError, ValueError):
            if isinstance(path, int):
                path = self._real["readlink"](f"/proc/self/fd/{path}")
            elif folder is not None:
                path = os.path.join(self._real["readlink"](f"/proc/self/fd/{folder}"), os.fsdecode(path))
            path = os.path.abspath(os.fsdecode(path))
            return path if path == self._root or path.startswith(f"{self._root}/") else None
        return None

    def _by_path(self, kind: str, name: str) -> Callable:
        real = self._real[name]

        def call(path: Any = ".", *rest: Any, **more: Any) -> Any:
            folder = more.get("dir_fd", more.get("src_dir_fd"))
            if (below := self._below(path, folder)) is not None:
                self.note(kind, name, below, named=not isinstance(path, int))
            return real(path, *rest, **more)

        return call

    def _by_number(self, kind: str, name: str) -> Callable:
        real = self._real[name]

        def call(number: int, *rest: Any, **more: Any) -> Any:
            if (below := self._below(number)) is not None:
                self.note(kind, name, below, named=False)
                if kind == "sync":
                    return None  # no power is cut here, and a real one would take most of the time
            return real(number, *rest, **more)

        return call

    def _allocation(self, real: Callable, name: str) -> Callable:
        def call(*rest: Any, **more: Any) -> Any:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller.startswith("essl_fast."):
                self.note("memory", name, caller, named=False)
            return real(*rest, **more)

        return call

    def _open(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Callable | None = None,
    ) -> Any:
        """As `open`, with raw files that count."""
        below = self._below(file)
        if below is None:
            return self._real["open file"](file, mode, buffering, encoding, errors, newline, closefd, opener)
        self.note("open", "open", below, named=True)
        raw = _Raw(file, "".join(letter for letter in mode if letter not in "bt"), closefd, opener)
        raw.disk, raw.path = self, below
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        kind = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
        buffer = kind(raw, size)
        if "b" in mode:
            return buffer
        text = io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering=buffering == 1)
        text.mode = mode  # type: ignore[misc]
        return text

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Disk]:
        """Within the context the process's operations go through this disk."""
        self._real = {name: getattr(os, name) for names in _BY_PATH.values() for name in names}
        self._real |= {name: getattr(os, name) for names in _BY_NUMBER.values() for name in names}
        self._real |= {"readlink": os.readlink, "open file": builtins.open}
        with contextlib.ExitStack() as stack:
            for kinds, made in ((_BY_PATH, self._by_path), (_BY_NUMBER, self._by_number)):
                for kind, names in kinds.items():
                    for name in names:
                        stack.enter_context(mock.patch.object(os, name, made(kind, name)))
            for module in (builtins, io):
                stack.enter_context(mock.patch.object(module, "open", self._open))
            for module, names in _MEMORY:
                for name in names:
                    known = f"{module.__name__}.{name}"
                    stack.enter_context(mock.patch.object(module, name, self._allocation(getattr(module, name), known)))
            # Otherwise NumPy hands the file's number to C, which reads and writes unseen.
            at = "numpy.lib._format_impl.isfileobj" if hasattr(np.lib, "_format_impl") else "numpy.lib.format.isfileobj"
            stack.enter_context(mock.patch(at, lambda file: False))
            yield self


class _Raw(io.FileIO):
    """An unbuffered file of a disk."""

    disk: Disk
    path: str

    def readinto(self, buffer: Any) -> int | None:
        self.disk.note("read", "read", self.path, named=False)
        return super().readinto(buffer)

    def read(self, size: int = -1) -> bytes | None:
        self.disk.note("read", "read", self.path, named=False)
        return super().read(size)

    def readall(self) -> bytes | None:
        self.disk.note("memory", "readall", self.path, named=False)
        self.disk.note("read", "read", self.path, named=False)
        return super().readall()

    def write(self, data: Any) -> int | None:
        self.disk.note("write", "write", self.path, named=False)
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        self.disk.note("write", "truncate", self.path, named=False)
        return super().truncate(size)
