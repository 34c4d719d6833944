"""Where a training step's time goes: named stages, a torch.profiler trace, and a table.

The stages of a step are always marked, which costs about a microsecond each. They show as NVTX ranges in Nsight
Systems, and as ranges of the same names in a trace of `train --profile`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from essl_fast.runtime.stages import PREFIX, STAGES


class StepProfile:
    """A trace of ``steps`` training steps, after ``skip`` steps that warm up and compile.

    Call :meth:`step` at the end of every step; once the trace is written it does nothing. The trace is
    ``folder``/trace.json, for chrome://tracing or Perfetto.
    """

    def __init__(self, folder: Path, device: torch.device, steps: int = 20, skip: int = 5) -> None:
        self.folder, self.device, self.steps, self.skip = folder, device, steps, skip
        self.done = self.traced = 0
        self.seconds = 0.0
        self.table: Table | None = None
        self.stages: dict[str, tuple[float, float]] = {}  # milliseconds per step on the host, on the device
        self.operators: list[tuple[str, float]] = []  # the slowest operators: name, milliseconds per step
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        if device.type != "cuda":  # else the profiler prints that it has found no GPU
            os.environ.setdefault("KINETO_LOG_LEVEL", "5")
        self._profile = profile(activities=activities, acc_events=True)

    @property
    def finished(self) -> bool:
        """Whether the trace is written."""
        return self.table is not None

    def step(self) -> None:
        """Count a training step that has just ended; start or end the trace if it is time."""
        self.done += 1
        if self.done == self.skip:
            self._wait()
            self._profile.start()
            self._begin = time.perf_counter()
        elif self.done == self.skip + self.steps:
            self.close()

    def close(self) -> None:
        """End the trace, even if it has fewer steps; nothing happens if it has not begun or has ended."""
        if self.finished or self.done <= self.skip:
            return
        self._wait()
        self.seconds = time.perf_counter() - self._begin
        self._profile.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self.folder / "trace.json"))
        self.traced = self.done - self.skip
        self._measure(self.traced)
        self.table = self._table(self.traced)

    @property
    def step_ms(self) -> float:
        """Milliseconds per step; 0 before the trace is written."""
        return 1e3 * self.seconds / self.traced if self.finished else 0.0

    def record(self) -> dict:
        """What was measured, as plain values."""
        stages = {name: {"host_ms": host, "device_ms": device} for name, (host, device) in self.stages.items()}
        return {"device": str(self.device), "step_ms": self.step_ms, "stages": stages, "operators": self.operators}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _measure(self, steps: int) -> None:
        """Fill ``stages`` and ``operators``."""
        gpu = self.device.type == "cuda"
        found = self._profile.key_averages()
        names = dict.fromkeys((*STAGES, *(e.key.removeprefix(PREFIX) for e in found if e.key.startswith(PREFIX))))
        for name in names:
            # A range that launches kernels is listed twice: its time on the host, and its span on the GPU.
            events = [event for event in found if event.key == PREFIX + name]
            on_gpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
            on_host = [event for event in events if event not in on_gpu]
            if events:
                host = sum(event.cpu_time_total for event in on_host)
                device = sum(event.device_time_total for event in on_gpu or on_host)
                self.stages[name] = host / steps / 1e3, device / steps / 1e3 if gpu else host / steps / 1e3
        kernels = [
            e
            for e in found
            if not e.key.startswith(PREFIX) and (not gpu or e.device_type == torch.autograd.DeviceType.CUDA)
        ]
        spent = [(e.key, (e.self_device_time_total if gpu else e.self_cpu_time_total) / steps / 1e3) for e in kernels]
        self.operators = sorted(spent, key=lambda pair: -pair[1])[:10]

    def _table(self, steps: int) -> Table:
        """A table of milliseconds per step by stage: on the host, and on the GPU if there is one."""
        gpu = self.device.type == "cuda"
        table = Table(title=f"{1e3 * self.seconds / steps:.2f} ms a step, over {steps} steps")
        for heading in ("stage", "host ms", *(["GPU ms"] if gpu else []), "share, %"):
            table.add_column(heading, justify="left" if heading == "stage" else "right")
        for name, (host, device) in self.stages.items():
            share = 100 * (device if gpu and name != "data" else host) * steps / 1e3 / self.seconds
            table.add_row(name, f"{host:.2f}", *([f"{device:.2f}"] if gpu else []), f"{share:.1f}")
        table.caption = "shares are of the time a step takes; " + (
            "of the GPU's time, but for data, where the host waits" if gpu else "the rest is bookkeeping"
        )
        if "step" in self.stages:
            table.caption += "; step is a CUDA graph: --cuda_graphs off shows the stages in it"
        return table
