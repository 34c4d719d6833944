"""The folder that prepare makes: whether it is finished, and who works on it."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from essl_fast.common.errors import InputError
from essl_fast.common.files import parse_json
from essl_fast.common.locks import NO_LOCKS, is_at
from essl_fast.data import media
from essl_fast.data.datasets import hdf5
from essl_fast.data.media import nvdec, stills
from essl_fast.data.shards import SPLITS, VERSION, Manifest
from essl_fast.prepare.preview import PREVIEW
from essl_fast.prepare.reporting import Reporter
from essl_fast.prepare.sending import Destination
from essl_fast.prepare.slices import Slice
from essl_fast.prepare.workers import CRASHED

PARTS = ".parts"
_MENDABLE = {  # reasons that a better copy of the file, or of the program, removes
    media.MISSING,
    media.UNREADABLE,
    media.NO_VIDEO,
    media.NO_SOUND,
    media.TRUNCATED,
    media.SOUND_TRUNCATED,
    media.OWN_FAULT,
    CRASHED,
    nvdec.FAILED,
    stills.BAD_PICTURE,
    hdf5.DAMAGED,
}


class PreparedDifferently(InputError):
    """A finished folder was made with other settings, from other annotations, or by another version."""


@contextlib.contextmanager
def own_folder(out: Path, say: Reporter, part: Slice | None = None, url: str = "") -> Iterator[None]:
    """Make `out` and its folder for parts, and lock them. The lock ends with the process, however that ends.

    Args:
        out: the folder.
        say: gets a warning if the file system has no locks.
        part: then other parts may be made at the same time, and its folder is made and locked, too.
        url: that `out` is made for, without secrets.

    Raises:
        InputError: another process holds the lock, or `out` is a file or holds files that prepare did not make.
    """
    parts = out / PARTS
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: --out must name a folder")
    strange = out.is_dir() and any(path.name != PREVIEW for path in out.iterdir())  # --check has drawn the preview
    if not parts.is_dir() and not (out / "manifest.json").exists() and strange:
        raise InputError(f"{out} holds files that prepare did not make: choose an empty or a new folder for --out")
    with contextlib.ExitStack() as locks:
        locks.enter_context(_lock(url or out, parts, say, shared=part is not None))
        if part is not None:
            locks.enter_context(_lock(out, parts / part.folder, say, what=f"part {part} of "))
        yield


@contextlib.contextmanager
def _lock(out: Path | str, folder: Path, say: Reporter, what: str = "", shared: bool = False) -> Iterator[None]:
    """Make a folder of `out` and lock it. InputError if another process holds the lock.

    what: is at work there, in words.
    """
    while (lock := _opened(folder)) is None or not _taken(lock, folder, shared, out, what, say):
        pass  # its owner has just ended, and removed the folder
    with lock:
        yield


def _opened(folder: Path) -> TextIO | None:
    """The file of a folder's lock, both made unless they are there; None if the folder goes meanwhile."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return open(folder / "lock", "a+")
    except (FileExistsError, FileNotFoundError):
        if folder.exists():
            raise
        return None


def _taken(lock: TextIO, folder: Path, shared: bool, out: Path | str, what: str, say: Reporter) -> bool:
    """Lock an open file as :func:`_lock` says; False, and it is closed, if it is not at its place any more."""
    with contextlib.ExitStack() as unless_taken:
        unless_taken.callback(lock.close)
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another prepare is at work on {what}{out}: wait for it, or choose another --out"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            why = f"the file system of {out if isinstance(out, Path) else folder} has no locks ({error.strerror})"
            say.line(f"warning: {why}: make sure that no other prepare works on {what or 'it'}")
        if is_at(lock.fileno(), folder / "lock"):
            unless_taken.pop_all()
            return True
    return False


def open_finished(
    out: Path, settings: Mapping[str, Any], say: Reporter, sent: Destination | None = None
) -> Manifest | None:
    """The manifest of a finished folder of these settings; None if there is work to do.

    sent: where the folder is, if it is at a URL.

    Raises:
        PreparedDifferently: the folder is of other settings.
        InputError: its manifest.json is not one of prepare.
    """
    path = out / "manifest.json"
    place = str(out) if sent is None else sent.name
    written = sent.manifest() if sent is not None else path.read_bytes() if path.exists() else None
    if written is None:
        return None
    try:
        header = parse_json(written)
        known, version = {"decoder": "pyav"} | header["settings"], header["version"]  # old folders name no decoder
    except (ValueError, TypeError, KeyError):
        raise InputError(
            f"{place}/manifest.json is not a manifest of prepare: delete {place} or choose another --out"
        ) from None
    if changed := changes(known | {"format": version}, json.loads(json.dumps(settings)) | {"format": VERSION}):
        how = "; ".join(changed)
        raise PreparedDifferently(f"{place} was prepared differently ({how}): choose another --out or delete it")
    try:
        manifest = Manifest.load(out if sent is None else sent.store.url)
        if sent is not None and sent.lacks(manifest.entries(SPLITS)):
            return None
    except InputError:
        return None  # a shard was deleted, for example
    lost = sum(count for reason, count in manifest.header["left_out"].items() if reason in _MENDABLE)
    then = f"once they are mended, delete {place} (or choose another --out) and run again"
    again = f"; {lost} videos or pairs were left out for faults of video files (see left_out.jsonl): {then}"
    say.line(f"{place} is complete: nothing to do{again if lost else ''}")
    return manifest


def changes(was: Mapping[str, Any], now: Mapping[str, Any], every: bool = False) -> list[str]:
    """How two runs differ in their settings, in words. `decoders`, which follows from `visual`, counts with `every`."""
    aside = set() if every else {"decoders"}
    names = sorted(name for name in (was.keys() | now.keys()) - aside if was.get(name) != now.get(name))
    if names == ["annotations"]:
        return ["the annotations were others"]
    # The hash of the annotations depends on the other settings, so it says nothing if these differ.
    return [f"{name} was {was.get(name)}, is {now.get(name)}" for name in names if name != "annotations"]
