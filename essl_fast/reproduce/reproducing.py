"""python -m essl_fast.reproduce table1|table2|figures|fractions|all: SemiPL's tables and figures, on your data.

    OUT/runs/ROW/seed-N     the run directory of a row and a seed; interrupted, the same command goes on
    OUT/results.json        every row, every seed, every figure's numbers
    OUT/report.md           the tables beside the published figures
    OUT/report.html         the same with the pictures, in one file
    OUT/*.png               figure3 and figure4 (overlays), figure5 (success by epoch), fractions (success by labels)

Each row is a shipped config (configs/paper/*.yaml) and is trained as `python -m essl_fast.train` does, in a process of
its own. `--reduced` swaps in the demo's small networks and few epochs, so that everything ends in minutes on a CPU: its
rows can be compared with each other, not with the paper's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.markup import escape

from essl_fast import checkpoints, config
from essl_fast.checkpoints.restoring import restore
from essl_fast.common import files
from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_file
from essl_fast.data.shards import Manifest
from essl_fast.evaluate.evaluation import evaluate
from essl_fast.report import figures, paper
from essl_fast.reproduce.rows import TABLES, Row, fraction_of, fraction_rows
from essl_fast.runtime import runlog
from essl_fast.runtime.devices import pick_device, pick_precision
from essl_fast.runtime.stopping import Stopped
from essl_fast.train.trainer import forbidden

PROG = "python -m essl_fast.reproduce"
PARTS = ("table1", "table2", "figures", "fractions")
SHOWN = 6  # frames of figures 3 and 4
# What a row is, or what an option of ours says: an override of it would make the tables say what is not so.
FIXED = (
    "name",
    "out",
    "seed",
    "data.root",
    "data.labelled_fraction",
    "select_on",
    "baselines",
    "objective.method",
    "model.pcm",
    "model.head",
)
# The demo's settings (configs/demo.yaml) in place of the recipe's: networks that start from nothing, on a CPU.
REDUCED = (
    "--model.trunk",
    "small",
    "--model.audio",
    "small",
    "--model.out_dim",
    "128",
    "--objective.supervised_weight",
    "10",
    "--optim.lr_sound",
    "4e-3",
    "--optim.lr_trunk",
    "4e-3",
    "--optim.lr_pcm",
    "1e-3",
    "--optim.weight_decay",
    "0.01",
    "--optim.schedule",
    "cosine",
    "--optim.warmup",
    "3",
    "--data.last_batch",
    "keep",
    "--eval_every",
    "1",
    "--demo.train_videos",
    "200",
    "--demo.test_videos",
    "50",
)
REDUCED_EPOCHS = 12
REDUCED_BATCH = 8  # the recipe's batch is divided by this
DEMO_HEAD = 1e-3  # the demo's learning rate of the head
RECIPE_HEAD = {"lss": 1e-4, "pcm": 5e-5, "plain": 2e-3}  # the recipes', which DEMO_HEAD stands for


@dataclass
class Plan:
    """What a user asked for: data, place, seeds, and whether in small."""

    data: str
    out: Path
    seeds: list[int]
    protocol: str = "clean"
    reduced: bool = False
    more: list[str] = field(default_factory=list)  # overrides, as on train's command line
    device: str = "auto"
    published: dict[str, paper.Row] = field(default_factory=dict)  # by row, before what we know of it

    def arguments(self, row: Row, seed: int) -> list[str]:
        """train's command line for a row and a seed, but for --out."""
        return [*self.own_arguments(row, seed), *self.more]

    def own_arguments(self, row: Row, seed: int) -> list[str]:
        """The same without the overrides."""
        arguments = ["--config", row.config]
        if self.reduced:
            own = config.load(row.config)
            kind = "lss" if own.model.head == "lss" else "pcm" if own.model.pcm else "plain"
            head = DEMO_HEAD * own.optim.lr_head / RECIPE_HEAD[kind]
            batch = max(2, own.data.batch_size // REDUCED_BATCH)
            arguments += [*REDUCED, "--optim.lr_head", f"{head:g}", "--data.batch_size", str(batch)]
            arguments += ["--epochs", str(REDUCED_EPOCHS)]
        arguments += ["--data.root", self.data, "--seed", str(seed), "--name", row.name]
        arguments += ["--select_on", "test" if self.protocol == "published" else "val", "--baselines", "false"]
        fraction = fraction_of(row)
        if fraction is not None:
            arguments += ["--data.labelled_fraction", f"{fraction:g}"]
        return [*arguments, "--device", self.device]

    def check(self, rows: Iterable[Row]) -> None:
        """InputError if the overrides are no settings, or change what the tables say of a row."""
        for row in rows:
            own, given = (config.parse(a, PROG)[0] for a in (self.own_arguments(row, 0), self.arguments(row, 0)))
            for line in config.difference(config.to_dict(own), config.to_dict(given)):
                if line.split(": ")[0] in FIXED:
                    raise InputError(f"{line}: a row's own, or set by --data, --seeds, --protocol or --out; leave it")

    def folder(self, row: Row, seed: int) -> Path:
        return self.out / "runs" / row.run / f"seed-{seed}"


def rows_of(parts: Iterable[str]) -> dict[str, Row]:
    """The rows to train for the parts, each once, by the name of their runs."""
    tables = {name: rows for name, (_, rows) in TABLES.items()} | {"fractions": fraction_rows()}
    tables["figures"] = (*tables["table1"], *tables["table2"])
    named = {row.name: row for rows in tables.values() for row in rows}
    return {row.run: named[row.run] for part in parts for row in tables[part]}


def finished(folder: Path, arguments: list[str]) -> dict | None:
    """The summary of a run that has ended; None if it has not. InputError if it is another run's, ended or not."""
    try:
        held = json.loads((folder / "summary.json").read_text())
        found = config.from_dict(held["config"])
    except FileNotFoundError:
        if checkpoints.kept(folder / "last.pt") and (folder / "config.yaml").is_file():
            _check_settings(folder, config.parse(["--config", str(folder / "config.yaml")], PROG)[0], arguments)
        return None
    except InputError:
        raise
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{folder / 'summary.json'} is damaged: delete {folder} and run again") from None
    root = _check_settings(folder, found, arguments)
    # A data set may have moved, or another one be at its place. (A run that goes on is checked by train.)
    if root != "demo" and checkpoints.load(folder / "best.pt")["data"] != Manifest.load(Path(root)).header:
        raise InputError(f"{folder} was trained on other data than {root}: give another --out, or delete it")
    return held


def _check_settings(folder: Path, found: config.Config, arguments: list[str]) -> str:
    """InputError if a run's settings are not those of the arguments; else where these say that the data is."""
    wanted = config.parse(arguments, PROG)[0]
    different = config.difference(config.to_dict(found), config.to_dict(wanted))
    # Everything but where it lies: other epochs are another result.
    if hard := [line for line in different if forbidden([line]) or line.startswith("epochs: ")]:
        raise InputError(f"{folder} is of other settings ({'; '.join(hard)}): give another --out, or delete it")
    return wanted.data.root


def train(folder: Path, arguments: list[str]) -> None:
    """Train in a process of its own, from the last checkpoint if there is one; its output goes to FOLDER.log.

    RuntimeError with the last line of its output if it fails.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    given = [*arguments, "--resume" if checkpoints.kept(folder / "last.pt") else "--out", str(folder)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with open(log, "ab") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "essl_fast.train", *given],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        try:
            code = child.wait()
        except BaseException as error:
            # Ctrl-C reaches the child as well: it writes a checkpoint and ends. SIGTERM may have come to us alone.
            if isinstance(error, Stopped):
                child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(60)
            child.kill()
            child.wait()
            raise
    if code:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"exit code {code}: {lines[-1] if lines else 'no output'} (all of it: {log})")


def mean(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (of the sample; None of a single value), in per cent of shares."""
    spread = 100 * statistics.stdev(values) if len(values) > 1 else None
    return 100 * statistics.fmean(values), spread


def say(values: list[float]) -> str:
    """A mean ± standard deviation as a cell of a table."""
    if not values:
        return "not run"
    middle, spread = mean(values)
    return f"{middle:.1f}" + (f" ± {spread:.1f}" if spread is not None else "")


def share(value: float | None) -> str:
    """A published share in per cent, or a dash."""
    return "–" if value is None else f"{100 * value:.2f}"


class Results:
    """What has been run: summaries by row and seed, and why a run failed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.summaries: dict[str, dict[int, dict]] = {}
        self.failed: dict[str, str] = {}

    def add(self, row: Row, seed: int, summary: dict) -> None:
        self.summaries.setdefault(row.run, {})[seed] = summary

    def values(self, row: Row, key: str) -> list[float]:
        """success_at_half or auc on the test split, a value a seed."""
        return [summary["test"][key] for _, summary in sorted(self.summaries.get(row.run, {}).items())]

    def line(self, row: Row) -> list[str]:
        """Label, published success and AUC, ours, remark."""
        told = self.plan.published.get(row.name, row.published)
        theirs = [share(told.success_at_half), share(told.auc)] if told else ["–", "–"]
        done, wanted = len(self.summaries.get(row.run, {})), len(self.plan.seeds)
        remarks = [told.source] if told else []
        if row.run in self.failed:
            remarks.append(f"failed: {self.failed[row.run]}")
        elif not done:
            remarks.append("not run")
        if 0 < done < wanted:
            remarks.append(f"{done} of {wanted} seeds")
        return [
            row.label,
            *theirs,
            say(self.values(row, "success_at_half")),
            say(self.values(row, "auc")),
            "; ".join(remarks),
        ]

    def to_dict(self) -> dict:
        """Plain values for results.json."""
        return {
            "protocol": self.plan.protocol,
            "reduced": self.plan.reduced,
            "data": self.plan.data,
            "seeds": self.plan.seeds,
            "overrides": self.plan.more,
            "failed": self.failed,
            "rows": {
                name: {
                    str(seed): {
                        "test": {key: summary["test"][key] for key in ("pairs", "success_at_half", "auc", "curve")},
                        "epoch": summary["selected"]["epoch"],
                        "seconds": summary["seconds"],
                    }
                    for seed, summary in sorted(seeds.items())
                }
                for name, seeds in self.summaries.items()
            },
        }


HEAD = ("", "published: success, %", "published: AUC, %", "ours: success, %", "ours: AUC, %", "")


def protocol_line(plan: Plan) -> str:
    """What every table must say of how its epoch was chosen, and of what it can be compared with."""
    if plan.protocol == "published":
        text = "Protocol: published. The best epoch was chosen on the test set itself, as the published code does."
    else:
        text = "Protocol: clean. The best epoch was chosen on a validation split, the published one on the test set."
    data = "the synthetic demo world" if plan.data == "demo" else plan.data
    text += f" Data: {data}; {len(plan.seeds)} seed{'s' if len(plan.seeds) > 1 else ''}."
    if plan.reduced:
        text += f" Reduced: small networks, few epochs, batches of 1/{REDUCED_BATCH} and learning rates to match; "
        text += "compare rows with each other, not with the published figures."
    if plan.more:
        text += f" Overrides: {shlex.join(plan.more)}."
    return text


def finding(results: Results) -> str:
    """What the label fractions came to, in words, whichever way it went."""
    rows = [row for row in fraction_rows() if results.values(row, "success_at_half")]
    if len(rows) < 2:
        return "Fewer than two label fractions were run: there is nothing to compare."
    points = [(row, *mean(results.values(row, "success_at_half"))) for row in rows]
    text = "; ".join(f"{row.label}: {middle:.1f}%" for row, middle, _ in points)
    best, first, last = max(points, key=lambda point: point[1]), points[0], points[-1]
    change = last[1] - first[1]
    text = f"Success at cIoU 0.5 by labels: {text}. "
    text += f"From {first[0].label} to {last[0].label} it changes by {change:+.1f} points"
    spreads = [spread for *_, spread in points if spread is not None]
    if spreads:
        inside = abs(change) <= 2 * max(spreads)
        text += f", {'within' if inside else 'more than'} twice the largest spread over seeds ({max(spreads):.1f})"
    else:
        text += " (one seed: no spread to compare with)"
    if best[0] is not last[0]:
        text += f"; the best is {best[0].label}"
    return text + "."


def tables(parts: Iterable[str], results: Results) -> list[tuple[str, list[list[str]]]]:
    """(title, lines) of the tables among the parts."""
    found = [(title, rows) for name, (title, rows) in TABLES.items() if name in parts]
    if "fractions" in parts:
        found.append(("SemiPL without PCM by share of labels (not in the paper)", fraction_rows()))
    return [(title, [results.line(row) for row in rows]) for title, rows in found]


def markdown(title: str, lines: list[list[str]]) -> str:
    """A table as Markdown."""
    cells = [HEAD, ["---"] * len(HEAD), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return f"## {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def draw(parts: Iterable[str], results: Results, device: str) -> list[tuple[str, Path]]:
    """The figures that the runs allow, as (caption, PNG); one that has no runs is left out."""
    plan, drawn = results.plan, []
    seed = plan.seeds[0]
    if "figures" in parts:
        samples = figure_samples(results, seed, device)
        for number, what in ((3, "where they do best on average"), (4, "where they do worst")):
            if samples:
                path = plan.out / f"figure{number}.png"
                figures.side_by_side(path, choose(samples, SHOWN, hardest=number == 4))
                drawn.append((f"Figure {number}: the same test frames under each method ({what}); seed {seed}", path))
        histories = {
            row.label: history
            for row in TABLES["table1"][1]
            if row.config.startswith("paper/table1_batch128")
            and seed in results.summaries.get(row.run, {})
            and (history := selection(plan.folder(row, seed)))
        }
        if histories:
            path = plan.out / "figure5.png"
            split = "test" if plan.protocol == "published" else "validation"
            figures.success_by_epoch(path, histories, split)
            drawn.append((f"Figure 5: success on the {split} split by epoch, both learning rates; seed {seed}", path))
    if "fractions" in parts:
        points = [
            (fraction_of(row), *mean(found))
            for row in fraction_rows()
            if (found := results.values(row, "success_at_half"))
        ]
        if points:
            path = plan.out / "fractions.png"
            figures.success_by_labels(path, points)
            drawn.append((f"Success by share of labels. {finding(results)}", path))
    return drawn


def selection(folder: Path) -> list[tuple[int, float]]:
    """(epoch, success) on the selection split, out of a run's log."""
    if not (folder / "log.jsonl").exists():
        return []
    epochs = {}
    for event in runlog.read_log(folder / "log.jsonl"):
        if event["event"] == "epoch" and "selection" in event:
            epochs[event["epoch"]] = event["selection"]["success_at_half"]  # an epoch may be logged twice
    return sorted(epochs.items())


def figure_samples(results: Results, seed: int, device: str) -> dict[str, list[dict]]:
    """By method, the test frames with their maps: the same frames for all (see `evaluate(show=...)`)."""
    found, place = {}, pick_device(device)
    for row in TABLES["table2"][1]:
        if seed in results.summaries.get(row.run, {}):
            state = checkpoints.load(results.plan.folder(row, seed) / "best.pt")
            model, settings = restore(state, place)
            precision = pick_precision(settings.precision, place)
            manifest = Manifest.load(Path(state["data_root"] if results.plan.data == "demo" else results.plan.data))
            shown = evaluate(model, manifest, "test", settings, place, precision, show=8 * SHOWN)
            found[row.label] = shown.samples
    return found


def choose(samples: dict[str, list[dict]], count: int, hardest: bool) -> dict[str, list[dict]]:
    """Of the frames that all methods were shown, the `count` with the best or the worst mean cIoU over the methods."""
    scores: dict[str, float] = {}
    for shown in samples.values():
        for sample in shown:
            scores[sample["key"]] = scores.get(sample["key"], 0.0) + sample["ciou"]
    kept = sorted(scores, key=lambda key: (scores[key] if hardest else -scores[key], key))[:count]
    return {
        label: sorted((s for s in shown if s["key"] in kept), key=lambda sample: kept.index(sample["key"]))
        for label, shown in samples.items()
    }


def run(plan: Plan, parts: list[str], console, device: str = "auto") -> Results:
    """Train what is missing, then write tables and figures. A row that fails is reported and the others go on."""
    results = Results(plan)
    rows = rows_of(parts)
    every = [(row, seed) for row in rows.values() for seed in plan.seeds]
    for row, seed in every:  # a run of other settings in a row's place is found before anything is trained
        finished(plan.folder(row, seed), plan.arguments(row, seed))
    for place, (row, seed) in enumerate(every, 1):
        folder, arguments = plan.folder(row, seed), plan.arguments(row, seed)
        summary = finished(folder, arguments)
        what = f"[{place}/{len(every)}] {row.label}, seed {seed}"
        if summary is None:
            verb = "going on" if checkpoints.kept(folder / "last.pt") else "training"
            console.print(f"{what}: {verb}", highlight=False)
            try:
                train(folder, arguments)
                summary = finished(folder, arguments)
                if summary is None:
                    raise RuntimeError(f"it left no {folder / 'summary.json'}")
            except RuntimeError as error:
                results.failed[row.run] = str(error)
                console.print(f"{what}: failed, {error}", highlight=False, soft_wrap=True, markup=False)
                continue
        results.add(row, seed, summary)
        test = summary["test"]
        console.print(
            f"{what}: success {100 * test['success_at_half']:.1f}%, AUC {100 * test['auc']:.1f}%, "
            f"{summary['seconds']:.0f} s",
            highlight=False,
        )
    try:
        drawn = draw(parts, results, device)
    except (InputError, RuntimeError) as error:  # no memory beside another process, a checkpoint that was damaged
        results.failed["figures"], drawn = str(error), []
        console.print(f"figures: failed, {error}", highlight=False, soft_wrap=True, markup=False)
    write(plan, parts, results, drawn, console)
    return results


def write(plan: Plan, parts: list[str], results: Results, drawn: list[tuple[str, Path]], console) -> None:
    """report.md, report.html and results.json; the tables on the console as well."""
    from essl_fast.reproduce.page import page

    found = tables(parts, results)
    text = [f"# SemiPL, reproduced: {', '.join(parts)}\n", protocol_line(plan) + "\n"]
    text += [markdown(title, lines) for title, lines in found]
    text += [f"![{caption}]({path.name})\n\n{caption}\n" for caption, path in drawn]
    with atomic_file(plan.out / "report.md") as file:
        file.write("\n".join(text).encode())
    html = page("SemiPL, reproduced", protocol_line(plan), [(t, HEAD, lines) for t, lines in found], drawn)
    with atomic_file(plan.out / "report.html") as file:
        file.write(html.encode())
    files.write_json(plan.out / "results.json", {**results.to_dict(), "finding": finding(results)})
    for title, lines in found:
        console.print(console_table(title, lines))
    told = [protocol_line(plan), *([finding(results)] if "fractions" in parts else [])]
    for line in (*told, f"report: {plan.out / 'report.html'}"):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def console_table(title: str, lines: list[list[str]]):
    """A rich table of a table's lines."""
    from rich.table import Table

    out = Table(title=title)
    for at, column in enumerate(HEAD):
        out.add_column(column, justify="right" if 0 < at < len(HEAD) - 1 else "left")
    for line in lines:
        out.add_row(*map(escape, line))
    return out


def stopped(signum: int, frame) -> None:
    """SIGTERM ends this command as Ctrl-C does: with the training that it has started."""
    raise Stopped(signum)
