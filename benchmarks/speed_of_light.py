"""python -m benchmarks.speed_of_light: every stage of a training step against the least time the chip allows it.

A stage's floor is the larger of two times: the bytes it must move (each input read once, each output written once,
weights and their gradients among them) over the copy bandwidth, and its arithmetic over the rate of the unit that does
it. Both ceilings are measured in the same process, before and after the stages, and the higher value counts: a copy far
beyond the caches (bytes read plus written), and a large product of random matrices, in the dtype of the step for
layers, in float32 without TF32 for the rest. What a stage keeps for its backward is not in its bytes: a perfect kernel
could compute it again.

FLOPs of layers are what PyTorch counts; of the other stages they are counted by hand, in the functions below. The
largest gap is the stage of the step with the most milliseconds above its floor. With --compile (the default on a GPU)
each stage is compiled by itself; in training the model is one graph, and on one GPU the whole step is replayed as a
CUDA graph, so the last rows compare the sum with a whole step. Log-mels and evaluation counts are not part of a step:
the loader makes the former, once a pair where it is resident.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import subjects
from benchmarks.processes import Neighbours
from benchmarks.rows import Rows, not_reached
from benchmarks.timing import Times, copy_rate, digits, matmul_rate, time_each
from essl_fast import config, kernels
from essl_fast.common import commands, files
from essl_fast.data.shards import SAMPLES
from essl_fast.runtime import provenance
from essl_fast.runtime.compiling import compile_graph, keep_cache, wants_compile
from essl_fast.runtime.devices import pick_device
from essl_fast.train import WARMUP, Trainer

LAYERS, VECTOR = "layers", "vector"  # whose rate bounds the arithmetic: matrix products in the step's dtype, float32
WHOLE = "whole step"


@dataclass
class Stage:
    """Something to time, and what it cannot avoid.

    Args:
        name: its row.
        run: what is timed; it gets what ``prepare`` returned, if there is one.
        bytes: how many must be moved.
        flop: how many must be computed; None: PyTorch counts them while ``run`` runs once.
        unit: LAYERS or VECTOR.
        prepare: run before each timed run, untimed.
        in_step: whether a training step holds it (evaluation counts are not part of one).
    """

    name: str
    run: Callable[..., Any]
    bytes: float
    flop: float | None = None
    unit: str = LAYERS
    prepare: Callable[[], Any] | None = None
    in_step: bool = True


@dataclass
class Found:
    """A stage's row."""

    name: str
    bytes: float
    flop: float
    unit: str
    floor_ms: float
    bound: str  # "bytes" or "FLOPs": which of the two makes the floor
    ms: float
    low: float
    high: float
    in_step: bool
    each: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Floor over measured time."""
        return self.floor_ms / self.ms

    @property
    def gap(self) -> float:
        """Milliseconds above the floor."""
        return self.ms - self.floor_ms


def size(*tensors: Tensor | None) -> int:
    """Bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def weights(module: torch.nn.Module, element: int) -> int:
    """Bytes of a module's parameters at ``element`` bytes each."""
    return element * sum(p.numel() for p in module.parameters())


def views_read(top: Tensor, left: Tensor) -> int:
    """Bytes of the frames that the two crops (2, B) of each pair cover: what both see is read once."""
    apart = [(each[0] - each[1]).abs().long() for each in (top, left)]
    shared = (config.SIZE - apart[0]) * (config.SIZE - apart[1])
    return 3 * int((2 * config.SIZE**2 - shared).sum())


def log_mel_flop(clips: int) -> float:
    """288 used frames of 3 s: window, 512-point real FFT (5/2 N log2 N), magnitude, two bands a bin, logarithm."""
    return clips * 288 * (400 + 2.5 * 512 * 9 + 257 * 4 + 257 * 2 * 2 + 64 * 2.0)


def count_flop(maps: int) -> float:
    """Evaluation counts of one map: bilinear (8 a pixel, twice: extremes, then threshold), scaling, boxes (4)."""
    return maps * config.SIZE**2 * (2 * 8 + 2 + 2 + 4.0)


