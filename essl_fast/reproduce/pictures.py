"""The paper's figures, drawn from the runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from essl_fast import checkpoints
from essl_fast.common.urls import placed
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import evaluate
from essl_fast.report import figures
from essl_fast.reproduce.results import Results, finding, mean
from essl_fast.reproduce.rows import TABLES, fraction_of, fraction_rows
from essl_fast.runtime import runlog
from essl_fast.runtime.devices import pick_device, pick_precision

SHOWN = 6  # frames of figures 3 and 4


def draw(parts: Iterable[str], results: Results) -> list[tuple[str, Path]]:
    """Draw the figures of the parts as PNG files; (caption, file) of each. One that has no runs is left out."""
    drawn = []
    if results.plan.swept:
        return _sweep_by_epoch(results)
    if "figures" in parts:
        drawn += _overlays(results) + _success_by_epoch(results)
    if "fractions" in parts:
        drawn += _success_by_labels(results)
    return drawn


def _overlays(results: Results) -> list[tuple[str, Path]]:
    """Figures 3 and 4: the same frames under each method."""
    plan, drawn = results.plan, []
    samples = figure_samples(results, plan.seeds[0])
    for number, what in ((3, "where they do best on average"), (4, "where they do worst")):
        if samples:
            path = plan.out / f"figure{number}.png"
            figures.side_by_side(path, choose(samples, SHOWN, hardest=number == 4))
            caption = f"Figure {number}: the same test frames under each method ({what}); seed {plan.seeds[0]}"
            drawn.append((caption, path))
    return drawn


def _success_by_epoch(results: Results) -> list[tuple[str, Path]]:
    """Figure 5: success on the selection split."""
    plan, seed = results.plan, results.plan.seeds[0]
    histories = {
        row.label: history
        for row in TABLES["table1"][1]
        if row.config.startswith("paper/table1_batch128")
        and seed in results.summaries.get(row.run, {})
        and (history := selection(plan.folder(row, seed)))
    }
    if not histories:
        return []
    path = plan.out / "figure5.png"
    split = "test" if plan.protocol == "published" else "validation"
    figures.success_by_epoch(path, histories, split)
    return [(f"Figure 5: success on the {split} split by epoch, both learning rates; seed {seed}", path)]


CURVES = 10  # of a sweep's figure: so many colours tell lines apart


def _sweep_by_epoch(results: Results) -> list[tuple[str, Path]]:
    """Success on the selection split by epoch, of the best runs of a sweep."""
    plan, seed = results.plan, results.plan.seeds[0]
    done = [row for row in plan.swept if seed in results.summaries.get(row.run, {})]
    done.sort(key=lambda row: results.summaries[row.run][seed]["selected"]["score"], reverse=True)
    histories = {row.label: history for row in done[:CURVES] if (history := selection(plan.folder(row, seed)))}
    if not histories:
        return []
    path = plan.out / "sweep.png"
    split = "test" if plan.protocol == "published" else "validation"
    figures.success_by_epoch(path, histories, split)
    best = f", the best {CURVES} of {len(done)}" * (len(done) > CURVES)
    return [(f"Success on the {split} split by epoch{best}; seed {seed}", path)]


def _success_by_labels(results: Results) -> list[tuple[str, Path]]:
    """Success by share of labels, over all seeds."""
    points = []
    for row in fraction_rows():
        share, found = fraction_of(row), results.values(row, "success_at_half")
        if share is not None and found:
            points.append((share, *mean(found)))
    if not points:
        return []
    path = results.plan.out / "fractions.png"
    figures.success_by_labels(path, points)
    return [(f"Success by share of labels. {finding(results)}", path)]


def selection(folder: Path) -> list[tuple[int, float]]:
    """(epoch, success) on the selection split, from a run's log."""
    if not (folder / "log.jsonl").exists():
        return []
    epochs = {}
    for event in runlog.read_log(folder / "log.jsonl"):
        found = event.get("selection")
        if (
            event.get("event") == "epoch"
            and isinstance(found, dict)
            and {"epoch", "success_at_half"} <= {*event, *found}
        ):
            epochs[event["epoch"]] = found["success_at_half"]  # after a kill an epoch is logged twice
    return sorted(epochs.items())


def figure_samples(results: Results, seed: int) -> dict[str, list[dict]]:
    """By method, test frames with their maps, the same frames for all: the samples of `evaluate(show=...)`."""
    found, device = {}, pick_device(results.plan.device)
    for row in TABLES["table2"][1]:
        if seed in results.summaries.get(row.run, {}):
            state = checkpoints.load(results.plan.folder(row, seed) / "best.pt")
            model, settings = checkpoints.restore(state, device)
            precision = pick_precision(settings.precision, device)
            manifest = Manifest.load(placed(state["data_root"] if results.plan.data == "demo" else results.plan.data))
            shown = evaluate(model, manifest, "test", settings, device, precision, show=8 * SHOWN)
            found[row.label] = shown.samples
    return found


def choose(samples: dict[str, list[dict]], count: int, hardest: bool) -> dict[str, list[dict]]:
    """The `count` frames with the best (or, if `hardest`, the worst) mean cIoU over the methods, of all methods."""
    scores: dict[str, float] = {}
    for shown in samples.values():
        for sample in shown:
            scores[sample["key"]] = scores.get(sample["key"], 0.0) + sample["ciou"]
    kept = sorted(scores, key=lambda key: (scores[key] if hardest else -scores[key], key))[:count]
    return {
        label: sorted((s for s in shown if s["key"] in kept), key=lambda sample: kept.index(sample["key"]))
        for label, shown in samples.items()
    }
