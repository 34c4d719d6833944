"""python -m benchmarks.step: what a training step costs, by method and batch size, and how near the chip's limit it is.

A step is Trainer.train_step on batches of noise that are on the device already: two views, forward, backward, update.
Log-mels that the loader makes are inputs, not part of it. Rates count the matrix arithmetic of the published network,
however the step does it: 61 GFLOP a pair without PCM and 125 with it (VGG-16 forward on two views; PCM forward and
backward), or for the demo's small networks what PyTorch counts. A compiled step with PCM launches less, 105 (`python -m
benchmarks.phantom`), so its MFU here is up to 1.19 times that by its own products. MFU is the rate over a matrix
product's, measured in the same process and dtype.

Modes: eager; compiled; captured (compiled and replayed as one CUDA graph, what `train` does on one GPU); checkpointed
(as captured on a GPU, eager on a CPU, with model.pcm_checkpoint: less memory for more time). Compilation, warm-up and
capture have columns of their own and are in no rate. Memory is a GPU's peak; on a CPU, what autograd keeps for the
backward pass.

Before it is timed, a method's loss and gradients are compared with the published-style baseline's, and the first loss
of a compiled step with that of an eager one. `--baseline` times that baseline's step (float32, eager) as well; it gets
finished views, since its DataLoader workers make them: that is not in its time.
"""

import argparse
import gc
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks import subjects
from benchmarks.processes import Neighbours
from benchmarks.rows import Rows
from benchmarks.timing import Times, digits, matmul_rate, time_each
from essl_fast import config, kernels
from essl_fast.common import commands, files
from essl_fast.data.shards import Manifest
from essl_fast.runtime import provenance
from essl_fast.runtime.compiling import keep_cache, wants_compile
from essl_fast.runtime.devices import pick_device, pick_precision
from essl_fast.train import WARMUP, Trainer

BATCHES = 4  # different ones, in turn
SHOWN = ("kernels", "copies", "graph launches", "operators")  # of the launches, in the table
MODES = ("eager", "compiled", "captured", "checkpointed", "baseline")


@dataclass
class Row:
    """One method at one batch size in one mode."""

    method: str
    mode: str  # of MODES
    batch: int
    precision: str = ""
    milliseconds: float | None = None
    low: float | None = None
    high: float | None = None
    each: list[float] = field(default_factory=list)
    pairs_per_second: float | None = None
    gflop_a_pair: float | None = None
    gflop_by: str = ""
    tflop_per_second: float | None = None
    mfu: float | None = None  # share of the measured matrix product's rate
    peak_gib: float | None = None  # on a GPU
    saved_gib: float | None = None  # on a CPU: for the backward pass
    launches: dict[str, int] | None = None  # in one step
    first_seconds: float | None = None  # the first step, compilation included
    prepared: dict[str, float] = field(default_factory=dict)  # seconds by `train.Preparation.phase`
    replayed: int = 0  # steps that a CUDA graph ran
    first_loss: float | None = None
    others: float = 0.0  # share of the machine's CPU time that other processes took meanwhile
    note: str = ""

    @property
    def key(self) -> str:
        """Its name among the rows that are kept."""
        return f"{self.method} {self.mode} B={self.batch}"


