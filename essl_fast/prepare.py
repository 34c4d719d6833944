"""Videos and annotations → shards that training reads: decode once.

    python -m essl_fast.prepare --videos DIR --annotations DIR --out DIR

Every video is opened once; its pairs (one frame as JPEG, the 3 s of sound around it as 16 kHz PCM16) wait in
`OUT/.parts` until all videos are done and are then written, shuffled, into shards of about 128 MB with a manifest. Kill
it whenever you like: the same command continues, and ends with the same bytes as if it had never stopped. Meanwhile OUT
needs room for the pairs twice, about 2 x 120 kB each.

A pair whose 3 s leave the sound track is left out, as in the published code. So is, each with a reason of its own, what
a missing, broken or silent file cannot give. `OUT/left_out.jsonl` lists all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import functools
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from essl_fast.config import InputError
from essl_fast.data import annotations as notes
from essl_fast.data import media
from essl_fast.data.annotations import SPLITS, Annotations, LeftOut, Pair
from essl_fast.data.parts import CRASHED, JPEG, PartReader, Task, finished_part, run_tasks
from essl_fast.data.shards import VERSION, Manifest, ShardWriter, write_manifest

PARTS = ".parts"
_MENDABLE = {media.MISSING, media.UNREADABLE, media.NO_VIDEO, media.NO_SOUND, media.TRUNCATED, media.SOUND_TRUNCATED,
             CRASHED}  # reasons that a better copy of the video removes  # fmt: skip
_OWN_FILES = re.compile(r"\.?(train|val|test)-\d{5}\.(tar|idx)(\.partial)?")


def prepare(
    videos: str | Path,
    annotations: str | Path,
    out: str | Path,
    *,
    frame: str = "start",
    row_boxes: str = "first",
    annotation_size: tuple[int, int] = (320, 180),
    validation: float = 0.1,
    seed: int = 0,
    pairs_per_shard: int = 1024,
    workers: int | None = None,
    progress: bool = True,
) -> Manifest:
    """Prepare `out`, continue an interrupted preparation, or open a finished one of the same settings.

    The arguments are those of the command (`--help`). `workers` None: one for each core this process may use, 8 at
    most; `progress`: report on stderr. The bytes in `out` depend on the files and settings alone, not on `workers`.

    Raises InputError for what `read_chaotic_world` refuses, an `out` that holds something else, was prepared with other
    settings or is being prepared, and a split of which no pair is left.
    """
    videos, out = Path(videos), Path(out)
    if not videos.is_dir():
        raise InputError(f"{videos} is not a folder: videos must name the folder that holds <video>.mp4")
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}: give 1 or more")
    if pairs_per_shard < 1:
        raise InputError(f"pairs_per_shard is {pairs_per_shard}: give 1 or more")
    say = _reporter(progress)
    read = notes.read_chaotic_world(
        annotations,
        frame=frame,
        row_boxes=row_boxes,
        size=tuple(annotation_size),
        validation=validation,
        seed=seed,
        frame_rate=functools.cache(functools.partial(_frame_rate, videos)),
    )
    settings = {
        "frame": frame,
        "row_boxes": row_boxes,
        "annotation_size": list(annotation_size),
        "validation": validation,
        "seed": seed,
        "pairs_per_shard": pairs_per_shard,
        "seconds": media.SECONDS,
        "rate": media.RATE,
        "grid": notes.GRID,
        "jpeg": dict(JPEG),
        "annotations": notes.digest(read),
    }
    if not (out / PARTS).exists() and (done := _finished(out, settings, say)):
        return done
    try:
        with _locked(out, say):
            if (done := _finished(out, settings, say)) is None:
                if (out / "manifest.json").exists():
                    say.line(f"{out} is damaged: preparing it again")
                    (out / "manifest.json").unlink()
                _make(videos, read, out, settings, workers, say)
                done = Manifest.load(out)
            shutil.rmtree(out / PARTS, ignore_errors=True)
            return done
    except OSError as error:
        raise InputError(f"cannot write {out}: {error}; free some space or choose another --out, then go on") from error


def _frame_rate(videos: Path, video: str) -> float | None:
    try:
        return media.probe(media.find_video(videos, video)).frame_rate
    except Exception:
        return None  # whatever it is, the video's part will say why


@contextlib.contextmanager
def _locked(out: Path, say: _Reporter) -> Iterator[None]:
    """Own `out` and its folder for parts; the lock ends with the process, however that ends."""
    parts = out / PARTS
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: --out must name a folder")
    if not parts.is_dir() and not (out / "manifest.json").exists() and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} holds files that prepare did not make: choose an empty or a new folder for --out")
    parts.mkdir(parents=True, exist_ok=True)
    with open(parts / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another prepare is at work on {out}: wait for it, or choose another --out") from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            why = f"the file system of {out} has no locks ({error.strerror})"
            say.line(f"warning: {why}: make sure that no other prepare works on it")
        yield


def _finished(out: Path, settings: dict, say: _Reporter) -> Manifest | None:
    """The manifest of a finished folder of these settings, None where there is work to do."""
    path = out / "manifest.json"
    if not path.exists():
        return None
    try:
        header = json.loads(path.read_bytes())
        known, version = header["settings"], header["version"]
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path} is not a manifest of prepare: delete {out} or choose another --out") from None
    was, now = known | {"format": version}, json.loads(json.dumps(settings)) | {"format": VERSION}
    names = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
    # Their fingerprint is of what was read under the settings: it tells something only where those are equal.
    changed = [f"{name} was {was.get(name)}, is {now.get(name)}" for name in names if name != "annotations"]
    if names == ["annotations"]:
        changed = ["the annotations were others"]
    if changed:
        raise InputError(f"{out} was prepared differently ({'; '.join(changed)}): choose another --out or delete it")
    try:
        manifest = Manifest.load(out)
    except InputError:
        return None  # a shard was deleted, say
    lost = sum(count for reason, count in manifest.header["left_out"].items() if reason in _MENDABLE)
    then = f"once they are mended, delete {out} (or choose another --out) and run again"
    again = f"; {lost} videos or pairs were left out for faults of video files (see left_out.jsonl): {then}"
    say.line(f"{out} is complete: nothing to do{again if lost else ''}")
    return manifest


def _make(videos: Path, read: Annotations, out: Path, settings: dict, workers: int | None, say: _Reporter) -> None:
    parts_folder = out / PARTS
    wanted: dict[str, list[Pair]] = {}
    for pair in read.pairs:
        wanted.setdefault(pair.video, []).append(pair)
    left_out = list(read.left_out)
    parts: dict[str, tuple[Task, dict]] = {}
    todo: list[Task] = []
    for video, pairs in wanted.items():
        try:
            path = media.find_video(videos, video)
            task = Task(video, str(path), tuple((pair.key, pair.fid, pair.time) for pair in pairs))
            part = finished_part(task, parts_folder)
        except media.MediaError as error:
            detail = f"{error.detail} ({len(pairs)} pair{'s' * (len(pairs) != 1)})"
            left_out.append(LeftOut(video, "", error.reason, detail))
            continue
        if part is None:
            todo.append(task)
        else:
            parts[video] = task, part
    if parts:
        say.line(f"continuing: {len(parts)} of {len(parts) + len(todo)} videos are done")
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), 8)
    todo.sort(key=lambda task: len(task.requests), reverse=True)  # the longest first: no worker ends alone
    with say.bar("videos", len(todo)) as step:
        for task, part in run_tasks(todo, parts_folder, min(workers, len(todo))):
            parts[task.video] = task, part
            step()
    for video, (_, part) in parts.items():
        left_out.extend(LeftOut(video, *entry) for entry in part["left_out"])
    left_out.sort()
    made = [pair for pair in read.pairs if pair.video in parts and pair.key in parts[pair.video][1]["members"]]
    _refuse_empty_split(read, made, left_out, parts_folder)
    _assemble(made, parts, left_out, out, settings, say)
    text = f"{read.rows} annotation rows were read: {read.merged} share the frame of an earlier one and joined its pair"
    if read.further:
        text += f", {read.further} further boxes of rows were ignored (--row-boxes first)"
    say.line(text)


def _refuse_empty_split(read: Annotations, made: list[Pair], left_out: list[LeftOut], parts_folder: Path) -> None:
    for split in ("train", "test"):
        asked = set(read.videos[split])
        if not asked or any(pair.split == split for pair in made):
            continue
        mine = [left for left in left_out if left.video in asked]
        listing = parts_folder / "left_out.jsonl"
        listing.write_text("".join(json.dumps(left.as_json(), ensure_ascii=False) + "\n" for left in left_out))
        (reason, count), *_ = Counter(left.reason for left in mine).most_common(1)
        first = next(left.detail for left in mine if left.reason == reason)
        raise InputError(
            f"no pair is left for the split {split} of {len(asked)} video{'s' * (len(asked) != 1)}; most often: "
            f"{reason} ({count} times; first: {first}). All reasons are in {listing}"
        )


def _assemble(
    made: list[Pair], parts: dict, left_out: list[LeftOut], out: Path, settings: dict, say: _Reporter
) -> None:
    """Parts → shards, columns and, last, the manifest. The order of a split is a shuffle that its keys and seed fix."""
    for path in out.iterdir():
        if _OWN_FILES.fullmatch(path.name):
            path.unlink()  # of an assembly that was interrupted
    ordered: list[Pair] = []
    splits: dict[str, dict] = {}
    with say.bar("pairs", len(made)) as step, PartReader(out / PARTS) as reader:
        for split in SPLITS:
            chosen = [pair for pair in made if pair.split == split]
            chosen.sort(key=lambda pair: notes.stable_rank(settings["seed"], pair.key))
            with ShardWriter(out, split, settings["pairs_per_shard"]) as writer:
                for pair in chosen:
                    jpeg, sound = reader.read(*parts[pair.video], pair.key)
                    writer.add(pair.key, jpeg, sound, _told(pair), len(ordered))
                    ordered.append(pair)
                    step()
                shards = writer.close()
            splits[split] = {"pairs": len(chosen), "videos": len({pair.video for pair in chosen}), "shards": shards}
    classes = sorted({pair.class_name for pair in ordered})
    boxes = np.zeros((len(ordered), max([1, *(len(pair.boxes) for pair in ordered)]), 4), np.int32)
    for row, pair in enumerate(ordered):
        boxes[row, : len(pair.boxes)] = pair.boxes
    write_manifest(
        out,
        keys=[pair.key for pair in ordered],
        split=np.array([SPLITS.index(pair.split) for pair in ordered], np.uint8),
        class_id=np.array([classes.index(pair.class_name) for pair in ordered], np.int32),
        labelled=np.array([pair.labelled for pair in ordered], bool),
        boxes=boxes,
        time=np.array([pair.time for pair in ordered], np.float64),
        classes=classes,
        splits=splits,
        left_out=[left.as_json() for left in left_out],
        settings=settings,
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


class _Reporter:
    """Reports nothing; the base of those that do."""

    def line(self, text: str) -> None:
        del text

    @contextlib.contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """Gives a function to call after each of `total` steps."""
        del what, total
        yield lambda: None


class _Lines(_Reporter):
    """For a pipe or a log file: a line about every tenth of the way."""

    def line(self, text: str) -> None:
        print(f"prepare: {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            if done * 10 // total > (done - 1) * 10 // total:
                self.line(f"{done}/{total} {what} ({100 * done // total}%)")

        yield step


class _Bar(_Lines):
    """For a terminal."""

    @contextlib.contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(f"prepare: {what}", total=total)
            yield lambda: progress.advance(task)


def _reporter(progress: bool) -> _Reporter:
    return (_Bar() if sys.stderr.isatty() else _Lines()) if progress else _Reporter()


def print_summary(manifest: Manifest) -> None:
    """Tables on stdout: pairs of each split; what was left out, why, and where to read on."""
    console = Console()
    table = Table(title=str(manifest.root), title_justify="left")
    for heading in ("split", "videos", "pairs", "shards", "MB"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for split in SPLITS:
        entry = manifest.header["splits"][split]
        size = sum(shard["bytes"] for shard in entry["shards"]) / 1e6
        table.add_row(split, str(entry["videos"]), str(entry["pairs"]), str(len(entry["shards"])), f"{size:.1f}")
    console.print(table)
    counts = manifest.header["left_out"]
    if not counts:
        console.print("Nothing was left out.")
        return
    listing = manifest.root / "left_out.jsonl"
    first: dict[str, str] = {}
    with open(listing, encoding="utf-8") as file:
        for entry in map(json.loads, file):
            first.setdefault(entry["reason"], f"{entry['key'] or entry['video']}: {entry['detail']}")
    table = Table(title=f"left out (all of it: {listing})", title_justify="left")
    table.add_column("reason")
    table.add_column("times", justify="right")
    table.add_column("first", overflow="fold")
    for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(reason, str(count), first[reason])
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns 0, or 1 where --strict finds something left out, or 2 on an InputError."""
    asked = vars(_parser().parse_args(arguments))
    strict = asked.pop("strict", False)
    try:
        manifest = prepare(**asked)
    except InputError as error:
        print(f"essl_fast.prepare: error: {error}", file=sys.stderr)
        return 2
    print_summary(manifest)
    lost = {reason: count for reason, count in manifest.header["left_out"].items() if reason != media.WINDOW}
    if strict and lost:
        print(f"essl_fast.prepare: strict: {sum(lost.values())} entries were left out", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m essl_fast.prepare",
        description="Decode videos once: make the shards that training reads. Interrupted, the same command continues.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    required = {"required": True, "type": Path, "metavar": "DIR", "default": argparse.SUPPRESS}
    add("--videos", help="folder of <video>.mp4 (or .mkv, .webm, .avi, .mov)", **required)
    add("--annotations", help="folder that holds annotation/, train_ssl.txt and test_ssl.txt", **required)
    add("--out", help="folder to make; meanwhile it needs room for the pairs twice", **required)
    add("--frame", choices=notes.FRAMES, default="start",
        help="which frame of a sound: its first (published code) or its middle one (paper)")  # fmt: skip
    add("--row-boxes", choices=notes.ROW_BOXES, default="first", help="which boxes of an annotation row count")
    add("--annotation-size", type=_size, default="320x180", metavar="WxH",
        help="size in pixels of the frames that the boxes were drawn on, such as 320x180")  # fmt: skip
    add("--validation", type=float, default=0.1, metavar="SHARE",
        help="share of the training videos that becomes the split val, 0 to 1")  # fmt: skip
    add("--seed", type=int, default=0, help="fixes which videos are val, and the order of the pairs in the shards")
    add("--pairs-per-shard", type=int, default=1024, metavar="N", help="pairs in a shard; 1024 make about 128 MB")
    add("--workers", type=int, default=argparse.SUPPRESS, metavar="N",
        help="processes (default: one a core, 8 at most)")  # fmt: skip
    add("--strict", action="store_true", default=argparse.SUPPRESS,
        help="end with code 1 if anything was left out but pairs whose 3 s of sound leave the track")  # fmt: skip
    return parser


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a width and height such as 320x180")
    return int(width), int(height)


if __name__ == "__main__":
    sys.exit(main())
