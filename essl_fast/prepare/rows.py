"""The rows of the manifest, as far as they are written into shards."""

from __future__ import annotations

from array import array

from essl_fast.prepare.plan import Plan

COLUMNS = {"visual": "B", "target": "i", "quarters": "B", "crc": "I"}  # name → type code; as in `Manifest`


class Rows:
    """The pairs in shards, in order, and the videos that are done.

    Attributes:
        pair: for each row, the index of its pair in the annotations.
        columns: name → values of the rows.
        videos_done: how many videos of the plan are in `pair` with all their pairs.
        left_out: of these videos: name → [[key, reason, detail], ...].
        notes: of these videos: name → [[kind, text], ...], as in `notes`.
        jpeg_instead: of these videos: reason → {"pairs", "first"}, why frames are JPEG although clips were asked for.
    """

    def __init__(self) -> None:
        self.pair = array("q")
        self.columns = {name: array(code) for name, code in COLUMNS.items()}
        self.videos_done = 0
        self.left_out: dict[str, list] = {}
        self.notes: dict[str, list] = {}
        self.jpeg_instead: dict[str, dict] = {}

    def __len__(self) -> int:
        return len(self.pair)

    def add(self, index: int, *values: int) -> None:
        """Append the row of a pair. values: of the columns, in their order."""
        self.pair.append(index)
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)

    def finish_video(self, video: str, left_out: list, pictures: list, notes: list) -> None:
        """All pairs of the next video are in. `left_out`, `pictures` and `notes` as in the index of its part."""
        self.left_out[video], self.notes[video] = left_out, notes
        for reason, detail, count in pictures:
            entry = self.jpeg_instead.setdefault(reason, {"pairs": 0, "first": detail})
            entry["pairs"] += count
        self.videos_done += 1

    def begun(self, plan: Plan) -> int:
        """How many pairs of the next video are in already."""
        if self.videos_done == len(plan):
            return 0
        span, count = plan.videos[self.videos_done].span, 0
        while count < len(self.pair) and self.pair[-1 - count] in span:
            count += 1
        return count
