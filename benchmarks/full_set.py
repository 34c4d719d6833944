"""python -m benchmarks.full_set: Chaotic World's full data set, rehearsed on a stand-in of its shape.

Published are 456 videos and 378,093 annotated sounds on frames, all of which `prepare --frame all` takes. The stand-in
has as many: videos of one to five minutes (five files under many names) of 640x352 pixels, and 10 to 30 sounds, each
with its box, on an annotated frame. `prepare` makes one pair of a frame, with the boxes of all its sounds. The lengths
of the videos, what they show, and how the sounds are spread over frames are ours.

At each share of the videos: `prepare`, which is killed halfway and goes on; `prepare --verify`; opening; an epoch of
the loader in batches of 128; and the second half of that epoch once more, by a loader that continues in its middle. The
table tells time, memory and disk, and with which power of the number of pairs each of them grows.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.prepare_scale import FPS, MARGIN, Watch, held, write_video
from benchmarks.processes import ROOT
from essl_fast.common import commands, files
from essl_fast.data.loading import Loader
from essl_fast.data.shards import Manifest
from essl_fast.runtime import provenance

VIDEOS, INSTANCES = 456, 378_093
SOUNDS = (10, 30)  # on an annotated frame, at least and at most
MINUTES = (1, 2, 3, 4, 5)
SIZE = (640, 352)
BATCH = 128
CLASSES = 20
SOUND = 96_000  # bytes of a pair's sound; its frame takes less
UNITS = {"gb": "GB", "seconds": "s"}


@dataclass(frozen=True)
class Shape:
    """Of a stand-in.

    Attributes:
        videos: number of videos.
        instances: annotated sounds on frames, in all videos.
        minutes: lengths of the videos, in turn.
        size: (width, height) in pixels, multiples of 16.
    """

    videos: int = VIDEOS
    instances: int = INSTANCES
    minutes: tuple[float, ...] = MINUTES
    size: tuple[int, int] = SIZE

    def share(self, of: float) -> Shape:
        """A part of the videos, with their part of the instances."""
        videos = max(2, round(self.videos * of))
        return Shape(videos, round(self.instances * videos / self.videos), self.minutes, self.size)


def make_world(root: Path, shape: Shape) -> int:
    """Videos and annotations, a fifth of the videos for the test split; how many frames are annotated."""
    sources = []
    (root / "videos").mkdir(parents=True)
    for kind in ("group", "frame"):
        (root / "notes/annotation" / kind).mkdir(parents=True)
    for minutes in shape.minutes:
        frames = round(60 * FPS * minutes)
        sources.append((root / f"{minutes}.mp4", frames))
        write_video(sources[-1][0], frames, *shape.size, block=16)
    rng, annotated = np.random.default_rng(0), 0
    names = [f"v{number:03d}" for number in range(shape.videos)]
    for number, name in enumerate(names):
        source, frames = sources[number % len(sources)]
        (root / f"videos/{name}.mp4").hardlink_to(source)
        left = shape.instances * (number + 1) // shape.videos - shape.instances * number // shape.videos
        counts: list[int] = []
        while left:
            counts.append(min(left, int(rng.integers(SOUNDS[0], SOUNDS[1] + 1))))
            left -= counts[-1]
        if len(counts) > frames - 2 * MARGIN:
            raise ValueError(f"a video of {frames} frames has no room for {len(counts)} annotated ones")
        at = np.linspace(MARGIN, frames - MARGIN, len(counts), endpoint=False).astype(int) + 1
        annotated += len(counts)
        (root / f"notes/annotation/group/{name}.csv").write_text("start_fid,start_time,bbox,ssl\n")
        lines = [row for fid, count in zip(at, counts, strict=True) for row in _rows(rng, int(fid), count)]
        (root / f"notes/annotation/frame/{name}.csv").write_text("\n".join(["fid,time,bbox,ssl", *lines]) + "\n")
    test = names[::5]
    (root / "notes/test_ssl.txt").write_text("".join(f"{name}\n" for name in test))
    (root / "notes/train_ssl.txt").write_text("".join(f"{name}\n" for name in names if name not in test))
    return annotated


def _rows(rng: np.random.Generator, fid: int, count: int) -> list[str]:
    """The rows of a frame's sounds: boxes on 320x180 pixels."""
    corners, sizes = rng.integers((0, 0), (240, 130), (count, 2)), rng.integers(16, 50, (count, 2))
    kinds = rng.integers(0, CLASSES, count)
    return [
        f'{fid},{(fid - 1) / FPS:.2f},"[[{x}, {y}, {x + w}, {y + h}]]",kind{kind}'
        for (x, y), (w, h), kind in zip(corners, sizes, kinds, strict=True)
    ]


