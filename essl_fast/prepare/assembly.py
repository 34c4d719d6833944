"""Parts → shards, while the videos are decoded; at the end columns, what was left out, and the manifest.

    OUT/.parts/<video>.part, .json      parts that are not in a shard yet
    OUT/.parts/shards/<shard>.json      the journal: of each finished shard its entry for the manifest, pairs and videos
    OUT/.parts/shards/settings.json     what the shards are made of

Pairs come in the order of (split, video, frame), so a shard is full as soon as its videos are decoded. Then it is
synced and noted in the journal, and the parts that it holds are removed: whatever the size of the data set, the disk
holds it once, and twice only the shard at work and the parts in flight.

A run that was killed goes on behind the last shard of the journal and does not touch those before it. Where a video
file has changed since, or was mended, its shard and those after it are made again: the bytes are always those of a run
that nothing disturbed.
"""

from __future__ import annotations

import contextlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_file, sealed, unsealed
from essl_fast.data import media
from essl_fast.data.datasets.annotations import LeftOut
from essl_fast.data.datasets.dataset import Dataset
from essl_fast.data.datasets.pairs import Pair, pair_key
from essl_fast.data.shards import CLIP, SPLITS, ShardWriter, write_manifest
from essl_fast.prepare.parts import Task, drop_part, lost_part, make_in_order, stem_of
from essl_fast.prepare.reporting import Reporter

SETTINGS = "settings.json"
_OWN_FILES = re.compile(r"\.?(train|val|test)-\d{5,}\.(tar|idx)(\.partial)?")


def assemble(
    dataset: Dataset, out: Path, parts: Path, settings: Mapping[str, Any], workers: int, say: Reporter
) -> None:
    """Make the prepared folder `out` of a data set, or finish it; `parts` is its folder for parts.

    settings: what the manifest says of them; here count `pairs_per_shard`, `visual` (clip, jpeg or auto) and, for auto,
    `decoders`: the clips that are worth storing. InputError where no pair is left for a split, and as `make_in_order`.
    """
    _Assembly(dataset, out, parts, settings, say).run(workers)