class Bench:
    """The tensors of one step at batch B, stage by stage, as the trainer's networks see them."""

    def __init__(self, settings: config.Config, manifest, device: torch.device) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the frozen networks' weights are random
            self.trainer = Trainer(settings, manifest, device)
        self.model, self.dtype, self.device = self.trainer.model.train(), self.trainer.dtype, device
        self.raw = subjects.synthetic_batch(manifest, settings.data.batch_size, device)
        self.settings, self.batch = settings, settings.data.batch_size
        self.element = torch.finfo(self.dtype).bits // 8
        self.wrap = compile_graph if self.trainer.step.compiled else lambda f: f

    def autocast(self, function: Callable[..., Any], compiled: bool = True) -> Callable[..., Any]:
        """The function under the step's autocast, and, unless it only makes inputs, compiled where the step is."""
        kind, on = self.device.type, self.dtype != torch.float32
        compiled = self.wrap(function) if compiled else function

        def inner(*arguments: Any) -> Any:
            with torch.autocast(kind, self.dtype, enabled=on):
                return compiled(*arguments)

        return inner

    def both_ways(
        self,
        name: str,
        function: Callable[..., Tensor],
        inputs: list[Tensor],
        module: torch.nn.Module | None,
        flop: tuple[float | None, float | None] = (None, None),
        unit: str = LAYERS,
    ) -> Iterator[Stage]:
        """Forward and backward of ``function(*inputs)``; gradients go to the module and to inputs that require them."""
        forward = self.autocast(function)
        targets = [p for p in (module.parameters() if module is not None else ()) if p.requires_grad]
        targets += [t for t in inputs if t.requires_grad]
        out = forward(*inputs)
        gradient = torch.randn_like(out)
        held = weights(module, self.element) if module is not None else 0
        yield Stage(f"{name} forward", lambda: forward(*inputs), size(*inputs, out) + held, flop[0], unit)
        # The gradient comes in; inputs, unless only what follows frozen layers is trained, and trained weights are read
        # again; gradients of weights and inputs go out in their dtype.
        trained = [p for p in targets if isinstance(p, torch.nn.Parameter)]
        whole = module is None or len(trained) == len(list(module.parameters()))
        moved = size(out, *targets) + self.element * sum(p.numel() for p in trained) + (size(*inputs) if whole else 0)
        yield Stage(
            f"{name} backward",
            lambda given: torch.autograd.grad(given, targets, gradient, allow_unused=True),
            moved,
            flop[1],
            unit,
            prepare=lambda: forward(*inputs),
        )

    def stages(self) -> Iterator[Stage]:
        """All of a step, in its order; then the counts of an evaluation."""
        generator = torch.Generator().manual_seed(0)
        views = yield from self.views()
        log_mel = yield from self.log_mels(generator)
        maps = yield from self.networks(views, log_mel)
        yield from self.attention_and_head(maps)
        yield from self.losses(generator)
        yield from self.update()
        yield from self.counts()

    def views(self) -> Generator[Stage, None, Tensor]:
        """From stored frames to views; returns the views (2, B, 3, 224, 224)."""
        raw = self.raw
        top, left, flip = kernels.view_params(0, 0, raw.index, config.STORED_SIDE - config.SIZE)

        def make_views() -> Tensor:
            return kernels.two_views(raw.frames, raw.rows, top, left, flip, config.SIZE, self.dtype)

        views = make_views()
        yield Stage("two_views", make_views, views_read(top, left) + size(views), 3 * views.numel(), VECTOR)
        return views

    def log_mels(self, generator: torch.Generator) -> Generator[Stage, None, Tensor]:
        """From samples to VGGish examples, which is the loader's work; returns these, (B, 3, 96, 64) float32."""
        shape = (self.batch, SAMPLES)
        pcm = torch.randint(-20_000, 20_000, shape, dtype=torch.int16, generator=generator).to(self.device)
        log_mel = kernels.log_mel(pcm)
        moved = size(pcm, log_mel)
        yield Stage("log_mel", lambda: kernels.log_mel(pcm), moved, log_mel_flop(self.batch), VECTOR, in_step=False)
        return log_mel

    def networks(self, views: Tensor, log_mel: Tensor) -> Generator[Stage, None, Tensor]:
        """Trunk, audio network and, where the model has one, PCM; returns the trunk's maps (2 B, C, H, W)."""
        model, flat = self.model, views.flatten(0, 1)
        if model.freeze_trunk:
            trunk = self.autocast(lambda x: model.trunk(x, 2))

            @torch.no_grad()
            def run_trunk() -> Tensor:
                return trunk(flat)

            yield Stage("trunk", run_trunk, size(flat, run_trunk()) + weights(model.trunk, self.element))
        else:
            yield from self.both_ways("trunk", lambda x: model.trunk(x, 2), [flat], model.trunk)
        with torch.no_grad():
            maps = self.autocast(lambda x: model.trunk(x, 2), compiled=False)(flat)
            embedding, _ = self.autocast(model.audio, compiled=False)(log_mel)
        yield from self.both_ways("audio network", lambda x: model.audio(x)[1], [log_mel], model.audio)
        if model.pcm is not None:
            sound = embedding.repeat(2, 1)
            yield from self.both_ways("PCM", lambda v, a: model.pcm(v, a, 2), [maps, sound], model.pcm)
        return maps

    def attention_and_head(self, maps: Tensor) -> Iterator[Stage]:
        """The attention over maps (2 B, C, H, W) and the head on what it pools."""
        features = maps.detach().requires_grad_()
        audio = torch.randn(2 * self.batch, features.shape[1], device=self.device, requires_grad=True)
        places = features.numel()
        yield from self.both_ways(
            "attention",
            lambda v, a: kernels.audio_guided_attention(v, a).pooled,
            [features, audio],
            None,
            (6.0 * places, 10.0 * places),
            VECTOR,
        )
        pooled = torch.randn(2, self.batch, features.shape[1], device=self.device, requires_grad=True)
        yield from self.both_ways("head", lambda x: self.model.head(x)[0], [pooled], self.model.head)

    def update(self) -> Iterator[Stage]:
        """AdamW's update of all trained parameters, with gradients and moments of a step that was really made."""
        loss = self.trainer.train_step(self.raw)["loss"]
        if not torch.isfinite(loss):
            raise RuntimeError(f"the step's loss is {loss.item()}")
        optimizer = self.trainer.step.optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        moved = 7 * size(*parameters)  # reads weight, gradient, two moments; writes weight and moments
        yield Stage("optimizer", optimizer.step, moved, 12.0 * sum(p.numel() for p in parameters), VECTOR)

    def counts(self) -> Iterator[Stage]:
        """An evaluation's intersections and unions, which are no part of a step."""
        similarity = torch.rand(self.batch, 14, 14, device=self.device)
        boxes = self.trainer.data.labels.boxes[self.raw.index]
        yield Stage(
            "evaluation counts",
            lambda: kernels.localization_counts(similarity, boxes),
            size(similarity, boxes) + 16 * self.batch,
            count_flop(self.batch),
            VECTOR,
            in_step=False,
        )

    def losses(self, generator: torch.Generator) -> Iterator[Stage]:
        """The loss of the method, forward and backward together, from what the networks give."""
        batch, method = self.batch, self.settings.objective.method
        p = torch.randn(2, batch, 2048, generator=generator).to(self.device).requires_grad_()
        z = torch.randn(2, batch, 2048, generator=generator).to(self.device)
        attention = torch.rand(2, batch, 14, 14, generator=generator).to(self.device).requires_grad_()
        boxes, labelled = (known[self.raw.index] for known in self.trainer.data.labels)
        from essl_fast.models import Forward

        def loss_of(p: Tensor, z: Tensor, similarity: Tensor, attention: Tensor) -> Tensor:
            return self.trainer.step.objective(Forward(p, z, similarity, attention), boxes, labelled)["loss"]

        objective = self.autocast(loss_of)
        targets, flop, moved = [], 0.0, 0
        if method != "supervised":
            targets, flop, moved = [p], 8.0 * p.numel() + 6.0 * p.numel(), size(p, p, z)
        if method != "sspl":
            targets.append(attention)
            # A pixel: bilinear (8), membership (4), two logarithms and the rest of the cross-entropy (8), and back (8).
            flop += 2 * batch * config.SIZE**2 * 28.0
            moved += size(attention, attention, boxes)

        def run() -> Any:
            return torch.autograd.grad(objective(p, z, attention.detach(), attention), targets)

        yield Stage("losses, both ways", run, moved, flop, VECTOR)


