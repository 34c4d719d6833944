"""Random access to the pairs in shards: one scattered read a pair, straight into the memory that is decoded from.

DALI's own WebDataset reader also gives each pair once and resumes exactly. But it shuffles only inside its buffer, in
an order that nobody else can compute. So the index files are read here, and DALI gets the bytes of JPEG or MP4 files.
The price: reads of about 130 KB each, which are not sequential. SSDs and the page cache do that at full speed, a
spinning disk does not.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import weakref
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from essl_fast.common.errors import InputError, in_shell
from essl_fast.data.shards.checks import ClipChecks
from essl_fast.data.shards.manifest import BAD, Manifest
from essl_fast.data.shards.tars import CLIP, SAMPLES, encode_key, pair_crc, read_index

if TYPE_CHECKING:
    from essl_fast.data.remote import Ahead

Quarantined = Literal["none", "bad", "all"]
ALTERED = "its bytes are not those that prepare wrote (CRC-32)"


class Picture(NamedTuple):
    """The frame of a pair as it is stored.

    Attributes:
        file: (n,) uint8, a JPEG, a PNG, or a clip (an MP4).
        target: of a clip, the position of the wanted frame, from 0; None if it is no clip.
        quarters: of a clip, the quarter turns counterclockwise that put its frames upright.
        altered: whether the pair's bytes are not those that `prepare` wrote.
        position: of the pair in its `Shards`; -1 if it has none.
        check: of a clip, see `ClipChecks`; None if it is not known.
    """

    file: np.ndarray
    target: int | None = None
    quarters: int = 0
    altered: bool = False
    position: int = -1
    check: np.ndarray | None = None


@dataclass(frozen=True)
class _Places:
    """Where the bytes of n pairs are, and how to read them. Offsets and sizes are bytes of the shard's tar file."""

    shard: np.ndarray  # (n,) int64, number of the shard
    kind: np.ndarray  # (n,) uint8: JPEG, CLIP or PNG
    offset: np.ndarray  # (n,) int64, of the frame's file
    size: np.ndarray  # (n,) int64, of the frame's file
    sound_offset: np.ndarray  # (n,) int64
    target: np.ndarray  # (n,), see Picture
    quarters: np.ndarray  # (n,), see Picture
    crc: np.ndarray  # (n,) uint32, CRC-32 of frame and sound together

    def only(self, keep: np.ndarray) -> _Places:
        """The places of the pairs that `keep` (n,) bool marks."""
        return _Places(*(getattr(self, field.name)[keep] for field in fields(self)))


