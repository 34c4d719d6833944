"""python -m benchmarks.gpu_suite --out DIR: the GPU tests and every benchmark in one call, inside one time budget.

Each runs in a process of its own, with a time limit, and leaves DIR/NAME.json and DIR/NAME.log. One that fails, or that
is stopped at its limit, does not stop the others; the exit code is 1 if any did. A share of the budget that one did not
use goes to those after it. One that gets less time than it needs to say anything is skipped, and the table says so.

The table is printed last, so that it survives where only the end of the output is kept.
"""

import argparse
import json
import sys
import time
import xml.etree.ElementTree as xml
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from benchmarks.processes import GRACE, ROOT, run_python
from essl_fast.common import commands, files
from essl_fast.runtime import provenance

BUDGET = 520.0  # seconds: a call may take 10 minutes, the machine's start and the transfers not counted
OK, FAILED, TIMED_OUT, SKIPPED, MISSING = "ok", "failed", "timed out", "skipped", "missing"


@dataclass(frozen=True)
class Task:
    """One process of the suite.

    Args:
        name: the name of its files and of its row.
        arguments: of the Python interpreter; {json}, {limit} and {out} are filled in.
        wants: seconds that it takes in full. Its share of the budget is in proportion to this.
        least: seconds below which it is not started.
        quick: further arguments for the small form that a machine without a GPU runs.
        needs: the file that it runs; if it is missing, the table says so.
    """

    name: str
    arguments: tuple[str, ...]
    wants: float
    least: float
    quick: tuple[str, ...] = ()
    needs: str = ""


def benchmark(name: str, wants: float, least: float, *more: str, quick: tuple[str, ...] = ()) -> Task:
    """A benchmark of this folder, which writes --json."""
    return Task(
        name, ("-m", f"benchmarks.{name}", "--json", "{json}", *more), wants, least, quick, f"benchmarks/{name}.py"
    )


TESTS = (
    *"-m pytest -q -m gpu -p no:cacheprovider -p benchmarks.deadline".split(),
    *"--deadline {limit} --junitxml {out}/tests.xml tests".split(),
)
FEW = ("--repeats", "2")
TINY = ("--videos", "12", "--epochs", "1", "--methods", "semipl", "--batch", "4", "--workers", "1")
STEP = ("--budget", "{limit}", "--methods", "semipl,sspl", "--batch", "128", "--baseline")
MODES = ("--modes", "captured,compiled,eager,checkpointed")
WHOLE = ("--budget", "{limit}", "--methods", "semipl,sspl", "--videos", "640")
TASKS = (
    Task("tests", TESTS, 80, 30, needs="tests"),
    benchmark("native", 40, 15, quick=("--batch", "4", "--evaluated", "8", "--seconds", "0.2", *FEW)),
    benchmark("kernels", 60, 15, quick=("--ops", "cosine", *FEW)),
    benchmark("loader", 60, 20, "--rounds", "1", "--seconds", "3", quick=("--videos", "12", "--seconds", "0.5")),
    benchmark("moments", 20, 10, quick=("--length", "1", "--size", "320x180", "--rates", "5", "--repeats", "1")),
    benchmark("step", 95, 25, *STEP, *MODES, quick=("--methods", "semipl", "--batch", "4", "--modes", "eager", *FEW)),
    benchmark("end_to_end", 95, 40, *WHOLE, quick=TINY),
    benchmark("speed_of_light", 70, 20, "--budget", "{limit}", quick=("--batch", "2", *FEW)),
)


@dataclass
class Outcome:
    """How a task ended."""

    name: str
    state: str  # OK, FAILED, TIMED_OUT, SKIPPED or MISSING
    seconds: float
    limit: float
    note: str = ""


def share_of(remaining: float, task: Task, later: Sequence[Task]) -> float:
    """Seconds for a task: its part of what remains, in proportion to what it and those after it want."""
    return remaining * task.wants / (task.wants + sum(other.wants for other in later))


