"""What prepare prints while it works, and at its end."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from essl_fast.common import commands
from essl_fast.common.errors import InputError
from essl_fast.common.files import parse_json
from essl_fast.common.pulse import Pulse
from essl_fast.data.shards import CLIP, QUARANTINE, SPLITS, Manifest


class Reporter:
    """Reports nothing. The base of those that report."""

    def line(self, text: str) -> None:
        """Report a line."""
        del text

    @contextlib.contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Report progress inside of a `with` block.

        Args:
            what: the name of the things, for the user.
            total: how many there are.

        Yields:
            A function to call with the number of things done since the last call.
        """
        del what, total
        yield lambda count: None


class _Lines(Reporter):
    """For a pipe or a log file: a line for each tenth of the work, and one every 30 s."""

    def line(self, text: str) -> None:
        print(f"prepare: {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        with Pulse(self.line, what, total) as pulse:

            def step(count: int) -> None:
                before, done = pulse.done, pulse.done + count
                pulse.step(count)
                if done * 10 // max(total, 1) > before * 10 // max(total, 1):
                    self.line(f"{done}/{total} {what} ({100 * done // total}%)")

            yield step


class _Bar(_Lines):
    """For a terminal: a progress bar."""

    @contextlib.contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(f"prepare: {what}", total=total)
            yield lambda count: progress.advance(task, count)


def reporter(progress: bool) -> Reporter:
    """One that reports on stderr, as a terminal or a file needs it; without `progress`, one that reports nothing."""
    return (_Bar() if sys.stderr.isatty() else _Lines()) if progress else Reporter()


MOST_LINES = 50  # of one kind of note


def _print_notes(manifest: Manifest, console: Console) -> None:
    """A line for each video with something to tell: its sound track, its times."""
    if doubt := manifest.header.get("boxes"):
        console.print(f"warning: {doubt}", markup=False, highlight=False, soft_wrap=True)
    if numbering := manifest.header.get("numbering"):
        console.print(f"frame numbers: {numbering}", markup=False, highlight=False, soft_wrap=True)
    for name, what in (("sound_tracks", "sound: "), ("contradictions", "")):
        told = manifest.header.get(name, {})
        for video in list(told)[:MOST_LINES]:
            console.print(f"{video}: {what}{told[video]}", markup=False, highlight=False, soft_wrap=True)
        if len(told) > MOST_LINES:
            where = manifest.named("manifest.json")
            text = f"{len(told) - MOST_LINES} more videos are under {name} in {where}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_summary(manifest: Manifest) -> None:
    """Print tables on stdout: the pairs of each split, frames that could not be clips, and what was left out.

    Raises:
        InputError: left_out.jsonl is damaged.
    """
    console = commands.console()
    table = Table(title=Text(manifest.place), title_justify="left")
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
        for why, entry in sorted(instead.items()):
            table.add_row(Text(why), str(entry["pairs"]), Text(entry["first"]))
        console.print(table)
    _print_notes(manifest, console)
    for split, entry in manifest.header.get("coverage", {}).items():
        share = 100 * entry["held"] / max(entry["listed"], 1)
        text = f"coverage: {entry['held']:,} of the {entry['listed']:,} pairs that the lists name for {split}"
        console.print(f"{text} ({share:.1f}%)", highlight=False, soft_wrap=True)
    counts = manifest.header["left_out"]
    if not counts:
        console.print("Nothing was left out.")
        return
    listing = manifest.bring("left_out.jsonl")
    first: dict[str, str] = {}
    try:
        with open(listing, "rb") as file:
            for entry in map(parse_json, file):
                first.setdefault(entry["reason"], f"{entry['key'] or entry['video']}: {entry['detail']}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        named = manifest.named("left_out.jsonl")
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):  # of the disk
            if manifest.source is not None:  # of the cache: what lies at the URL has no fault
                raise manifest.source.cache.unusable(error) from error
            raise InputError(
                f"{named} cannot be read ({error.strerror}): mend that, then run the same command again"
            ) from error
        raise InputError(f"{named} cannot be read ({error!r}): delete {manifest.place}, prepare again") from error
    table = Table(title=Text(f"left out (all of it: {manifest.named('left_out.jsonl')})"), title_justify="left")
    table.add_column("reason")
    table.add_column("times", justify="right")
    table.add_column("first", overflow="fold")
    for why, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(Text(why), str(count), Text(first.get(why, "")))
    console.print(table)


def print_part(part: str, videos: Mapping[str, Sequence], lost: Mapping[str, dict]) -> None:
    """Say what one of several machines' parts holds, and what comes next.

    Args:
        part: its name, 2/8.
        videos: as in `dividing.Record`.
        lost: videos without pairs, likewise.
    """
    pairs, entries = (sum(video[at] for video in videos.values()) for at in (2, 3))
    some = f"{pairs} pairs of {len(videos)} video{'s' * (len(videos) != 1)}"
    print(f"part {part}: {some}; {entries + len(lost)} entries were left out")
    told = [(why, detail) for index in lost.values() for _, why, detail in index["left_out"]]
    for why, count in Counter(why for why, _ in told).items():
        print(f"{why}: {count} time{'s' * (count > 1)}; first: {dict(reversed(told))[why]}")
    of = part.partition("/")[2]
    when = "now" if of == "1" else f"when all {of} parts are there,"
    print(f"{when} run this command with --join in place of --part")


def print_verified(manifest: Manifest, found: dict[str, int]) -> None:
    """Say what --verify found: reason → how often."""
    listed = ", ".join(f"{count} {reason}" for reason, count in found.items()) or "nothing"
    where = f"; they are listed in {manifest.named(QUARANTINE)}" if found else ""
    print(f"{len(manifest)} pairs were decoded; wrong with them: {listed}{where}")
