"""Videos and annotations → shards that training reads: read every video once.

    python -m essl_fast.prepare --videos DIR --annotations DIR --out DIR
    python -m essl_fast.prepare --dataset flickr|vggss --data DIR --train-list FILE --test-list FILE --out DIR
    python -m essl_fast.prepare --dataset chaotic|flickr|vggss --from-h5 DIR --out DIR
    python -m essl_fast.prepare --verify --out DIR

A pair is one frame and the 3 s of sound around it, 16 kHz PCM16. Its frame is a JPEG picture, decoded with PyAV on the
CPU (or on NVDEC, `--decoder`), or a clip: the packets from the key frame before it on, copied and never decoded, which
training decodes on the GPU. `--visual auto` makes clips of the videos that this machine's GPU decodes, pictures of all
others.

Videos are read in the order in which their pairs lie in the shards (split, video, frame), so a shard is written as soon
as it is full, and the disk holds everything once. Kill it whenever you like: the same command continues, and ends with
the same bytes as if it had never stopped.

A pair whose 3 s leave the sound track is left out, as in the published code. So is, each with a reason of its own, what
a missing, broken or silent file cannot give. `OUT/left_out.jsonl` lists all of it. What a clip copies is not decoded
here, so damage inside of it goes unnoticed: `--verify` decodes everything once and lists what is wrong in
`OUT/quarantine.jsonl`.
"""

from __future__ import annotations

if __name__ == "__main__":
    from essl_fast.commands import begin

    begin()

import argparse
import contextlib
import errno
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from essl_fast.commands import command
from essl_fast.config import InputError, Options
from essl_fast.data import annotations as notes
from essl_fast.data import audio, datasets, hdf5, media, nvdec, published, stills
from essl_fast.data.annotations import SPLITS
from essl_fast.data.assembly import SETTINGS, Reporter, assemble
from essl_fast.data.parts import CRASHED, JPEG
from essl_fast.data.shards import BAD, CLIP, QUARANTINE, VERSION, Manifest
from essl_fast.data.verify import verify
from essl_fast.files import parse_json

PROG = "python -m essl_fast.prepare"
PARTS = ".parts"
VISUALS = ("auto", "clip", "jpeg")
DECODERS = ("auto", "nvdec", "pyav")
# Reasons that a better copy of the file removes.
_MENDABLE = {media.MISSING, media.UNREADABLE, media.NO_VIDEO, media.NO_SOUND, media.TRUNCATED, media.SOUND_TRUNCATED,
             CRASHED, nvdec.FAILED, stills.BAD_PICTURE, hdf5.DAMAGED}  # fmt: skip


class PreparedDifferently(InputError):
    """A finished folder that was made with other settings, from other annotations or by another version."""


def prepare(
    videos: str | Path,
    annotations: str | Path,
    out: str | Path,
    *,
    visual: str = "auto",
    decoder: str = "pyav",
    frame: str = "start",
    row_boxes: str = "first",
    annotation_size: tuple[int, int] = (320, 180),
    validation: float = 0.1,
    seed: int = 0,
    pairs_per_shard: int = 1024,
    workers: int | None = None,
    progress: bool = True,
) -> Manifest:
    """Prepare Chaotic World in `out`: `datasets.chaotic`, then `prepare_dataset`, which see."""
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}: give 1 or more")
    dataset = datasets.chaotic(
        videos, annotations, frame=frame, row_boxes=row_boxes, annotation_size=annotation_size, validation=validation,
        seed=seed,
    )  # fmt: skip
    return prepare_dataset(
        dataset, out, visual=visual, decoder=decoder, pairs_per_shard=pairs_per_shard, workers=workers,
        progress=progress,
    )  # fmt: skip


