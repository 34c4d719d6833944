"""Parts → shards, while the videos are decoded.

    OUT/.parts/<video>.part, .json      parts that are not in a shard yet (`parts`)
    OUT/.parts/shards/                  the finished shards (`journal`)

Pairs come in the order of (split, video, frame), so a shard is full as soon as its videos are decoded. Then it is
synced and noted in the journal, and its parts are removed. So the disk holds the data set once, and twice only the open
shard and the parts in work.

A run that was killed continues after the last shard of the journal and does not touch the shards before. If the file of
a video has changed or was mended since, its shard and the shards after it are made again: the bytes are always those of
a run that nothing disturbed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from essl_fast.common.errors import InputError
from essl_fast.data.datasets import Dataset, Pair
from essl_fast.data.shards import CLIP, SPLITS, ShardWriter
from essl_fast.prepare.finishing import finish, refuse_empty_split
from essl_fast.prepare.joining import Joined
from essl_fast.prepare.journal import Journal
from essl_fast.prepare.plan import Plan
from essl_fast.prepare.reporting import Reporter
from essl_fast.prepare.rows import Rows
from essl_fast.prepare.sending import Destination
from essl_fast.prepare.supply import Made, Supply
from essl_fast.prepare.tasks import stem_of


def assemble(
    dataset: Dataset,
    out: Path,
    parts: Path,
    settings: Mapping[str, Any],
    workers: int | None,
    say: Reporter,
    sent: Destination | None = None,
) -> None:
    """Make the prepared folder of a data set, or finish it.

    Args:
        dataset: what to prepare.
        out: the folder.
        parts: its folder for parts.
        settings: what the manifest says of them. `pairs_per_shard`, `visual` (clip, jpeg or auto) and `decoders` (what
            the GPU decodes, or None) count here.
        workers: processes that decode. None: the parts of several machines are there, and are joined.
        say: the reporter.
        sent: where the shards are sent, if `out` is only where they are made.

    Raises:
        InputError: a split has no pair left, a part cannot be made or joined, or a video gives other pairs than before.
    """
    plan, rows = Plan(dataset, settings), Rows()
    supply: Supply = Joined(plan, parts, settings) if workers is None else Made(plan, parts, workers)
    journal = Journal(out, parts, settings, supply, sent)
    journal.replay(plan, rows, say)
    waiting = len(list(parts.glob("*.part")))
    if len(rows) or waiting:
        shards = sum(map(len, journal.shards.values()))
        say.line(f"continuing: {len(rows)} pairs are in {shards} shards, {waiting} more videos are read")
    coming = supply.coming(rows.videos_done)
    with say.bar("pairs", len(plan.pairs)) as step, contextlib.closing(coming):
        step(sum(len(planned.span) for planned in plan.videos[: rows.videos_done]) + rows.begun(plan))
        filler = _Filler(plan, rows, journal, step)
        for number, split in enumerate(SPLITS):
            begin = sum(shard["pairs"] for name in SPLITS[:number] for shard in journal.shards[name])
            filler.fill(number, settings["pairs_per_shard"], coming)
            if len(rows) == begin:
                refuse_empty_split(split, dataset.annotations, rows, parts / "left_out.jsonl")
    finish(out, dataset, rows, journal.shards, settings)


class _Filler:
    """Writes the pairs of parts into shards, and notes the shards that are full."""

    def __init__(self, plan: Plan, rows: Rows, journal: Journal, step: Callable[[int], None]):
        self.plan, self.rows, self.journal, self.step = plan, rows, journal, step

    def fill(self, number: int, pairs_per_shard: int, coming: Iterator[tuple[str, dict]]) -> None:
        """Write the shards of split `number`. coming: (video, index of its part) in the order of the plan."""
        split, rows, plan, journal = SPLITS[number], self.rows, self.plan, self.journal
        with ShardWriter(journal.out, split, pairs_per_shard, journal.shards[split]) as writer:
            while rows.videos_done < len(plan) and plan.videos[rows.videos_done].split == number:
                self._add(*next(coming), writer)
            shards = writer.close()
        if len(shards) > len(journal.shards[split]):
            journal.note(split, shards[-1], rows)

    def _add(self, video: str, part: dict, writer: ShardWriter) -> None:
        """Write those pairs of the next video that are not in shards yet."""
        plan, rows, split = self.plan, self.rows, writer.split
        pairs, members, begun = plan.pairs, part["members"], rows.begun(plan)
        wanted = plan.order(rows.videos_done).tolist()
        order = [index for index in wanted if pairs.key(video, index) in members]
        if order[:begun] != rows.pair[len(rows) - begun :].tolist():
            out = self.journal.out
            raise InputError(f"{video} does not give the pairs that it gave before: delete {out} and run again")
        full = None  # the entry of a shard that the last pair filled
        path = self.journal.supply.folder(video) / f"{stem_of(video)}.part"
        with open(path, "rb") if members else contextlib.nullcontext() as file:
            for index in order[begun:]:
                if full is not None:
                    self.journal.note(split, full, rows, (video, part))
                pair = pairs.get(video, split, index)
                offset, *sizes, visual, target, quarters, crc = members[pair.key]
                assert file is not None  # it is open if there are members
                file.seek(offset)
                frame, sound = map(file.read, sizes)
                place = (target, quarters) if visual == CLIP else None
                full = writer.add(pair.key, frame, sound, _as_json(pair), len(rows), place)
                rows.add(index, visual, target, quarters, crc)
                self.step(1)
        self.journal.video_done(video, part)
        rows.finish_video(video, part["left_out"], part["pictures"], part["notes"])
        self.step(len(wanted) - len(order))
        if full is not None:
            self.journal.note(split, full, rows)


def _as_json(pair: Pair) -> dict:
    """The content of the pair's .json."""
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
