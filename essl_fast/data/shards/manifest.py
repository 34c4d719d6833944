"""The manifest of a prepared folder: what its shards hold, and the columns of its pairs.

    manifest.json               settings, splits, shards with their SHA-256, counts of what was left out; written last
    pairs/<column>.npy          a value for each pair, in the order of train, val, test and their shards
    <split>-<number>.tar, .idx  frames and sound of the pairs (see `tars`)
    left_out.jsonl              what the annotations ask for and the folder does not hold, an object on each line
    quarantine.jsonl            written by `prepare --verify`: what it found wrong, an object on each line
    clip_checks.npy             written by `prepare --verify`, if there are clips: what their frames look like

Every file is written under a temporary name, synced and renamed, and the manifest comes last: a folder that has a
manifest is complete. The same pairs give the same bytes, whatever the time, the user or the machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from essl_fast.common.errors import InputError, in_shell
from essl_fast.common.files import parse_json
from essl_fast.common.urls import as_url, is_url
from essl_fast.config import SIZE
from essl_fast.data.shards.columns import COLUMNS, FURTHER, read_column, split_column
from essl_fast.data.shards.tars import PNG, SOUNDS, SPLITS

if TYPE_CHECKING:
    from essl_fast.data.remote import Folder

FORMAT = "essl_fast"
VERSION = 2
QUARANTINE, CLIP_CHECKS = "quarantine.jsonl", "clip_checks.npy"
# A pair in CLIP_CHECKS: its CRC-32, whether its frame is known, and the frame's means over 8 x 8 fields.
CLIP_CHECK = np.dtype([("crc", "<u4"), ("known", "?"), ("means", "u1", (8, 8, 3))])
CORRUPT, TRUNCATED, NO_AUDIO = "corrupt", "truncated", "missing audio"  # the pair cannot be used
BLACK, SILENT = "black", "silent"  # warnings: the pair can be used
REASONS = (CORRUPT, TRUNCATED, NO_AUDIO, BLACK, SILENT)  # the worst first
BAD = frozenset({CORRUPT, TRUNCATED, NO_AUDIO})


@dataclass(frozen=True, eq=False)
class Manifest:
    """A prepared folder of N pairs. The columns are memory-mapped and read-only. A pair's row is its `index` elsewhere.

    One class, since all else asks it alone where the folder's files are.

    Attributes:
        root: the folder; of one that is elsewhere, the folder of the cache that describes it.
        header: the content of manifest.json.
        keys: (N,) bytes, unique.
        split: (N,) uint8, index into train, val, test; ascending.
        class_id: (N,) int32, index into `classes`.
        labelled: (N,) bool, whether the pair has boxes.
        boxes: (N, K, 4) int32 xyxy, half-open, pixels of the 224 grid; padding boxes have zero area.
        time: (N,) float64, of the frame, seconds.
        visual: (N,) uint8: JPEG, CLIP or PNG.
        target: (N,) int32, which of a clip's frames is the pair's; 0 for a picture.
        quarters: (N,) uint8, its quarter turns counterclockwise; 0 for a picture.
        crc: (N,) uint32, `pair_crc` of the pair.
        classes: names, sorted.
        mask: (N, 6272) uint8, the sounding object's pixels on the 224 grid, a bit each; None if the data set has none.
        negative: (N,) bool, the sound has no source in the frame; None where the data set says nothing of it.
        scene: (N,) int32, equal for pairs that show the same frame; None where the data set says nothing of it.
        box_class: (N, K) int32, the class of each box, -1 for padding; None where every box is of its pair's class.
        source: where the shards come from; None: they are in `root`.
    """

    root: Path
    header: dict = field(repr=False)
    keys: np.ndarray = field(repr=False)
    split: np.ndarray = field(repr=False)
    class_id: np.ndarray = field(repr=False)
    labelled: np.ndarray = field(repr=False)
    boxes: np.ndarray = field(repr=False)
    time: np.ndarray = field(repr=False)
    visual: np.ndarray = field(repr=False)
    target: np.ndarray = field(repr=False)
    quarters: np.ndarray = field(repr=False)
    crc: np.ndarray = field(repr=False)
    classes: tuple[str, ...]
    mask: np.ndarray | None = field(default=None, repr=False)
    negative: np.ndarray | None = field(default=None, repr=False)
    scene: np.ndarray | None = field(default=None, repr=False)
    box_class: np.ndarray | None = field(default=None, repr=False)
    source: Folder | None = field(default=None, repr=False)

    @classmethod
    def load(cls, out: str | Path, cache: tuple[str, float] = ("", 0.0)) -> Manifest:
        """Open a folder that `prepare` wrote.

        Args:
            out: the folder, or its URL.
            cache: where the shards of a URL go, the settings `data.cache` and `data.cache_gb`.

        Raises:
            InputError: a file is missing, outdated or does not fit the others.
        """
        return cls._elsewhere(as_url(out), *cache) if is_url(out) else cls._read(Path(out))

    @classmethod
    def _elsewhere(cls, url: str, cache: str, gigabytes: float) -> Manifest:
        from essl_fast.data.remote import open_folder

        for last in (False, True):
            source = open_folder(url, cache, gigabytes)  # its manifest may have come damaged, too
            try:
                source.bring(_files(source.manifest), optional=[QUARANTINE, CLIP_CHECKS])
                return replace(cls._read(source.local, complete=False), source=source)
            except InputError as error:
                source.drop()  # a file may have come damaged: once more
                if last:
                    raise source.told(error) from error
        raise AssertionError  # the second time returns or raises

    @classmethod
    def _read(cls, root: Path, complete: bool = True) -> Manifest:
        """complete: whether the shards are there, too."""
        path = root / "manifest.json"
        again = f"run `python -m essl_fast.prepare ... --out {in_shell(root)}` again"
        try:
            header = parse_json(path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{path} is not there, so {root} is not a complete prepared folder: {again}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}): {again}") from error
        if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("version") != VERSION:
            raise InputError(f"{path} is not a manifest of format {FORMAT}, version {VERSION}: {again}")
        try:
            counts, shards = _check_header(header)
            count, classes, further = header["pairs"], tuple(header["classes"]), _further(header)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} lacks an entry or has one of another kind ({error!r}): {again}") from error
        columns = {name: read_column(root / "pairs" / f"{name}.npy", count, again) for name in [*COLUMNS, *further]}
        _check_columns(root, columns, counts, len(classes), again)
        for file, index, size in shards if complete else ():
            found = (root / file).stat().st_size if (root / file).is_file() else None
            if found != size:
                wrong = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise InputError(f"shard {root / file} {wrong}: {again}")
            if not (root / index).is_file():
                raise InputError(f"index file {root / index} is missing: {again}")
        keys = columns.pop("key")
        return cls(root, header, keys, **columns, classes=classes)  # type: ignore[arg-type]  # these are all columns

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def place(self) -> str:
        """Where the folder is, for people and for checkpoints: its path, or its URL without secrets."""
        return str(self.root) if self.source is None else self.source.name

    def named(self, file: str) -> str:
        """The path or the URL of a file of the folder, for messages."""
        return str(self.root / file) if self.source is None else self.source.named(file)

    def bring(self, file: str) -> Path:
        """A small file of the folder, on this machine. It may not exist."""
        if self.source is not None:
            self.source.bring({}, optional=[file])
        return self.root / file

    def publish(self, file: str) -> None:
        """Put a file that was written into `root` where the folder is."""
        if self.source is not None:
            self.source.publish(file)

    def parts(self, entry: dict, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Some bytes of a shard, from one place to before another. OSError if they cannot be read."""
        if self.source is not None:
            return [self.source.store.read(entry["file"], *place) for place in places]
        with open(self.root / entry["file"], "rb") as file:
            return [os.pread(file.fileno(), end - begin, begin) for begin, end in places]

    def confirm(self) -> None:
        """Of a folder elsewhere: read what describes it there, not only the copies here. InputError as `load`."""
        if self.source is not None:
            self.source.confirm(self.sums())

    def sums(self) -> dict[str, str]:
        """The columns and index files, with their SHA-256, or "" where an older version wrote the manifest."""
        return _sums(self.header)

    @contextlib.contextmanager
    def shard(self, entry: dict, confirmed: bool = False) -> Iterator[Path]:
        """The tar file of a shard, on this machine while the context lasts.

        entry: of the header. confirmed: of a folder elsewhere, it is read there also where this machine has a copy.
        """
        if self.source is None:
            yield self.root / entry["file"]
            return
        with self.source.shard(entry, confirmed) as path:
            yield path

    @property
    def name(self) -> str:
        """The data set's name: "chaotic", or what `prepare --name` says; "" in folders that have none."""
        return str(self.header.get("dataset", ""))

    @property
    def consensus(self) -> int:
        """How many annotators must agree for a pixel to count fully in this data set."""
        return self.header.get("consensus", 1)

    @property
    def sound(self) -> np.dtype:
        """The type of a pair's 48,000 samples: little-endian int16 or float32."""
        return SOUNDS[self.header.get("sound", "s16")]

    def key(self, row: int) -> str:
        try:
            return self.keys[row].decode()
        except UnicodeDecodeError as error:
            path = self.named("pairs/key.npy")
            raise InputError(f"{path} has a key in row {row} that is no UTF-8 ({error}): run prepare again") from error

    def pairs(self, split: str) -> int:
        """How many pairs the split has."""
        return self._entry(split)["pairs"]

    def rows(self, split: str) -> np.ndarray:
        """(pairs,) int64: the split's rows, in the order of its shards."""
        count = self.pairs(split)
        first = sum(self.pairs(name) for name in SPLITS[: SPLITS.index(split)])
        return np.arange(first, first + count, dtype=np.int64)

    def contents(self) -> dict[str, dict]:
        """Split → `pairs`, their number, and `sha256`, of their keys, classes, frames, sounds, boxes and masks.

        It is the same however the pairs lie in shards. A split without pairs is left out.
        """
        found = {}
        for split in (split for split in SPLITS if self.pairs(split)):
            rows = self.rows(split)
            rows = rows[np.argsort(self.keys[rows], kind="stable")]
            boxes, keys = np.array(self.boxes[rows]), self.keys[rows].tolist()
            there = (boxes[..., 2:] > boxes[..., :2]).all(-1)  # not padding
            named = np.array(self.classes, dtype=object)[self.class_id[rows]]
            sums = hashlib.sha256()
            for texts in (keys, (name.encode(errors="surrogatepass") for name in named)):
                sums.update(b"\0".join(texts))
            masks = () if self.mask is None else (self.mask[rows],)
            for column in (self.crc[rows], self.labelled[rows], there.sum(-1, dtype=np.int32), boxes[there], *masks):
                sums.update(np.ascontiguousarray(column).tobytes())
            found[split] = {"pairs": len(rows), "sha256": sums.hexdigest()}
        return found

    def shards(self, splits: str | Sequence[str]) -> list[tuple[Path, Path]]:
        """[(tar, idx), ...] of the splits, in the order of their rows. Of a folder elsewhere, no tar is there."""
        found = [(self.root / shard["file"], self.root / shard["index"]) for shard in self.entries(splits)]
        if self.source is not None and not all(index.is_file() for _, index in found):
            self.source.bring(self.sums())  # the cache was emptied meanwhile
        return found

    def entries(self, splits: str | Sequence[str]) -> list[dict]:
        """What the header says of the shards of the splits, in the order of their rows."""
        names = (splits,) if isinstance(splits, str) else splits
        return [shard for name in names for shard in self._entry(name)["shards"]]

    def verify(self) -> None:
        """Read every shard and compare its SHA-256. InputError names the first that differs."""
        for shard in self.entries(SPLITS):
            with self.shard(shard) as path, open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != shard["sha256"]:
                raise InputError(
                    f"shard {self.named(shard['file'])} was changed or damaged (its SHA-256 differs): "
                    f"run `python -m essl_fast.prepare ... --out {in_shell(self.place)}` again"
                )

    def quarantine(self) -> dict[int, str]:
        """Row → the worst of its reasons (from REASONS), for the pairs that `prepare --verify` listed.

        Empty if --verify never ran. InputError if the list cannot be read, or belongs to other pairs.
        """
        path = self.root / QUARANTINE
        listed: dict[int, str] = {}
        again = f"run `python -m essl_fast.prepare --verify --out {in_shell(self.place)}` again"
        try:
            for line in path.read_bytes().split(b"\n"):
                if not line:
                    continue
                entry = parse_json(line)
                row, reason = entry["row"], entry["reason"]
                if row is None:  # a fault of a shard, not of a pair
                    continue
                if type(row) is not int or not 0 <= row < len(self) or self.key(row) != entry["key"]:
                    raise InputError(
                        f"{self.named(QUARANTINE)} is not of these pairs (row {row}, {entry['key']!r}): {again}"
                    )
                if row not in listed or REASONS.index(reason) < REASONS.index(listed[row]):
                    listed[row] = REASONS[REASONS.index(reason)]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.named(QUARANTINE)} cannot be used ({error}): {again}") from error
        return listed

    def clip_checks(self) -> np.ndarray | None:
        """(N,) of CLIP_CHECK: what `prepare --verify` found the frames of clips to look like; None if it left nothing.

        A pair's entry counts only where its `crc` is the pair's: the folder may have been prepared again since.
        """
        try:
            held = np.load(self.root / CLIP_CHECKS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return held if held.dtype == CLIP_CHECK and held.shape == (len(self),) else None

    def _entry(self, split: str) -> dict:
        if split not in SPLITS:
            raise InputError(f"there is no split {split!r}: choose from {', '.join(SPLITS)}")
        return self.header["splits"][split]


def _files(manifest: bytes) -> dict[str, str]:
    """:meth:`Manifest.sums` of the text of a manifest. {} if it is none: `_read` then says so."""
    try:
        return _sums(parse_json(manifest))
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _sums(header: dict) -> dict[str, str]:
    _, shards = _check_header(header)
    names = [f"pairs/{name}.npy" for name in (*COLUMNS, *_further(header))]
    sums = header.get("files", {})
    return {name: str(sums.get(name, "")) for name in [*names, *(index for _, index, _ in shards)]}


def _check_header(header: dict) -> tuple[list[int], list[tuple[str, str, int]]]:
    """([pairs of each split], [(file, index, bytes) of each shard]) of a manifest's header.

    Raises ValueError, or what Python raises for values of another type, if `write_manifest` would not write it.
    """

    def count_of(value: object, least: int = 0) -> int:
        if type(value) is not int or value < least:
            raise ValueError(f"{value!r} is not a count")
        return value

    counts, shards = [], []
    for name in SPLITS:
        entry = header["splits"][name]
        counts.append(count_of(entry["pairs"]))
        count_of(entry["videos"])
        for number, shard in enumerate(entry["shards"]):
            for kind, ending in (("file", "tar"), ("index", "idx")):  # so that none lies outside of the folder
                if shard[kind] != f"{name}-{number:05d}.{ending}":
                    raise ValueError(f"{kind} {shard[kind]!r} is no name of a shard in its folder")
            if not re.fullmatch("[0-9a-f]{64}", shard["sha256"]):
                raise ValueError(f"{shard['sha256']!r} is no SHA-256")
            shards.append((shard["file"], shard["index"], count_of(shard["bytes"])))
        if sum(count_of(shard["pairs"], 1) for shard in entry["shards"]) != counts[-1]:
            raise ValueError(f"the shards of {name} do not hold its {counts[-1]} pairs")
    if sum(counts) != count_of(header["pairs"]):
        raise ValueError(f"its splits hold {sum(counts)} pairs of {header['pairs']}")
    if not all(isinstance(name, str) for name in header["classes"]):
        raise ValueError("a class is no text")
    if header.get("sound", "s16") not in SOUNDS or count_of(header.get("consensus", 1), 1) > 255:
        raise ValueError("no such sound or consensus")
    header["settings"].keys()
    header.get("files", {}).keys()
    for reasons in (header["left_out"], {reason: entry["pairs"] for reason, entry in _jpeg_instead(header).items()}):
        for count in reasons.values():
            count_of(count)
    return counts, shards


def _further(header: dict) -> list[str]:
    """The names of FURTHER that the folder has. ValueError if one is unknown: a newer version wrote it."""
    names = header.get("further", [])
    if not isinstance(names, list) or [name for name in names if name not in FURTHER]:
        raise ValueError(f"further columns {names!r} are unknown")
    return names


def _jpeg_instead(header: dict) -> dict:
    """Why frames are stored as JPEG although clips were asked for. {} if the header does not say."""
    found = header.get("jpeg_instead", {})
    if not all(isinstance(entry["first"], str) for entry in found.values()):
        raise ValueError("jpeg_instead has an entry without an example")
    return found


def _check_columns(root: Path, columns: dict[str, np.ndarray], counts: list[int], classes: int, again: str) -> None:
    """InputError if a column has a value that prepare does not write. `again`: how to mend it."""
    path, folder, count = root / "manifest.json", root / "pairs", sum(counts)
    if not np.array_equal(columns["split"], split_column(counts)):
        raise InputError(f"{folder / 'split.npy'} does not fit the counts in {path}: {again}")
    if count and (columns["visual"].max() > PNG or columns["quarters"].max() > 3 or columns["target"].min() < 0):
        raise InputError(f"visual, target or quarters in {folder} has a value out of range: {again}")
    if count and not 0 <= columns["class_id"].min() <= columns["class_id"].max() < classes:
        raise InputError(f"{folder / 'class_id.npy'} has a class that {path} does not name: {again}")
    if "box_class" in columns:
        path_of, box_class = folder / "box_class.npy", columns["box_class"]
        known = not box_class.size or -1 <= box_class.min() <= box_class.max() < classes
        if box_class.shape != columns["boxes"].shape[:2] or not known:
            raise InputError(f"{path_of} does not fit the boxes, or has a class that {path} does not name: {again}")
    if columns["boxes"].size and not 0 <= columns["boxes"].min() <= columns["boxes"].max() <= SIZE:
        raise InputError(f"{folder / 'boxes.npy'} has a box outside of its grid: {again}")
    if not np.isfinite(columns["time"]).all():
        raise InputError(f"{folder / 'time.npy'} has a time that is no number: {again}")
