"""python -m benchmarks.kernels: the Triton kernels against eager PyTorch and torch.compile of the same formulas.

For each op and size, forward and forward + backward: milliseconds, GB/s of the bytes that the op cannot avoid (each
input read once, each output and gradient written once), and these as a share of the copy bandwidth measured in the same
run. Sizes lie inside an H200's L2 cache (50 MB), where inputs are left in it between runs, and past it, where a buffer
larger than the cache is written between runs.

Before anything is timed, results and gradients are compared with the reference in float64: the error may be at most
twice that of eager PyTorch in the inputs' own type (plus float32's rounding). A row that fails is marked and not timed.

`--tune` measures each kernel's few candidates first and keeps the fastest for this machine; `--pin FILE` writes all
that was measured as the repository's pins (essl_fast/kernels/pinned.json).

Without a GPU, eager and compiled are timed on the CPU at small sizes; ours runs interpreted if TRITON_INTERPRET=1 is
set, is checked, and is not timed.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor
from triton.runtime.errors import OutOfResources

from benchmarks.rows import Rows, not_reached
from benchmarks.timing import Times, copy_rate, digits, time_each
from essl_fast.common import commands, files
from essl_fast.kernels import attention, attention_backward, cosine, pixel_bce, pixel_bce_kernels, reference, tuning
from essl_fast.runtime import provenance
from essl_fast.runtime.devices import pick_device

CANDIDATES = {
    "attention_forward": attention.candidates,
    "attention_backward": attention_backward.candidates,
    cosine.OP: cosine.candidates,
    "pixel_bce": pixel_bce_kernels.candidates,
}


@dataclass
class Subject:
    """An op at a size: its inputs, which of them get gradients, and the bytes that it must move."""

    op: str
    size: str
    ours: Callable[..., Tensor]  # of the inputs: what the backward starts from, (result, ...) or a result
    plain: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    trained: tuple[int, ...]  # positions of the inputs that get gradients
    forward_bytes: int
    both_bytes: int  # forward and backward
    fits_l2: bool


@dataclass
class Row:
    """One implementation of one op at one size."""

    op: str
    size: str
    what: str  # forward, or forward + backward
    way: str  # eager, compiled or ours
    milliseconds: float | None = None
    low: float | None = None
    high: float | None = None
    each: list[float] = field(default_factory=list)
    gigabytes_per_second: float | None = None
    of_copy: float | None = None  # share of the copy's rate
    note: str = ""


def _normal(*shape: int, device: torch.device, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype)


def attention_subject(batch: int, channels: int, side: int, dtype: torch.dtype, device: torch.device) -> Subject:
    features = _normal(batch, channels, side, side, device=device, dtype=dtype, seed=0)
    features = features.contiguous(memory_format=torch.channels_last)
    audio = _normal(batch, channels, device=device, dtype=dtype, seed=1)
    moved = features.nbytes + audio.nbytes + 4 * batch * (channels + 2 * side * side)
    # Backward: features and the small things in once more, gradients of both inputs out.
    return Subject(
        "attention",
        f"{batch} x {channels} x {side} x {side} {_short(dtype)}",
        attention.audio_guided_attention,
        reference.audio_guided_attention,
        (features, audio),
        (0, 1),
        moved,
        2 * moved + features.nbytes + audio.nbytes,
        3 * features.nbytes < 30e6,
    )


def cosine_subject(batch: int, width: int, dtype: torch.dtype, device: torch.device) -> Subject:
    inputs = tuple(_normal(batch, width, device=device, dtype=dtype, seed=seed) for seed in range(4))
    moved = sum(x.nbytes for x in inputs)
    return Subject(
        "cosine",
        f"{batch} x {width} {_short(dtype)}",
        cosine.negative_cosine_similarity,
        reference.negative_cosine_similarity,
        inputs,
        (0, 1),
        moved,
        moved + inputs[0].nbytes + inputs[1].nbytes,
        2 * moved < 30e6,
    )


def pixel_bce_subject(batch: int, side: int, size: int, device: torch.device) -> Subject:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(batch, side, side, generator=generator).to(device)
    corner = torch.randint(0, size // 2, (batch, 1, 2), generator=generator)
    boxes = torch.cat([corner, corner + torch.randint(1, size // 2, (batch, 1, 2), generator=generator)], 2)
    labelled = torch.ones(batch, dtype=torch.bool, device=device)

    def ours(maps: Tensor) -> Tensor:
        return pixel_bce(maps, on_device, labelled, 1, size)

    def plain(maps: Tensor) -> Tensor:
        return reference.pixel_bce(maps, on_device, labelled, 1, size)

    on_device = boxes.int().to(device)
    moved = maps.nbytes + on_device.nbytes + labelled.nbytes
    name = f"{batch} x {side} x {side} to {size}"
    return Subject("pixel_bce", name, ours, plain, (maps,), (0,), moved, moved + maps.nbytes, True)


def subjects(device: torch.device) -> Iterator[Subject]:
    """Training's shapes (two views of 128 pairs), smaller ones that fit the L2 cache, larger ones far past it."""
    if device.type != "cuda":
        yield attention_subject(2, 24, 5, torch.float32, device)
        yield attention_subject(2, 32, 4, torch.bfloat16, device)
        yield cosine_subject(3, 40, torch.float32, device)
        yield pixel_bce_subject(2, 5, 16, device)
        return
    for batch in (256, 32, 64, 1024):  # training's first: it decides what --tune keeps for its shape class
        yield attention_subject(batch, 512, 14, torch.bfloat16, device)
    yield attention_subject(256, 512, 14, torch.float32, device)
    for batch in (128, 1024, 16384):
        yield cosine_subject(batch, 2048, torch.bfloat16, device)
    for batch in (256, 64, 2048):
        yield pixel_bce_subject(batch, 14, 224, device)


