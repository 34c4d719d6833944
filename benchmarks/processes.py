"""Python processes with a time limit, for benchmarks that must not disturb each other."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
GRACE = 5.0  # seconds from SIGTERM to SIGKILL
# Runs the interpreter in its own place, after it has asked Linux to be killed when the process that started it ends.
# Else, after a SIGKILL of that one, it would keep the GPU busy beside whoever comes next.
LEASH = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)


def group_cpu_seconds() -> float:
    """CPU time so far of this process's group: its own, that of its workers, and that of the children it waited for.

    Other programs on the machine make the wall-clock time longer, but not this.
    """
    ticks, group = 0, os.getpgrp()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()  # from the state on: the name may hold anything
        except OSError:
            continue  # it has ended
        if int(fields[2]) == group:
            ticks += sum(int(field) for field in fields[11:15])  # user and system, its own and its children's
    return ticks / os.sysconf("SC_CLK_TCK")


class Neighbours:
    """What share of the machine's CPU time others than this process's group have taken since this was made.

    Where it is much, times cannot be compared: two threads that share a core with a third one may take ten times as
    long, since each waits for the other.
    """

    MUCH = 0.05

    def __init__(self) -> None:
        self._begin = (_machine_cpu_seconds(), group_cpu_seconds(), time.perf_counter())

    def share(self) -> float:
        """From 0 to 1 of all cores' time."""
        machine, group, clock = self._begin
        others = (_machine_cpu_seconds() - machine) - (group_cpu_seconds() - group)
        cores = os.cpu_count() or 1
        return min(1.0, max(0.0, others / max(1e-9, cores * (time.perf_counter() - clock))))

    @classmethod
    def warning(cls, share: float) -> str:
        """A warning for the reader; "" if it was little."""
        return f"others took {100 * share:.0f}% of the CPUs' time meanwhile" if share > cls.MUCH else ""


def _machine_cpu_seconds() -> float:
    """CPU seconds that the machine has spent on anything but waiting."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and waiting for a disk


class Ended(NamedTuple):
    """How a process ended."""

    code: int | None  # None: it was stopped at its limit
    seconds: float
    last_line: str  # of its output, "" if there was none


def stop_group(process: subprocess.Popen) -> None:
    """End a process and what it started: SIGTERM, then SIGKILL. It leads a process group of its own."""
    for number, wait in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(wait)
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def run_python(arguments: Sequence[str], limit: float, log: Path) -> Ended:
    """Run this interpreter in the clone with ``arguments``, ``limit`` seconds at most; all output goes to ``log``."""
    begin = time.perf_counter()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "132"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", LEASH, str(os.getpid()), *arguments],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also where the user stops us
            if process.poll() is None:
                stop_group(process)
    lines = log.read_text(errors="replace").splitlines()
    return Ended(code, time.perf_counter() - begin, lines[-1].strip() if lines else "")
