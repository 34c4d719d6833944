"""What prepare tells its user while it works, and at its end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from essl_fast.common.errors import InputError
from essl_fast.common.files import parse_json
from essl_fast.data.datasets.annotations import SPLITS
from essl_fast.data.shards import CLIP, Manifest


class Reporter:
    """Reports nothing; the base of those that do."""

    def line(self, text: str) -> None:
        del text

    @contextlib.contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Gives a function to call with the number of those done, of `total`, since it was called last."""
        del what, total
        yield lambda count: None


class _Lines(Reporter):
    """For a pipe or a log file: a line about every tenth of the way."""

    def line(self, text: str) -> None:
        print(f"prepare: {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        done = 0

        def step(count: int) -> None:
            nonlocal done
            before, done = done, done + count
            if done * 10 // max(total, 1) > before * 10 // max(total, 1):
                self.line(f"{done}/{total} {what} ({100 * done // total}%)")

        yield step


class _Bar(_Lines):
    """For a terminal."""

    @contextlib.contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(f"prepare: {what}", total=total)
            yield lambda count: progress.advance(task, count)


def reporter(progress: bool) -> Reporter:
    return (_Bar() if sys.stderr.isatty() else _Lines()) if progress else Reporter()


def print_summary(manifest: Manifest) -> None:
    """Tables on stdout: pairs of each split; frames that could not be clips; what was left out, why, and where to read
    on."""
    console = Console()
    table = Table(title=escape(str(manifest.root)), title_justify="left")
    for heading in ("split", "videos", "pairs", "clips", "shards", "MB"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for split in SPLITS:
        entry = manifest.header["splits"][split]
        size = sum(shard["bytes"] for shard in entry["shards"]) / 1e6
        clips = int((manifest.visual[manifest.rows(split)] == CLIP).sum())
        numbers = entry["videos"], entry["pairs"], clips, len(entry["shards"])
        table.add_row(split, *map(str, numbers), f"{size:.1f}")
    console.print(table)
    if instead := manifest.header.get("jpeg_instead"):
        table = Table(title="stored as JPEG and not as a clip", title_justify="left")
        table.add_column("reason")
        table.add_column("pairs", justify="right")
        table.add_column("first", overflow="fold")
        for reason, told in sorted(instead.items()):
            table.add_row(escape(reason), str(told["pairs"]), escape(told["first"]))
        console.print(table)
    counts = manifest.header["left_out"]
    if not counts:
        console.print("Nothing was left out.")
        return
    listing = manifest.root / "left_out.jsonl"
    first: dict[str, str] = {}
    try:
        with open(listing, "rb") as file:
            for entry in map(parse_json, file):
                first.setdefault(entry["reason"], f"{entry['key'] or entry['video']}: {entry['detail']}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{listing} cannot be read ({error!r}): delete {manifest.root}, prepare again") from error
    table = Table(title=f"left out (all of it: {escape(str(listing))})", title_justify="left")
    table.add_column("reason")
    table.add_column("times", justify="right")
    table.add_column("first", overflow="fold")
    for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(escape(reason), str(count), escape(first.get(reason, "")))
    console.print(table)