class Shards:
    """The pairs of some splits, which are named by their position, 0 to len(self) - 1.

    One class, because places, open files and what was seen of each pair change together while threads read.

    Attributes:
        rows: (n,) int64, the pairs' rows in the manifest, ascending.
        paths: the tar files; of a folder elsewhere, their URLs without secrets.
        sound: NumPy type of a sample, int16 or float32.
        excluded: number of pairs that were left out.
        checks: what the frames of clips look like, as far as that is known.
        fingerprint: names exactly these pairs and their bytes, by the SHA-256 of each shard.
    """

    def __init__(self, manifest: Manifest, splits: Sequence[str], exclude: Quarantined = "none", share: float = 0.0):
        """
        Args:
            share: of a folder elsewhere, where in its shards to begin to fetch, from 0 to 1.
            exclude: of the pairs that `prepare --verify` listed, leave out none, those that cannot be used ("bad"), or
                all.

        Raises:
            InputError: index files and manifest do not fit together.
        """
        self.manifest, self.sound = manifest, manifest.sound
        self.rows = np.concatenate([manifest.rows(split) for split in splits])
        self.paths: list[Path] | list[str] = [tar for tar, _ in manifest.shards(splits)]
        self._ahead: Ahead | None = None
        if manifest.source is not None:
            self.paths = [manifest.named(entry["file"]) for entry in manifest.entries(splits)]
        try:
            self._places, sound_sizes = self._find(splits)
            self._check(splits, sound_sizes)
        except InputError as error:
            if manifest.source is None:
                raise
            manifest.source.drop()  # a file may have come damaged; the next one who opens the folder gets another
            raise manifest.source.told(error) from error
        if manifest.source is not None:
            self._fetch(manifest, splits, share)
        self.fingerprint, self.excluded = self._fingerprint(splits), 0
        if exclude != "none":
            self._exclude(exclude)
        # Damage within a picture often decodes, to another picture. So each pair is checked when it is read:
        # also in later epochs, since a disk may fail meanwhile. That takes 25 us of a thread for 130 kB.
        self._as_written = np.zeros(len(self.rows), bool)
        self.checks = ClipChecks(manifest, self.rows, self._places.crc, self._places.kind == CLIP)

    def __len__(self) -> int:
        return len(self.rows)

    def _fetch(self, manifest: Manifest, splits: Sequence[str], share: float) -> None:
        """Let the shards come when the first pair is read."""
        from essl_fast.data.remote import Ahead

        assert manifest.source is not None
        entries = manifest.entries(splits)
        self._ahead = ahead = Ahead(manifest.source, entries, int(share * len(entries)))
        weakref.finalize(self, ahead.close)

    def pause(self) -> None:
        """End all waiting for shards that are elsewhere: `read` then raises. Until `go_on` none comes."""
        if self._ahead is not None:
            self._ahead.pause()

    def go_on(self) -> None:
        """After `pause`."""
        if self._ahead is not None:
            self._ahead.go_on()

    @property
    def jpegs(self) -> bool:
        """Whether any frame is a picture, JPEG or PNG."""
        return bool((self._places.kind != CLIP).any())

    @property
    def clips(self) -> np.ndarray:
        """The positions of the pairs whose frame is in a clip, ascending."""
        return np.flatnonzero(self._places.kind == CLIP)

    def name(self, position: int) -> str:
        """The pair and its shard, for messages."""
        return f"pair {self.manifest.key(self.rows[position])!r} in shard {self.paths[self._places.shard[position]]}"

    def remedy(self) -> str:
        """What a user can do about a pair that does not decode."""
        verify = f"`python -m essl_fast.prepare --verify --out {in_shell(self.manifest.place)}`"
        return (
            f"run {verify} and leave out what it lists with --data.exclude_quarantined bad, or go on without such "
            "pairs with --data.on_error skip, or run prepare again"
        )

    def read(self, positions: np.ndarray, pcm: np.ndarray, executor: Executor, parts: int) -> list[Picture]:
        """Read pairs: their frames' files are returned, their sound is written into `pcm`.

        One system call reads a pair and scatters frame and sound.

        Args:
            positions: (b,) int64.
            pcm: (b, 48000) of type `sound`.
            executor: runs `parts` tasks, each with a part of the pairs.

        Raises:
            InputError: a shard is missing or too short by now, or cannot be read.
        """
        places = self._places
        if self._ahead is not None:
            self._ahead.want(places.shard[positions])
        ends = np.cumsum(places.size[positions])
        files = np.split(np.empty(ends[-1] if len(ends) else 0, np.uint8), ends[:-1])[: len(positions)]
        by_shard = np.argsort(places.shard[positions], kind="stable")  # so that a part opens few files
        tasks = [
            executor.submit(self._read_part, part, positions, files, pcm) for part in np.array_split(by_shard, parts)
        ]
        for task in tasks:
            task.result()
        return [
            Picture(
                file,
                int(places.target[at]) if places.kind[at] == CLIP else None,
                int(places.quarters[at]) if places.kind[at] == CLIP else 0,
                altered=not self._as_written[at],
                position=int(at),
                check=self.checks.of(at),
            )
            for at, file in zip(positions, files, strict=True)
        ]

    def read_sound(self, positions: np.ndarray, skip: bool = False) -> np.ndarray:
        """Read only the sound of pairs.

        Args:
            positions: (b,) int64.
            skip: take the next pair's sound in place of one that is not as it was written.

        Returns:
            (b, 48000) of type `sound`.

        Raises:
            InputError: as in `read`; or, without `skip`, a pair is not as it was written.
        """
        self.go_on()  # a loader that has ended may be asked, too
        pcm, wanted = np.empty((len(positions), SAMPLES), self.sound), positions.copy()
        left = np.arange(len(positions))
        for _ in range(len(self)):
            self._read_part(left[np.argsort(self._places.shard[wanted[left]], kind="stable")], wanted, None, pcm)
            left = left[~self._as_written[wanted[left]]]
            if not len(left):
                return pcm
            if not skip:
                break
            wanted[left] = (wanted[left] + 1) % len(self)
        raise InputError(f"{self.name(positions[left[0]])} cannot be used ({ALTERED}): {self.remedy()}")

    def _read_part(
        self, part: np.ndarray, positions: np.ndarray, files: list[np.ndarray] | None, pcm: np.ndarray
    ) -> None:
        """Read the pairs positions[part] into files[part], where files are given, and into pcm[part]."""
        places, ahead = self._places, self._ahead
        opened, file = -1, -1
        try:
            for i in part:
                position = positions[i]
                shard, size = places.shard[position], places.size[position]
                if shard != opened:
                    if file >= 0 and ahead is None:
                        os.close(file)
                    opened, file = shard, -1
                    file = os.open(self.paths[shard], os.O_RDONLY) if ahead is None else ahead.descriptor(shard)
                frame = None if files is None else files[i]
                if frame is None and not self._as_written[position]:  # the CRC-32 is of frame and sound together
                    frame = np.empty(size, np.uint8)
                self._read_pair(file, position, frame, pcm[i])
                if ahead is not None and not self._as_written[position]:
                    if (mended := ahead.mended(int(shard), file)) is not None:
                        file = mended
                        self._read_pair(file, position, frame, pcm[i])
        except OSError as error:
            # Only a shard that is gone has to be made again. A disk or a network that failed may work again later.
            if (source := self.manifest.source) is not None:
                raise source.cache.unusable(error) from error
            then = "run prepare again" if error.errno == errno.ENOENT else "mend that, then go on with --resume"
            raise InputError(f"{self.name(position)} cannot be read ({error.strerror}): {then}") from error
        finally:
            if file >= 0 and ahead is None:
                os.close(file)

    def _read_pair(self, file: int, position: np.int64, frame: np.ndarray | None, sound: np.ndarray) -> None:
        """Read a pair out of its open shard. frame: None for its sound alone, of a pair that was seen to be whole."""
        places = self._places
        offset, size, sound_offset = places.offset[position], places.size[position], places.sound_offset[position]
        buffers: list[Any]
        if frame is None:
            buffers, offset = [sound], sound_offset
        else:
            buffers = [frame, bytearray(int(sound_offset - offset - size)), sound]
        if missing := _read_fully(file, buffers, int(offset)):
            raise InputError(f"{self.name(int(position))}: the shard ends {missing} bytes early: run prepare again")
        if frame is not None:
            self._as_written[position] = pair_crc(frame.data, sound.data) == places.crc[position]

    def _find(self, splits: Sequence[str]) -> tuple[_Places, np.ndarray]:
        """The places of all pairs from the index files, and the bytes (n,) of their sound."""
        manifest = self.manifest
        indexes = [read_index(idx) for _, idx in manifest.shards(splits)]
        stems = [stem for index in indexes for stem in index.stems]
        if stems != [encode_key(manifest.key(row)) for row in self.rows]:
            raise InputError(
                f"the index files in {manifest.place} do not list the pairs of its manifest: run prepare again"
            )
        names = ("visual", "visual_offset", "visual_size", "s16_offset", "s16_size")
        kind, offset, size, sound_offset, sound_size = (
            np.concatenate([getattr(index, name) for index in indexes]) for name in names
        )
        shard = np.repeat(np.arange(len(indexes)), [len(index.stems) for index in indexes])
        target, quarters, crc = (column[self.rows] for column in (manifest.target, manifest.quarters, manifest.crc))
        return _Places(shard, kind, offset, size, sound_offset, target, quarters, crc), sound_size

    def _check(self, splits: Sequence[str], sound_sizes: np.ndarray) -> None:
        """InputError if the index files say something else than the manifest, or than is possible."""
        places = self._places
        wrong = (sound_sizes != SAMPLES * self.sound.itemsize) | (places.sound_offset < places.offset + places.size)
        wrong |= places.kind != self.manifest.visual[self.rows]
        # A damaged index must not make `read` ask for endless memory.
        sizes = [entry["bytes"] for split in splits for entry in self.manifest.header["splits"][split]["shards"]]
        wrong |= places.sound_offset + sound_sizes > np.array(sizes, np.int64)[places.shard]
        if wrong.any():
            raise InputError(
                f"{self.name(np.flatnonzero(wrong)[0])}: the index file gives it another kind of frame than the "
                f"manifest, or sound that is not {SAMPLES} samples behind the frame in the shard: run prepare again"
            )

    def _fingerprint(self, splits: Sequence[str]) -> str:
        shards = [self.manifest.header["splits"][split]["shards"] for split in splits]
        return hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()

    def _exclude(self, exclude: Quarantined) -> None:
        reasons = self.manifest.quarantine()
        listed = [row for row, reason in reasons.items() if exclude == "all" or reason in BAD]
        keep = ~np.isin(self.rows, listed)
        self.excluded = int((~keep).sum())
        if self.excluded:
            self.rows, self._places = self.rows[keep], self._places.only(keep)
            self.fingerprint = hashlib.sha256(self.fingerprint.encode() + self.rows.tobytes()).hexdigest()


def _read_fully(file: int, buffers: list, offset: int) -> int:
    """Fill the buffers one after another with the bytes from `offset` on. Returns by how many bytes the file is too
    short.

    As a rule that is one system call, but network file systems and signals may cut it short.
    """
    left = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
    while left:
        got = os.preadv(file, left, offset)
        if not got:
            break
        offset += got
        while left and got >= len(left[0]):
            got -= len(left.pop(0))
        if got:
            left[0] = left[0][got:]
    return sum(map(len, left))
