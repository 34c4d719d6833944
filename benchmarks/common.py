"""Compares one op with other ways to do its work: what all benchmarks of ops have in common.

First the results are compared. Then everything is timed in turns, so that another program on the machine disturbs all
alike. The result is a table and, with --json, a record with the environment and the time of every run.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks.rows import Rows
from benchmarks.timing import Times, copy_rate, digits, time_each
from essl_fast.common import commands, files
from essl_fast.runtime import provenance

OURS = "ours"
ROUNDS = 3  # turns


class Mismatch(RuntimeError):
    """What should be timed does not compute what the reference computes."""


@dataclass(frozen=True)
class Comparison:
    """An op on one kind of input.

    Args:
        name: the title of its rows.
        ours: one call of the op.
        rivals: calls that do the same work otherwise, by name.
        check: compares ours and the rivals with the reference. Returns in words how near they are; raises Mismatch.
        items: how many pairs, clips or maps a call handles, for the rate.
        bytes: how many must be read and written, for the share of the copy bandwidth; 0: memory is not the limit.
        goals: how many times as fast as a rival ours should be at least, by the rival's name.
    """

    name: str
    ours: Callable[[], Any]
    rivals: Mapping[str, Callable[[], Any]]
    check: Callable[[], str]
    items: int
    bytes: int = 0
    goals: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Result:
    """A comparison's times."""

    name: str
    checked: str
    items: int
    times: dict[str, Times]  # OURS first
    goals: dict[str, float]
    copy_share: float | None = None  # of the measured copy bandwidth

    def speedup(self, rival: str) -> float:
        """How many times as fast as the rival, by the medians."""
        return self.times[rival].median / self.times[OURS].median

    @classmethod
    def of_record(cls, record: dict) -> "Result":
        """What :meth:`record` was made of."""
        times = {
            name: Times(each["median_ms"], each["low_ms"], each["high_ms"], each["each_ms"])
            for name, each in record["times"].items()
        }
        values = {key: record[key] for key in ("name", "checked", "items", "goals", "copy_share")}
        return cls(times=times, **values)

    def record(self) -> dict:
        """Plain values."""
        speedups = {rival: self.speedup(rival) for rival in self.times if rival != OURS}
        times = {
            name: {"median_ms": t.median, "low_ms": t.low, "high_ms": t.high, "each_ms": t.all}
            for name, t in self.times.items()
        }
        values = {key: getattr(self, key) for key in ("name", "checked", "items", "goals", "copy_share")}
        return {**values, "speedup": speedups, "times": times}


def equal(what: str, have: torch.Tensor, want: torch.Tensor) -> None:
    """Raises Mismatch unless both hold the same values in the same type."""
    if have.dtype != want.dtype or not torch.equal(have, want):
        apart = (have.double() - want.double()).abs().max().item() if have.shape == want.shape else math.nan
        raise Mismatch(f"{what}: {have.dtype} {tuple(have.shape)} is not the reference's result (apart by {apart:.2g})")


def close(what: str, have: torch.Tensor, want: torch.Tensor, limit: float) -> float:
    """The largest difference; Mismatch if it is over the limit, or NaN."""
    apart = (have.double() - want.double()).abs().max().item() if have.shape == want.shape else math.nan
    if not apart <= limit:
        raise Mismatch(f"{what}: apart from the reference by {apart:.2g}, allowed {limit:.2g}")
    return apart


def measure(each: Comparison, device: torch.device, repeats: int, seconds: float, copy_bytes: float = 0.0) -> Result:
    """Checks, then times a comparison: about ``repeats`` runs of everything, in turns, each at most ``seconds`` in all.

    ``copy_bytes``: bytes a second of a large copy on this device, for the share that ours reaches of it.
    """
    checked = each.check()
    contestants = {OURS: each.ours, **each.rivals}
    spans: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            times = time_each(run, device, max(1, repeats // ROUNDS), warmup=1, seconds=seconds / ROUNDS)
            spans[name] += times.all
    result = Result(each.name, checked, each.items, {n: Times.of(s) for n, s in spans.items()}, dict(each.goals))
    if each.bytes and copy_bytes:
        result.copy_share = each.bytes / (result.times[OURS].median / 1e3) / copy_bytes
    return result


def table_of(results: Sequence[Result], title: str) -> Table:
    """A row for each op and a row for each of its rivals."""
    table = Table(title=title, caption="ms: median (10th-90th percentile) of a call. x: ours is so many times as fast")
    for column in ("", "ms", "items/s", "x", "goal", "copy, %"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for result in results:
        table.add_row(f"[bold]{result.name}[/bold] ({result.items}; {result.checked})")
        for name, times in result.times.items():
            rate = digits(1e3 * result.items / times.median)
            share, speedup, goal = "", "", ""
            if name != OURS:
                speedup = digits(result.speedup(name))
                goal = digits(result.goals[name]) if name in result.goals else ""
            elif result.copy_share is not None:
                share = f"{100 * result.copy_share:.0f}"
            table.add_row(f"  {name}", times.text(), rate, speedup, goal, share)
        table.add_section()
    return table


def parser(prog: str, text: str) -> argparse.ArgumentParser:
    """The options that all benchmarks of ops have."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=text.split("\n\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of everybody (default: one a core)")
    parser.add_argument("--repeats", type=int, default=30, help="timed runs of each at most (default: 30)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each that is timed, at most (default: 2)")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument(
        "--rows", type=Path, help="keep each row here when it is measured, and skip those that are there"
    )
    parser.add_argument("--budget", type=float, default=7200.0, help="seconds; ops after that are not measured")
    return parser


def measure_all(
    comparisons: Iterable[Comparison], device: torch.device, repeats: int, seconds: float, kept: Rows
) -> list[Result]:
    """Every comparison for which there is time, kept when it is measured; those of before included."""
    copy_bytes, results = copy_rate(device), []
    for each in comparisons:
        if each.name not in kept:
            if kept.left() <= 0:
                kept.missed.append(each.name)
                continue
            kept.add(each.name, measure(each, device, repeats, seconds, copy_bytes).record())
        results.append(Result.of_record(kept[each.name]))
    return results


def report(benchmark: str, results: Sequence[Result], options: argparse.Namespace, device: torch.device) -> None:
    """Prints the table and writes the JSON record: headline, environment, options, and every run's time."""
    console = commands.console()
    environment = provenance.environment(device)
    name = environment["machine"].get("gpu") or environment["machine"]["cpu"]
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    console.print(table_of(results, f"{benchmark}, {name}{threads}"))
    if options.json:
        rivals = [(r, next(iter(r.goals))) for r in results if r.goals]
        headline = ", ".join(f"{r.name} {digits(r.speedup(rival))}x {rival}" for r, rival in rivals)
        given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        record = {"benchmark": benchmark, "headline": headline, "environment": environment, "options": given}
        files.write_json(options.json, {**record, "results": [result.record() for result in results]})
        console.print(f"written to {options.json}", highlight=False)