def count_launches(run: Callable[[], object], device: torch.device) -> dict[str, int]:
    """What one call launches: kernels and copies on a GPU, and what asked for them; leaf operators on a CPU."""
    gpu = device.type == "cuda"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler's, on its own state
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as trace:
            run()
            if gpu:
                torch.cuda.synchronize(device)
    events = trace.events()
    if not gpu:
        return {"operators": sum(1 for e in events if not e.cpu_children and e.name.startswith(("aten::", "essl")))}
    on_gpu = [e.name for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    copies = sum(name.startswith(("Memcpy", "Memset")) for name in on_gpu)
    calls = [e.name for e in events if e.device_type == torch.autograd.DeviceType.CPU]
    return {
        "kernels": len(on_gpu) - copies,
        "copies": copies,
        "launch calls": sum("LaunchKernel" in name for name in calls),
        "graph launches": sum("GraphLaunch" in name for name in calls),
    }


def saved_bytes(run: Callable[[], object]) -> int:
    """What autograd keeps for the backward pass while ``run`` runs forward and backward, each tensor counted once."""
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(sizes.values())


def measure(
    row: Row, step: Callable[[int], object], options, device: torch.device, rate: float, before: int = 0
) -> None:
    """Times ``step(number)`` into the row, after the first step and ``before`` others, which may prepare."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    begin = time.perf_counter()
    row.first_loss = float(step(0))
    row.first_seconds = time.perf_counter() - begin
    number, neighbours = iter(range(1, 1 << 30)), Neighbours()
    for _ in range(before):
        step(next(number))
    times: Times = time_each(
        lambda: step(next(number)), device, options.repeats, warmup=options.warmup, seconds=options.seconds, flush=False
    )
    row.milliseconds, row.low, row.high, row.each = times
    row.others = neighbours.share()
    row.pairs_per_second = 1e3 * row.batch / times.median
    row.tflop_per_second = row.gflop_a_pair * row.pairs_per_second / 1e3
    row.mfu = row.tflop_per_second * 1e12 / rate
    if device.type == "cuda":
        row.peak_gib = torch.cuda.max_memory_allocated(device) / 2**30
    row.launches = count_launches(lambda: step(next(number)), device)


def ours(row: Row, settings: config.Config, manifest: Manifest, options, device: torch.device, rate: float) -> None:
    """A Trainer's step, eager or compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the frozen networks' weights are random
        trainer = Trainer(settings, manifest, device)
    trainer.model.train()
    batches = [subjects.synthetic_batch(manifest, row.batch, device, seed) for seed in range(BATCHES)]
    row.precision = str(trainer.dtype).removeprefix("torch.")

    def step(number: int) -> torch.Tensor:
        return trainer.train_step(batches[number % BATCHES])["loss"]

    captures = settings.cuda_graphs == "on"
    try:
        measure(row, step, options, device, rate, before=WARMUP if captures else 0)
        if device.type == "cpu" and not trainer.step.compiled:
            row.saved_gib = saved_bytes(lambda: step(0)) / 2**30
    finally:
        trainer.loader.close()
    for done in trainer.step.stepper.prepared:
        row.prepared[done.phase] = row.prepared.get(done.phase, 0.0) + done.seconds
    row.replayed = trainer.step.stepper.counts["replayed"]
    if captures and row.replayed < len(row.each):
        row.note = f"WRONG: {row.replayed} of {len(row.each)} timed steps were replays"


def baseline(row: Row, settings: config.Config, manifest: Manifest, options, device: torch.device, rate: float) -> None:
    """The published style's step, in float32, on the same pairs' views."""
    from benchmarks.baselines.published_style import PublishedStyle, box_targets, pytorch_defaults

    row.precision = "float32"
    run = PublishedStyle(settings, device)
    run.net.train()
    samples = []
    for seed in range(BATCHES):
        raw = subjects.synthetic_batch(manifest, row.batch, torch.device("cpu"), seed)
        place = kernels.view_params(settings.seed, 0, raw.index, config.STORED_SIDE - config.SIZE)
        views = kernels.two_views(raw.frames, torch.arange(row.batch), *place, config.SIZE, torch.float32)
        sample = {"view1": views[0].contiguous(), "view2": views[1].contiguous(), "spect": raw.sound[:, :, None]}
        if run.supervised:
            boxes = torch.as_tensor(manifest.boxes[raw.index.numpy()])
            seen = kernels.view_boxes(boxes, *place, config.STORED_SIDE, config.SIZE)
            sample |= {f"target{v + 1}": box_targets(seen[v], settings.objective.consensus or 1) for v in range(2)}
            sample["labelled"] = torch.as_tensor(manifest.labelled[raw.index.numpy()])
        samples.append({name: value.to(device) for name, value in sample.items()})
    with pytorch_defaults():
        measure(row, lambda number: run.train_step(samples[number % BATCHES]), options, device, rate)


def rows_of(options, manifest: Manifest, device: torch.device, console, kept: Rows) -> Iterator[Row]:
    """Every row, measured one after another unless it was kept; for some no time may be left, and they say so."""
    begin = time.perf_counter()
    rates: dict[tuple[torch.dtype, bool], float] = {}
    modes = [*options.modes, *(["baseline"] if options.baseline else [])]
    plan = [
        (method, batch, mode)
        for method in options.methods
        for batch in options.batch
        for mode in modes
        if mode != "checkpointed" or subjects.has_pcm(method, options.model)
    ]
    checked: dict[str, str] = {}
    for number, (method, batch, mode) in enumerate(plan):
        row = Row(method, mode, batch)
        if row.key in kept:
            yield Row(**kept[row.key])
            continue
        left = options.budget - (time.perf_counter() - begin)
        if left < (options.budget / len(plan)) / 4:
            row.note = "skipped: the budget is used up"
            yield row
            continue
        options.seconds = left / (len(plan) - number) / 2
        overrides = ("--precision", options.precision, *mode_settings(mode, device))
        settings = subjects.settings_of(method, options.model, manifest, batch, *overrides, "--device", options.device)
        if options.check and method not in checked:
            checked[method] = check(settings, device)
            if checked[method]:
                console.print(f"{method}: {checked[method]}", highlight=False, soft_wrap=True)
        if checked.get(method, "").startswith("NOT"):
            row.note = "not timed: it does not compute what the baseline computes"
            yield row
            continue
        row.gflop_a_pair, row.gflop_by = subjects.step_gflop(method, options.model, settings)
        dtype = torch.float32 if mode == "baseline" else pick_precision(options.precision, device)
        kind = dtype, mode != "baseline" and options.precision == "tf32"
        if kind not in rates:
            rates[kind] = matmul_rate(device, *kind)
        try:
            (baseline if mode == "baseline" else ours)(row, settings, manifest, options, device, rates[kind])
        except torch.OutOfMemoryError:
            row.note = "out of memory"
        kept.add(row.key, asdict(row))
        torch.compiler.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield row


def mode_settings(mode: str, device: torch.device) -> tuple[str, ...]:
    """The overrides that make a mode. Batches are streamed ones: a graph gets a copy of their frames."""
    captured = mode == "captured" or (mode == "checkpointed" and device.type == "cuda")
    chosen = {
        "data.resident": "never",
        "compile": "on" if captured or mode == "compiled" else "off",
        "cuda_graphs": "on" if captured else "off",
        "model.pcm_checkpoint": str(mode == "checkpointed").lower(),
    }
    return tuple(part for name, value in chosen.items() for part in (f"--{name}", value))


def check(settings: config.Config, device: torch.device) -> str:
    """How far loss and gradients are from the baseline's, in words; begins with NOT where they are not the same."""
    from benchmarks.baselines.published_style import check as compare

    found = compare(settings, device)
    words = f"loss apart by {found.loss_error:.1e}, gradients by {found.gradient_error:.1e} (relative L2)"
    return f"{'same' if found.ok else 'NOT the same'} as the published style in float32: {words}"


def compare_first_losses(rows: list[Row]) -> None:
    """Marks compiled and other rows whose first loss is not the eager step's on the same batch, rounding aside.

    bf16 keeps 8 bits; over the depth of these networks its loss moves by under 2 %, float32's by under 0.1 %.
    """
    eager = {(r.method, r.batch): r.first_loss for r in rows if r.mode == "eager" and r.first_loss is not None}
    for row in rows:
        expected = eager.get((row.method, row.batch))
        if row.mode in ("eager", "baseline") or expected is None or row.first_loss is None:
            continue
        allowed = (1e-3 if row.precision == "float32" else 2e-2) * max(1.0, abs(expected))
        if not abs(row.first_loss - expected) <= allowed:
            row.note = f"WRONG: first loss {row.first_loss:.4f}, eager {expected:.4f}"


def table_of(rows: list[Row], title: str) -> Table:
    table = Table(title=title, caption="ms: median (10th-90th percentile). MFU: share of the measured matrix product")
    speed, cost = ("ms", "pairs/s", "TFLOP/s", "MFU, %"), ("GiB", "launches", "compile s", "warm-up s")
    for column in ("method", "mode", "B", "dtype", *speed, *cost, ""):
        left = column in ("method", "mode", "dtype", "")
        table.add_column(column, justify="left" if left else "right", no_wrap=column == "ms")
    for row in rows:
        if row.milliseconds is None:
            table.add_row(row.method, row.mode, str(row.batch), row.precision, *[""] * 8, row.note)
            continue
        counts, gib = row.launches or {}, row.saved_gib if row.peak_gib is None else row.peak_gib
        memory, compiling = "-" if gib is None else digits(gib), row.prepared.get("compile", 0.0)
        warm = sum(row.prepared.values()) - compiling
        launches = " + ".join(f"{n}" for name, n in counts.items() if n and name in SHOWN)
        table.add_row(
            row.method,
            row.mode,
            str(row.batch),
            row.precision,
            Times(row.milliseconds, row.low, row.high, []).text(),
            digits(row.pairs_per_second, 4),
            digits(row.tflop_per_second),
            f"{100 * row.mfu:.1f}",
            memory,
            launches,
            f"{compiling:.1f}",
            f"{warm:.1f}",
            "; ".join(filter(None, (row.note, Neighbours.warning(row.others)))),
        )
    return table


def headline(rows: list[Row]) -> str:
    """The fastest row by MFU, in words."""
    done = [row for row in rows if row.mfu is not None and row.mode != "baseline" and not row.note]
    if not done:
        return "nothing was measured"
    best = max(done, key=lambda row: row.mfu)
    text = f"{best.method} B={best.batch} {best.mode}: {digits(best.milliseconds)} ms, {100 * best.mfu:.1f}% MFU"
    same = [r for r in rows if r.mode == "baseline" and (r.method, r.batch) == (best.method, best.batch)]
    if same and same[0].milliseconds:
        text += f", {same[0].milliseconds / best.milliseconds:.1f}x the published style's step"
    return text


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=("full", "small"), help="networks (default: full on a GPU, else small)")
    parser.add_argument("--methods", help=f"of {','.join(subjects.METHODS)} (default: all)")
    parser.add_argument("--batch", help="batch sizes (default: 64,128,256,512 on a GPU, else 8,16)")
    parser.add_argument("--modes", help="of eager,compiled,captured,checkpointed (default: all on a GPU, else eager)")
    parser.add_argument("--baseline", action="store_true", help="the published-style step as well")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp16", "fp32", "tf32"))
    parser.add_argument("--repeats", type=int, default=30, help="timed steps at most (default: 30)")
    parser.add_argument("--warmup", type=int, default=3, help="steps after the first one, untimed (default: 3)")
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds for everything; the rest is skipped")
    parser.add_argument("--no-check", dest="check", action="store_false", help="do not compare with the baseline first")
    parser.add_argument("--work", type=Path, help="folder that keeps the small data set (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument(
        "--rows", type=Path, help="keep each row here when it is measured, and skip those that are there"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    device = pick_device(options.device)
    gpu = device.type == "cuda"
    options.device = str(device)
    options.model = options.model or ("full" if gpu else "small")
    options.methods = (options.methods or ",".join(subjects.methods_for(options.model))).split(",")
    options.batch = [int(b) for b in (options.batch or ("64,128,256,512" if gpu else "8,16")).split(",")]
    options.modes = (options.modes or (",".join(MODES[:4]) if gpu else "eager")).split(",")
    if unknown := [mode for mode in options.modes if mode not in MODES[:4]]:
        raise SystemExit(f"--modes: {unknown[0]} is none of {', '.join(MODES[:4])}")
    if "captured" in options.modes and not gpu:
        raise SystemExit("--modes: captured needs a GPU")
    if options.modes != ["eager"] and (gpu or "compiled" in options.modes):
        wants_compile("on", device)  # or an error that says what is missing
        keep_cache("")
    console = commands.console()
    environment = provenance.environment(device)
    with tempfile.TemporaryDirectory() as temporary:
        manifest = subjects.prepared_world(options.work or Path(temporary), videos=12, test_videos=2)
        rows: list[Row] = []
        for row in rows_of(options, manifest, device, console, Rows(options.rows, "step")):
            rows.append(row)
            compare_first_losses(rows)
            console.print(f"{row.method} {row.mode} B={row.batch}: {row.note or f'{digits(row.milliseconds)} ms'}")
            if options.json:  # after every row: a limit may end us at any time
                found = {"benchmark": "step", "headline": headline(rows), "environment": environment}
                found |= {"model": options.model, "rows": [asdict(row) for row in rows]}
                files.write_json(options.json, found)
    name = environment["machine"].get("gpu") or environment["machine"]["cpu"]
    console.print(table_of(rows, f"training step, {options.model} networks, {name}"))
    failed = [row for row in rows if row.note.startswith(("WRONG", "not timed"))]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
