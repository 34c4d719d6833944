"""python -m benchmarks.gpu_suite --out DIR --call 1, then --call 2: what a GPU must show, each call in under 7 minutes.

    --call 1   about 40 of the GPU's tests, the native ops, the Triton kernels, the loader
    --call 2   the training step eager and captured, whole epochs end to end, every stage beside its floor

The calls stand alone; without --call both run, one after the other. `--rehearse` runs them on a CPU at tiny sizes: it
says that everything runs, not how fast.

Each task is a process with a time limit, its share of the call's budget. What one does not use goes to those after it;
one that would get too little is not begun, and the table says so. DIR/rows.jsonl gets a line for every finished row,
through to the disk, so that a kill loses none. The same command goes on from there and skips what is in it: tests that
passed, rows that were measured, tasks that ended well. DIR/cache keeps compiled code and the small data sets for the
next call; DIR/NAME.log has a task's output. The table comes last: it survives where only the end of the output is kept.

What a host lacks (DALI, PyAV) is said, and the tasks that need it are skipped.
"""

import argparse
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.processes import GRACE, run_python
from benchmarks.rows import Rows, read
from benchmarks.smoke import LOADED, SMOKE
from essl_fast.common import commands

BUDGET = 400.0  # seconds a call: under 7 minutes with the start of this process
REHEARSAL = 1200.0  # of a rehearsal: whoever else uses the CPU must not decide how it ends
OK, FAILED, TIMED_OUT, SKIPPED = "ok", "failed", "timed out", "skipped"
LOADING = ("nvidia.dali", "av")


@dataclass(frozen=True)
class Task:
    """One process of the suite.

    Args:
        name: the name of its log, of its rows and of its line in the table.
        call: 1 or 2.
        arguments: of the Python interpreter; {rows}, {limit}, {out} and {data} are filled in.
        wants: seconds that it takes in full on an H200. Its share of the budget is in proportion to this.
        least: seconds below which it is not started.
        tiny: further arguments for a rehearsal; they come last, so they win.
        needs: modules without which it is skipped.
        source: whose rows it writes, if another name.
    """

    name: str
    call: int
    arguments: tuple[str, ...]
    wants: float
    least: float
    tiny: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    source: str = ""


def benchmark(call: int, name: str, wants: float, least: float, words: str = "", tiny: str = "", **more) -> Task:
    """A benchmark of this folder, which takes --rows and --budget. ``name`` may say which part of it: "step: eager"."""
    module = name.split(":")[0]
    arguments = f"-m benchmarks.{module} --rows {{rows}} --budget {{limit}} {words}"
    return Task(name, call, tuple(arguments.split()), wants, least, tuple(tiny.split()), source=module, **more)


TESTS = "-m pytest -q -m gpu -p no:cacheprovider -p benchmarks.deadline --deadline {limit} --rows {rows}"
STEP = "--methods semipl,sspl --batch 128 --modes eager,captured --work {data}"
TINY_STEP = "--methods semipl --batch 4 --modes eager --repeats 2 --no-check"
WHOLE = "--methods semipl --sides resident,baseline --epochs 3 --videos 640 --work {data}"
TINY_WHOLE = "--videos 12 --epochs 1 --sides resident --batch 4 --workers 1"
TASKS = (
    Task("smoke", 1, (*TESTS.split(), *SMOKE), 80, 30),
    Task("smoke: loading", 1, (*TESTS.split(), *LOADED), 40, 20, needs=LOADING, source="smoke"),
    benchmark(1, "native", 70, 20, tiny="--batch 4 --evaluated 8 --seconds 0.2 --repeats 2"),
    benchmark(1, "kernels", 110, 20, tiny="--ops cosine --repeats 2"),
    benchmark(
        1,
        "loader",
        90,
        30,
        "--rounds 1 --seconds 3 --work {data}",
        "--videos 12 --seconds 0.1 --ways jpeg,resident --batch 4",
        needs=(*LOADING, "h5py"),
    ),
    benchmark(2, "step", 190, 30, STEP, TINY_STEP, needs=LOADING),
    benchmark(2, "end_to_end", 100, 40, WHOLE, TINY_WHOLE, needs=(*LOADING, "h5py")),
    benchmark(2, "speed_of_light", 90, 20, "--work {data}", "--batch 2 --repeats 2", needs=LOADING),
)


