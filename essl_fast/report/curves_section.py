"""The charts in a report: losses, success and speed by epoch, success against threshold, scores of the pairs."""

from essl_fast.evaluate.metrics import THRESHOLDS
from essl_fast.report.charts import Series, histogram, line_chart
from essl_fast.report.runs import RESULTS, Run, percent, points


def curves(runs: list[Run]) -> str:
    """All charts of the runs."""
    charts = _epochs_of_one(runs[0]) if len(runs) == 1 else _epochs_of_several(runs)
    charts += _thresholds(runs)
    if len(runs) == 1 and runs[0].pairs:
        scores = [0.0 if pair["ciou"] is None else pair["ciou"] for pair in runs[0].pairs]
        charts.append(histogram("Test pairs by their cIoU", scores, 20, "cIoU", 0.5))
    charts += _speeds(runs)
    return f'<h2>Curves</h2><div class="charts">{"".join(charts)}</div>'


def _losses(runs: list[Run]) -> list[str]:
    """Names of the losses in the logs, in the order in which they first appear."""
    return list(dict.fromkeys(name for run in runs for entry in run.epochs for name in entry["losses"]))


def _epochs_of_one(run: Run) -> list[str]:
    """All losses in one chart, success and AUC in another."""
    best = run.best_epoch()
    losses = [Series(name, points(run, "losses", name), at) for at, name in enumerate(_losses([run]))]
    scores = [
        Series(words, percent(points(run, "selection", key)), at, dots=True)
        for at, (key, words) in enumerate((("success_at_half", "success at cIoU 0.5"), ("auc", "AUC")))
    ]
    title = f"On the {run.config.get('select_on', 'selection')} split"
    return [
        line_chart("Training loss", losses, x_label="epoch", mark_x=best),
        line_chart(title, scores, x_label="epoch", y_label="%", y_range=(0, 100), mark_x=best),
    ]


def _epochs_of_several(runs: list[Run]) -> list[str]:
    """A chart for each loss, one for success and one for AUC, with a line for each run."""
    charts = []
    for name in _losses(runs):
        lines = [Series(run.label, points(run, "losses", name), at) for at, run in enumerate(runs)]
        charts.append(line_chart(f"Training: {name}", [line for line in lines if line.points], x_label="epoch"))
    for key, words in (("success_at_half", "Success at cIoU 0.5"), ("auc", "AUC")):
        lines = [Series(r.label, percent(points(r, "selection", key)), at, dots=True) for at, r in enumerate(runs)]
        charts.append(line_chart(f"{words}, selection split", lines, x_label="epoch", y_label="%", y_range=(0, 100)))
    return charts


def _thresholds(runs: list[Run]) -> list[str]:
    """Success against threshold: one run with its baselines, or only the trained models of several."""
    one, lines = len(runs) == 1, []
    for at, run in enumerate(runs):
        for place, (key, words) in enumerate(RESULTS.items()):
            if key in run.results and (one or key == "test"):
                curve = [(float(x), 100 * y) for x, y in zip(THRESHOLDS, run.results[key]["curve"], strict=True)]
                lines.append(Series(words if one else run.label, curve, place if one else at, dashed=key != "test"))
    if not lines:
        return []
    title, unit = "Test pairs at or above a cIoU", "cIoU threshold"
    ranges = {"x_range": (0, 1), "y_range": (0, 100)}
    return [line_chart(title, lines, x_label=unit, y_label="%", **ranges, mark_x=0.5)]


def _speeds(runs: list[Run]) -> list[str]:
    """Training speed, and the time spent waiting for data."""
    rates = [Series(run.label, points(run, "pairs_per_second"), at) for at, run in enumerate(runs)]
    waits = [Series(run.label, percent(points(run, "waiting")), at) for at, run in enumerate(runs)]
    top = max((y for line in rates for _, y in line.points), default=1.0)
    most = max(1.0, 1.15 * max((y for line in waits for _, y in line.points), default=1.0))
    return [
        line_chart("Training speed", rates, x_label="epoch", y_label="pairs/s", y_range=(0, 1.15 * top)),
        line_chart("Time spent waiting for data", waits, x_label="epoch", y_label="%", y_range=(0, most)),
    ]
