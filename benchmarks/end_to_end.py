"""python -m benchmarks.end_to_end: whole epochs and evaluations, ours against an eager implementation of the recipe.

The same data (the synthetic world, prepared for us, exported to the published HDF5 layout for the baseline), the same
networks, batch size and cores. Each side runs in a process of its own, one after the other:

    streaming   essl_fast, every epoch decoded anew
    resident    essl_fast, decoded pairs kept in memory
    baseline    benchmarks/baselines/published_style.py: float32, DataLoader workers, one for each core

A first epoch and evaluation warm up (compile, fill the pool, start workers) and are reported apart. Then --epochs of
both are timed, and one more, in which each stage waits for the GPU, shows where the time goes. The baseline's process
first compares loss and gradients of both on the same weights and views: what is not the same is not timed.

CPU seconds are those of all threads and workers in an epoch and an evaluation. Other programs on the machine make the
times longer, but not these.

On a CPU both compute in float32. On a GPU ours computes in bf16, compiled; the baseline keeps PyTorch's defaults, which
are TF32 in convolutions.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.table import Table

from benchmarks import subjects
from benchmarks.processes import Neighbours, group_cpu_seconds, run_python
from benchmarks.rows import Rows
from benchmarks.stages import StageClock
from benchmarks.timing import Times, digits
from essl_fast import config
from essl_fast.common import commands, files
from essl_fast.data.shards import Manifest
from essl_fast.runtime import provenance, stages
from essl_fast.runtime.compiling import keep_cache, wants_compile
from essl_fast.runtime.devices import pick_device
from essl_fast.train import Trainer, train_epoch

SIDES = ("streaming", "resident", "baseline")
STAGES = ("data", "to device", "views", "log-mel", "forward", "backward", "optimizer", "step", "other", "evaluation")


@dataclass
class Side:
    """What one process measured, or why it did not."""

    method: str
    side: str
    batch: int
    pairs: int = 0
    test_pairs: int = 0
    precision: str = ""
    first_seconds: float = 0.0  # the warm-up epoch
    train_seconds: list[float] = field(default_factory=list)  # of each epoch
    evaluation_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)  # of each epoch and evaluation, of all threads and workers
    others: float = 0.0  # share of the machine's CPU time that other processes took meanwhile
    waiting: float | None = None  # share of the epochs in which the host waited for data
    stages: dict[str, float] = field(default_factory=dict)  # seconds of one epoch and evaluation
    check: str = ""
    note: str = ""

    @property
    def seconds(self) -> float:
        """Median epoch and evaluation."""
        return statistics.median(self.train_seconds) + statistics.median(self.evaluation_seconds)


def wait_for(device: torch.device) -> float:
    """The time, after the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def repeat(side: Side, train: Callable, evaluate: Callable, epochs: int, limit: float, device: torch.device) -> None:
    """Warm up, then time ``epochs`` epochs and evaluations, or as many as fit ``limit`` seconds with one to spare."""
    begin = wait_for(device)
    train()
    evaluate()
    warm = wait_for(device)
    side.first_seconds = warm - begin
    neighbours = Neighbours()
    for _ in range(epochs):
        used, start = group_cpu_seconds(), wait_for(device)
        train()
        trained = wait_for(device)
        evaluate()
        end = wait_for(device)
        side.cpu_seconds.append(group_cpu_seconds() - used)
        side.train_seconds.append(trained - start)
        side.evaluation_seconds.append(end - trained)
        if limit - (end - begin) < 2.5 * (end - start):
            side.note = "" if len(side.train_seconds) == epochs else f"{len(side.train_seconds)} of {epochs} epochs fit"
            break
    side.others = neighbours.share()


def run_ours(side: Side, settings: config.Config, manifest: Manifest, options, device: torch.device) -> None:
    """Epochs and evaluations of a Trainer."""
    settings.data.resident = "always" if side.side == "resident" else "never"
    settings.epochs = options.epochs + 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the frozen networks' weights are random
        if wants_compile(settings.compile, device):
            keep_cache("")
        trainer = Trainer(settings, manifest, device)
    how = ", compiled" * trainer.step.compiled + ", captured" * trainer.step.stepper.captures
    side.precision = str(trainer.dtype).removeprefix("torch.") + how
    side.test_pairs = manifest.pairs("test")

    def train() -> None:
        train_epoch(trainer)

    def evaluate() -> None:
        trainer.evaluate("test").result(manifest)

    try:
        repeat(side, train, evaluate, options.epochs, options.budget, device)
        side.pairs = trainer.history[0]["pairs"]
        side.waiting = statistics.median(entry["waiting"] for entry in trainer.history[1:])
        clock = StageClock(synchronize=device.type == "cuda")
        begin = wait_for(device)
        with clock.listen(stages, "stage"):
            train()
        ended = wait_for(device)
        evaluate()
        clock.seconds["other"] = max(0.0, ended - begin - sum(clock.seconds.values()))
        clock.seconds["evaluation"] = wait_for(device) - ended
        side.stages = clock.seconds
    finally:
        trainer.loader.close()


