"""What `python -m essl_fast.reproduce worlds` does, as a function."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from essl_fast.common import commands
from essl_fast.common.errors import reason
from essl_fast.common.files import atomic_file, write_json
from essl_fast.common.outputs import output_folder
from essl_fast.reproduce.worlds import METHODS, WORLDS, Grid, Method, heads

if TYPE_CHECKING:
    from rich.console import Console

TITLE = "Methods by worlds: success at cIoU 0.5 on the test split, %"


def reproduce_worlds(
    *,
    out: str | Path = "reproduced",
    seeds: Sequence[int] = (0, 1, 2),
    worlds: Sequence[str] = tuple(WORLDS),
    device: str = "auto",
    overrides: Sequence[str] = (),
    workers: int = 1,
    console: Console | None = None,
) -> Grid:
    """Train what is missing of the table of methods and worlds, and write it into a folder.

    A run that fails is reported, and the others go on. An interrupted command goes on when it is called again.

    Args:
        out: for runs/, worlds.json, worlds.md, worlds.html and the pictures.
        seeds: each method is trained once with each, on each world.
        worlds: of WORLDS, in the order of the columns.
        device: auto, cpu, cuda or cuda:N.
        overrides: train's options, for every run.
        workers: how many runs are trained side by side; they share the cores.
        console: where progress and the table are printed; None prints nothing.

    Raises:
        InputError: an option is wrong, or a run in `out` has other settings.
    """
    grid = Grid(Path(out), list(seeds), list(worlds), list(overrides), device)
    grid.check()
    from essl_fast.reproduce import runs  # imports PyTorch, so only after the options are checked
    from essl_fast.runtime.devices import pick_device

    pick_device(device)  # else each run would find out by itself that there is no such GPU
    output_folder(grid.out, "--out")
    console = console or commands.console(quiet=True)
    every = grid.runs()
    with runs.stopped_by_sigterm():
        for run in every:  # before anything is trained: is there a run with other settings in a run's place?
            runs.finished(grid.folder(*run), grid.arguments(*run))
        with runs.side_by_side(workers) as pool:
            threads = max(1, len(os.sched_getaffinity(0)) // workers) if workers > 1 else 0
            places = [f"[{place}/{len(every)}]" for place in range(1, len(every) + 1)]
            first, *others = zip(every, places, strict=True)
            pool.submit(_run, grid, *first, console, threads).result()  # alone: it pretrains the small networks
            for job in as_completed([pool.submit(_run, grid, *each, console, threads) for each in others]):
                job.result()
        _write(grid, console)
    return grid


def _run(grid: Grid, run: tuple[str, Method, int], place: str, console: Console, threads: int) -> None:
    """Train one run unless that is done, and keep its summary, or why it failed."""
    from essl_fast.reproduce import runs

    world, method, seed = run
    folder, arguments = grid.folder(*run), grid.arguments(*run)
    title = f"{place} {WORLDS[world]}, {method.label}, seed {seed}"
    try:
        summary = runs.finished(folder, arguments)
        if summary is None:
            runs.train(folder, arguments, threads)
            summary = runs.finished(folder, arguments)
        if summary is None:
            raise RuntimeError(f"it left no {folder / 'summary.json'}")
    except RuntimeError as error:
        grid.failed[world, method.name, seed] = str(error)
        console.print(f"{title}: failed, {error}", highlight=False, soft_wrap=True, markup=False)
        return
    grid.summaries[world, method.name, seed] = summary
    line = f"{title}: success {100 * summary['test']['success_at_half']:.1f}%, {summary['seconds']:.0f} s"
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def _write(grid: Grid, console: Console) -> None:
    """Write worlds.json, worlds.md and worlds.html, and print the table."""
    from rich.table import Table
    from rich.text import Text

    from essl_fast.reproduce.page import page

    tables = [(TITLE, heads(grid.worlds), grid.lines("success_at_half"))]
    tables.append(("The same: AUC, %", heads(grid.worlds), grid.lines("auc")))
    try:
        drawn = _draw(grid)
    except Exception as error:  # the memory is taken, the disk is full: the tables do without pictures
        drawn = []
        console.print(f"pictures: failed, {reason(error)}", highlight=False, soft_wrap=True, markup=False)
    note = f"{len(grid.seeds)} seed{'s' * (len(grid.seeds) > 1)}; mean ± standard deviation. {grid.finding()}"
    text = [f"# Methods by worlds\n\n{note}\n"]
    for title, columns, lines in tables:
        cells = [list(columns), ["---", *["---:"] * (len(columns) - 1)], *lines]
        text.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(cell)} |" for cell in cells) + "\n")
    text += [f"![{caption}]({path.name})\n" for caption, path in drawn]
    with atomic_file(grid.out / "worlds.md") as file:
        file.write("\n".join(text).encode())
    with atomic_file(grid.out / "worlds.html") as file:
        file.write(page("Methods by worlds", note, tables, drawn).encode())
    write_json(grid.out / "worlds.json", {**grid.to_dict(), "finding": grid.finding()})
    shown = Table(title=Text(TITLE))
    for at, column in enumerate(tables[0][1]):
        shown.add_column(column, justify="right" if at else "left")
    for line in tables[0][2]:
        shown.add_row(*map(Text, line))
    console.print(shown)
    console.print(f"{note}\nreport: {grid.out / 'worlds.html'}", highlight=False, soft_wrap=True, markup=False)


def _draw(grid: Grid) -> list[tuple[str, Path]]:
    """A picture for each world: the same test frames under methods without and with labels, for the first seed."""
    from essl_fast import checkpoints
    from essl_fast.data.shards import Manifest
    from essl_fast.evaluate import evaluate
    from essl_fast.report import figures
    from essl_fast.reproduce.pictures import SHOWN, choose
    from essl_fast.runtime.devices import pick_device, pick_precision

    drawn, seed, device = [], grid.seeds[0], pick_device(grid.device)
    for world in grid.worlds:
        samples = {}
        for method in (METHODS[0], METHODS[-2]):
            if (world, method.name, seed) not in grid.summaries:
                continue
            state = checkpoints.load(grid.folder(world, method, seed) / "best.pt")
            model, settings = checkpoints.restore(state, device)
            manifest, precision = Manifest.load(Path(state["data_root"])), pick_precision(settings.precision, device)
            shown = evaluate(model, manifest, "test", settings, device, precision, show=4 * SHOWN)
            samples[method.label] = shown.samples
        if samples:
            path = grid.out / f"worlds-{world}.png"
            figures.side_by_side(path, choose(samples, SHOWN, hardest=False))
            drawn.append((f"{WORLDS[world]}: the same test frames; seed {seed}", path))
    return drawn