def flop_of(stage: Stage) -> float:
    """What PyTorch counts while the stage runs once, uncompiled."""
    given = () if stage.prepare is None else (stage.prepare(),)
    with FlopCounterMode(display=False) as counter:
        stage.run(*given)
    return float(counter.get_total_flops())


def measure_ceilings(device: torch.device, dtype: torch.dtype, tf32: bool = False) -> dict[str, float]:
    """Bytes a second of a copy; FLOP a second of layers and of everything else."""
    layers = matmul_rate(device, dtype, tf32)
    vector = layers if dtype == torch.float32 and not tf32 else matmul_rate(device, torch.float32)
    return {"copy": copy_rate(device), LAYERS: layers, VECTOR: vector}


def beside_floor(stage: Stage, flop: float, times: Times, ceilings: dict[str, float]) -> Found:
    """A stage's times beside its floor."""
    by_bytes, by_flop = stage.bytes / ceilings["copy"], flop / ceilings[stage.unit]
    bound = "bytes" if by_bytes > by_flop else "FLOPs"
    return Found(
        stage.name,
        stage.bytes,
        flop,
        stage.unit,
        1e3 * max(by_bytes, by_flop),
        bound,
        *times[:3],
        stage.in_step,
        times.all,
    )


def whole_step(bench: Bench, options) -> Times:
    """The trainer's own step on the same batch."""
    step, seconds = bench.trainer.train_step, 2 * options.seconds
    ready = WARMUP + 1  # after which it is captured, where it is
    return time_each(lambda: step(bench.raw), bench.device, options.repeats, ready, seconds=seconds, flush=False)