def prepare_dataset(
    dataset: datasets.Dataset,
    out: str | Path,
    *,
    visual: str = "auto",
    decoder: str = "pyav",
    pairs_per_shard: int = 1024,
    workers: int | None = None,
    progress: bool = True,
) -> Manifest:
    """Prepare `out`, continue an interrupted preparation, or open a finished one of the same settings.

    The arguments are those of the command (`--help`). `workers` None: one for each core this process may use, 8 at
    most; `progress`: report on stderr. The bytes in `out` depend on the files and settings alone, not on `workers`.

    Raises InputError for an `out` that holds something else or is being prepared, and a split of which no pair is left;
    PreparedDifferently, an InputError, for an `out` of other settings.
    """
    out, read = Path(out), dataset.read
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}: give 1 or more")
    if pairs_per_shard < 1:
        raise InputError(f"pairs_per_shard is {pairs_per_shard}: give 1 or more")
    if visual not in VISUALS:
        raise InputError(f"visual is {visual!r}: choose one of {', '.join(VISUALS)}")
    if decoder not in DECODERS:
        raise InputError(f"decoder is {decoder!r}: choose one of {', '.join(DECODERS)}")
    if decoder != "pyav" and visual != "jpeg":
        raise InputError(f"decoder {decoder} is for visual jpeg, where frames are decoded, not for {visual}")
    say = _reporter(progress)
    settings = {
        "visual": visual,
        "decoder": decoder,
        **dataset.settings,
        "pairs_per_shard": pairs_per_shard,
        "seconds": audio.SECONDS,
        "rate": audio.RATE,
        "grid": notes.GRID,
        "jpeg": dict(JPEG),
        "annotations": notes.digest(read),
    }
    if not (out / PARTS).exists() and (done := _finished(out, settings, say)):
        return done
    try:
        with _locked(out, say):
            if (done := _finished(out, settings, say)) is None:
                settings["decoders"] = _decoders(out, settings, say) if dataset.videos else None
                if (out / "manifest.json").exists():
                    say.line(f"{out} is damaged: preparing it again")
                    (out / "manifest.json").unlink()
                workers = min(len(os.sched_getaffinity(0)), 8) if workers is None else workers
                assemble(dataset, out, out / PARTS, settings, workers, say)
                if dataset.name == "chaotic" and dataset.videos:
                    text = f"{read.rows} annotation rows were read: {read.merged} share the frame of an earlier one"
                    further = f", {read.further} further boxes of rows were ignored (--row-boxes first)"
                    say.line(f"{text} and joined its pair{further if read.further else ''}")
                done = Manifest.load(out)
            shutil.rmtree(out / PARTS, ignore_errors=True)
            return done
    except OSError as error:
        raise InputError(f"cannot write {out}: {error}; free some space or choose another --out, then go on") from error


def _decoders(out: Path, settings: dict, say: Reporter) -> nvdec.Decoders | None:
    """What `visual: auto` may store as clips, and the GPU decode for `visual: jpeg`. What an earlier run with the same
    settings found holds, also if it ran on a machine with another GPU: a folder must not change its mind halfway."""
    if settings["visual"] != "auto" and settings["decoder"] == "pyav":
        return None
    for path in (out / "manifest.json", out / PARTS / "shards" / SETTINGS):
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            held = json.loads(path.read_bytes())
            known = dict(held.get("settings", held))
            decoders = known.pop("decoders", None)
            if known == json.loads(json.dumps(settings)) and isinstance(decoders, dict):
                return decoders
    decoders, why = nvdec.detect()
    if settings["visual"] == "jpeg":
        if not decoders and settings["decoder"] == "nvdec":
            raise InputError(f"decoder: nvdec cannot be used, since {why}; take pyav")
        say.line(f"NVDEC decodes {', '.join(decoders)}, PyAV the rest" if decoders else f"PyAV decodes, since {why}")
        return decoders
    able = f"this machine's GPU decodes {', '.join(decoders)}: frames of such videos become clips, others JPEG"
    say.line(able if decoders else f"frames become JPEG, since {why}; --visual clip copies clips nevertheless")
    return decoders


@contextlib.contextmanager
def _locked(out: Path, say: Reporter) -> Iterator[None]:
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


def _finished(out: Path, settings: dict, say: Reporter) -> Manifest | None:
    """The manifest of a finished folder of these settings, None where there is work to do."""
    path = out / "manifest.json"
    if not path.exists():
        return None
    try:
        header = parse_json(path.read_bytes())
        known, version = {"decoder": "pyav"} | header["settings"], header["version"]  # which was the only one once
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path} is not a manifest of prepare: delete {out} or choose another --out") from None
    was, now = known | {"format": version}, json.loads(json.dumps(settings)) | {"format": VERSION}
    known_to_both = (was.keys() | now.keys()) - {"decoders"}  # which `visual` decided
    names = sorted(name for name in known_to_both if was.get(name) != now.get(name))
    # Their fingerprint is of what was read under the settings: it tells something only where those are equal.
    telling = [name for name in names if name != "annotations"]
    changed = [f"{name} was {was.get(name)}, is {now.get(name)}" for name in telling]
    if names == ["annotations"]:
        changed = ["the annotations were others"]
    if changed:
        how = "; ".join(changed)
        raise PreparedDifferently(f"{out} was prepared differently ({how}): choose another --out or delete it")
    try:
        manifest = Manifest.load(out)
    except InputError:
        return None  # a shard was deleted, say
    lost = sum(count for reason, count in manifest.header["left_out"].items() if reason in _MENDABLE)
    then = f"once they are mended, delete {out} (or choose another --out) and run again"
    again = f"; {lost} videos or pairs were left out for faults of video files (see left_out.jsonl): {then}"
    say.line(f"{out} is complete: nothing to do{again if lost else ''}")
    return manifest


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