class _Assembly:
    def __init__(self, dataset: Dataset, out: Path, parts: Path, settings: Mapping[str, Any], say: Reporter):
        self.dataset, self.read = dataset, dataset.read
        self.out, self.parts, self.settings, self.say = out, parts, settings, say
        self.journal = parts / "shards"
        spans = ((SPLITS.index(split), video, span) for video, split, span in self.read.pairs.videos() if span)
        self.plan = sorted(spans, key=lambda planned: planned[:2])
        self.shards: dict[str, list[dict]] = {split: [] for split in SPLITS}  # those that the journal has
        self.noted = 0  # rows in them
        self.pair = array("q")  # of each row: index of its pair in `read.pairs`
        self.columns = {"visual": array("B"), "target": array("i"), "quarters": array("B"), "crc": array("I")}
        self.done = 0  # videos of the plan whose pairs are all in `pair`
        self.left_out: dict[str, list] = {}  # of them: video → [[key, reason, detail], ...]
        self.pictures: dict[str, dict] = {}  # of them: why frames are JPEG where clips were asked
        self.to_note: list[list] = []  # of them: those that the journal does not have
        self._last = -1, ""  # video of the plan, its fingerprint

    def run(self, workers: int) -> None:
        self._open_journal()
        self._replay()
        waiting = len(list(self.parts.glob("*.part")))
        if self.noted or waiting:
            shards = sum(map(len, self.shards.values()))
            self.say.line(f"continuing: {self.noted} pairs are in {shards} shards, {waiting} more videos are read")
        workers = max(1, min(workers, len(self.plan) - self.done))
        coming = make_in_order(map(self._asked, range(self.done, len(self.plan))), self.parts, workers)
        with self.say.bar("pairs", len(self.read.pairs)) as step, contextlib.closing(coming):
            step(sum(len(span) for _, _, span in self.plan[: self.done]) + self._begun())
            for number, split in enumerate(SPLITS):
                begin = sum(shard["pairs"] for name in SPLITS[:number] for shard in self.shards[name])
                self._fill(number, split, coming, step)
                if len(self.pair) == begin:
                    self._refuse_empty(split)
        self._finish()

    # ---------------------------------------------------------------- what an earlier run left

    def _open_journal(self) -> None:
        """A journal of these settings, emptied if it was of others."""
        self.journal.mkdir(parents=True, exist_ok=True)
        for file in self.parts.glob(".*.partial"):
            file.unlink()  # of workers that were killed
        path, now = self.journal / SETTINGS, json.dumps(self.settings, sort_keys=True).encode()
        if path.exists() and path.read_bytes() == now:
            return
        for file in self.journal.iterdir():
            file.unlink()
        with atomic_file(path) as file:
            file.write(now)

    def _replay(self) -> None:
        """Take over the shards that the journal has, up to the first that no longer holds; remove all others."""
        holds = True
        for split in SPLITS:
            while holds and (path := self._entry(split, len(self.shards[split]))).exists():
                holds = self._take(split, path)
        kept = {entry[kind] for entries in self.shards.values() for entry in entries for kind in ("file", "index")}
        noted = {self._entry(split, n).name for split in SPLITS for n in range(len(self.shards[split]))}
        for path in self.journal.iterdir():
            if path.name not in noted | {SETTINGS}:
                path.unlink()
        for path in self.out.iterdir():
            if _OWN_FILES.fullmatch(path.name) and path.name not in kept:
                path.unlink()

    def _entry(self, split: str, number: int) -> Path:
        return self.journal / f"{split}-{number:05d}.json"

    def _take(self, split: str, path: Path) -> bool:
        """Take over a shard of the journal; False if it is not what would be made now."""
        try:
            entry = unsealed(path.read_bytes())
            shard = entry["shard"]
        except (ValueError, KeyError):
            return False
        tar = self.out / shard["file"]
        if not (tar.is_file() and tar.stat().st_size == shard["bytes"] and (self.out / shard["index"]).is_file()):
            self.say.line(f"{tar} is gone or damaged: it and the shards after it are made again")
            return False
        if entry["row"] != len(self.pair):
            return False  # an earlier shard is missing
        for number, (video, fingerprint, *_) in enumerate(entry["videos"], self.done):
            if number >= len(self.plan) or self.plan[number][1] != video:
                return False
            if self._fingerprint(number) != fingerprint:
                self.say.line(f"the file of {video} was changed: {tar.name} and the shards after it are made again")
                return False
        self.pair.extend(entry["pairs"])
        for name, column in self.columns.items():
            column.extend(entry[name])
        for video, _, ended, left_out, pictures in entry["videos"]:
            if ended:
                self._passed(video, left_out, pictures)
        self.shards[split].append(shard)
        self.noted = len(self.pair)
        return True

    def _fingerprint(self, number: int) -> str:
        """What the journal says of the file of a video of the plan; "" if there is none."""
        if number != self._last[0]:
            _, task = self._asked(number)
            found = ""
            if isinstance(task, Task):
                with contextlib.suppress(media.MediaError):  # it is not there
                    found = task.fingerprint()
            self._last = number, found
        return self._last[1]

    # ---------------------------------------------------------------- videos → shards

    def _asked(self, number: int) -> tuple[str, Task | dict]:
        """(video, its task or, if its file is missing, the index of its part) of a video of the plan."""
        _, video, span = self.plan[number]
        try:
            files = self.dataset.find(video)
        except media.MediaError as error:
            return video, lost_part(len(span), error.reason, error.detail)
        order = self._order(span)
        fids, times = self.read.pairs.fid[order].tolist(), self.read.pairs.time[order].tolist()
        requests = tuple((pair_key(video, fid), fid, time) for fid, time in zip(fids, times, strict=True))
        asked, decoders = self.settings["visual"], self.settings["decoders"]
        clips = asked == "clip" or (asked == "auto" and bool(decoders))
        return video, Task(
            video,
            str(files.path),
            requests,
            clips,
            decoders if asked != "auto" or clips else None,
            files.kind,
            str(files.sound or ""),
            tuple(files.rows[fid] for fid in fids) if files.rows else (),
            self.dataset.floats,
        )

    def _order(self, span: range) -> np.ndarray:
        """Indexes of a video's pairs in the order of their frames."""
        return span.start + np.argsort(self.read.pairs.fid[span.start : span.stop], kind="stable")

    def _begun(self) -> int:
        """How many pairs of the next video of the plan are in shards already."""
        if self.done == len(self.plan):
            return 0
        span, count = self.plan[self.done][2], 0
        while count < len(self.pair) and self.pair[-1 - count] in span:
            count += 1
        return count

    def _fill(self, number: int, split: str, coming: Iterator[tuple[str, dict]], step: Callable[[int], None]) -> None:
        """Write the shards of a split."""
        with ShardWriter(self.out, split, self.settings["pairs_per_shard"], self.shards[split]) as writer:
            while self.done < len(self.plan) and self.plan[self.done][0] == number:
                video, part = next(coming)
                self._add(video, split, part, writer, step)
            shards = writer.close()
        if len(shards) > len(self.shards[split]):
            self._note(split, shards[-1])

    def _add(self, video: str, split: str, part: dict, writer: ShardWriter, step: Callable[[int], None]) -> None:
        """Write the pairs of a video, those that are not in shards yet."""
        _, _, span = self.plan[self.done]
        pairs, members, begun = self.read.pairs, part["members"], self._begun()
        order = [index for index in self._order(span).tolist() if pairs.key(video, index) in members]
        if order[:begun] != self.pair[len(self.pair) - begun :].tolist():
            raise InputError(f"{video} does not give the pairs that it gave before: delete {self.out} and run again")
        full = None
        with open(self.parts / f"{stem_of(video)}.part", "rb") if members else contextlib.nullcontext() as file:
            for index in order[begun:]:
                if full is not None:
                    self._note(split, full, [video, part["fingerprint"], False, [], []])
                pair = pairs.get(video, split, index)
                offset, *sizes, visual, target, quarters, crc = members[pair.key]
                file.seek(offset)
                frame, sound = map(file.read, sizes)
                place = (target, quarters) if visual == CLIP else None
                full = writer.add(pair.key, frame, sound, _told(pair), len(self.pair), place)
                self.pair.append(index)
                for column, value in zip(self.columns.values(), (visual, target, quarters, crc), strict=True):
                    column.append(value)
                step(1)
        self.to_note.append([video, part["fingerprint"], True, part["left_out"], part["pictures"]])
        self._passed(video, part["left_out"], part["pictures"])
        step(len(span) - len(order))
        if full is not None:
            self._note(split, full)

    def _passed(self, video: str, left_out: list, pictures: list) -> None:
        self.left_out[video] = left_out
        for reason, detail, count in pictures:
            told = self.pictures.setdefault(reason, {"pairs": 0, "first": detail})
            told["pairs"] += count
        self.done += 1

    def _note(self, split: str, shard: dict, begun: list | None = None) -> None:
        """Write a finished shard into the journal and remove the parts that are in shards as a whole by now. `begun`:
        the video of which the shard holds the first pairs."""
        rows = slice(self.noted, len(self.pair))
        entry = {
            "row": self.noted,
            "shard": shard,
            "videos": [*self.to_note, *([begun] if begun else [])],
            "pairs": self.pair[rows].tolist(),
        }
        entry |= {name: column[rows].tolist() for name, column in self.columns.items()}
        with atomic_file(self._entry(split, len(self.shards[split]))) as file:
            file.write(sealed(entry))
        self.shards[split].append(shard)
        for video, *_ in self.to_note:
            drop_part(video, self.parts)
        self.to_note, self.noted = [], len(self.pair)

    # ---------------------------------------------------------------- the end

    def _all_left_out(self) -> Iterator[LeftOut]:
        """In the order of video and key."""
        found: dict[str, list[LeftOut]] = {}
        for left in self.read.left_out:
            found.setdefault(left.video, []).append(left)
        for video in sorted(found.keys() | self.left_out.keys()):
            mine = [LeftOut(video, *entry) for entry in self.left_out.get(video, ())]
            yield from sorted([*found.get(video, ()), *mine])

    def _refuse_empty(self, split: str) -> None:
        """InputError where no pair is left of a split that needs some."""
        asked = set(self.read.videos[split])
        if not asked or split == "val":
            return
        listing = self.parts / "left_out.jsonl"
        left_out = list(self._all_left_out())
        listing.write_text("".join(json.dumps(left.as_json(), ensure_ascii=False) + "\n" for left in left_out))
        mine = [left for left in left_out if left.video in asked]
        (reason, count), *_ = Counter(left.reason for left in mine).most_common(1)
        first = next(left.detail for left in mine if left.reason == reason)
        raise InputError(
            f"no pair is left for the split {split} of {len(asked)} video{'s' * (len(asked) != 1)}; most often: "
            f"{reason} ({count} times; first: {first}). All reasons are in {listing}"
        )

    def _finish(self) -> None:
        """Columns and manifest of the rows."""
        read, rows = self.read.pairs, np.frombuffer(self.pair, np.int64)
        counts = [sum(shard["pairs"] for shard in self.shards[split]) for split in SPLITS]
        split = np.repeat(np.arange(len(SPLITS), dtype=np.uint8), counts)
        names = [(video, span.stop) for video, _, span in read.videos()]
        video = np.searchsorted(np.array([end for _, end in names]), rows, "right")  # of each row, index into `names`
        keys = [pair_key(names[at][0], fid).encode() for at, fid in zip(video, read.fid[rows].tolist(), strict=True)]
        first = [classes[0] for classes in read.class_sets]
        classes = sorted({first[at] for at in np.unique(read.class_id[rows])})
        class_id = np.array([classes.index(name) if name in classes else -1 for name in first], np.int32)
        end = read.box_end[rows]
        begin = np.where(rows > 0, read.box_end[rows - 1], 0)
        boxes = np.zeros((len(rows), max(1, int((end - begin).max())), 4), np.int32)
        for number in range(boxes.shape[1]):
            has = begin + number < end
            boxes[has, number] = read.boxes[begin[has] + number]
        write_manifest(
            self.out,
            keys=np.array(keys, "S"),
            split=split,
            class_id=class_id[read.class_id[rows]],
            labelled=end > begin,
            boxes=boxes,
            time=read.time[rows],
            **{name: np.frombuffer(column, column.typecode) for name, column in self.columns.items()},
            classes=classes,
            splits={
                name: {
                    "pairs": counts[number],
                    "videos": len(np.unique(video[split == number])),
                    "shards": self.shards[name],
                }
                for number, name in enumerate(SPLITS)
            },
            left_out=(left.as_json() for left in self._all_left_out()),
            settings=self.settings,
            more={"jpeg_instead": self.pictures, **self.dataset.header()},
        )


def _told(pair: Pair) -> dict:
    """What the pair's .json says."""
    return {
        "key": pair.key,
        "video": pair.video,
        "fid": pair.fid,
        "time": pair.time,
        "class": pair.class_name,
        "classes": list(pair.classes),
        "labelled": pair.labelled,
        "boxes": pair.boxes.tolist(),
        "split": pair.split,
    }
