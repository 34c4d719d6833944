"""python -m benchmarks.prepare: preparation, against extracting every frame as PNG and packing HDF5.

    clip       python -m essl_fast.prepare --visual clip: packets copied, nothing decoded but the sound
    jpeg       python -m essl_fast.prepare --visual jpeg: the annotated frames decoded and stored as JPEG
    published  every frame of every video as PNG, the sound as WAV, the pairs as HDF5 (baselines/published_prepare)
    parts      with --parts N: as jpeg, in N parts at the same time with the processes divided among them, then joined;
               the shards must be those of jpeg, byte for byte

All read the same videos with the same number of processes. Ours are whole commands, from the start of the interpreter
to the last sync of the disk; of the baseline, the start of the process that packs is not counted. Before anything is
timed, the pairs are compared: the same keys and, for a sample of them, the same sound and (clips) pixels.

Disk is the size of what is there at the end: prepared folder, or PNG, WAV and HDF5. The videos are made first, 320x180
at 25 frames a second with AAC sound, unless --videos and --annotations name others.

Measured with --count 16 on two cores of an AMD EPYC that others used, too: clip takes 4.08 s against 199, and 4.1 MB
against 1,421.
"""

import argparse
import io
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.table import Table

from benchmarks.baselines import published_prepare
from benchmarks.common import Mismatch
from benchmarks.processes import ROOT
from benchmarks.timing import digits
from essl_fast.common import commands, files
from essl_fast.common.errors import InputError
from essl_fast.data.datasets import read_chaotic_world
from essl_fast.data.media import decode_clip
from essl_fast.data.shards import SPLITS, Manifest, iterate
from essl_fast.data.synthetic import make_world
from essl_fast.runtime import provenance

try:
    import h5py
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the published-style baseline writes HDF5: pip install h5py") from error

CLIP, JPEG, PUBLISHED, PARTS = "clip", "jpeg", "published", "parts"
GOALS = {CLIP: 20.0}  # how many times as fast as PUBLISHED, and as small
SAMPLE = 24  # pairs whose content is compared


class Cost(NamedTuple):
    """Of one run."""

    seconds: float
    cpu_seconds: float  # of all its processes
    bytes: int  # on disk, at the end


def measure(run: Callable[[Path], object], out: Path) -> Cost:
    """Run something that fills the new folder `out`."""

    def cpu() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    before, begin = cpu(), time.perf_counter()
    run(out)
    seconds = time.perf_counter() - begin
    held = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Cost(seconds, cpu() - before, held)


def start(videos: Path, annotations: Path, out: Path, *how: str) -> subprocess.Popen:
    """The prepare command, started."""
    folders = ["--videos", str(videos), "--annotations", str(annotations), "--out", str(out)]
    command = [sys.executable, "-m", "essl_fast.prepare", *how, *folders]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def end(*commands: subprocess.Popen) -> None:
    """Wait for commands. InputError if one fails."""
    for command in commands:
        told = command.communicate()[1]
        if command.returncode:
            raise InputError(f"prepare failed: {told.strip().splitlines()[-1]}")


def ours(videos: Path, annotations: Path, visual: str, processes: int) -> Callable[[Path], None]:
    """The prepare command."""
    how = f"--visual {visual} --workers {processes}".split()
    return lambda out: end(start(videos, annotations, out, *how))


def in_parts(videos: Path, annotations: Path, processes: int, parts: int) -> Callable[[Path], None]:
    """The prepare command, once for each part, all at the same time; then the join."""
    how = f"--visual jpeg --workers {max(1, processes // parts)}".split()

    def run(out: Path) -> None:
        end(*(start(videos, annotations, out, *how, "--part", f"{one}/{parts}") for one in range(1, parts + 1)))
        end(start(videos, annotations, out, *how, "--join"))

    return run


def pairs_of(manifest: Manifest) -> dict[str, dict]:
    return {pair["key"]: pair for tar, _ in manifest.shards(SPLITS) for pair in iterate(tar)}


