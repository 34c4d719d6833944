"""Every method and precision through Trainer's own step on fake CUDA tensors, the update included; and evaluation.

A step must not wait for the GPU, must not mix devices, and must leave losses, gradients and moments in the form that
the next step and the CUDA graph expect. Fakes of our own ops are met on the way: one that is missing ends the step.
"""

import contextlib
import gc
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from essl_fast import config, kernels
from essl_fast.data.loading.rows import gather_rows
from essl_fast.data.loading.settings import LoaderSettings
from essl_fast.doctor import machine
from essl_fast.evaluate import centre_view, metrics
from essl_fast.kernels import fp8
from essl_fast.models.audio_input import Embeddings
from essl_fast.runtime import distributed, provenance
from essl_fast.runtime.devices import pick_device
from essl_fast.runtime.distributed import World
from essl_fast.train import Trainer
from essl_fast.train import step as training_step
from essl_fast.train.accumulation import joined
from essl_fast.train.graphs import WARMUP, Stepper
from essl_fast.train.opening import slower_parts
from tests.phantom.chip import GPU, pretend
from tests.phantom.chips import CHIPS
from tests.phantom.entering import noted
from tests.phantom.training import batch_for, fused_convolutions, make_trainer, ranks, sound_of
from tests.phantom.watching import Watch, same_form

CONFIGS = ("sspl", "sspl_pcm", "semipl", "lss", "lss_semi", "demo")
PRECISIONS = ("bf16", "fp16", "fp32", "tf32")
CYCLES = {False: "--model.pcm_cycles 1", True: ""}  # of the PCM: the others launch what the first launches
ODD = 59  # pairs: no power of two divides it

# configuration, further settings
VARIANTS = {
    "supervised": ("semipl", "--objective.method supervised"),
    "supervised, sigmoid": ("semipl", "--objective.method supervised --objective.supervised_map sigmoid"),
    "semipl, clipped": ("semipl", "--optim.clip_norm 1 --optim.schedule cosine"),
    "semipl, checkpointed": ("semipl", "--model.pcm_checkpoint true"),
    "semipl, no cycles": ("semipl", "--model.pcm_cycles 0"),
    "semipl, fp8 trunk": ("semipl", "--model.trunk_fp8 true"),
}


def state_faults(trainer: Trainer, losses: dict[str, Tensor]) -> Iterator[str]:
    """A line for each tensor that a step left on the wrong device, or in the wrong dtype, shape or layout."""
    scalar = torch.empty((), device=GPU)
    for name, value in losses.items():
        yield from same_form(f"loss {name}", value, scalar)
    for name, value in trainer.model.named_parameters():
        if value.device != GPU:
            yield f"parameter {name} is on {value.device}"
        if value.requires_grad and value.grad is None and "blend" not in name:
            yield f"parameter {name} got no gradient"
        if value.grad is not None:
            yield from same_form(f"gradient of {name}", value.grad, value)
    for name, value in trainer.model.named_buffers():
        if value.device != GPU:
            yield f"buffer {name} is on {value.device}"
    for parameter, state in trainer.step.optimizer.state.items():
        for name, value in state.items():
            yield from same_form(f"optimizer's {name}", value, scalar if name == "step" else parameter)


def step_faults(name: str, precision: str, overrides: str = "", size: int = 0) -> list[str]:
    """Two steps, the first of which makes the optimizer's moments, with the second watched.

    Args:
        name, precision, overrides: of the configuration.
        size: pairs of the batch; 0: as configured, which is the size that cuDNN's engines are timed for.
    """
    with pretend(CHIPS["h200"]):
        trainer = make_trainer(name, precision, *f"--compile off --cuda_graphs off {overrides}".split())
        batch = batch_for(trainer, size or trainer.settings.data.batch_size)
        trainer.train_step(batch)
        with Watch() as watch:
            losses = trainer.train_step(batch)
        timed = [] if watch.timed == {not size} else [f"cuDNN's engines are timed: {watch.timed}"]
        return [*watch.faults, *timed, *state_faults(trainer, losses)]


