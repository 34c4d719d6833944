"""Times of something that runs again and again, and the ceilings of the machine that it runs on."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Times(NamedTuple):
    """Milliseconds of repeated runs."""

    median: float
    low: float  # the 10th and the 90th percentile
    high: float
    all: list[float]

    @classmethod
    def of(cls, milliseconds: list[float]) -> "Times":
        ordered = sorted(milliseconds)
        tenth = (len(ordered) - 1) // 10
        return cls(statistics.median(ordered), ordered[tenth], ordered[-1 - tenth], milliseconds)

    def text(self) -> str:
        """ "12.3 (12.1-12.6)"."""
        return f"{digits(self.median)} ({digits(self.low)}-{digits(self.high)})"


def digits(value: float, most: int = 3) -> str:
    """A number with three significant digits."""
    if not value or abs(value) >= 10 ** (most - 1):
        return f"{value:,.0f}"
    after = most - 1 - int(torch.tensor(abs(value), dtype=torch.float64).log10().floor())
    return f"{value:.{min(after, 6)}f}"


def time_each(
    run: Callable[..., Any],
    device: torch.device,
    repeats: int,
    warmup: int = 2,
    prepare: Callable[[], Any] | None = None,
    seconds: float = float("inf"),
    flush: bool = True,
) -> Times:
    """Times ``run(prepare())``; only ``run`` counts: measured with events on a GPU, with the clock on a CPU.

    ``warmup`` runs come first, then ``repeats`` runs, or as many as fit into ``seconds`` if they take as long as the
    last warm-up run, but at least two. On a GPU, runs are queued one behind the other, as in training. ``flush``: write
    a buffer larger than any L2 cache between them, so that no run finds its inputs there.
    """
    gpu = device.type == "cuda"
    cold = torch.empty(256 << 20, dtype=torch.int8, device=device) if gpu and flush else None

    ahead = 0  # clock cycles for which the GPU sleeps before each run

    def one() -> Any:
        given = () if prepare is None else (prepare(),)
        if not gpu:
            before = time.perf_counter()
            run(*given)
            return 1e3 * (time.perf_counter() - before)
        if ahead:  # the host is done asking before the GPU begins: else a short kernel's time is the host's
            torch.cuda._sleep(ahead)
        if cold is not None:
            cold.zero_()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run(*given)
        stop.record()
        return start, stop

    def wait() -> float:
        if gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    last = 0.0
    for _ in range(warmup):
        begin = wait()
        one()
        last = wait() - begin
    if gpu:
        ahead = max(1_000_000, int(3e9 * last))
    if seconds < float("inf") and last > 0:
        repeats = min(repeats, max(2, int(seconds / last) - warmup))
    spans = [one() for _ in range(repeats)]
    wait()
    return Times.of([start.elapsed_time(stop) for start, stop in spans] if gpu else spans)


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read plus written, of a copy far larger than the caches."""
    size = (2 << 30) if device.type == "cuda" else (128 << 20)
    source = torch.ones(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    times = time_each(lambda: target.copy_(source), device, repeats=10)
    return 2 * size / (times.median / 1e3)


def matmul_rate(device: torch.device, dtype: torch.dtype, tf32: bool = False) -> float:
    """FLOP a second of a large matrix product of random numbers; float32 without TF32 unless that is asked for."""
    side = 8192 if device.type == "cuda" else 1024
    if device.type == "cuda" and dtype == torch.float32:
        side = 4096
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        times = time_each(lambda: torch.mm(a, b, out=out), device, repeats=10)
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * side**3 / (times.median / 1e3)