def run_baseline(side: Side, settings: config.Config, options, device: torch.device) -> None:
    """PublishedStyle over the exported data; after the check that it computes the same."""
    from benchmarks.baselines.published_data import PublishedSet, data_loader
    from benchmarks.baselines.published_style import PublishedStyle, check, pytorch_defaults

    begin = time.perf_counter()
    found = check(settings, device)
    side.check = f"loss apart by {found.loss_error:.1e}, gradients by {found.gradient_error:.1e} (relative L2)"
    if not found.ok:
        side.note = f"NOT the same as ours in float32: {side.check}"
        return
    run = PublishedStyle(settings, device)
    sets = [PublishedSet(options.published, "train", run.supervised, settings.objective.consensus or 1)]
    sets.append(PublishedSet(options.published, "test"))
    gpu, batch, keep = device.type == "cuda", settings.data.batch_size, settings.data.last_batch == "keep"
    loaders = [data_loader(each, batch, options.workers, keep, pin=gpu) for each in sets]
    side.pairs, side.test_pairs = len(sets[0]) if keep else len(loaders[0]) * batch, len(sets[1])
    tf32 = {"default": None, "on": True, "off": False}[options.tf32]
    side.precision = "float32" + (f", TF32 {options.tf32}" if gpu else "")
    with pytorch_defaults(tf32):

        def train(clock: StageClock | None = None) -> None:
            run.train_epoch(loaders[0], clock)

        def evaluate(clock: StageClock | None = None) -> None:
            run.evaluate(loaders[1], sets[1].boxes, clock)

        repeat(side, train, evaluate, options.epochs, options.budget - (time.perf_counter() - begin), device)
        clock = StageClock(synchronize=gpu)
        start = wait_for(device)
        train(clock)
        evaluate(clock)
        clock.seconds["other"] = max(0.0, wait_for(device) - start - sum(clock.seconds.values()))
        side.stages = clock.seconds
        side.waiting = clock.seconds["data"] / (sum(clock.seconds.values()) - clock.seconds["evaluation"])


def child(options) -> int:
    """One side of one method; its result goes to --json."""
    device = pick_device(options.device)
    method, name = options.side.split(":")
    overrides = ("--device", str(device), "--precision", options.precision, "--compile", options.compile)
    manifest = Manifest.load(options.prepared)
    settings = subjects.settings_of(method, options.model, manifest, options.batch, *overrides)
    side = Side(method, name, options.batch)
    if name == "baseline":
        run_baseline(side, settings, options, device)
    else:
        run_ours(side, settings, manifest, options, device)
    files.write_json(options.json, asdict(side))
    return 0


def measure(options, manifest: Manifest, work: Path, kept: Rows) -> list[Side]:
    """Every side of every method, each in a process with its share of the budget and kept when it ends; or as kept."""
    begin = time.perf_counter()
    plan = [(method, side, n) for n in range(options.rounds) for method in options.methods for side in options.sides]
    found: list[Side] = []
    for number, (method, side, round_) in enumerate(plan):
        key = f"{method} {side}, round {round_}"
        if key in kept:
            found.append(Side(**kept[key]))
            continue
        limit = (options.budget - (time.perf_counter() - begin)) / (len(plan) - number)
        result, log = work / "side.json", work / "side.log"
        result.unlink(missing_ok=True)
        arguments = ["-m", "benchmarks.end_to_end", "--side", f"{method}:{side}", "--json", str(result)]
        for name in ("model", "batch", "epochs", "workers", "device", "precision", "compile", "tf32"):
            arguments += [f"--{name}", str(getattr(options, name))]
        arguments += ["--prepared", str(manifest.root), "--published", str(options.published)]
        ended = run_python([*arguments, "--budget", f"{0.9 * limit:.0f}"], limit, log)
        if ended.code == 0 and result.is_file():
            kept.add(key, json.loads(result.read_text()))
            found.append(Side(**kept[key]))
        else:
            why = f"stopped at its limit of {limit:.0f} s" if ended.code is None else f"failed: {ended.last_line}"
            found.append(Side(method, side, options.batch, note=why))
    return found


