"""The parts that several machines made (`dividing`), in the order of one: what `--join` makes shards of.

No video is read. So the machine that joins needs the annotations and the parts, and the shards hold what the parts say,
byte for byte what one machine would have made.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from essl_fast.common.errors import InputError, Notice
from essl_fast.prepare.dividing import RECORD, Record, shares, with_format
from essl_fast.prepare.folder import changes
from essl_fast.prepare.plan import Plan
from essl_fast.prepare.slices import Slice, slices_in


class Joined:
    """Parts that are there already (a `Supply`)."""

    def __init__(self, plan: Plan, parts: Path, settings: Mapping[str, Any]):
        """Read the records of all parts.

        Args:
            plan: of the whole data set.
            parts: the folder of all parts.
            settings: that they must have.

        Raises:
            InputError: a part is missing, is not finished, is there twice, or was made of other settings.
        """
        self._plan = plan
        records = _records(parts, with_format(settings))
        count = next(iter(records)).total
        self._of: dict[str, tuple[Path, Record]] = {}
        for planned, share in zip(plan.videos, shares(plan, count), strict=True):
            folder, record = records[Slice(share + 1, count)]
            if planned.video not in record.videos and planned.video not in record.lost:
                raise InputError(
                    f"--join: {folder} lacks {planned.video}: another version made it; delete it and make part "
                    f"{record.part} again"
                )
            self._of[planned.video] = folder, record
        self._tell_changed()

    def _tell_changed(self) -> None:
        """Say which videos are here and are not what their parts were made of. They are joined as the parts have them.

        No more than that: on a machine of its own, a copy of a video may have another time.
        """
        changed = [
            video
            for number, (_, video, _) in enumerate(self._plan.videos)
            if self._plan.fingerprint(number) not in ("", self.fingerprint(number))
        ]
        if changed:
            some = ", ".join(f"{video} of part {self._of[video][1].part}" for video in changed[:4])
            warnings.warn(
                f"--join: {len(changed)} video{'s' * (len(changed) > 1)} ({some}{', …' * (len(changed) > 4)}) changed "
                "or came after the parts were made, and are joined as they were then; to have them as they are now, "
                "delete the folder when this has ended, and make its parts again",
                Notice,
                stacklevel=2,
            )

    def fingerprint(self, number: int) -> str:
        video = self._plan.videos[number].video
        return self._of[video][1].fingerprint(video)

    def folder(self, video: str) -> Path:
        return self._of[video][0]

    def coming(self, first: int) -> Generator[tuple[str, dict], None, None]:
        """As `Supply`. InputError if the data of a video is missing or damaged."""
        for planned in self._plan.videos[first:]:
            folder, record = self._of[planned.video]
            index = record.index_of(folder, planned.video)
            if index is None:
                raise InputError(
                    f"--join: the data of {planned.video} in {folder} is gone or damaged: make part {record.part} "
                    "again (or copy it again), then join"
                )
            yield planned.video, index


def _records(parts: Path, now: Mapping[str, Any]) -> dict[Slice, tuple[Path, Record]]:
    """Part → (its folder, its record) of all parts. InputError as `Joined`."""
    found = slices_in(parts)
    if not found:
        raise InputError(f"--join: {parts.parent} holds no part: make them first, with --part 1/N to N/N")
    counts = sorted({part.total for part in found})
    if len(counts) > 1:
        numbers = " and ".join(map(str, counts))
        raise InputError(f"--join: {parts} holds parts of {numbers}: delete the folders of all but one number")
    records: dict[Slice, tuple[Path, Record]] = {}
    missing = []
    for part in (Slice(number, counts[0]) for number in range(1, counts[0] + 1)):
        if part not in found:
            missing.append(str(part))
            continue
        folder = found[part]
        record = Record.read(folder)
        if record is None:
            state = "is damaged" if (folder / RECORD).exists() else "is not finished"
            raise InputError(f"--join: {folder} {state}: run the same command with --part {part} in place of --join")
        if record.part != part:
            twice = (
                f"part {record.part} is there twice, also" if record.part in found else f"part {record.part} is there"
            )
            raise InputError(f"--join: {twice} as {folder}: delete that folder, and make part {part}")
        if changed := changes(record.settings, now, every=True):
            raise InputError(
                f"--join: part {part} was made differently ({'; '.join(changed)}): give the options that it was made "
                f"with, or delete {folder} and make it again"
            )
        records[part] = folder, record
    if missing:
        some, they, them = ("parts", "are", "them") if len(missing) > 1 else ("part", "is", "it")
        some += f" {', '.join(missing)} {they} missing in {parts}"
        raise InputError(f"--join: {some}: make {them} with --part, or copy {them} there")
    return records
