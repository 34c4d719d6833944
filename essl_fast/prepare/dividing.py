"""One of the parts into which several machines divide a data set (`--part 2/8`).

    OUT/.parts/2-of-8/<video>.part, .json    frames and sounds of its videos, as `parts` makes them
    OUT/.parts/2-of-8/settings.json          what they are made of; written first
    OUT/.parts/2-of-8/record.json            which videos there are, with fingerprint and size; written last

Which videos a part has depends on the annotations and on the number of parts alone. When all parts are there, `--join`
(`joining`) makes shards of them, without reading a video.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_file, sealed, sync_folder, unsealed
from essl_fast.data import shards
from essl_fast.data.datasets import Dataset
from essl_fast.prepare import tasks
from essl_fast.prepare.folder import changes
from essl_fast.prepare.parts import drop_part
from essl_fast.prepare.plan import Plan
from essl_fast.prepare.reporting import Reporter
from essl_fast.prepare.slices import SETTINGS, Slice, slices_in
from essl_fast.prepare.tasks import Task, stem_of
from essl_fast.prepare.workers import make_in_order

RECORD = "record.json"


class Record(NamedTuple):
    """What a finished part holds.

    Attributes:
        part: which of how many it is.
        settings: what it is made of, `format` among them.
        videos: name → [fingerprint of the task, bytes of its .part, pairs, entries left out], of videos with pairs.
        lost: name → index of the others, as in `parts.make_part`.
    """

    part: Slice
    settings: dict[str, Any]
    videos: dict[str, list]
    lost: dict[str, dict]

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record of a part's folder; None if there is none, or if it is damaged."""
        try:
            held = unsealed((folder / RECORD).read_bytes())
            return cls(Slice(*held["part"]), held["settings"], held["videos"], held["lost"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Write what the record names to the disk, then the record. Files that it does not name are removed."""
        names = {f"{stem_of(video)}.{kind}" for video in self.videos for kind in ("part", "json")}
        for path in folder.iterdir():
            if path.name in names:
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            elif path.suffix in (".part", ".json") and path.name != SETTINGS:
                path.unlink()
        sync_folder(folder)
        with atomic_file(folder / RECORD) as file:
            file.write(sealed(self._asdict()))

    def fingerprint(self, video: str) -> str:
        return self.lost[video]["fingerprint"] if video in self.lost else self.videos[video][0]

    def index_of(self, folder: Path, video: str) -> dict | None:
        """The index of a video's part, whose bytes were compared with its CRC-32s; None if it is gone or damaged."""
        if video in self.lost:
            return self.lost[video]
        fingerprint, size, *_ = self.videos[video]
        try:
            index = unsealed((folder / f"{stem_of(video)}.json").read_bytes())
            path = folder / f"{stem_of(video)}.part"
            if index["fingerprint"] != fingerprint or index["bytes"] != size or path.stat().st_size != size:
                return None
            with open(path, "rb") as file:
                for offset, frame, sound, *_, crc in index["members"].values():
                    file.seek(offset)
                    if shards.pair_crc(file.read(frame), file.read(sound)) != crc:
                        return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return index


def shares(plan: Plan, count: int) -> list[int]:
    """The part of each video, from 0. The parts have about as many pairs each."""
    load = [(0, part) for part in range(count)]  # a heap: (pairs so far, part)
    found = [0] * len(plan)
    for number in sorted(range(len(plan)), key=lambda number: -len(plan.videos[number].span)):
        pairs, part = load[0]
        found[number] = part
        heapq.heapreplace(load, (pairs + len(plan.videos[number].span), part))
    return found


def with_format(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back, with the formats of shards and of parts."""
    return json.loads(json.dumps(settings)) | {"format": f"{shards.VERSION}.{tasks.VERSION}"}


def make_slice(
    dataset: Dataset, part: Slice, parts: Path, settings: Mapping[str, Any], workers: int, say: Reporter
) -> Record:
    """Make a part, or finish it.

    Args:
        dataset: what to prepare.
        part: which of how many.
        parts: the folder of all parts.
        settings: as for `assembly.assemble`.
        workers: processes that decode.
        say: the reporter.

    Returns:
        Its record.

    Raises:
        InputError: the part, or another of as many, was made of other settings; or it cannot be made.
    """
    folder, now = parts / part.folder, with_format(settings)
    _begin(folder, part, now)
    plan = Plan(dataset, settings)
    mine = [number for number, share in enumerate(shares(plan, part.total)) if share == part.number - 1]
    before, new = Record.read(folder), Record(part, now, {}, {})
    made = make_in_order(_tasks(plan, mine, folder, before), folder, max(1, min(workers, len(mine))))
    with say.bar(f"pairs of part {part}", sum(len(plan.videos[number].span) for number in mine)) as step:
        for number, (video, index) in zip(mine, made, strict=True):
            if index["members"]:
                counts = len(index["members"]), len(index["left_out"])
                new.videos[video] = [index["fingerprint"], index["bytes"], *counts]
            else:
                new.lost[video] = index
            step(len(plan.videos[number].span))
    new.write(folder)
    return new


def _begin(folder: Path, part: Slice, now: Mapping[str, Any]) -> None:
    """Note the settings of a part, and remove what killed workers left. InputError if it, or one beside it, differs."""
    if changed := changes(_noted(folder) or now, now):
        raise InputError(
            f"{folder} holds part {part} made differently ({'; '.join(changed)}): delete that folder first"
        )
    for other, beside in slices_in(folder.parent).items():
        same = other == part or other.total != part.total  # as many parts: they are to be joined
        if not same and (changed := changes(_noted(beside) or now, now, every=True)):
            raise InputError(
                f"{beside} holds part {other} made differently ({'; '.join(changed)}), so they cannot be joined: give "
                f"part {part} the options of that part, or delete {beside} and make part {other} again"
            )
    for file in folder.glob(".*.partial"):
        file.unlink()
    with atomic_file(folder / SETTINGS) as written:
        written.write(json.dumps(now, sort_keys=True).encode())


def _noted(folder: Path) -> dict[str, Any] | None:
    """The settings that a part's folder notes; None if there are none yet, or they cannot be read."""
    try:
        held = json.loads((folder / SETTINGS).read_bytes())
    except (OSError, ValueError):
        return None
    return held if isinstance(held, dict) else None


def _tasks(plan: Plan, mine: list[int], folder: Path, before: Record | None) -> Iterator[tuple[str, Task | dict]]:
    """(video, its task), or (video, the index of its part) of those that an earlier run has made."""
    for number in mine:
        video, task = plan.task(number)
        if before is not None and isinstance(task, Task) and (video in before.videos or video in before.lost):
            index = before.index_of(folder, video) if before.fingerprint(video) == plan.fingerprint(number) else None
            if index is None or index.get("again"):  # memory was short: the file may have no fault
                index = None
                drop_part(video, folder)
            task = index or task
        yield video, task