@dataclass
class Outcome:
    """How a task ended."""

    name: str
    state: str  # OK, FAILED, TIMED_OUT or SKIPPED
    seconds: float
    limit: float
    note: str = ""


def share_of(remaining: float, task: Task, later: Sequence[Task]) -> float:
    """Seconds for a task: its part of what remains, in proportion to what it and those after it want."""
    return remaining * task.wants / (task.wants + sum(other.wants for other in later))


def missing(task: Task) -> list[str]:
    """The modules that a task needs and that are not installed."""

    def is_there(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # of a package above it
            return False

    return [module for module in task.needs if not is_there(module)]


def run_task(task: Task, limit: float, out: Path, tiny: bool) -> Outcome:
    """Run one task under its limit; its output goes to DIR/NAME.log."""
    log = out / f"{task.name.replace(': ', '-')}.log"
    arguments = [*task.arguments, *(task.tiny if tiny else ())]
    marks = {
        "rows": out / "rows.jsonl",
        "limit": f"{max(1, limit - GRACE):.0f}",
        "out": out,
        "data": out / "cache/data",
    }
    for mark, value in marks.items():
        arguments = [part.replace(f"{{{mark}}}", str(value)) for part in arguments]
    before = len(rows_of(task, out))
    ended = run_python(arguments, limit, log)
    after = rows_of(task, out)
    note = f"{len(after) - before} rows" + (f" beside the {before} that were there" if before else "")
    if wrong := sum(row["value"].get("outcome") == "failed" for row in after):
        note += f", {wrong} failed"
    if ended.code is None:
        return Outcome(task.name, TIMED_OUT, ended.seconds, limit, f"stopped at its limit of {limit:.0f} s; {note}")
    if ended.code:
        note = f"exit code {ended.code}: {ended.last_line[:100]}; {note}"
        return Outcome(task.name, FAILED, ended.seconds, limit, note)
    return Outcome(task.name, OK if after else FAILED, ended.seconds, limit, note if after else "it left no row")


def rows_of(task: Task, out: Path) -> list[dict]:
    """The rows that a task's process has left so far."""
    return [row for row in read(out / "rows.jsonl") if row["task"] == (task.source or task.name)]


def run_call(tasks: Sequence[Task], out: Path, budget: float, tiny: bool, console) -> list[Outcome]:
    """Run the tasks that are not done yet, one after another, within ``budget`` seconds."""
    begin, outcomes, done = time.perf_counter(), [], Rows(out / "rows.jsonl", "suite")
    for number, task in enumerate(tasks):
        if task.name in done and done[task.name]["state"] == OK:
            was = done[task.name]
            outcomes.append(Outcome(task.name, OK, was["seconds"], was["limit"], f"done before: {was['note']}"))
            continue
        remaining = budget - (time.perf_counter() - begin)
        later = [other for other in tasks[number + 1 :] if not missing(other)]
        limit = share_of(remaining, task, later)
        if lacks := missing(task):
            outcome = Outcome(task.name, SKIPPED, 0.0, 0.0, f"this host has no {', '.join(lacks)}")
        elif limit < task.least:
            left = f"{max(0, remaining):.0f} s of the budget were left, its share {max(0, limit):.0f} s"
            outcome = Outcome(task.name, SKIPPED, 0.0, limit, f"not reached: {left}; it needs {task.least:.0f}")
        else:
            console.rule(f"{task.name}: {limit:.0f} s at most")
            outcome = run_task(task, limit, out, tiny)
            log = out / f"{task.name.replace(': ', '-')}.log"
            for line in log.read_text(errors="replace").splitlines()[-40:]:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            if limit < task.wants and not tiny:
                outcome.note += f"; shortened: {limit:.0f} of the {task.wants:.0f} s it wants"
        done.add(task.name, vars(outcome))
        outcomes.append(outcome)
    return outcomes


def summary(outcomes: Sequence[Outcome], seconds: float, title: str) -> Table:
    """One row for each task."""
    table = Table(title=f"{title}: {seconds:.0f} s in all")
    for column in ("", "result", "s", "of", ""):
        table.add_column(column, justify="right" if column in ("s", "of") else "left", overflow="fold")
    for each in outcomes:
        table.add_row(each.name, each.state, f"{each.seconds:.0f}", f"{each.limit:.0f}", each.note)
    return table


def environment() -> dict:
    """What the results depend on, for the rows and for the check that a folder's rows belong together."""
    import torch

    from essl_fast.runtime import provenance

    return provenance.environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def open_folder(out: Path, found: dict, tiny: bool) -> None:
    """Make the folder, or check that what it holds is of this code on this kind of device.

    Raises:
        SystemExit: it is not.
    """
    (out / "cache" / "data").mkdir(parents=True, exist_ok=True)
    for name, part in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        os.environ[name] = str((out / "cache" / part).resolve())
    device = found["machine"].get("gpu") or found["machine"]["cpu"]
    this = {"device": device, "source": found["source"]["sha256"], "rehearsal": tiny}
    rows = Rows(out / "rows.jsonl", "run")
    if "this" in rows and rows["this"] != this:
        other = ", ".join(name for name in this if rows["this"].get(name) != this[name])
        raise SystemExit(f"{out}: its rows are of another {other}; give another --out, or remove {out / 'rows.jsonl'}")
    if "this" not in rows:
        rows.add("this", this)
        rows.add("environment", found)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_suite", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; the same one for both calls")
    parser.add_argument("--call", type=int, choices=(1, 2), help="which half (default: both, one after the other)")
    words = f"seconds for a call (default: {BUDGET:.0f}; {REHEARSAL:.0f} for a rehearsal)"
    parser.add_argument("--budget", type=float, help=words)
    parser.add_argument("--only", default="", help=f"comma-separated, of {', '.join(task.name for task in TASKS)}")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on a CPU too: does everything run?")
    return parser


