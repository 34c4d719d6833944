"""Sends what prepare makes to a URL. Here lies only what is being made: one shard, and the parts of the next videos.

    URL/<shard>.tar, .idx            as soon as the shard is full
    URL/.parts/shards/<shard>.json   then its entry of the journal: another machine can go on, too
    URL/pairs/, left_out.jsonl       at the end
    URL/manifest.json                last; one that is there is removed before the first shard comes

So whoever reads there finds the whole data set, or none. What a killed run has sent is not sent again.

    URL/.parts/begun                 names the run that began last; one that finds another's name there stops

So of two machines that write to one URL the second goes on. The first notices before its next shard, and in any case
before its manifest stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import uuid
from pathlib import Path

from essl_fast.common.errors import InputError
from essl_fast.data.remote import Cache, Store
from essl_fast.data.shards import CLIP_CHECKS, QUARANTINE

MANIFEST, JOURNAL, LEFT_OUT = "manifest.json", ".parts/shards", "left_out.jsonl"
_BEGUN = ".parts/begun"
_SHARD_FILES = re.compile(r"(train|val|test)-\d{5,}\.(tar|idx)")


class Destination:
    """A prepared folder that is made at a URL.

    Attributes:
        store: where it is.
        name: its URL without secrets.
        folder: where it is made, in the user's cache folder.
    """

    def __init__(self, url: str):
        """InputError if nothing can be written there at all, or a package for it is missing."""
        self.store = Store(url)
        self.name = self.store.name
        if not self.store.takes_files:
            raise InputError(
                f"--out: {self.name} is on a web server, which takes no files: make the data in a folder, and "
                "copy it there"
            )
        self.folder = Cache().path / "made" / hashlib.sha256(self.name.encode()).hexdigest()[:16]
        self._run = b""  # this one's name, once it has begun

    def manifest(self) -> bytes | None:
        """The manifest that is there; None without one."""
        try:
            return self.store.read(MANIFEST)
        except FileNotFoundError:
            return None

    def has(self, file: str) -> bool:
        """Whether a file is there."""
        return self.store.size(file) is not None

    def lacks(self, shards: list[dict]) -> bool:
        """Whether a shard is missing there, or has another size. shards: entries of the manifest."""
        sizes = self.store.sizes()
        return any(sizes.get(shard["file"]) != shard["bytes"] or shard["index"] not in sizes for shard in shards)

    def begin(self) -> None:
        """Remove the manifest that is there, and take over the journal of a run on another machine.

        InputError if shards of something else lie there, which this one would replace or remove.
        """
        self._refuse_others()
        self._run = uuid.uuid4().hex.encode()
        self.store.write(_BEGUN, self._run)  # what cannot be written shows before hours of work
        self.store.remove(MANIFEST)
        here = self.folder / JOURNAL
        if any(here.glob("*.json")):
            return
        here.mkdir(parents=True, exist_ok=True)
        for name in self.store.names(JOURNAL):
            index = f"{name.removesuffix('.json')}.idx"
            found = [(here / name, f"{JOURNAL}/{name}")]
            if _SHARD_FILES.fullmatch(index):
                found.append((self.folder / index, index))
            for path, file in found:
                with contextlib.suppress(FileNotFoundError):  # then the shard is made again
                    data = self.store.read(file)
                    path.write_bytes(data)  # a journal that is cut short does not count

    def _refuse_others(self) -> None:
        """Ours have a manifest or a journal beside them, or what describes them, if the manifest was deleted."""
        names = self.store.names()
        others = sorted(filter(_SHARD_FILES.fullmatch, names))
        if others and not {MANIFEST, LEFT_OUT} & set(names) and not self.store.names(".parts"):
            raise InputError(
                f"{self.name} holds files that prepare did not make, such as {others[0]}: choose an empty or a new "
                "folder for --out"
            )

    def holds(self, shard: dict) -> bool:
        """Whether a shard that was noted is there still."""
        return self.store.size(shard["file"]) == shard["bytes"] and (self.folder / shard["index"]).is_file()

    def stop_if_another_began(self) -> None:
        """InputError if another run has begun at the URL since this one did."""
        try:
            found = self.store.read(_BEGUN) if self._run else b""
        except FileNotFoundError:
            found = b"one that has finished since"
        if found != self._run:
            raise InputError(
                f"{self.name}: another prepare began there after this one, so this one stops: let that one finish, "
                "then run the same command again, or choose another --out"
            )

    def send(self, shard: dict) -> None:
        """Send a finished shard. InputError if it does not arrive whole, or another run works there."""
        self.stop_if_another_began()
        for file in (shard["file"], shard["index"]):
            path = self.folder / file
            self.store.upload(file, str(path))
            if (size := self.store.size(file)) != path.stat().st_size:
                raise InputError(
                    f"{self.store.name_of(file)} has {size} bytes, not the {path.stat().st_size} that were sent: run "
                    "the same command again"
                )

    def noted(self, path: Path) -> None:
        """Send a file of the journal; the shard that it notes is no longer needed here."""
        self.store.upload(f"{JOURNAL}/{path.name}", str(path))
        (self.folder / f"{path.stem}.tar").unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the journal that is there: it is of other settings."""
        for name in self.store.names(JOURNAL):
            self.store.remove(f"{JOURNAL}/{name}")

    def finish(self) -> None:
        """Send what describes the folder, the manifest last. What --verify found in other pairs goes first.

        Raises:
            InputError: another run works there.
        """
        self.stop_if_another_began()
        for name in (QUARANTINE, CLIP_CHECKS):
            self.store.remove(name)
        for path in [*sorted((self.folder / "pairs").glob("*.npy")), self.folder / LEFT_OUT]:
            self.store.upload(str(path.relative_to(self.folder)), str(path))
        self.stop_if_another_began()
        self.store.upload(MANIFEST, str(self.folder / MANIFEST))
        try:
            self.stop_if_another_began()  # which has removed the manifest, but perhaps before this one came
        except InputError:
            self.store.remove(MANIFEST)
            raise

    def clean(self, shards: list[dict]) -> None:
        """Remove what a finished folder does not need, here and there. shards: entries of the manifest."""
        self.stop_if_another_began()
        kept = {shard[kind] for shard in shards for kind in ("file", "index")}
        self.forget()
        self.store.remove(_BEGUN)
        for name in self.store.names():
            if _SHARD_FILES.fullmatch(name) and name not in kept:
                self.store.remove(name)
        shutil.rmtree(self.folder, ignore_errors=True)
