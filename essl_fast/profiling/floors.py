"""The least time that a training step could take on a machine: what it must compute and move, over what the machine was
just measured to do.

FLOPs are those of convolutions and matrix products, as PyTorch counts them on tensors that hold no data: nothing is
computed for that. Bytes are the inputs read once and the outputs written once. Both ceilings come from a fraction of a
second each: a large product of matrices in the step's dtype, and a copy far larger than the caches.
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

OPTIMIZER_BYTES = 28  # AdamW, a float32 parameter: reads it, its gradient and two moments; writes all but the gradient


class Flop(NamedTuple):
    """Of one pair in a training step."""

    forward: float
    backward: float

    @property
    def step(self) -> float:
        return self.forward + self.backward


class Ceilings(NamedTuple):
    """What a device was measured to do."""

    flop: float  # a second, of a matrix product
    copy: float  # bytes a second, read plus written
    dtype: str  # of that product


class Floor(NamedTuple):
    """The least seconds a stage could take, and why."""

    seconds: float
    why: str


def step_flop(settings: config.Config, embedded: bool = False) -> Flop:
    """What a training step costs, a pair. ``embedded``: the frozen part of the audio network has run already."""
    batch = 2  # batch norm needs two
    with warnings.catch_warnings(), FakeTensorMode():
        warnings.simplefilter("ignore")
        model, objective = models.build(settings.model).train(), objectives.build(settings.objective)
        views = torch.empty(2, batch, 3, config.SIZE, config.SIZE)
        sound = torch.empty(batch, 3, 128) if embedded else torch.empty(batch, 3, 96, 64)
        boxes = torch.zeros(2, batch, 1, 4, dtype=torch.int32)
        with FlopCounterMode(display=False) as counter:
            losses = objective(model(views, sound), boxes, torch.ones(batch, dtype=torch.bool))
            forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            losses["loss"].backward()
            backward = counter.get_total_flops()
    return Flop(forward / batch, backward / batch)


def measure(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> Ceilings:
    """Both ceilings of a device, for about ``seconds`` each."""
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
    """Seconds of the fastest call of those that fit into ``seconds``, three at least, after one that warms up: what
    the machine can do, whoever else was using it meanwhile."""
    spans: list[float] = []
    end = time.perf_counter() + seconds
    while len(spans) < 4 or time.perf_counter() < end:
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spans.append(time.perf_counter() - begin)
    return min(spans[1:])


def floors(flop: Flop, batch: int, trained: int, ceilings: Ceilings, bytes_a_value: int) -> dict[str, Floor]:
    """Of each stage of a step (profiling.STAGES) that has one. ``trained``: parameters; ``bytes_a_value``: of views."""
    rate = f"at {_scaled(ceilings.flop)}FLOP/s, this machine's {ceilings.dtype} matrix product"
    copied = f"at {_scaled(ceilings.copy)}B/s, this machine's copy"
    views = 2 * batch * 3 * config.SIZE**2 * (1 + bytes_a_value)
    moved = OPTIMIZER_BYTES * trained
    found = {"data": Floor(0.0, "a batch that is ready when it is asked for costs no time")}
    found["views"] = Floor(views / ceilings.copy, f"{_scaled(views)}B {copied}")
    for name in ("forward", "backward"):
        work = batch * getattr(flop, name)
        found[name] = Floor(work / ceilings.flop, f"{_scaled(work)}FLOP {rate}")
    found["optimizer"] = Floor(moved / ceilings.copy, f"{_scaled(moved)}B {copied}")
    whole = sum(floor.seconds for floor in found.values())
    found["step"] = Floor(whole, f"{_scaled(batch * flop.step)}FLOP {rate}, and the bytes of views and optimizer")
    return found


def _scaled(value: float) -> str:
    """Three digits and the unit's prefix: 16 T, 8.88 G, 61.2 M."""
    size, prefix = next(((size, p) for size, p in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if value >= size), (1.0, ""))
    return f"{value / size:.3g} {prefix}"