def _reporter(progress: bool) -> Reporter:
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


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns 0, or 1 where --strict finds something left out or --verify something broken. InputError."""
    parser = _parser()
    asked = vars(parser.parse_args(arguments))
    strict, checked = asked.pop("strict", False), asked.pop("verify", False)
    names = "out", "visual", "decoder", "pairs_per_shard", "workers"
    how = {name: asked.pop(name) for name in names if name in asked}
    making = bool(datasets.SOURCES & asked.keys()) or not checked
    enough = asked["dataset"] != "chaotic" or "from_h5" in asked or {"videos", "annotations"} <= asked.keys()
    if making and not enough:
        parser.error(f"give --videos and --annotations{'' if checked else ', or --verify to check a finished --out'}")
    try:
        manifest = prepare_dataset(datasets.asked_for(asked), **how) if making else Manifest.load(how["out"])
        if making:
            print_summary(manifest)
        found = verify(manifest, how.get("workers"), _reporter(True)) if checked else {}
    except KeyboardInterrupt:
        print(f"{PROG}: stopped; the same command goes on", file=sys.stderr)
        return 130
    if checked:
        listed = ", ".join(f"{count} {reason}" for reason, count in found.items()) or "nothing"
        told = f"; they are listed in {manifest.root / QUARANTINE}" if found else ""
        print(f"{len(manifest)} pairs were decoded; wrong with them: {listed}{told}")
    lost = {reason: count for reason, count in manifest.header["left_out"].items() if reason != media.WINDOW}
    if strict and lost:
        print(f"{PROG}: strict: {sum(lost.values())} entries were left out", file=sys.stderr)
    return int(bool((strict and lost) or BAD & found.keys()))


def _parser() -> argparse.ArgumentParser:
    parser = Options(
        prog=PROG,
        description="Read videos once: make the shards that training reads. Interrupted, the same command continues.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    unless = {"default": argparse.SUPPRESS}  # asked_for must see what was given
    folder = {"type": Path, "metavar": "DIR", **unless}
    add("--dataset", choices=datasets.NAMES, default="chaotic", help="Chaotic World, Flickr-SoundNet or VGG-SS")
    add("--videos", help="chaotic: folder of <video>.mp4 (or .mkv, .webm, .avi, .mov)", **folder)
    add("--annotations", type=Path, metavar="PATH", **unless,
        help="chaotic: folder that holds annotation/, train_ssl.txt and test_ssl.txt; flickr: folder of the XML files; "
        "vggss: the JSON file; the latter two are looked for in --data")  # fmt: skip
    add("--data", type=Path, metavar="DIR", nargs="+", **unless,
        help="flickr, vggss: folders that hold frames/ and audio/, or videos/ (docs/datasets.md shows the "
        "layouts)")  # fmt: skip
    for split, what in (("train", "training pairs"), ("val", "labelled pairs to choose the best epoch on"),
                        ("test", "test pairs")):  # fmt: skip
        told = f"flickr, vggss: names of the {what}, one a line"
        add(f"--{split}-list", type=Path, metavar="FILE", help=told, **unless)
    add("--from-h5", help="instead of videos or --data: the published HDF5 files, ChaoticWorld/ and such", **folder)
    add("--subset", choices=published.SUBSETS, help="--from-h5 of flickr, vggss: which training pairs", **unless)
    add("--out", help="folder to make, go on with, or --verify", required=True, **folder)
    add("--visual", choices=VISUALS, default="auto",
        help="store frames as clips (packets copied from the video, for a GPU to decode), as JPEG pictures, or as clips"
        " where a GPU of this machine decodes the video")  # fmt: skip
    add("--decoder", choices=DECODERS, default="pyav",
        help="what decodes the frames of --visual jpeg: PyAV on the CPU, NVDEC on the first GPU, or (auto) NVDEC where"
        " there is one; videos that it does not know are PyAV's either way")  # fmt: skip
    frames = "which frames: the first of each sound (published code), its middle (paper), or every annotated one"
    add("--frame", choices=notes.FRAMES, help=f"chaotic: {frames} (default: start)", **unless)
    add("--row-boxes", choices=notes.ROW_BOXES, **unless,
        help="chaotic: which boxes of an annotation row count (default: first)")  # fmt: skip
    add("--annotation-size", type=_size, metavar="WxH", **unless,
        help="chaotic: pixels of the frames that the boxes were drawn on (default: 320x180)")  # fmt: skip
    add("--validation", type=float, default=0.1, metavar="SHARE",
        help="share of the training videos that becomes the split val, 0 to 1; of flickr and vggss, and with "
        "--from-h5, of those with boxes")  # fmt: skip
    add("--seed", type=int, default=0, help="fixes which videos are val")
    add("--pairs-per-shard", type=int, default=1024, metavar="N", help="pairs in a shard; 1024 make about 128 MB")
    add("--workers", type=int, default=argparse.SUPPRESS, metavar="N",
        help="processes (default: one a core, 8 at most)")  # fmt: skip
    add("--verify", action="store_true", default=argparse.SUPPRESS,
        help="decode every pair of the prepared folder once and list what is wrong in quarantine.jsonl; needs no more "
        "than --out; end with code 1 if a pair is broken")  # fmt: skip
    add("--strict", action="store_true", default=argparse.SUPPRESS,
        help="end with code 1 if anything was left out but pairs whose 3 s of sound leave the track")  # fmt: skip
    return parser


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a width and height such as 320x180")
    return int(width), int(height)


if __name__ == "__main__":
    sys.exit(command(main, PROG))