def run_task(task: Task, limit: float, out: Path, quick: bool) -> Outcome:
    """Run one task under its limit; its output goes to DIR/NAME.log, and the log's end to ours."""
    written, log = out / f"{task.name}.json", out / f"{task.name}.log"
    for old in (written, out / f"{task.name}.xml"):
        old.unlink(missing_ok=True)  # of an earlier run
    arguments = [*task.arguments, *(task.quick if quick else ())]
    for mark, value in (("{json}", written), ("{limit}", f"{max(1, limit - GRACE):.0f}"), ("{out}", out)):
        arguments = [part.replace(mark, str(value)) for part in arguments]
    ended = run_python(arguments, limit, log)
    if ended.code is None:
        return Outcome(task.name, TIMED_OUT, ended.seconds, limit, f"stopped at its limit of {limit:.0f} s")
    if ended.code:
        note = f"exit code {ended.code}: {ended.last_line[:100]}"
        return Outcome(task.name, FAILED, ended.seconds, limit, note)
    return Outcome(task.name, OK, ended.seconds, limit)


def headline(task: Task, out: Path, quick: bool) -> tuple[str, bool]:
    """What a task left, in words, and whether that is good; ("", False) if it left nothing."""
    report, written = out / f"{task.name}.xml", out / f"{task.name}.json"
    if report.is_file():
        suite = xml.parse(report).getroot().find("testsuite")
        count = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
        wrong = count["failures"] + count["errors"]
        passed = count["tests"] - wrong - count["skipped"]
        words = f"{passed} passed, {wrong} failed, {count['skipped']} skipped"
        return words, not wrong and (quick or passed > 0)
    if written.is_file():
        return str(json.loads(written.read_text()).get("headline", "")), True
    return "", False


def run_suite(tasks: Sequence[Task], out: Path, budget: float, quick: bool, console) -> list[Outcome]:
    """Run the tasks one after another within ``budget`` seconds."""
    begin, outcomes = time.perf_counter(), []
    for number, task in enumerate(tasks):
        remaining = budget - (time.perf_counter() - begin)
        limit = share_of(remaining, task, tasks[number + 1 :])
        if task.needs and not (ROOT / task.needs).exists():
            outcome = Outcome(task.name, MISSING, 0.0, 0.0, f"there is no {task.needs}")
        elif limit < task.least:
            outcome = Outcome(
                task.name,
                SKIPPED,
                0.0,
                limit,
                f"{max(0, remaining):.0f} s of the budget were left, its share {max(0, limit):.0f} s; it needs "
                f"{task.least:.0f}",
            )
        else:
            console.rule(f"{task.name}: {limit:.0f} s at most")
            outcome = run_task(task, limit, out, quick)
            for line in (out / f"{task.name}.log").read_text(errors="replace").splitlines()[-40:]:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            words, good = headline(task, out, quick)
            if outcome.state == OK:
                outcome.note, outcome.state = words or f"it left no {task.name}.json", OK if good else FAILED
            elif words:
                outcome.note += f"; what there was by then: {words}"
        if outcome.state not in (SKIPPED, MISSING) and limit < task.wants and not quick:
            outcome.note += f"{'; ' if outcome.note else ''}shortened: {limit:.0f} of the {task.wants:.0f} s it wants"
        outcomes.append(outcome)
    return outcomes


def summary(outcomes: Sequence[Outcome], seconds: float, device: str) -> Table:
    """One row for each task."""
    table = Table(title=f"{device}: {seconds:.0f} s in all")
    for column in ("", "result", "s", ""):
        table.add_column(column, justify="right" if column == "s" else "left", overflow="fold")
    for each in outcomes:
        table.add_row(each.name, each.state, f"{each.seconds:.0f}", each.note)
    return table


def main(argv: list[str] | None = None) -> int:
    names = [task.name for task in TASKS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_suite", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds for everything (default: {BUDGET:.0f})")
    parser.add_argument("--only", default="", help=f"comma-separated, of {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="tiny forms, as on a machine without a GPU")
    options = parser.parse_args(argv)
    chosen = [name for name in options.only.split(",") if name] or names
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(names)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    quick = options.quick or device.type == "cpu"
    options.out.mkdir(parents=True, exist_ok=True)
    console = commands.console()
    begin = time.perf_counter()
    environment = provenance.environment(device)
    files.write_json(options.out / "environment.json", environment)
    outcomes = run_suite([t for t in TASKS if t.name in chosen], options.out, options.budget, quick, console)
    seconds = time.perf_counter() - begin
    files.write_json(
        options.out / "suite.json",
        {"seconds": seconds, "budget": options.budget, "quick": quick, "tasks": [vars(each) for each in outcomes]},
    )
    if quick:
        console.print("quick: tiny sizes, which say that it runs, not how fast it is")
    console.print(summary(outcomes, seconds, environment["machine"].get("gpu") or environment["machine"]["cpu"]))
    return 0 if all(each.state == OK for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
