"""python -m benchmarks.prepare_scale: memory and disk of preparing 100,000 pairs, and the time to open the result.

A few long videos of 32x32 pixels at 25 frames a second. Every frame is annotated (`--frame all`), so that there are
many pairs in small videos. Sampled five times a second while `prepare` runs: the resident memory of its processes,
summed (what they share counts several times), and the size of its output folder. The result takes 100 kB a pair: 10 GB
for 100,000.

Measured on two cores of an AMD EPYC that others used, too: 332 s, 0.34 GB of memory, 10.4 GB of disk and 11.2 GB at
most on the way, opened in 1.9 s.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import av
import numpy as np
import torch

from benchmarks.processes import ROOT
from essl_fast.common import commands, files
from essl_fast.data.loading import Loader
from essl_fast.data.shards import Manifest
from essl_fast.runtime import provenance

FPS, SIDE, RATE = 25, 32, 16_000
MARGIN = 40  # frames at either end whose 3 s of sound leave the track
GOALS = {"memory_gb": 2.0, "open_seconds": 10.0}


def make_world(root: Path, pairs: int, videos: int) -> None:
    """`videos` equal videos, one of them the test's, and frame tables that ask for `pairs` frames in all."""
    each = [len(part) for part in np.array_split(np.arange(pairs), videos)]
    names = [f"v{number:03d}" for number in range(videos)]
    (root / "videos").mkdir(parents=True)
    write_video(root / "videos/v000.mp4", max(each) + 2 * MARGIN)
    for kind in ("group", "frame"):
        (root / "notes/annotation" / kind).mkdir(parents=True)
    for name, count in zip(names, each, strict=True):
        if name != names[0]:
            (root / f"videos/{name}.mp4").hardlink_to(root / "videos/v000.mp4")
        (root / f"notes/annotation/group/{name}.csv").write_text("start_fid,start_time,bbox,ssl\n")
        lines = [f'{fid},{(fid - 1) / FPS:.2f},"[[32, 18, 160, 90]]",siren' for fid in range(MARGIN, MARGIN + count)]
        (root / f"notes/annotation/frame/{name}.csv").write_text("\n".join(["fid,time,bbox,ssl", *lines]) + "\n")
    (root / "notes/train_ssl.txt").write_text("".join(f"{name}\n" for name in names[:-1]))
    (root / "notes/test_ssl.txt").write_text(f"{names[-1]}\n")


