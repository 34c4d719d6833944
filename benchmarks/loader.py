"""python -m benchmarks.loader: pairs a second and CPU time a pair of data loading alone, ours and the published way.

All deliver the same: two normalised views (B, 3, 224, 224) float32 and the log-mel (B, 3, 96, 64) of every pair, on the
device, of the same pairs, on the same cores (--cores, which every process here is bound to):

    published   float32 frames and log-mels from HDF5, PIL, DataLoader, a worker a core (baselines/published_data.py)
    jpeg        essl_fast, streamed from JPEG shards: decoded, resized, log-mel computed, in every epoch
    clips       the same from clips: the video's own packets, decoded from the key frame on
    resident    essl_fast, after the first epoch: frames and log-mels are there, views are cut from them

What they deliver is compared before anything is timed: ours, streamed and resident, to the bit; clips with JPEG, 2 grey
levels on average; log-mels of all four. Each way runs in a process of its own, in turns (--rounds). A first epoch
warms up (page cache, workers, pool) and is not counted. CPU time is that of the process and all its children.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table

from benchmarks.engines import EngineSampler
from benchmarks.processes import run_python
from benchmarks.rows import Rows, not_reached
from benchmarks.timing import Times, digits
from essl_fast import config, kernels
from essl_fast.common import commands, files
from essl_fast.data.loading import Loader, Pools, RawBatch
from essl_fast.data.shards import Manifest
from essl_fast.models.audio_input import log_mel
from essl_fast.runtime import provenance
from essl_fast.runtime.devices import pick_device

WAYS = ("published", "jpeg", "clips", "resident")
WANTED = {"jpeg": 2.0, "resident": 10.0}  # times the published way's pairs a second, on two cores


class Folders(NamedTuple):
    """The same pairs three times."""

    jpeg: Path
    clips: Path
    published: Path

    def kilobytes(self, way: str, pairs: int) -> float:
        """Bytes on disk for each pair, without manifest and index."""
        place = {"clips": self.clips, "published": self.published}.get(way, self.jpeg)
        pattern = "h5py_train_*.h5" if way == "published" else "train-*.tar"
        return sum(file.stat().st_size for file in place.rglob(pattern)) / pairs / 1e3


class Delivered(NamedTuple):
    """What a training step needs of B pairs, on the device."""

    views: torch.Tensor | tuple[torch.Tensor, torch.Tensor]  # (2, B, 3, 224, 224) float32
    sound: torch.Tensor  # (B, 3, 96, 64) float32
    index: torch.Tensor  # (B,) manifest rows


@dataclass
class Way:
    """What one way of loading took, over all rounds."""

    way: str
    pairs: int = 0  # an epoch
    seconds: list[float] = field(default_factory=list)  # of each epoch
    cpu_seconds: float = 0.0  # of all of them
    kilobytes: float = 0.0  # on disk, a pair
    engines: dict[str, float] = field(default_factory=dict)  # per cent busy
    note: str = ""

    @property
    def rate(self) -> float:
        """Pairs a second, by the median epoch."""
        return self.pairs / (Times.of(self.seconds).median) if self.seconds else 0.0

    @property
    def cpu_per_pair(self) -> float:
        """CPU milliseconds a pair."""
        return 1e3 * self.cpu_seconds / (self.pairs * len(self.seconds))


def prepared(work: Path, videos: int, codec: str) -> Folders:
    """The synthetic world, made and prepared in each way unless it is there."""
    from benchmarks.baselines.published_data import export
    from essl_fast.data.synthetic import make_world
    from essl_fast.prepare import prepare

    place = Path(work) / f"loader-{codec}-{videos}"
    world = make_world(place / "world", train_videos=videos, test_videos=1, seed=0, codec=codec, progress=False)
    for visual in ("jpeg", "clip"):
        prepare(world.videos, world.annotations, place / visual, visual=visual, progress=False)
    export(Manifest.load(place / "jpeg"), place / "published", {"train": ("train",)})
    return Folders(place / "jpeg", place / "clip", place / "published")


def deliver(raw: RawBatch, epoch: int) -> Delivered:
    """Two views and the log-mel of a batch, as training makes them."""
    top, left, flip = kernels.view_params(0, epoch, raw.index, config.STORED_SIDE - config.SIZE)
    views = kernels.two_views(raw.frames, raw.rows, top, left, flip, config.SIZE, torch.float32)
    return Delivered(views, raw.sound, raw.index)


class Ours:
    """Epochs of a prepared folder, streamed or resident."""

    def __init__(self, root: Path, batch: int, device: torch.device, resident: bool) -> None:
        pools = Pools("always", 0, device) if resident else None
        self.loader = Loader(
            Manifest.load(root),
            ["train"],
            batch_size=batch,
            side=config.STORED_SIDE,
            device=device,
            shuffle=True,
            pools=pools,
            sound=log_mel,
        )
        self.pairs = self.loader.pairs

    def epoch(self) -> Iterator[Delivered]:
        epoch = self.loader.epoch
        for raw in self.loader:
            yield deliver(raw, epoch)

    def close(self) -> None:
        self.loader.close()


class Published:
    """Epochs of the published data path."""

    def __init__(self, root: Path, batch: int, device: torch.device) -> None:
        from benchmarks.baselines.published_data import PublishedSet, data_loader

        self.device, gpu = device, device.type == "cuda"
        self.set = PublishedSet(root, "train")
        self.loader = data_loader(self.set, batch, len(os.sched_getaffinity(0)), keep_last=True, pin=gpu)
        self.pairs = len(self.set)

    def epoch(self) -> Iterator[Delivered]:
        for sample in self.loader:
            view1, view2, sound, index = (
                sample[name].to(self.device, non_blocking=True) for name in ("view1", "view2", "spect", "index")
            )
            yield Delivered((view1, view2), sound[:, :, 0], index)  # its network takes the views one by one

    def close(self) -> None:
        self.loader = None  # ends its workers


def source_of(way: str, folders: Folders, batch: int, device: torch.device) -> Ours | Published:
    if way == "published":
        return Published(folders.published, batch, device)
    return Ours(folders.clips if way == "clips" else folders.jpeg, batch, device, way == "resident")


def check(folders: Folders, batch: int, device: torch.device) -> str:
    """That all deliver the same, in words; RuntimeError if they do not.

    On a GPU the log-mel of a pair may depend on its batch by rounding, where PyTorch computes it.
    """

    def by_row(source: Ours, epochs: int) -> list[dict[int, tuple[torch.Tensor, torch.Tensor]]]:
        found = [
            {
                int(row): (part.views[:, i].cpu(), part.sound[i].cpu())
                for part in source.epoch()
                for i, row in enumerate(part.index)
            }
            for _ in range(epochs)
        ]
        source.close()
        return found

    def near(one: torch.Tensor, other: torch.Tensor) -> bool:
        return torch.equal(one, other) if device.type == "cpu" else bool((one - other).abs().max() < 2e-3)

    def same(one: dict, other: dict) -> bool:
        return one.keys() == other.keys() and all(
            torch.equal(one[row][0], other[row][0]) and near(one[row][1], other[row][1]) for row in one
        )

    streamed = by_row(source_of("jpeg", folders, batch, device), 2)
    if not all(map(same, streamed, by_row(source_of("resident", folders, batch, device), 2))):
        raise RuntimeError("resident batches are not the streamed ones")
    apart = []
    for row, (views, sound) in by_row(source_of("clips", folders, batch, device), 1)[0].items():
        if not near(sound, streamed[0][row][1]):
            raise RuntimeError(f"row {row}: the log-mel of the clip is another one")
        apart.append(((views - streamed[0][row][0]).abs().mean() * 255 * 0.226).item())  # the mean of ImageNet's std
    if (mean := statistics.mean(apart)) > 2:
        raise RuntimeError(f"clips' frames are {mean:.2f} grey levels from the JPEGs' on average")
    published, view_shape = Published(folders.published, batch, torch.device("cpu")), streamed[0][0][0][0].shape
    for row in range(published.pairs):
        sample = published.set[row]
        loud = (sample["spect"][:, 0] - streamed[0][row][1]).abs().max()
        if loud > 2e-3 or sample["view1"].shape != view_shape or sample["view1"].dtype != torch.float32:
            raise RuntimeError(f"row {row}: the published files hold another pair")
    return (
        f"{published.pairs} pairs: resident as streamed, to the bit; clips {mean:.2f} grey levels from JPEG on "
        "average; log-mels the same"
    )


def cpu_seconds(root: int | None = None) -> float:
    """CPU time of a process and of all its children that live, in user and system mode.

    ``/proc`` counts ticks of 10 ms. Where all pairs are in memory, an epoch may be over within one. So this process's
    own time is taken from its clock.
    """
    seconds, parents, tick = {}, {}, os.sysconf("SC_CLK_TCK")
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        pid = int(stat.parent.name)
        parents[pid] = int(words[1])
        seconds[pid] = sum(map(int, words[11:15])) / tick  # with children that were waited for
    waited = os.times()
    seconds[os.getpid()] = time.process_time() + waited.children_user + waited.children_system
    ours = {root or os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(seconds.get(pid, 0.0) for pid in ours)


def measure(way: str, folders: Folders, batch: int, device: torch.device, seconds: float) -> Way:
    """Epochs for ``seconds``, but at least two, after one that is not counted."""

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    source = source_of(way, folders, batch, device)
    found = Way(way, source.pairs, kilobytes=folders.kilobytes(way, source.pairs))
    try:
        for _ in source.epoch():
            pass
        begin, before = wait(), cpu_seconds()
        with EngineSampler(device) as engines:
            while len(found.seconds) < 2 or wait() - begin < seconds:
                start = wait()
                count = sum(len(part.index) for part in source.epoch())
                found.seconds.append(wait() - start)
                if count != source.pairs:
                    raise RuntimeError(f"{way}: an epoch had {count} of {source.pairs} pairs")
        found.cpu_seconds = cpu_seconds() - before
        found.engines = engines.means
        found.note = engines.why if device.type == "cuda" else ""
    finally:
        source.close()
    return found


def ratios(ways: list[Way]) -> dict[str, float]:
    """Pairs a second of each way as a multiple of the published one's."""
    rates = {way.way: way.rate for way in ways if way.seconds}
    base = rates.get("published")
    return {name: rate / base for name, rate in rates.items() if name != "published"} if base else {}


