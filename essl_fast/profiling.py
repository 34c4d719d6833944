"""Where a training step's time goes: named stages, a torch.profiler trace, and a table.

The stages of a step are marked all the time, which costs about a microsecond each: in Nsight Systems they show as NVTX
ranges, in a trace of `train --profile` as ranges of the same names.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

STAGES = ("data", "views", "log-mel", "forward", "backward", "optimizer")
_PREFIX = "essl_fast: "


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Marks what runs inside as the stage ``name``, one of STAGES. Not for use inside a compiled function."""
    with record_function(_PREFIX + name):
        if torch.cuda.is_available():
            with torch.cuda.nvtx.range(name):
                yield
        else:
            yield


class StepProfile:
    """A trace of ``steps`` training steps, after ``skip`` that warm up and compile.

    Call :meth:`step` at the end of every step; it does nothing once the trace is written. ``folder`` gets trace.json,
    for chrome://tracing or Perfetto.
    """

    def __init__(self, folder: Path, device: torch.device, steps: int = 20, skip: int = 5) -> None:
        self.folder, self.device, self.steps, self.skip = folder, device, steps, skip
        self.done = 0
        self.seconds = 0.0
        self.table: Table | None = None
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        self._profile = profile(activities=activities, acc_events=True)

    @property
    def finished(self) -> bool:
        return self.table is not None

    def step(self) -> None:
        self.done += 1
        if self.done == self.skip:
            self._wait()
            self._profile.start()
            self._begin = time.perf_counter()
        elif self.done == self.skip + self.steps:
            self.close()

    def close(self) -> None:
        """Ends the trace, also one that has fewer steps; nothing where it has not begun or has ended."""
        if self.finished or self.done <= self.skip:
            return
        self._wait()
        self.seconds = time.perf_counter() - self._begin
        self._profile.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self.folder / "trace.json"))
        self.table = self._table(self.done - self.skip)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _table(self, steps: int) -> Table:
        """Milliseconds a step of each stage: on the host, and on the GPU where there is one."""
        gpu = self.device.type == "cuda"
        found = self._profile.key_averages()
        table = Table(title=f"{1e3 * self.seconds / steps:.2f} ms a step, over {steps} steps")
        for heading in ("stage", "host ms", *(["GPU ms"] if gpu else []), "share, %"):
            table.add_column(heading, justify="left" if heading == "stage" else "right")
        rows = []
        for name in STAGES:
            # A range that launches kernels comes twice: as the host saw it, and as its span on the GPU.
            events = [event for event in found if event.key == _PREFIX + name]
            on_gpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
            on_host = [event for event in events if event not in on_gpu]
            if events:
                host = sum(event.cpu_time_total for event in on_host)
                device = sum(event.device_time_total for event in on_gpu or on_host)
                rows.append((name, host / steps / 1e3, device / steps / 1e3))
        for name, host, device in rows:
            share = 100 * (device if gpu and name != "data" else host) * steps / 1e3 / self.seconds
            table.add_row(name, f"{host:.2f}", *([f"{device:.2f}"] if gpu else []), f"{share:.1f}")
        table.caption = "shares are of the time a step takes; " + (
            "of the GPU's time, but for data, where the host waits" if gpu else "the rest is bookkeeping"
        )
        return table