def widest(found: list[Found]) -> Found:
    """The stage of a step that is furthest above its floor, in milliseconds."""
    return max((each for each in found if each.in_step), key=lambda each: each.gap)


def table_of(found: list[Found], step: Times | None, ceilings: dict[str, float], title: str) -> Table:
    """One row for each stage; where all were measured, also their sum beside the whole ``step``."""
    rates = [f"{unit} {digits(ceilings[unit] / 1e12)} TFLOP/s" for unit in (LAYERS, VECTOR)]
    caption = ", ".join(["ceilings measured in this run: copy " + digits(ceilings["copy"] / 1e9) + " GB/s", *rates])
    table = Table(title=title, caption=caption)
    for column in ("stage", "MB", "GFLOP", "floor, ms", "bound by", "ms", "reached, %", ""):
        table.add_column(column, justify="left" if column in ("stage", "bound by", "") else "right")
    furthest = widest(found)
    for each in found:
        notes = ["<-- largest gap"] if each is furthest else []
        notes += [] if each.in_step else ["not in the step"]
        table.add_row(
            each.name,
            digits(each.bytes / 1e6),
            digits(each.flop / 1e9),
            digits(each.floor_ms),
            each.bound,
            Times(each.ms, each.low, each.high, []).text(),
            f"{100 * each.share:.1f}",
            " ".join(notes),
        )
    if step is not None:
        inside = [each for each in found if each.in_step]
        floor, total = sum(e.floor_ms for e in inside), sum(e.ms for e in inside)
        table.add_section()
        table.add_row("sum of the step's", "", "", digits(floor), "", digits(total), f"{100 * floor / total:.1f}", "")
        table.add_row("whole step", "", "", digits(floor), "", step.text(), f"{100 * floor / step.median:.1f}", "")
    return table


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed_of_light", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=("full", "small"), help="networks (default: full on a GPU, else small)")
    parser.add_argument("--method", help="of the benchmarks' methods (default: semipl)", default="semipl")
    parser.add_argument("--batch", type=int, help="pairs (default: 128 on a GPU, else 8)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp16", "fp32", "tf32"))
    parser.add_argument("--compile", default="auto", choices=("auto", "on", "off"), help="default: on a GPU")
    parser.add_argument("--repeats", type=int, default=30, help="timed runs of a stage at most (default: 30)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a stage's timed runs, about (default: 2)")
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds; stages after that are not measured")
    parser.add_argument("--work", type=Path, help="folder that keeps the small data set (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument(
        "--rows", type=Path, help="keep each row here when it is measured, and skip those that are there"
    )
    return parser