class Capture:
    """A `Capture` of train/graphs.py: while it records, what a CUDA graph forbids is a fault."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def run(self, work: Any) -> Tensor:
        return work().clone()

    def record(self, work: Any) -> Tensor:
        capturing = mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: True)
        with Watch() as watch, capturing:
            result = work()
        self.faults += watch.faults + [f"{name} is captured" for name in watch.collectives]
        return result

    def replay(self) -> None:
        pass


def capture_faults() -> list[str]:
    """The step is warmed up, captured and replayed as on a GPU."""
    with pretend(CHIPS["h200"]):
        words = "--compile off --cuda_graphs off --model.pcm_cycles 1 --optim.schedule cosine".split()
        trainer, capture = make_trainer("semipl", "bf16", *words), Capture()
        step = trainer.step
        size = trainer.settings.data.batch_size
        step.stepper = Stepper(step._body, step.optimizer, size, capture, must_capture=True, device=GPU)
        batch = batch_for(trainer, size)
        for _ in range(2 * WARMUP):
            trainer.train_step(batch)
        expected = {"plain": WARMUP, "replayed": WARMUP}
        wrong = [] if step.stepper.counts == expected else [f"steps ran as {step.stepper.counts}, not {expected}"]
        return capture.faults + wrong


def capture_of_ranks_faults() -> list[str]:
    """One of two processes that take batches by turns: its graph holds no collective, and nothing after it waits."""
    with ranks(2) as world, pretend(CHIPS["h200"]):
        capture = Capture()
        words = "--compile off --cuda_graphs on --data.global_batch 512 --optim.accumulate 4 --data.last_batch drop"
        with mock.patch.object(training_step, "CudaCapture", lambda device: capture):
            trainer = make_trainer("semipl", "bf16", *f"{words} {CYCLES[False]} --optim.ema 0.9".split(), world=world)
        one = batch_for(trainer, config.own_batch(trainer.settings, 2))
        batch = joined([one, one])
        for _ in range(2 * WARMUP):
            with Watch() as watch:
                losses = trainer.train_step(batch)
        counts, expected = trainer.step.stepper.counts, {"plain": WARMUP, "replayed": WARMUP}
        wrong = [] if counts == expected else [f"steps ran as {counts}, not {expected}"]
        if watch.calls["c10d.allreduce_.default"] != 3:  # how many pairs are labelled, gradients, running statistics
            wrong.append(f"a replayed step exchanges by {watch.collectives}")
        return [*capture.faults, *watch.faults, *wrong, *state_faults(trainer, losses)]


def evaluation_faults(name: str, precision: str) -> list[str]:
    """Embeddings or log-mel, the centre view, maps and counts of a batch that is evaluated."""
    with pretend(CHIPS["h200"]):
        trainer = make_trainer(name, precision, *"--compile off --cuda_graphs off".split())
        model, dtype, size = trainer.model.eval(), trainer.dtype, 64
        with fused_convolutions():
            model.prepare(dtype)
        frames = torch.empty(size + 7, config.SIZE, config.SIZE, 3, dtype=torch.uint8, device=GPU)
        rows = torch.empty(size, dtype=torch.int64, device=GPU)
        samples = torch.empty(size, 48000, dtype=torch.int16, device=GPU)
        boxes = torch.empty(size, 4, 4, dtype=torch.int32, device=GPU)
        embedded = trainer.settings.model.audio == "vggish"
        with Watch() as watch, torch.inference_mode():
            sound = Embeddings(model.audio, dtype)(samples) if embedded else kernels.log_mel(samples)
            views = centre_view(frames, dtype, rows)
            with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                similarity = model.attend_maps(model.frame_maps(views), sound)[0].similarity[0]
            ciou = metrics.ciou(similarity, boxes, 1)
        wrong = same_form("sound", sound, sound_of(model, size, sound.dtype, embedded))
        wrong += same_form("cIoU", ciou, torch.empty(size, device=GPU), ciou.dtype)
        return watch.faults + wrong


def failed_compile_faults(chip: str = "h200") -> list[str]:
    """A step whose compiler fails goes on uncompiled."""

    def refuse(function: Any) -> Any:
        def called(*given: Any) -> Any:
            raise RuntimeError("ptxas: no")

        return called

    with pretend(CHIPS[chip]), mock.patch.object(training_step, "compile_graph", refuse):
        words = "--compile auto --cuda_graphs off --model.pcm_cycles 1".split()
        trainer = make_trainer("semipl", "bf16", *words)
        batch = batch_for(trainer, trainer.settings.data.batch_size)
        trainer.train_step(batch)
        losses = trainer.train_step(batch)
        told = [] if any("ptxas: no" in note for note in trainer.step.notes) else ["nothing is said of the compiler"]
        return told + list(state_faults(trainer, losses))


def answers_faults(name: str = "h200") -> list[str]:
    """Small functions that ask about the GPU, and what they answer."""
    chip, pair = CHIPS[name], World(1, 2, 0)
    with pretend(chip):
        frames, rows = torch.empty(5, 246, 246, 3, dtype=torch.uint8, device=GPU), torch.empty(4, device=GPU).long()
        windows = [torch.empty(2, 4, device=GPU).to(kind) for kind in (torch.int32, torch.int32, torch.bool)]
        loading = {"splits": ["train"], "batch_size": 4, "side": 246, "shuffle": True, "device": "cuda"}
        trainer = make_trainer("demo", "auto", *"--compile off --cuda_graphs off".split())
        trainer.data.pools = types.SimpleNamespace(notes=[])
        answers = {
            "pick_device": (pick_device("auto"), torch.device("cuda")),
            "own_device": (distributed.own_device("auto", pair), "cuda:0"),
            "environment": (provenance.environment(GPU)["machine"]["gpu"], chip.name),
            "loader's device": (
                LoaderSettings(**loading).device,
                GPU,
            ),
            "check_gpu": (next(iter(machine.check_gpu(None))).values["chip"], f"sm_{chip.arch}"),
            "gpu_chips": (machine.gpu_chips(), [f"sm_{chip.arch}"]),
            "two_views": (kernels.two_views(frames, rows, *windows).dtype, torch.bfloat16),
            "random_views": (kernels.random_views(frames, rows, rows, 0, 0)[0].dtype, torch.bfloat16),
            "reference": (kernels.reference.two_views(frames, rows, *windows).dtype, torch.bfloat16),
            "gather_rows": (gather_rows(frames, rows).shape, (4, 246, 246, 3)),
            "auto precision": (trainer.dtype, torch.bfloat16),
            "fp8": (fp8.runs(GPU, torch.bfloat16), chip.arch >= 89),
            "slower parts": ([line for line in slower_parts(trainer) if "GPU" in line], []),
        }
    return [f"{name} answers {have}, not {want}" for name, (have, want) in answers.items() if have != want]


class Case(NamedTuple):
    """A check."""

    name: str
    run: Callable[[], list[str]]  # its faults
    noted: bool = False  # whether it notes which functions are called, which takes half as long again


def cases(everything: bool) -> Iterator[Case]:
    """All checks, or those of continuous integration."""
    for name in CONFIGS:
        for precision in PRECISIONS if everything or name == "semipl" else ("bf16",):
            noted = name in ("semipl", "demo") and precision == "bf16"
            yield Case(f"{name} {precision}", partial(step_faults, name, precision, CYCLES[everything]), noted)
    for title, (name, overrides) in VARIANTS.items():
        cycles = "" if "cycles" in overrides else CYCLES[everything]
        yield Case(title, partial(step_faults, name, "bf16", f"{overrides} {cycles}"), "fp8" in title)
    yield Case(f"semipl, {ODD} pairs", partial(step_faults, "semipl", "bf16", CYCLES[False], ODD))
    yield Case("captured", capture_faults, noted=True)
    yield Case("captured, of two ranks", capture_of_ranks_faults)
    yield Case("a compile that fails", failed_compile_faults, noted=True)
    yield Case("answers", answers_faults, noted=True)
    for name in CONFIGS if everything else ("semipl", "demo"):
        yield Case(f"evaluation {name} bf16", partial(evaluation_faults, name, "bf16"), name == "semipl")


def check(everything: bool) -> Iterator[tuple[str, list[str]]]:
    """(name, faults) of each check, one after another."""
    for case in cases(everything):
        with warnings.catch_warnings(), noted() if case.noted else contextlib.nullcontext():
            warnings.simplefilter("ignore")
            try:
                faults = case.run()
            except Exception as error:  # whatever ends a step here would end it on a GPU
                said = (str(error).strip().splitlines() or [""])[0]
                faults = [f"{type(error).__name__}: {said}"]
        yield case.name, [f"{case.name}: {fault}" for fault in faults]
        gc.collect()
