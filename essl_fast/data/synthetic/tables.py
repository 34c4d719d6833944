"""The tables of the demo world: annotations in Chaotic World's layout, and every object of every annotated frame."""

from __future__ import annotations

import csv
from pathlib import Path

from essl_fast.data.synthetic.plan import ScenePlan
from essl_fast.data.synthetic.settings import SPLITS


def _write_table(path: Path, header: list[str], rows: list[list]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def write_annotations(plans: list[ScenePlan], folder: Path) -> None:
    """Write the annotation tables and split lists of all videos. The bbox of a group's row lists one box per frame.

    A stretch, or frame, with several sounding objects has a row for each.
    """
    for kind in ("group", "frame"):
        (folder / "annotation" / kind).mkdir(parents=True, exist_ok=True)
    for plan in plans:
        sources = [plan.objects[index] for index in plan.sources]
        boxes = {(fid, at): list(one.box(plan.time(fid))) for fid in plan.fids() for at, one in enumerate(sources)}
        _write_table(
            folder / "annotation" / "group" / f"{plan.name}.csv",
            ["start_fid", "end_fid", "start_time", "end_time", "bbox", "ssl"],
            [
                [a, b, plan.time(a), plan.time(b), [boxes[f, at] for f in range(a, b + 1)], one.kind]
                for a, b in plan.groups
                for at, one in enumerate(sources)
            ],
        )
        _write_table(
            folder / "annotation" / "frame" / f"{plan.name}.csv",
            ["fid", "time", "bbox", "ssl"],
            [[fid, plan.time(fid), [box], sources[at].kind] for (fid, at), box in boxes.items()],
        )
    for split in SPLITS:
        names = "".join(f"{plan.name}\n" for plan in plans if plan.split == split)
        (folder / f"{split}_ssl.txt").write_text(names, encoding="utf-8")


def all_objects(plans: list[ScenePlan]) -> dict[str, list[dict]]:
    """For objects.json: every object of each annotated frame, from back to front; boxes in pixels of 320x180."""
    table = {}
    for plan in plans:
        for fid in plan.fids():
            table[f"{plan.name}_{fid:06d}"] = [
                {
                    "class": thing.kind,
                    "box": list(thing.box(plan.time(fid))),
                    "area": thing.width * thing.height,
                    "sounding": i in plan.sources,
                }
                for i, thing in enumerate(plan.objects)
            ]
    return table