def compare(manifest: Manifest, packed: Path, keys: list[str]) -> str:
    """How near prepared pairs are to the baseline's, in words. Mismatch if they are not the same pairs."""
    found = [key.decode() for key in manifest.keys]
    if sorted(found) != sorted(keys):
        differ = sorted(set(found) ^ set(keys))
        raise Mismatch(f"{len(found)} pairs here, {len(keys)} in the baseline; {len(differ)} differ, first {differ[0]}")
    chosen = set(sorted(keys)[:: max(1, len(keys) // SAMPLE)])
    apart = loud = 0.0
    with h5py.File(packed) as held:
        for key, pair in pairs_of(manifest).items():
            if key not in chosen:
                continue
            row = keys.index(key)
            clip = "mp4" in pair
            frame = (
                Image.fromarray(decode_clip(pair["mp4"], pair["target"]))
                if clip
                else Image.open(io.BytesIO(pair["jpg"]))
            )
            have = np.asarray(published_prepare.resized(frame), np.float32)
            apart = max(apart, float(np.abs(have - held["frames"][row]).mean()))
            sound = np.frombuffer(pair["s16"], "<i2").astype(np.float32) / np.float32(32768)
            # rounded to 16 bit there before resampling and here after it; normalising enlarges either
            scale = 2 / max(float(np.ptp(sound)), 1e-3)
            error = float(np.abs(published_prepare.normalized(sound) - held["audios"][row]).max()) / scale
            loud = max(loud, 32768 * error)
    if apart > 4 or loud > 3:
        raise Mismatch(f"frames differ by {apart:.2f} grey levels on average, sounds by {loud:.1f} of 32768")
    return f"{len(keys)} pairs, frames within {apart:.2g} grey levels on average, sounds within {loud:.2g}/32768"


def table_of(costs: dict[str, list[Cost]], frames: int, pairs: int) -> Table:
    title = f"preparation of {pairs} pairs of {frames:,} frames of video"
    table = Table(title=title, caption="median of the runs; x: published against it")
    for column in ("", "seconds", "x", "CPU seconds", "x", "MB", "x"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name in costs:
        row = [name]
        for field in Cost._fields:
            value, theirs = middle(costs[name], field), middle(costs[PUBLISHED], field)
            row += [digits(value / (1e6 if field == "bytes" else 1)), digits(theirs / value)]
        table.add_row(*row)
    return table


def middle(costs: list[Cost], field: str) -> float:
    return statistics.median(getattr(cost, field) for cost in costs)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--videos", type=Path, help="folder of videos (default: a synthetic world)")
    add("--annotations", type=Path, help="their annotations")
    add("--count", type=int, default=40, help="videos of the synthetic world (default: 40)")
    add("--length", type=float, default=30.0, help="seconds of each (default: 30)")
    add("--codec", default="h264", help="codec of the synthetic world (default: h264)")
    add("--processes", type=int, default=0, help="of everybody (default: one a core)")
    add("--repeats", type=int, default=3, help="runs of ours; the baseline runs once (default: 3)")
    add("--parts", type=int, default=0, metavar="N", help="also prepare in N parts, and join them")
    add("--work", type=Path, help="folder for everything, which needs room (default: a temporary one)")
    add("--json", type=Path, help="write everything here")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if (options.videos is None) != (options.annotations is None):
        parser().error("give both --videos and --annotations, or none of them")
    console, device = commands.console(), torch.device("cpu")
    processes = options.processes or len(os.sched_getaffinity(0))
    work = Path(tempfile.mkdtemp(prefix="prepare-", dir=options.work))
    try:
        videos, annotations = options.videos, options.annotations
        if videos is None:
            tests = max(1, options.count // 5)
            world = make_world(
                work / "world",
                train_videos=options.count - tests,
                test_videos=tests,
                fps=25,
                seconds=options.length,
                codec=options.codec,
            )
            videos, annotations = world.videos, world.annotations
        how = processes, options.repeats, options.parts
        results, checked, frames, pairs = run_all(videos, annotations, work, *how, console)
    finally:
        shutil.rmtree(work)
    console.print(table_of(results, frames, pairs))
    speed, small = (middle(results[PUBLISHED], f) / middle(results[CLIP], f) for f in ("seconds", "bytes"))
    headline = f"clip {digits(speed)}x as fast and {digits(small)}x as small as PNG + HDF5"
    with_what = "ffmpeg" if shutil.which("ffmpeg") else "no ffmpeg on PATH: PyAV wrote the baseline's PNG files"
    console.print(f"{headline}; {processes} processes each; {with_what}", highlight=False)
    if options.json:
        given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        record = {"benchmark": "prepare", "headline": headline, "environment": provenance.environment(device)}
        files.write_json(
            options.json,
            record
            | {
                "options": given | {"processes": processes},
                "baseline": with_what,
                "frames": frames,
                "pairs": pairs,
                "checked": checked,
                "goals": GOALS,
                "results": {name: [cost._asdict() for cost in costs] for name, costs in results.items()},
            },
        )
    return 0


def shards_of(out: Path) -> list[tuple[str, str]]:
    """(name, SHA-256) of the shards of a prepared folder."""
    splits = Manifest.load(out).header["splits"]
    return [(shard["file"], shard["sha256"]) for split in SPLITS for shard in splits[split]["shards"]]


def run_all(videos: Path, annotations: Path, work: Path, processes: int, repeats: int, parts: int, console):
    """(costs of each run by name, what the comparisons say, frames of the videos, pairs)."""
    read = read_chaotic_world(annotations)
    wanted: dict[str, list] = {}
    for pair in read.pairs:
        wanted.setdefault(pair.video, []).append((pair.key, pair.fid, pair.time))
    keys: list[str] = []
    costs = {CLIP: [], JPEG: [], PUBLISHED: []}
    for path in videos.iterdir():
        path.read_bytes()  # so that all find the videos in memory
    published = work / PUBLISHED
    costs[PUBLISHED].append(
        measure(lambda out: keys.extend(published_prepare.prepare(videos, wanted, out, processes)), published)
    )
    frames = sum(1 for _ in (published / "frames").rglob("*.png"))
    shutil.rmtree(published / "frames")
    checked, shards = {}, {}
    routes = {visual: ours(videos, annotations, visual, processes) for visual in (CLIP, JPEG)}
    if parts:
        routes[PARTS] = in_parts(videos, annotations, processes, parts)
    for repeat in range(repeats):
        for name, route in routes.items():
            out = work / f"{name}-{repeat}"
            costs.setdefault(name, []).append(measure(route, out))
            shards[name] = shards_of(out)
            if repeat == 0:
                checked[name] = compare(Manifest.load(out), published / "pairs.h5", keys)
                console.print(f"{name}: {checked[name]}", highlight=False)
            shutil.rmtree(out)
        if parts and shards[PARTS] != shards[JPEG]:
            raise Mismatch(f"{parts} parts, joined, are not the shards that one command makes")
    return costs, checked, frames, len(keys)


if __name__ == "__main__":
    sys.exit(main())
