"""Random access to the pairs in shards: one scattered read a pair, straight into the memory that is decoded from.

DALI's own WebDataset reader gives each pair once and resumes exactly, too, but shuffles only inside its buffer, in an
order that nobody else can compute. So the shards' index files are read here, and DALI gets the JPEG or MP4 bytes. The
price: reads are not sequential, but of about 130 KB each. SSDs and the page cache do that at full speed, a spinning
disk not.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np

from essl_fast.common.errors import InputError
from essl_fast.data.shards.manifest import BAD, Manifest
from essl_fast.data.shards.tars import CLIP, SAMPLES, encode_key, pair_crc, read_index

Quarantined = Literal["none", "bad", "all"]
ALTERED = "its bytes are not those that prepare wrote (CRC-32)"


class Picture(NamedTuple):
    """A pair's frame as it is stored: `file` uint8, a JPEG or PNG; or a clip (an MP4), of which frame `target` is meant
    and `quarters` quarter turns counterclockwise put it upright."""

    file: np.ndarray
    target: int | None = None
    quarters: int = 0
    altered: bool = False  # the pair's bytes are not those that were written


class Shards:
    """The pairs of some splits, in the order of `rows` (n,) int64, their rows in the manifest.

    exclude: of the pairs that `prepare --verify` listed, leave out none, those that cannot be used (bad), or all.
    `excluded` counts them. InputError if index files and manifest do not fit together.
    """

    def __init__(self, manifest: Manifest, splits: Sequence[str], exclude: Quarantined = "none"):
        self.manifest = manifest
        self.rows = np.concatenate([manifest.rows(split) for split in splits])
        self.paths = [tar for tar, _ in manifest.shards(splits)]
        indexes = [read_index(idx) for _, idx in manifest.shards(splits)]
        self._shard = np.repeat(np.arange(len(indexes)), [len(index.stems) for index in indexes])
        stems = [stem for index in indexes for stem in index.stems]
        if stems != [encode_key(manifest.key(row)) for row in self.rows]:
            raise InputError(
                f"the index files in {manifest.root} do not list the pairs of its manifest: run prepare again"
            )
        names = ("visual", "visual_offset", "visual_size", "s16_offset", "s16_size")
        self._kind, self._start, self._size, self._s16, s16_size = (
            np.concatenate([getattr(index, name) for index in indexes]) for name in names
        )
        self._target, self._quarters = manifest.target[self.rows], manifest.quarters[self.rows]
        self._crc = manifest.crc[self.rows]
        self.sound = manifest.sound
        wrong = (s16_size != SAMPLES * self.sound.itemsize) | (self._s16 < self._start + self._size)
        wrong |= self._kind != manifest.visual[self.rows]
        sizes = [shard["bytes"] for split in splits for shard in manifest.header["splits"][split]["shards"]]
        wrong |= self._s16 + s16_size > np.array(sizes, np.int64)[self._shard]  # nor may it ask for endless memory
        if wrong.any():
            raise InputError(
                f"{self.name(np.flatnonzero(wrong)[0])}: the index file gives it another kind of frame than the "
                f"manifest, or sound that is not {SAMPLES} samples behind the frame in the shard: run prepare again"
            )
        self.fingerprint, self.excluded = self._fingerprint(splits), 0
        if exclude != "none":
            self._exclude(exclude)
        # Damage within a picture often decodes, to something else. Each pair is looked at once, when it is first read.
        self._as_written = np.zeros(len(self.rows), bool)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def jpegs(self) -> bool:
        """Whether any pair's frame is a picture, JPEG or PNG."""
        return bool((self._kind != CLIP).any())

    @property
    def clips(self) -> bool:
        """Whether any pair's frame is a clip."""
        return bool((self._kind == CLIP).any())

    def name(self, position: int) -> str:
        return f"pair {self.manifest.key(self.rows[position])!r} in shard {self.paths[self._shard[position]]}"

    def remedy(self) -> str:
        """What to do about a pair that does not decode."""
        return (
            f"run `python -m essl_fast.prepare --verify --out {self.manifest.root}` and leave out what it lists with "
            "--data.exclude_quarantined bad, or go on without such pairs with --data.on_error skip, or run prepare "
            "again"
        )

    def read(self, positions: np.ndarray, pcm: np.ndarray, pool: ThreadPoolExecutor, parts: int) -> list[Picture]:
        """Read the pairs at `positions` (b,): their frames' files; their sound into `pcm` (b, 48000), of type `sound`.

        A pair is one system call that scatters frame and sound. InputError if a shard is missing or too short by now.
        """
        ends = np.cumsum(self._size[positions])
        files = np.split(np.empty(ends[-1] if len(ends) else 0, np.uint8), ends[:-1])[: len(positions)]
        by_shard = np.argsort(self._shard[positions], kind="stable")  # so that a part opens few files
        tasks = [pool.submit(self._read_part, part, positions, files, pcm) for part in np.array_split(by_shard, parts)]
        for task in tasks:
            task.result()
        return [
            Picture(
                file,
                *((int(self._target[at]), int(self._quarters[at])) if self._kind[at] == CLIP else (None, 0)),
                altered=not self._as_written[at],
            )
            for at, file in zip(positions, files, strict=True)
        ]

    def read_sound(self, positions: np.ndarray, skip: bool = False) -> np.ndarray:
        """(b, 48000) of type `sound`: the samples alone of the pairs at `positions` (b,). InputError as in `read`, and
        for a pair that is not as it was written; or, with `skip`, the next pair's sound in place of that one's."""
        pcm, asked = np.empty((len(positions), SAMPLES), self.sound), positions.copy()
        left = np.arange(len(positions))
        for _ in range(len(self)):
            self._read_part(left[np.argsort(self._shard[asked[left]], kind="stable")], asked, None, pcm)
            left = left[~self._as_written[asked[left]]]
            if not len(left):
                return pcm
            if not skip:
                break
            asked[left] = (asked[left] + 1) % len(self)
        raise InputError(f"{self.name(positions[left[0]])} cannot be used ({ALTERED}): {self.remedy()}")

    def _read_part(
        self, part: np.ndarray, positions: np.ndarray, files: list[np.ndarray] | None, pcm: np.ndarray
    ) -> None:
        opened, file = -1, -1
        try:
            for i in part:
                position = positions[i]
                shard, offset, size = self._shard[position], self._start[position], self._size[position]
                if shard != opened:
                    if file >= 0:
                        os.close(file)
                    opened, file = shard, -1
                    file = os.open(self.paths[shard], os.O_RDONLY)
                frame = None if files is None else files[i]
                if frame is None and not self._as_written[position]:  # the CRC-32 is of frame and sound together
                    frame = np.empty(size, np.uint8)
                if frame is None:
                    buffers, offset = [pcm[i]], self._s16[position]
                else:
                    buffers = [frame, bytearray(int(self._s16[position] - offset - size)), pcm[i]]
                if missing := _read_fully(file, buffers, int(offset)):
                    raise InputError(f"{self.name(position)}: the shard ends {missing} bytes early: run prepare again")
                if not self._as_written[position]:
                    self._as_written[position] = pair_crc(frame, pcm[i]) == self._crc[position]
        except OSError as error:
            # Only a shard that is gone has to be made again; a disk or a network that fails comes back as it was.
            then = "run prepare again" if error.errno == errno.ENOENT else "mend that, then go on with --resume"
            raise InputError(f"{self.name(position)} cannot be read ({error.strerror}): {then}") from error
        finally:
            if file >= 0:
                os.close(file)

    def _fingerprint(self, splits: Sequence[str]) -> str:
        """What the splits' shards are, by the SHA-256 that the manifest has of each."""
        shards = [self.manifest.header["splits"][split]["shards"] for split in splits]
        return hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()

    def _exclude(self, exclude: Quarantined) -> None:
        reasons = self.manifest.quarantine()
        listed = [row for row, reason in reasons.items() if exclude == "all" or reason in BAD]
        keep = ~np.isin(self.rows, listed)
        self.excluded = int((~keep).sum())
        if self.excluded:
            for name in ("rows", "_shard", "_kind", "_start", "_size", "_s16", "_target", "_quarters", "_crc"):
                setattr(self, name, getattr(self, name)[keep])
            self.fingerprint = hashlib.sha256(self.fingerprint.encode() + self.rows.tobytes()).hexdigest()


def _read_fully(file: int, buffers: list, offset: int) -> int:
    """Fill the buffers, one after another, from `offset` on. Returns the bytes by which the file ends too early.

    One system call, as a rule; network file systems and signals may cut it short."""
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
