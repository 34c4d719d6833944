"""What a run leaves behind: JSON lines, the environment, progress on the terminal."""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from essl_fast.files import atomic_file

PACKAGES = ("torch", "torchaudio", "triton", "nvidia-dali-cuda130", "numpy", "av", "soxr")


def source_revision() -> dict:
    """Git commit of the source ("-dirty" where it differs), if it is a clone, and a digest of the package's files."""
    package = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\0".encode() + file.read_bytes())
    commit = None
    if (package.parent / ".git").exists():
        command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
            commit = done.stdout.strip() or None
        except (OSError, subprocess.TimeoutExpired):
            commit = None  # no git on this machine: the digest still names the source
    return {"commit": commit, "sha256": digest.hexdigest()}


def environment(device: torch.device) -> dict:
    """Versions, machine and source, as plain values."""
    from essl_fast.kernels import native

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    machine = {"system": platform.platform(), "cpu": _cpu_name(), "cores": len(os.sched_getaffinity(0))}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
    return {
        "python": platform.python_version(),
        "packages": versions,
        "csrc": native.build_info() if native.available() else {"missing": native.why_unavailable()},
        "machine": machine,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "source": source_revision(),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor()
    return platform.processor()


class RunLog:
    """Appends one JSON object a line to a file: {"event": ..., "time": seconds since the epoch, ...}.

    A last line that a crash cut short is removed first: nothing can be appended to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if self.path.exists():
            held = self.path.read_bytes()
            os.truncate(self.path, held.rfind(b"\n") + 1)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, event: str, **values) -> None:
        self._file.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class NoLog:
    """In place of a RunLog, where another rank writes it."""

    def write(self, event: str, **values) -> None:
        """Writes nothing."""

    def close(self) -> None:
        """Has nothing to close."""


def read_log(path: Path) -> list[dict]:
    """The objects of a JSON-lines file; a last line cut short by a crash is left out."""
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class EpochBars:
    """A bar over all epochs: loss, pairs/s, share of time waiting for data, time left. In a pipe, lines alone."""

    def __init__(self, console: Console, epochs: int, steps: int, done: int = 0) -> None:
        self.console, self.epochs, self.steps = console, epochs, steps
        columns = [
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        ]
        self._bar = Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("train", total=epochs * steps, completed=done, epoch="", text="")

    def __enter__(self) -> "EpochBars":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def step(self, epoch: int, text: str = "") -> None:
        """Advance by one step; ``text`` (kept when empty) is shown beside the bar."""
        fields = {"text": text} if text else {}
        self._bar.update(self._task, advance=1, epoch=f"{epoch + 1}/{self.epochs}", **fields)

    def line(self, text: str) -> None:
        """A line that stays."""
        self._bar.console.print(text, highlight=False, soft_wrap=True)


def console(quiet: bool = False) -> Console:
    """Wide enough in a pipe that no line of ours is wrapped. quiet: prints nothing."""
    return Console(width=None if sys.stdout.isatty() else 132, quiet=quiet)


def write_json(path: Path, value: dict) -> None:
    """Write JSON so that the file is whole or not there."""
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=1, allow_nan=False).encode() + b"\n")