def write_video(path: Path, frames: int, width: int = SIDE, height: int = SIDE, block: int = 1) -> None:
    """Blocks of random colours that move slowly, a key frame a second, and a tone with noise.

    Args:
        path: of the MP4 file.
        frames: how many, FPS a second.
        width, height: pixels, multiples of block.
        block: side of a block, in pixels.
    """
    rng = np.random.default_rng(0)
    sheet = rng.integers(0, 256, (height // block, (width + 64) // block, 3), dtype=np.uint8)
    sheet = sheet.repeat(block, axis=0).repeat(block, axis=1)
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "g": str(FPS), "bf": "0"})
        video.width, video.height = width, height
        video.pix_fmt = "yuv420p"
        track = file.add_stream("aac", rate=RATE, layout="mono", options={"aac_coder": "fast"})
        size = track.codec_context.frame_size or 1024
        for number in range(frames):
            at = number // 4 % 64
            file.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(sheet[:, at : at + width]))))
        file.mux(video.encode(None))
        for begin in range(0, frames * RATE // FPS, size):
            wave = np.sin(np.arange(begin, begin + size) / 20, dtype=np.float32) / 4
            wave += rng.normal(0, 0.02, size).astype(np.float32)
            block = av.AudioFrame.from_ndarray(wave[None], "fltp", "mono")
            block.sample_rate, block.pts = RATE, begin
            file.mux(track.encode(block))
        file.mux(track.encode(None))


class Watch(threading.Thread):
    """Samples a process, its descendants and a folder until `done` is set. Peaks in bytes."""

    def __init__(self, process: int, folder: Path):
        super().__init__(daemon=True)
        self.process, self.folder, self.done = process, folder, threading.Event()
        self.memory = self.main_memory = self.disk = 0

    def run(self) -> None:
        while not self.done.wait(0.2):
            sizes = resident(self.process)
            self.memory, self.main_memory = max(self.memory, sum(sizes)), max(self.main_memory, *sizes[:1], 0)
            self.disk = max(self.disk, held(self.folder))


def resident(process: int) -> list[int]:
    """Resident bytes of a process and of its descendants, itself first; those that just ended are left out."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(entry.read_text().rpartition(")")[2].split()[1]), []).append(int(entry.parent.name))
        except OSError:
            continue
    family, sizes = [process], []
    for member in family:
        family += parents.get(member, [])
        try:
            sizes.append(int(Path(f"/proc/{member}/statm").read_text().split()[1]) * 4096)
        except OSError:
            continue
    return sizes


def held(folder: Path) -> int:
    """Bytes in a folder that changes meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare_scale", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--pairs", type=int, default=100_000, help="annotated frames (default: 100000)")
    add("--videos", type=int, default=12, help="that they are in, at least 2 (default: 12)")
    add("--workers", type=int, default=0, help="of prepare (default: its own)")
    add("--visual", choices=("clip", "jpeg"), default="clip", help="of prepare (default: clip)")
    add("--work", type=Path, help="folder for everything, with 12 GB of room (default: a temporary one)")
    add("--json", type=Path, help="write everything here")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options, console = parser().parse_args(arguments), commands.console()
    work = Path(tempfile.mkdtemp(prefix="scale-", dir=options.work))
    try:
        make_world(work, options.pairs, options.videos)
        result = measure(work, options)
    finally:
        shutil.rmtree(work)
    headline = (
        f"{result['pairs']:,} pairs prepared in {result['seconds']:.0f} s with {result['memory_gb']:.2f} GB of memory, "
        f"opened in {result['open_seconds']:.2f} s"
    )
    console.print(headline, highlight=False)
    for name, value in result.items():
        goal = f"  (goal: under {GOALS[name]:g})" if name in GOALS else ""
        console.print(f"  {name:<28}{value:,.2f}{goal}" if isinstance(value, float) else f"  {name:<28}{value:,}{goal}")
    if options.json:
        given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        record = {"benchmark": "prepare_scale", "headline": headline, "options": given, "goals": GOALS}
        record["environment"] = provenance.environment(torch.device("cpu"))
        files.write_json(options.json, record | {"results": result})
    return int(any(result[name] > goal for name, goal in GOALS.items()))


def measure(work: Path, options: argparse.Namespace) -> dict[str, float]:
    out = work / "out"
    folders = ["--videos", str(work / "videos"), "--annotations", str(work / "notes"), "--out", str(out)]
    how = f"--frame all --validation 0 --visual {options.visual}"
    how += f" --workers {options.workers}" if options.workers else ""
    command = [sys.executable, "-m", "essl_fast.prepare", *folders, *how.split()]
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    watch = Watch(process.pid, out)
    watch.start()
    code = process.wait()
    seconds = time.perf_counter() - begin
    watch.done.set()
    watch.join()
    if code:
        raise RuntimeError(f"prepare ended with status {code}; its message is above")
    size = held(out)
    begin = time.perf_counter()
    manifest = Manifest.load(out)
    with Loader(manifest, "train", batch_size=min(128, manifest.pairs("train")), side=246, shuffle=True) as loader:
        opened = time.perf_counter() - begin
        batch = next(iter(loader))
        first = time.perf_counter() - begin
    if len(manifest) != options.pairs or not len(batch.index):
        raise RuntimeError(f"{len(manifest)} pairs came out, {options.pairs} were asked for")
    return {
        "pairs": len(manifest),
        "seconds": seconds,
        "memory_gb": watch.memory / 1e9,
        "memory_of_main_process_gb": watch.main_memory / 1e9,
        "disk_gb": size / 1e9,
        "most_disk_gb": watch.disk / 1e9,
        "open_seconds": opened,
        "first_batch_seconds": first,
    }


if __name__ == "__main__":
    sys.exit(main())