@dataclass
class Result:
    """What has been measured so far."""

    title: str
    environment: dict
    ceilings: dict[str, float]
    step: Times | None = None
    timed: list[tuple[Stage, float, Times]] = field(default_factory=list)
    others: float = 0.0  # share of the machine's CPU time that other processes took
    complete: bool = False

    @property
    def found(self) -> list[Found]:
        return [beside_floor(*each, self.ceilings) for each in self.timed]

    def headline(self) -> str:
        furthest = widest(self.found)
        words = f"largest gap {furthest.name}, {digits(furthest.gap)} ms"
        if not self.complete:
            return f"CUT SHORT after {self.timed[-1][0].name}; so far {words}"
        floor = sum(each.floor_ms for each in self.found if each.in_step)
        return f"step at {100 * floor / self.step.median:.0f}% of its floor's speed; {words}"

    def notes(self) -> list[str]:
        """What a reader must know of the figures, one line each."""
        lines = [Neighbours.warning(self.others), "" if self.complete else self.headline()]
        if over := [each.name for each in self.found if each.share > 1.05]:
            lines.append(f"over 100%: {', '.join(over)}: the ceilings vary, or something else kept the machine busy")
        return [line for line in lines if line]

    def write(self, path: Path | None) -> None:
        if path is not None and self.timed:
            record = {"benchmark": "speed_of_light", "headline": self.headline(), "environment": self.environment}
            record |= {"title": self.title, "ceilings": self.ceilings, "step": self.step and self.step._asdict()}
            record |= {"stages": [asdict(each) for each in self.found], "others": self.others}
            files.write_json(path, {**record, "complete": self.complete})


def measure(bench: Bench, result: Result, counted: dict[str, float], kept: Rows, options) -> None:
    """Every stage and the whole step into the result, each kept when it is timed, as long as there is time."""
    for stage in bench.stages():
        if stage.name not in kept:
            if result.timed and kept.left() <= 0:
                kept.missed.append(stage.name)
                continue
            flop = (counted.get(stage.name) or flop_of(stage)) if stage.flop is None else stage.flop
            times = time_each(stage.run, bench.device, options.repeats, 3, stage.prepare, seconds=options.seconds)
            kept.add(stage.name, {"flop": flop, "times": times})
        result.timed.append((stage, kept[stage.name]["flop"], Times(*kept[stage.name]["times"])))
        result.write(options.json)  # a limit may end us at any time
    # Last: its first step compiles, which may take all the time that is left.
    if WHOLE not in kept and kept.left() > 0:
        kept.add(WHOLE, {"times": whole_step(bench, options)})
    if WHOLE in kept:
        result.step = Times(*kept[WHOLE]["times"])
    else:
        kept.missed.append(WHOLE)
    result.complete = not kept.missed


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    device = pick_device(options.device)
    gpu = device.type == "cuda"
    model = options.model or ("full" if gpu else "small")
    batch = options.batch or (128 if gpu else 8)
    console, environment = commands.console(), provenance.environment(device)
    begin, neighbours = time.perf_counter(), Neighbours()
    with tempfile.TemporaryDirectory() as temporary:
        manifest = subjects.prepared_world(options.work or Path(temporary), videos=12, test_videos=2)
        compiled = "on" if wants_compile(options.compile, device) else "off"
        if compiled == "on":
            keep_cache("")
        overrides = ("--data.resident", "never", "--device", str(device), "--precision", options.precision, "--compile")
        plain, wanted = (
            subjects.settings_of(options.method, model, manifest, batch, *overrides, mode) for mode in ("off", compiled)
        )
        counted = {}
        if compiled == "on":  # PyTorch counts what it dispatches, and a compiled stage dispatches less than it computes
            bench = Bench(plain, manifest, device)
            counted = {stage.name: flop_of(stage) for stage in bench.stages() if stage.flop is None}
            bench.trainer.loader.close()
        bench = Bench(wanted, manifest, device)
        name, tf32 = environment["machine"].get("gpu") or environment["machine"]["cpu"], options.precision == "tf32"
        dtype = str(bench.dtype).removeprefix("torch.") + ", compiled" * bench.trainer.step.compiled
        dtype += ", captured" * (bench.trainer.step.stepper.captures and compiled == "on")
        title = f"{options.method}, {model} networks, B = {batch}, {dtype}, {name}"
        result = Result(title, environment, measure_ceilings(device, bench.dtype, tf32))
        kept = Rows(options.rows, "speed_of_light", options.budget - (time.perf_counter() - begin))
        measure(bench, result, counted, kept, options)
        bench.trainer.loader.close()
        again, result.others = measure_ceilings(device, bench.dtype, tf32), neighbours.share()
    result.ceilings = {name: max(rate, again[name]) for name, rate in result.ceilings.items()}
    console.print(table_of(result.found, result.step if result.complete else None, result.ceilings, title))
    for note in [*result.notes(), not_reached(kept)]:
        console.print(note, highlight=False, soft_wrap=True)
    result.write(options.json)
    return 0 if result.complete else 1


if __name__ == "__main__":
    sys.exit(main())
