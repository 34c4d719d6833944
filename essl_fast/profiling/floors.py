"""The least time that a training step could take on a machine.

It is the work of the step (FLOPs and bytes) divided by the rates that the machine reached in a measurement just before.
FLOPs are those of convolutions and matrix products; PyTorch counts them on tensors without data, so it computes
nothing. Bytes are the inputs read once and the outputs written once. Each rate is measured in a fraction of a second:
with a large matrix product in the step's dtype, and with a copy of far more bytes than the caches hold.
"""

import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from essl_fast import config, models
from essl_fast.models import objectives

# AdamW, per float32 parameter: it reads the parameter, its gradient and two moments, and writes all but the gradient.
OPTIMIZER_BYTES = 28


class Flop(NamedTuple):
    """Floating-point operations per pair of a training step."""

    forward: float
    backward: float

    @property
    def step(self) -> float:
        return self.forward + self.backward


class Ceilings(NamedTuple):
    """The measured rates of a device."""

    flop: float  # FLOP/s of a matrix product
    copy: float  # bytes/s of a copy, read plus written
    dtype: str  # of the product


class Floor(NamedTuple):
    """The least time that a stage could take, in seconds, and why."""

    seconds: float
    why: str


def step_flop(settings: config.Config, embedded: bool = False) -> Flop:
    """The cost of a training step, per pair.

    Args:
        settings: of the run.
        embedded: batches carry the audio network's embeddings, so that its frozen part is not part of the step.
    """
    batch = 2  # batch norm needs two
    with warnings.catch_warnings(), FakeTensorMode():
        warnings.simplefilter("ignore")
        model, objective = models.build(settings.model).train(), objectives.build(settings.objective)
        views = torch.empty(2, batch, 3, config.SIZE, config.SIZE)
        sound = torch.empty(batch, 3, model.audio.embedding_dim) if embedded else torch.empty(batch, 3, 96, 64)
        boxes = torch.zeros(2, batch, 1, 4, dtype=torch.int32)
        with FlopCounterMode(display=False) as counter:
            losses = objective(model(views, sound), boxes, torch.ones(batch, dtype=torch.bool))
            forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            losses["loss"].backward()
            backward = counter.get_total_flops()
    return Flop(forward / batch, backward / batch)


def measure_ceilings(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> Ceilings:
    """Measure both rates of a device, for about ``seconds`` each."""
    gpu = device.type == "cuda"
    side = (8192 if dtype != torch.float32 else 4096) if gpu else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = _best(lambda: torch.mm(a, b, out=out), device, seconds)
    size = (1 << 30) if gpu else (64 << 20)
    source = torch.ones(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copy = _best(lambda: target.copy_(source), device, seconds)
    return Ceilings(2 * side**3 / product, 2 * size / copy, str(dtype).removeprefix("torch."))


def _best(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest call, which other work on the machine disturbs least.

    As many calls as fit into ``seconds``, at least three, after one that warms up.
    """
    spans: list[float] = []
    end = time.perf_counter() + seconds
    while len(spans) < 4 or time.perf_counter() < end:
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spans.append(time.perf_counter() - begin)
    return min(spans[1:])


def stage_floors(
    flop: Flop, batch: int, trained: int, ceilings: Ceilings, bytes_per_value: int, ranks: int = 1
) -> dict[str, Floor]:
    """The floors of a step's stages (names of runtime/stages.py), and of its CUDA graph as "step".

    Args:
        flop: cost per pair.
        batch: pairs per step.
        trained: trained parameters.
        ceilings: the machine's rates.
        bytes_per_value: bytes per value of the views.
        ranks: processes that train together; of several, the graph does not hold the update.
    """
    rate = f"at {_scaled(ceilings.flop)}FLOP/s, this machine's {ceilings.dtype} matrix product"
    copied = f"at {_scaled(ceilings.copy)}B/s, this machine's copy"
    views = 2 * batch * 3 * config.SIZE**2 * (1 + bytes_per_value)
    moved = OPTIMIZER_BYTES * trained
    found = {"data": Floor(0.0, "a batch that is ready when it is asked for costs no time")}
    found["views"] = Floor(views / ceilings.copy, f"{_scaled(views)}B {copied}")
    for name in ("forward", "backward"):
        work = batch * getattr(flop, name)
        found[name] = Floor(work / ceilings.flop, f"{_scaled(work)}FLOP {rate}")
    update = Floor(moved / ceilings.copy, f"{_scaled(moved)}B {copied}")
    whole = sum(floor.seconds for floor in found.values()) + update.seconds * (ranks == 1)
    others = "the bytes of views" + " and optimizer" * (ranks == 1)
    step = Floor(whole, f"{_scaled(batch * flop.step)}FLOP {rate}, and {others}")
    return found | {"optimizer": update, "step": step}


def _scaled(value: float) -> str:
    """A number with three digits and the prefix of its unit: 16 T, 8.88 G, 61.2 M."""
    size, prefix = next(((size, p) for size, p in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if value >= size), (1.0, ""))
    return f"{value / size:.3g} {prefix}"