def merged(sides: list[Side]) -> list[Side]:
    """One Side for each method and side: the epochs of all rounds together, everything else from the first one."""
    out: dict[tuple[str, str], Side] = {}
    for side in sides:
        first = out.setdefault((side.method, side.side), side)
        if first is not side:
            first.train_seconds += side.train_seconds
            first.evaluation_seconds += side.evaluation_seconds
            first.cpu_seconds += side.cpu_seconds
            first.note = first.note or side.note
            first.others = max(first.others, side.others)
    return list(out.values())


def ratios(sides: list[Side]) -> dict[tuple[str, str], dict[str, float]]:
    """How many times as fast as the baseline, by method and side: an epoch, an evaluation, both, both in CPU time."""
    base = {side.method: side for side in sides if side.side == "baseline" and side.train_seconds}
    out = {}
    for side in sides:
        other = base.get(side.method)
        if other is None or not side.train_seconds:
            continue
        parts = {}
        for name in ("train", "evaluation", "cpu"):
            theirs, ours = (statistics.median(getattr(each, f"{name}_seconds")) for each in (other, side))
            parts[name] = theirs / max(ours, 1e-9)
        out[side.method, side.side] = {**parts, "both": other.seconds / side.seconds}
    return out


def results_table(sides: list[Side], title: str) -> Table:
    table = Table(title=title, caption="seconds: median (10th-90th percentile); x: times as fast as the baseline")
    columns = ("method", "side", "epoch, s", "pairs/s", "x", "evaluation, s", "x", "both, x", "CPU, s", "x", "waiting")
    for column in columns:
        table.add_column(column, justify="left" if column in ("method", "side") else "right", no_wrap=True)
    times = ratios(sides)
    for side in sides:
        if not side.train_seconds:
            table.add_row(side.method, side.side, *["-"] * 9)
            continue
        x = times.get((side.method, side.side))
        shown = [f"{x[name]:.2f}" for name in ("train", "evaluation", "both", "cpu")] if x else [""] * 4
        train, evaluation = Times.of(side.train_seconds), Times.of(side.evaluation_seconds)
        table.add_row(
            side.method,
            side.side,
            train.text(),
            digits(1.0 * side.pairs / train.median),
            shown[0],
            evaluation.text(),
            shown[1],
            shown[2],
            digits(statistics.median(side.cpu_seconds)),
            shown[3],
            f"{100 * (side.waiting or 0):.1f}%",
        )
    return table


def notes_on(sides: list[Side]) -> list[str]:
    """A line for each side: its arithmetic, and what a reader must know of it."""
    times, lines = ratios(sides), []
    for side in sides:
        slower = (times.get((side.method, side.side)) or {"train": 1.0})["train"] < 1
        check = f"same as ours in float32: {side.check}" if side.check and side.train_seconds else ""
        parts = (side.precision, "SLOWER than the baseline" * slower, check, side.note, Neighbours.warning(side.others))
        lines.append(f"{side.method} {side.side}: " + "; ".join(filter(None, parts)))
    return lines


def stage_table(sides: list[Side]) -> Table:
    """Seconds of one epoch and evaluation by stage."""
    done = [side for side in sides if side.stages]
    table = Table(title="where one epoch and evaluation go, seconds", caption="measured with a wait at every border")
    table.add_column("")
    for side in done:
        table.add_column(f"{side.method}\n{side.side}", justify="right")
    for stage in STAGES:
        if any(stage in side.stages for side in done):
            table.add_row(stage, *(digits(s.stages[stage]) if stage in s.stages else "-" for s in done))
    table.add_row("sum", *(digits(sum(side.stages.values())) for side in done))
    return table


def extrapolations(sides: list[Side]) -> list[dict]:
    """What the paper's runs would take: epochs x 1,595 pairs at the measured rate, from 3 measured epochs or more."""
    out = []
    for side in sides:
        if side.method in subjects.EPOCHS and len(side.train_seconds) >= 3 and side.pairs:
            epochs = subjects.EPOCHS[side.method]
            seconds = epochs * subjects.PAPER_PAIRS * statistics.median(side.train_seconds) / side.pairs
            out.append({"method": side.method, "side": side.side, "epochs": epochs, "seconds": seconds})
    return out


