"""What `python -m essl_fast.reproduce` does, as a function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from essl_fast.common import commands
from essl_fast.common.errors import InputError, reason
from essl_fast.common.outputs import output_folder
from essl_fast.common.pulse import Heartbeat
from essl_fast.common.urls import as_url, is_url
from essl_fast.reproduce.plan import Plan
from essl_fast.reproduce.published import read_published
from essl_fast.reproduce.rows import PARTS, Row, rows_of
from essl_fast.reproduce.sweep import SWEEP, read_sweep, rows_of_sweep

if TYPE_CHECKING:
    from rich.console import Console

    from essl_fast.reproduce.results import Results


def reproduce(
    parts: str | Sequence[str] = (),
    *,
    data: str | Path = "demo",
    out: str | Path = "reproduced",
    seeds: Sequence[int] = (0,),
    protocol: str = "clean",
    reduced: bool = False,
    device: str = "auto",
    published: str | Path | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    sweep: Sequence[str] = (),
    configs: Sequence[str] = (),
) -> Results:
    """Train what is missing of some tables and figures of the paper, or of a sweep, and write them into a folder.

    A row that fails is reported, and the others go on. An interrupted run goes on when this is called again.

    Args:
        parts: names of `rows.PARTS`, or "all"; none with a sweep.
        data: a folder that prepare wrote, its URL, or "demo".
        out: for the runs and the results.
        seeds: each row is trained once with each.
        protocol: "clean" selects the best epoch on the validation split, "published" on the test split.
        reduced: small networks and few epochs, for a CPU.
        device: auto, cpu, cuda or cuda:N.
        published: YAML file of published figures that this project does not know.
        overrides: train's options, for every row.
        console: where progress and tables are printed; None prints nothing.
        sweep: settings with values, ["optim.lr_head=3e-5,5e-5", ...]: each point of their grid is a row.
        configs: of a sweep: its recipe, and YAML files with changes to it. May be empty on the demo's world.

    Raises:
        InputError: an option is wrong, or a run in `out` has other settings or other data.
    """
    parts = list(PARTS) if parts == "all" else [parts] if isinstance(parts, str) else list(parts)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError(f"--seeds: each once, and from 0, got {list(seeds)}")
    if data != "demo":
        data = as_url(data) if is_url(data) else str(Path(data).resolve())
    known = read_published(Path(published)) if published else {}
    swept = _swept(list(sweep), list(configs), data)
    parts = [SWEEP] if swept else parts
    overrides = [*(f"--config={name}" for name in configs[1:]), *overrides]
    plan = Plan(data, Path(out), list(seeds), protocol, reduced, overrides, device, known, swept)
    plan.check_data()
    plan.check(swept or rows_of(parts).values())
    from essl_fast.reproduce.runs import stopped_by_sigterm  # imports PyTorch, so only after the options are checked
    from essl_fast.runtime.devices import pick_device

    pick_device(device)  # else each run would find out by itself that there is no such GPU
    output_folder(plan.out, "--out")
    with stopped_by_sigterm():
        return run_plan(plan, parts, console or commands.console(quiet=True))


def _swept(sweep: list[str], configs: list[str], data: str) -> tuple[Row, ...]:
    """The rows of a sweep, if there is one. InputError if it is wrong."""
    if not sweep:
        if configs:
            raise InputError("--config: goes with --sweep; each row has its own")
        return ()
    if not configs and data != "demo":
        raise InputError("--sweep: name the recipe with --config NAME (semipl, sspl, ...)")
    return rows_of_sweep(read_sweep(sweep), configs[0] if configs else "demo")


def run_plan(plan: Plan, parts: list[str], console: Console) -> Results:
    """Train what is missing of a plan, then write its tables and figures."""
    from essl_fast.reproduce import pictures, runs, writing
    from essl_fast.reproduce.results import Results

    results = Results(plan)
    every = [(row, seed) for row in plan.swept or rows_of(parts).values() for seed in plan.seeds]
    for row, seed in every:  # before anything is trained: is there a run with other settings in a row's place?
        runs.finished(plan.folder(row, seed), plan.arguments(row, seed))
    for place, (row, seed) in enumerate(every, 1):
        _run_row(results, row, seed, f"[{place}/{len(every)}] {row.label}, seed {seed}", console)
    try:
        with Heartbeat(lambda line: _say(console, line), lambda: "drawing the figures"):
            drawn = pictures.draw(parts, results)
    except Exception as error:  # the memory is taken, a checkpoint is damaged, the disk is full: the tables do without
        results.failed["figures"], drawn = reason(error), []
        console.print(f"figures: failed, {reason(error)}", highlight=False, soft_wrap=True, markup=False)
    writing.write(parts, results, drawn, console)
    return results


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def _run_row(results: Results, row: Row, seed: int, title: str, console: Console) -> None:
    """Train a row with a seed unless that is done, and keep its summary, or why it failed."""
    from essl_fast import checkpoints
    from essl_fast.reproduce import runs

    folder, arguments = results.plan.folder(row, seed), results.plan.arguments(row, seed)
    summary = runs.finished(folder, arguments)
    if summary is None:
        verb = "going on" if checkpoints.existing(folder / "last.pt") else "training"
        console.print(f"{title}: {verb}", highlight=False, soft_wrap=True, markup=False)
        log = folder.with_suffix(".log")
        try:
            with Heartbeat(lambda line: _say(console, line), lambda: f"{title}: {runs.last_line(log)}"):
                runs.train(folder, arguments)
            summary = runs.finished(folder, arguments)
            if summary is None:
                raise RuntimeError(f"it left no {folder / 'summary.json'}")
        except RuntimeError as error:
            results.failed[row.run] = str(error)
            console.print(f"{title}: failed, {error}", highlight=False, soft_wrap=True, markup=False)
            return
    results.add(row, seed, summary)
    test, seconds = summary["test"], summary["seconds"]
    line = f"success {100 * test['success_at_half']:.1f}%, AUC {100 * test['auc']:.1f}%, {seconds:.0f} s"
    console.print(f"{title}: {line}", highlight=False, soft_wrap=True, markup=False)