def results_table(ways: list[Way], title: str) -> Table:
    table = Table(title=title, caption="by the median epoch (10th-90th percentile); x: times the published way's rate")
    columns = ("way", "pairs/s", "x", "CPU ms a pair", "x less", "KB a pair on disk", "engines busy, %", "")
    for column in columns:
        table.add_column(column, justify="left" if column in ("way", "") else "right")
    times = ratios(ways)
    base = next((way for way in ways if way.way == "published" and way.seconds), None)
    for way in ways:
        if not way.seconds:
            table.add_row(way.way, *[""] * 6, way.note)
            continue
        spread = Times.of(way.seconds)
        rate = f"{digits(way.rate)} ({digits(way.pairs / spread.high)}-{digits(way.pairs / spread.low)})"
        less = f"{base.cpu_per_pair / max(way.cpu_per_pair, 1e-9):.1f}" if base else ""
        engines = ", ".join(f"{name} {share:.0f}" for name, share in way.engines.items())
        x = f"{times[way.way]:.1f}" if way.way in times else ""
        table.add_row(way.way, rate, x, digits(way.cpu_per_pair), less, digits(way.kilobytes), engines, way.note)
    return table


def headline(ways: list[Way]) -> str:
    """The ratios in words, with what was wanted."""
    parts = []
    for name, x in ratios(ways).items():
        wanted = f" (wanted {WANTED[name]:.0f}x)" if name in WANTED else ""
        parts.append(f"{name} {x:.1f}x{wanted}")
    return ", ".join(parts) or "nothing to compare"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.split("\n\n")[0])
    parser.add_argument("--ways", default=",".join(WAYS), help=f"of {','.join(WAYS)} (default: all)")
    parser.add_argument("--cores", type=int, default=0, help="cores to run on (default: all)")
    parser.add_argument("--batch", type=int, help="pairs a batch (default: 128 on a GPU, else 16)")
    parser.add_argument("--videos", type=int, default=120, help="training videos, 1.3 pairs each (default: 120)")
    parser.add_argument("--codec", default="h264", help="of the videos: h264, hevc, vp9, av1 or mjpeg (default: h264)")
    parser.add_argument("--seconds", type=float, default=5.0, help="timed, of each way and round (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="times that every way is run (default: 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that a way may take (default: 600)")
    parser.add_argument("--work", type=Path, help="folder that keeps the data (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument(
        "--rows", type=Path, help="keep each row here when it is measured, and skip those that are there"
    )
    parser.add_argument("--budget", type=float, default=7200.0, help="seconds; ways after that are not measured")
    parser.add_argument("--way", help=argparse.SUPPRESS)  # of a way's own process
    parser.add_argument("--folders", nargs=3, type=Path, help=argparse.SUPPRESS)
    return parser


def child(options: argparse.Namespace) -> int:
    """One way, one round; its result goes to --json."""
    device = pick_device(options.device)
    found = measure(options.way, Folders(*options.folders), options.batch, device, options.seconds)
    files.write_json(options.json, asdict(found))
    return 0


def run_round(options: argparse.Namespace, folders: Folders, work: Path, kept: Rows, round_: int) -> list[Way]:
    """Every way once for which there is time, each in a process of its own and kept when it ends; or what was kept."""
    keys = {f"{name}, round {round_}": name for name in options.ways}
    failed = []
    for key, seconds in kept.planned(list(keys)):
        result, name, limit = work / "way.json", keys[key], min(options.limit, seconds)
        result.unlink(missing_ok=True)
        arguments = ["-m", "benchmarks.loader", "--way", name, "--json", str(result), "--device", options.device]
        arguments += ["--batch", str(options.batch), "--seconds", str(options.seconds), "--folders", *map(str, folders)]
        ended = run_python(arguments, limit, work / "way.log")
        if ended.code == 0 and result.is_file():
            kept.add(key, json.loads(result.read_text()))
        else:
            stopped = f"stopped at its limit of {limit:.0f} s"
            failed.append(Way(name, note=stopped if ended.code is None else f"failed: {ended.last_line}"))
    return [Way(**kept[key]) for key in keys if key in kept] + failed


def merged(found: list[Way]) -> list[Way]:
    """One Way for each name: the epochs of all rounds together, everything else from the first one that has any."""
    ways: dict[str, Way] = {}
    for way in found:
        first = ways.setdefault(way.way, way)
        if first is way:
            continue
        if not first.seconds and way.seconds:
            way.note, ways[way.way] = first.note, way
            continue
        first.seconds += way.seconds
        first.cpu_seconds += way.cpu_seconds
        first.note = first.note or way.note
    return list(ways.values())


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.way:
        return child(options)
    cores = sorted(os.sched_getaffinity(0))
    if options.cores > len(cores):
        raise SystemExit(f"--cores: {options.cores} were asked for, and there are {len(cores)}")
    options.ways = options.ways.split(",")
    if unknown := [way for way in options.ways if way not in WAYS]:
        raise SystemExit(f"--ways: {unknown[0]} is none of {', '.join(WAYS)}")
    device = pick_device(options.device)
    options.device, options.batch = str(device), options.batch or (128 if device.type == "cuda" else 16)
    os.sched_setaffinity(0, cores[: options.cores or None])  # before any process starts, so that all are bound
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    console, kept = commands.console(), Rows(options.rows, "loader", options.budget)
    environment = provenance.environment(device)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folders = prepared(options.work or work, options.videos, options.codec)
        checked = check(folders, options.batch, device)
        console.print(f"checked: {checked}", highlight=False, soft_wrap=True)
        found = merged(
            [way for number in range(options.rounds) for way in run_round(options, folders, work, kept, number)]
        )
    if line := not_reached(kept):
        console.print(line, highlight=False, soft_wrap=True)
    if not found:
        return 1
    name = environment["machine"].get("gpu") or environment["machine"]["cpu"]
    title = f"{max(way.pairs for way in found)} pairs of {options.codec}, B = {options.batch}"
    console.print(results_table(found, f"{title}, {environment['machine']['cores']} cores, {name}"))
    console.print(headline(found), highlight=False, soft_wrap=True)
    if options.json:
        record = {"benchmark": "loader", "headline": headline(found), "checked": checked, "environment": environment}
        record |= {"codec": options.codec, "batch": options.batch, "ratios": ratios(found)}
        files.write_json(options.json, {**record, "ways": [{**asdict(way), "rate": way.rate} for way in found]})
    return 0 if all(way.seconds for way in found) else 1


if __name__ == "__main__":
    sys.exit(main())