def headline(sides: list[Side]) -> str:
    """The ratios in words."""
    busy = Neighbours.warning(max(side.others for side in sides))
    times = {key: value for key, value in ratios(sides).items() if key[1] != "baseline"}
    if not times:
        return "nothing to compare"
    words = ", ".join(f"{method} {side} {value['both']:.1f}x" for (method, side), value in times.items())
    return f"{words} ({busy})" if busy else words


def parser() -> argparse.ArgumentParser:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=("full", "small"), help="networks (default: full on a GPU, else small)")
    parser.add_argument("--methods", help=f"of {','.join(subjects.METHODS)} (default: all)")
    parser.add_argument("--sides", default=",".join(SIDES), help=f"of {','.join(SIDES)} (default: all)")
    parser.add_argument("--videos", type=int, help="training videos, 1.3 pairs each (default: 1240 on a GPU, else 80)")
    parser.add_argument("--batch", type=int, help="pairs a step (default: 128 on a GPU, else 16)")
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs and evaluations (default: 3)")
    parser.add_argument("--rounds", type=int, default=1, help="times that every side is run (default: 1)")
    parser.add_argument("--workers", type=int, default=cores, help=f"the baseline's workers (default: {cores})")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp16", "fp32", "tf32"), help="ours")
    parser.add_argument("--compile", default="auto", choices=("auto", "on", "off"), help="ours")
    parser.add_argument("--tf32", default="default", choices=("default", "on", "off"), help="the baseline's, on a GPU")
    parser.add_argument("--budget", type=float, default=7200.0, help="seconds for everything; epochs are left out")
    parser.add_argument("--work", type=Path, help="folder that keeps the data (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument(
        "--rows", type=Path, help="keep each row here when it is measured, and skip those that are there"
    )
    for name in ("side", "prepared", "published"):  # of a side's own process
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.side:
        return child(options)
    begin = time.perf_counter()
    device = pick_device(options.device)
    gpu = device.type == "cuda"
    options.device = str(device)
    options.model = options.model or ("full" if gpu else "small")
    options.batch = options.batch or (128 if gpu else 16)
    videos = options.videos or (1240 if gpu else 80)
    options.methods = (options.methods or ",".join(subjects.methods_for(options.model))).split(",")
    options.sides = options.sides.split(",")
    if unknown := [side for side in options.sides if side not in SIDES]:
        raise SystemExit(f"--sides: {unknown[0]} is none of {', '.join(SIDES)}")
    from benchmarks.baselines.published_data import export

    console = commands.console()
    environment = provenance.environment(device)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        manifest = subjects.prepared_world(work, videos, max(2, videos // 5))
        options.published = export(manifest, work / f"published-{videos}")
        options.budget -= time.perf_counter() - begin
        sides = merged(measure(options, manifest, work, Rows(options.rows, "end_to_end")))
    name = environment["machine"].get("gpu") or environment["machine"]["cpu"]
    size = f"{sides[0].pairs} training and {sides[0].test_pairs} test pairs, B = {options.batch}"
    where = f"{environment['machine']['cores']} cores, {name}"
    console.print(results_table(sides, f"{options.model} networks, {size}, {where}"))
    console.print(stage_table(sides))
    for line in notes_on(sides):
        console.print(line, highlight=False, soft_wrap=True)
    longer = extrapolations(sides) if options.model == "full" else []
    for each in longer:
        words = f"{each['epochs']} epochs of {subjects.PAPER_PAIRS} pairs take about {digits(each['seconds'] / 60)} min"
        console.print(f"{each['method']} {each['side']}: {words} (extrapolated; without evaluations)", soft_wrap=True)
    if options.json:
        found = {"benchmark": "end_to_end", "headline": headline(sides), "environment": environment}
        found |= {"model": options.model, "workers": options.workers, "extrapolated": longer}
        found["ratios"] = [{"method": m, "side": s, **value} for (m, s), value in ratios(sides).items()]
        files.write_json(options.json, {**found, "sides": [asdict(side) for side in sides]})
    return 0 if all(side.train_seconds for side in sides) else 1


if __name__ == "__main__":
    sys.exit(main())
