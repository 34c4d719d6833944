"""The results of the runs: mean and spread over seeds, the lines of the tables, and what they say in words."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterable

from essl_fast.common.urls import redacted
from essl_fast.reproduce.plan import REDUCED_BATCH, Plan
from essl_fast.reproduce.rows import TABLES, Row, fraction_rows
from essl_fast.reproduce.sweep import best_of, finding_of, heads_of

HEAD = ("", "published: success, %", "published: AUC, %", "ours: success, %", "ours: AUC, %", "")


def mean(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard deviation of shares, in per cent. The deviation is the sample's; None for a single value."""
    spread = 100 * statistics.stdev(values) if len(values) > 1 else None
    return 100 * statistics.fmean(values), spread


def mean_and_spread(values: list[float]) -> str:
    """Mean ± standard deviation of shares in per cent, as a cell of a table."""
    if not values:
        return "not run"
    middle, spread = mean(values)
    return f"{middle:.1f}" + (f" ± {spread:.1f}" if spread is not None else "")


def share(value: float | None) -> str:
    """A published share in per cent, or a dash."""
    return "–" if value is None else f"{100 * value:.2f}"


class Results:
    """The summaries of the runs, by row and seed, and for what reason a row failed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.summaries: dict[str, dict[int, dict]] = {}
        self.failed: dict[str, str] = {}

    def add(self, row: Row, seed: int, summary: dict) -> None:
        """Keep the summary of a run."""
        self.summaries.setdefault(row.run, {})[seed] = summary

    def values(self, row: Row, key: str) -> list[float]:
        """success_at_half or auc on the test split, one value per seed."""
        return [summary["test"][key] for _, summary in sorted(self.summaries.get(row.run, {}).items())]

    def selected(self, row: Row) -> list[list[float]]:
        """[success, AUC] on the selection split in the best epoch, for each seed."""
        return [summary["selected"]["score"] for _, summary in sorted(self.summaries.get(row.run, {}).items())]

    def line_of_sweep(self, row: Row) -> list[str]:
        """A line of a sweep's table."""
        scores = self.selected(row)
        epochs = [summary["selected"]["epoch"] for _, summary in sorted(self.summaries.get(row.run, {}).items())]
        chosen = [mean_and_spread([score[at] for score in scores]) for at in (0, 1)]
        remarks = [f"failed: {self.failed[row.run]}"] if row.run in self.failed else []
        if 0 < len(scores) < len(self.plan.seeds):
            remarks.append(f"{len(scores)} of {len(self.plan.seeds)} seeds")
        if row == best_of(self):
            remarks.append("best")
        tested = [mean_and_spread(self.values(row, key)) for key in ("success_at_half", "auc")]
        return [row.label, *chosen, *tested, ", ".join(map(str, epochs)), "; ".join(remarks)]

    def line(self, row: Row) -> list[str]:
        """A line of a table, with the columns of HEAD."""
        published = self.plan.published.get(row.name, row.published)
        theirs = [share(published.success_at_half), share(published.auc)] if published else ["–", "–"]
        done, wanted = len(self.summaries.get(row.run, {})), len(self.plan.seeds)
        remarks = [published.source] if published else []
        if row.run in self.failed:
            remarks.append(f"failed: {self.failed[row.run]}")
        elif not done:
            remarks.append("not run")
        if 0 < done < wanted:
            remarks.append(f"{done} of {wanted} seeds")
        return [
            row.label,
            *theirs,
            mean_and_spread(self.values(row, "success_at_half")),
            mean_and_spread(self.values(row, "auc")),
            "; ".join(remarks),
        ]

    def to_dict(self) -> dict:
        """Plain values, for results.json."""
        return {
            "protocol": self.plan.protocol,
            "reduced": self.plan.reduced,
            "data": redacted(self.plan.data),
            "seeds": self.plan.seeds,
            "overrides": self.plan.overrides,
            "failed": self.failed,
            "rows": {
                name: {
                    str(seed): {
                        "test": {key: summary["test"][key] for key in ("pairs", "success_at_half", "auc", "curve")},
                        "epoch": summary["selected"]["epoch"],
                        **({"selection": summary["selected"]["score"]} if self.plan.swept else {}),
                        "seconds": summary["seconds"],
                    }
                    for seed, summary in sorted(seeds.items())
                }
                for name, seeds in self.summaries.items()
            },
        }


def finding(results: Results) -> str:
    """The effect of the share of labels, or of a sweep's settings, in words, whatever it is."""
    if results.plan.swept:
        return finding_of(results)
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


def tables(parts: Iterable[str], results: Results) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """(title, column heads, lines) of the tables that belong to the parts."""
    if swept := results.plan.swept:
        title = "Sweep of " + " and ".join(name for name, _ in swept[0].settings)
        return [(title, heads_of(results), [results.line_of_sweep(row) for row in swept])]
    found = [(title, rows) for name, (title, rows) in TABLES.items() if name in parts]
    if "fractions" in parts:
        found.append(("SemiPL without PCM by share of labels (not in the paper)", fraction_rows()))
    return [(title, HEAD, [results.line(row) for row in rows]) for title, rows in found]


def protocol_line(plan: Plan) -> str:
    """How the epochs were chosen, on which data, and what the figures can be compared with."""
    if plan.protocol == "published":
        text = "Protocol: published. The best epoch was chosen on the test set itself, as the published code does."
    else:
        text = "Protocol: clean. The best epoch was chosen on a validation split"
        text += "." if plan.swept else ", the published one on the test set."
    data = "the synthetic demo world" if plan.data == "demo" else redacted(plan.data)
    text += f" Data: {data}; {len(plan.seeds)} seed{'s' if len(plan.seeds) > 1 else ''}."
    if plan.reduced:
        text += f" Reduced: small networks, few epochs, batches of 1/{REDUCED_BATCH} and learning rates to match; "
        text += "compare rows with each other, not with the published figures."
    if plan.overrides:
        text += f" Overrides: {shlex.join(plan.overrides)}."
    return text