def stop(number: int, _) -> None:
    """End as SIGTERM asks, but after the task's process: `run_python` stops it on the way out."""
    raise SystemExit(128 + number)


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    names = [task.name for task in TASKS]
    chosen = [name for name in options.only.split(",") if name] or names
    if unknown := [name for name in chosen if name not in names]:
        parser().error(f"--only: {', '.join(unknown)} is none of {', '.join(names)}")
    signal.signal(signal.SIGTERM, stop)
    begin, found = time.perf_counter(), environment()
    gpu = found["machine"].get("gpu")
    if not gpu and not options.rehearse:
        raise SystemExit(
            "benchmarks.gpu_suite: there is no GPU here; --rehearse tries both calls on a CPU, at tiny sizes"
        )
    open_folder(options.out, found, options.rehearse)
    console, good = commands.console(), True
    budget = options.budget or (REHEARSAL if options.rehearse else BUDGET)
    for call in (options.call,) if options.call else (1, 2):
        tasks = [task for task in TASKS if task.name in chosen and task.call == call]
        outcomes = run_call(tasks, options.out, budget, options.rehearse, console)
        title = f"call {call}{', rehearsal' * options.rehearse}, {gpu or found['machine']['cpu']}"
        console.print(summary(outcomes, time.perf_counter() - begin, title))
        good = good and all(each.state == OK for each in outcomes)
        begin = time.perf_counter()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