def _short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32")


def _parts(result) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def results_of(function: Callable, subject: Subject, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Results and gradients in float64; the inputs in dtype, or as they are."""
    inputs = [x.detach().to(dtype) if dtype and x.is_floating_point() else x.detach().clone() for x in subject.inputs]
    for at in subject.trained:
        inputs[at].requires_grad_()
    parts = _parts(function(*inputs))
    upstream = [torch.ones_like(part) / part.numel() for part in parts]
    gradients = torch.autograd.grad(parts, [inputs[at] for at in subject.trained], upstream)
    return [x.detach().double() for x in (*parts, *gradients)]


def fault_of(subject: Subject) -> str:
    """What is wrong with our results; empty where they err at most twice as much as eager PyTorch."""
    if not tuning.runs_here(subject.inputs[0]):
        return "not run: no GPU"
    exact = results_of(subject.plain, subject, torch.float64)
    eager, ours = results_of(subject.plain, subject), results_of(subject.ours, subject)
    for number, (truth, theirs, mine) in enumerate(zip(exact, eager, ours, strict=True)):
        scale = truth.norm().clamp(min=1e-30)
        allowed = 2 * ((theirs - truth).norm() / scale).item() + 1e-6
        if not subject.inputs[0].is_cuda and subject.inputs[0].dtype == torch.bfloat16:
            allowed *= 2  # Triton's interpreter cuts bfloat16 off where a GPU rounds it
        error = ((mine - truth).norm() / scale).item()
        if not error <= allowed:
            return f"WRONG: result {number} is off by {error:.1e}, {allowed:.1e} allowed"
    return ""


def runs_of(function: Callable, subject: Subject) -> dict[str, Callable[[], object]]:
    """What is timed: the forward without gradients, and forward and backward."""
    inputs = [x.detach().clone() for x in subject.inputs]
    trained = [x.detach().clone() for x in subject.inputs]
    for at in subject.trained:
        trained[at].requires_grad_()
    leaves = [trained[at] for at in subject.trained]

    def forward() -> object:
        with torch.no_grad():
            return function(*inputs)

    def used() -> tuple[Tensor, ...]:
        # As in training: of the attention, the pooled vector and the map.
        parts = _parts(function(*trained))
        return parts if len(parts) == 1 else (parts[0], parts[2])

    upstream = [torch.ones_like(part) for part in used()]

    def both() -> object:
        return torch.autograd.grad(used(), leaves, upstream)

    return {"forward": forward, "forward + backward": both}


def measure(subject: Subject, device: torch.device, rate: float, repeats: int) -> Iterator[Row]:
    """Rows of one op at one size."""
    fault = fault_of(subject)
    torch.compiler.reset()
    ways = {"eager": subject.plain, "compiled": torch.compile(subject.plain, dynamic=False), "ours": subject.ours}
    for way, function in ways.items():
        for what, run in runs_of(function, subject).items():
            row = Row(subject.op, subject.size, what, way)
            if way == "ours" and (fault or device.type != "cuda"):
                row.note = fault or "right; interpreted, so not timed"
                yield row
                continue
            times: Times = time_each(run, device, repeats, warmup=5, flush=not subject.fits_l2)
            moved = subject.forward_bytes if what == "forward" else subject.both_bytes
            row.milliseconds, row.low, row.high, row.each = times.median, times.low, times.high, times.all
            row.gigabytes_per_second = moved / times.median / 1e6
            row.of_copy = 1e3 * moved / times.median / rate
            yield row


def measure_all(chosen: list[Subject], device: torch.device, rate: float, repeats: int, kept: Rows) -> list[Row]:
    """Rows of all ops and sizes for which there is time, each kept when it is measured; those of before included."""
    sizes = {f"{subject.op}, {subject.size}": subject for subject in chosen}
    for name, _ in kept.planned(list(sizes)):
        found = []
        for row in measure(sizes[name], device, rate, repeats):
            found.append(row)
            kept.add(f"{name}, {row.what}, {row.way}", asdict(row))
        kept.add(name, {"rows": [asdict(row) for row in found]})  # all of this size
    return [Row(**row) for name in sizes if name in kept for row in kept[name]["rows"]]


def tune(subject: Subject, device: torch.device, repeats: int, done: set[tuple[str, str]]) -> list[str]:
    """Measures the candidates of every kernel that the op launches, keeps the fastest right one; in words.

    ``done`` has the shape classes of earlier subjects, which are not measured again, and gets these.
    """
    run = runs_of(subject.ours, subject)["forward + backward"]
    before = set(tuning.picked())
    run()
    lines = []
    for op, shape_class in sorted(set(tuning.picked()) - before - done):
        done.add((op, shape_class))
        found = []
        for config in CANDIDATES[op](shape_class):
            with tuning.forced(op, shape_class, config):
                try:
                    fault = fault_of(subject)
                    if not fault:
                        times = time_each(run, device, repeats, warmup=5, flush=not subject.fits_l2)
                        found.append((times.median, config))
                except (OutOfResources, RuntimeError) as error:
                    fault = f"{type(error).__name__}: {error}"
            if fault:
                lines.append(f"{op} {shape_class}: left out {config.arguments()}: {fault}")
        if not found:
            raise RuntimeError(f"{op} {shape_class}: no candidate works: " + "; ".join(lines))
        fastest, config = min(found, key=lambda pair: pair[0])
        tuning.remember(tuning.chip_of(device), op, shape_class, config)
        times = ", ".join(digits(1e3 * time) for time, _ in found)
        lines.append(f"{op} {shape_class}: {times} us; kept {config.arguments()} ({digits(1e3 * fastest)} us)")
    return lines


def table_of(rows: list[Row], title: str) -> Table:
    """Rows as they come, ours with its speed over eager's."""
    table = Table(title=title, caption="median (10th-90th percentile); GB/s of the bytes that cannot be avoided")
    for column in ("op", "size", "what", "way", "ms", "GB/s", "of copy, %", "x eager", ""):
        left = column in ("op", "size", "what", "way", "")
        table.add_column(column, justify="left" if left else "right", no_wrap=column == "ms")
    eager = {(r.op, r.size, r.what): r.milliseconds for r in rows if r.way == "eager"}
    for row in rows:
        if row.milliseconds is None:
            table.add_row(row.op, row.size, row.what, row.way, "", "", "", "", row.note)
            continue
        times = Times(row.milliseconds, row.low, row.high, [])
        ratio = eager[row.op, row.size, row.what] / row.milliseconds
        table.add_row(
            row.op,
            row.size,
            row.what,
            row.way,
            times.text(),
            digits(row.gigabytes_per_second),
            f"{100 * row.of_copy:.1f}",
            f"{ratio:.1f}",
            row.note,
        )
    return table


def headline(rows: list[Row]) -> str:
    """Our best share of the copy bandwidth, in words."""
    done = [row for row in rows if row.way == "ours" and row.of_copy is not None]
    if not done:
        return "ours was not timed: there is no GPU"
    best = max(done, key=lambda row: row.of_copy)
    return f"{best.op} {best.size} {best.what}: {100 * best.of_copy:.0f}% of the copy bandwidth"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--ops", default="attention,cosine,pixel_bce", help="some of them (default: all)")
    parser.add_argument("--repeats", type=int, default=50, help="timed runs of each (default: 50)")
    parser.add_argument("--tune", action="store_true", help="measure each kernel's candidates first; needs a GPU")
    parser.add_argument("--pin", type=Path, metavar="FILE", help="write what --tune has measured here to this file")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument(
        "--rows", type=Path, help="keep each row here when it is measured, and skip those that are there"
    )
    parser.add_argument("--budget", type=float, default=7200.0, help="seconds; sizes after that are not measured")
    options = parser.parse_args(argv)
    kept = Rows(options.rows, "kernels", options.budget)
    device = pick_device(options.device)
    if (options.tune or options.pin) and device.type != "cuda":
        raise SystemExit("--tune and --pin need a GPU: candidates are measured")
    console = commands.console()
    environment = provenance.environment(device)
    if unknown := set(options.ops.split(",")) - {"attention", "cosine", "pixel_bce"}:
        raise SystemExit(f"--ops: {', '.join(sorted(unknown))} is none of attention, cosine, pixel_bce")
    tuning.CPU_TOO = tuning.CPU_TOO or (tuning.INTERPRETED and device.type == "cpu")
    chosen = [subject for subject in subjects(device) if subject.op in options.ops.split(",")]
    done: set[tuple[str, str]] = set()
    tuned = [line for one in chosen for line in tune(one, device, options.repeats, done)] if options.tune else []
    for line in tuned:
        console.print(line, soft_wrap=True, highlight=False)
    if options.pin:
        pinned = json.loads(options.pin.read_text()) if options.pin.exists() else {}
        measured = tuning.measured_file(tuning.chip_of(device))
        if not measured.exists():
            raise SystemExit(f"--pin: nothing was measured here yet ({measured} is missing); use --tune first")
        for chip, ops in json.loads(measured.read_text()).items():
            for op, classes in ops.items():
                pinned.setdefault(chip, {}).setdefault(op, {}).update(classes)
        options.pin.write_text(json.dumps(pinned, indent=1, sort_keys=True) + "\n")
    rate = copy_rate(device)
    rows = measure_all(chosen, device, rate, options.repeats, kept)
    name = environment["machine"].get("gpu") or environment["machine"]["cpu"]
    console.print(table_of(rows, f"kernels on {name}; copy: {digits(rate / 1e9)} GB/s, read and written"))
    if line := not_reached(kept):
        console.print(line, highlight=False, soft_wrap=True)
    if options.json:
        found = {"benchmark": "kernels", "headline": headline(rows), "environment": environment, "tuned": tuned}
        files.write_json(options.json, {**found, "copy_bytes_per_second": rate, "rows": [asdict(r) for r in rows]})
    return 1 if any(row.note.startswith("WRONG") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