def watched(command: list[str], folder: Path, stop=lambda: False) -> tuple[int, float, Watch]:
    """Run a command; its status, its seconds, and its peaks. Killed as soon as `stop()` is true."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    watch = Watch(process.pid, folder)
    watch.start()
    while process.poll() is None:
        if stop():
            process.send_signal(signal.SIGKILL)
        time.sleep(0.05)
    seconds = time.perf_counter() - begin
    watch.done.set()
    watch.join()
    return process.returncode, seconds, watch


def measure(work: Path, shape: Shape, visual: str, workers: int) -> dict[str, float]:
    """Every step on a stand-in, which is made here."""
    begin = time.perf_counter()
    annotated = make_world(work, shape)
    result: dict[str, float] = {"videos": shape.videos, "instances": shape.instances, "pairs": annotated}
    result["world_seconds"] = time.perf_counter() - begin
    out, prepare = work / "out", [sys.executable, "-m", "essl_fast.prepare"]
    how = f"--frame all --validation 0 --visual {visual}".split() + (["--workers", str(workers)] if workers else [])
    places = ["--videos", str(work / "videos"), "--annotations", str(work / "notes"), "--out", str(out)]

    def halfway() -> bool:
        return held(out) > annotated * SOUND / 2

    code, first, before = watched([*prepare, *places, *how], out, halfway)
    if code != -signal.SIGKILL:
        raise RuntimeError(f"prepare ended with status {code} before it could be killed halfway")
    code, second, after = watched([*prepare, *places, *how], out)
    if code:
        raise RuntimeError(f"prepare ended with status {code}; its message is above")
    result |= {"prepare_seconds": first + second, "prepare_again_seconds": second}
    result |= {"prepare_memory_gb": max(before.memory, after.memory) / 1e9, "disk_gb": held(out) / 1e9}
    result["most_disk_gb"] = max(before.disk, after.disk) / 1e9
    code, result["verify_seconds"], watch = watched([*prepare, "--verify", "--out", str(out)], out)
    if code:
        raise RuntimeError(f"prepare --verify ended with status {code}")
    result["verify_memory_gb"] = watch.memory / 1e9
    told = work / "epoch.json"
    code, _, watch = watched([sys.executable, "-m", "benchmarks.full_set", "--epoch-of", str(out), str(told)], out)
    if code:
        raise RuntimeError(f"the epoch ended with status {code}; its message is above")
    result |= json.loads(told.read_text()) | {"epoch_memory_gb": watch.memory / 1e9}
    if result["read_pairs"] != annotated:
        raise RuntimeError(f"{result['read_pairs']} pairs came out, {annotated} frames are annotated")
    return result


def epoch(folder: Path) -> dict[str, float]:
    """Open a prepared folder; read an epoch of all its pairs, and its second half again from a state in the middle."""
    begin = time.perf_counter()
    manifest = Manifest.load(folder)
    settings = {"batch_size": max(1, min(BATCH, len(manifest) // 4)), "side": 246, "shuffle": True, "seed": 1}
    splits = [split for split in ("train", "test") if manifest.pairs(split)]
    batches: list[np.ndarray] = []
    with Loader(manifest, splits, **settings) as loader:
        opened = time.perf_counter() - begin
        middle, state = len(loader) // 2, loader.state_dict()
        begin = time.perf_counter()
        for batch in loader:
            batches.append(batch.index.numpy().copy())
            if len(batches) == middle:
                state = loader.state_dict()
        seconds = time.perf_counter() - begin
    with Loader(manifest, splits, **settings) as again:
        again.load_state_dict(state)
        begin = time.perf_counter()
        rest = [batch.index.numpy().copy() for batch in again]
        second_half = time.perf_counter() - begin
    if len(rest) != len(batches) - middle or not all(map(np.array_equal, rest, batches[middle:])):
        raise RuntimeError("the loader that went on in the middle of the epoch gave other batches")
    pairs = np.concatenate(batches)
    if len(np.unique(pairs)) != len(pairs):
        raise RuntimeError("an epoch gave a pair twice")
    return {
        "open_seconds": opened,
        "epoch_seconds": seconds,
        "epoch_again_seconds": second_half,
        "read_pairs": len(pairs),
        "pairs_per_second": len(pairs) / seconds,
    }


def growth(results: list[dict[str, float]]) -> dict[str, float]:
    """The power of the number of pairs with which each figure grows, from the smallest share to the largest."""
    few, many = results[0], results[-1]
    over = math.log(many["pairs"] / few["pairs"])
    names = [name for name in many if name.rpartition("_")[2] in UNITS and few[name] > 0 and many[name] > 0]
    return {name: math.log(many[name] / few[name]) / over for name in names} if over else {}


def table(results: list[dict[str, float]]) -> list[str]:
    """Lines of Markdown."""
    powers = growth(results)
    lines = [
        "| | " + " | ".join(f"{each['videos']:,} videos" for each in results) + " | grows as pairs to the power |",
        "| --- |" + " ---: |" * (len(results) + 1),
    ]
    for name in results[-1]:
        words, _, unit = name.rpartition("_")
        title = f"{words.replace('_', ' ')}, {UNITS[unit]}" if unit in UNITS else name.replace("_", " ")
        shown = [f"{each[name]:,}" if isinstance(each[name], int) else f"{each[name]:,.2f}" for each in results]
        lines.append(f"| {title} | " + " | ".join(shown) + f" | {f'{powers[name]:.2f}' if name in powers else ''} |")
    return lines


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_set", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--shares", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="of the videos (default: 0.25 0.5 1)")
    add("--visual", choices=("clip", "jpeg"), default="clip", help="of prepare (default: clip)")
    add("--workers", type=int, default=0, help="of prepare (default: its own)")
    add("--videos", type=int, default=VIDEOS, help=f"in all (default: {VIDEOS})")
    add("--instances", type=int, default=INSTANCES, help=f"annotated sounds on frames (default: {INSTANCES})")
    add("--minutes", type=float, nargs="+", default=list(MINUTES), help="lengths of videos, in turn")
    add("--work", type=Path, help="folder for everything, with 12 GB of room (default: a temporary one)")
    add("--json", type=Path, help="write everything here")
    add("--epoch-of", type=Path, nargs=2, metavar=("FOLDER", "JSON"), help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> int:
    options, console = parser().parse_args(arguments), commands.console()
    if options.epoch_of:
        folder, told = options.epoch_of
        files.write_json(told, epoch(folder))
        return 0
    whole, results = Shape(options.videos, options.instances, tuple(options.minutes)), []
    for share in sorted(options.shares):
        work = Path(tempfile.mkdtemp(prefix="full-set-", dir=options.work))
        try:
            results.append(measure(work, whole.share(share), options.visual, options.workers))
        finally:
            shutil.rmtree(work)
        console.print("\n".join(table(results)), highlight=False)
    if options.json:
        given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        record = {"benchmark": "full_set", "options": given, "growth": growth(results)}
        record["environment"] = provenance.environment(torch.device("cpu"))
        files.write_json(options.json, record | {"results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
