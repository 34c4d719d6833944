"""The HTML of a report: sections over the runs, each a function that gives a piece of the page or "".

Whatever comes from a run (names, keys, settings, versions) goes through `text` on its way into the page.
"""

import math
from html import escape

from essl_fast.evaluate.metrics import THRESHOLDS
from essl_fast.report import paper
from essl_fast.report.charts import Series, duration, histogram, line_chart, stacked_bar
from essl_fast.report.gallery_section import section
from essl_fast.report.runs import RESULTS, Run, differences, flatten, percent, points
from essl_fast.report.style import CSS

# Nothing may be loaded from anywhere, and no script may run, whatever a name in a run might hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def text(value: object) -> str:
    return escape(str(value), quote=True)


def per_cent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def speed(rate: float) -> str:
    """Pairs a second, to three digits."""
    return f"{rate:.3g}" if rate < 1000 else f"{rate:,.0f}"


def page(runs: list[Run]) -> str:
    """The whole document."""
    title = runs[0].label if len(runs) == 1 else f"{len(runs)} runs"
    body = head(runs) + tiles(runs) + comparison(runs) + curves(runs) + classes(runs)
    body += galleries(runs) + times(runs) + settings(runs) + environments(runs)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)} – essl_fast</title><style>{CSS}</style></head>\n<body><main>{body}</main></body>"
        "</html>\n"
    )


def head(runs: list[Run]) -> str:
    """Title, and what a reader must know before the figures."""
    if len(runs) == 1:
        run = runs[0]
        out = f"<h1>{text(run.label)}</h1><p class='sub'>{text(what(run))}</p>"
    else:
        out = f"<h1>{len(runs)} runs side by side</h1>"
    for run in runs:
        of = f"{run.label}: " if len(runs) > 1 else ""
        last = run.epochs[-1]["epoch"] if run.epochs else 0
        if not run.finished:
            total = run.config.get("epochs", "?")
            out += note(f"{of}not finished: {last} of {total} epochs; its test results come with the last one")
        if run.config.get("select_on") == "test":
            out += note(
                f"{of}published protocol: the epoch was chosen on the test set itself, so its figures are optimistic"
            )
        lost = run.summary.get("left_out", {})
        if any(lost.values()):
            counts = ", ".join(f"{count} {name}" for name, count in lost.items() if count)
            out += note(f"{of}pairs that were left out: {counts}")
        for line in run.notes:
            out += note(f"{of}{line}")
    return out


def what(run: Run) -> str:
    """A run in one line: method, networks, data, device."""
    config, machine = run.config, run.environment.get("machine", {})
    model = config.get("model", {})
    parts = [
        config.get("objective", {}).get("method", "?"),
        f"{model.get('trunk', '?')} and {model.get('audio', '?')}" + (" with PCM" if model.get("pcm") else ""),
        f"data {config.get('data', {}).get('root', '?')}",
        f"batch {config.get('data', {}).get('batch_size', '?')}",
        machine.get("gpu") or machine.get("cpu") or run.environment.get("device", "?"),
    ]
    return " · ".join(str(part) for part in parts)


def note(line: str) -> str:
    return f'<p class="note">{text(line)}</p>'


def tiles(runs: list[Run]) -> str:
    """The figures that matter most, of a single run."""
    if len(runs) > 1:
        return ""
    run, found = runs[0], []
    test, before = run.results.get("test"), run.results.get("untrained")
    if test:
        for key, words in (("success_at_half", "success at cIoU 0.5"), ("auc", "AUC")):
            base = f"untrained {per_cent(before[key])}%" if before else ""
            found.append((f"{per_cent(test[key])}%", f"{words}, {test['pairs']} test pairs", base))
    elif run.epochs and (last := [e for e in run.epochs if "selection" in e]):
        best = max(last, key=lambda entry: entry["selection"]["success_at_half"])
        found.append(
            (
                f"{per_cent(best['selection']['success_at_half'])}%",
                "best success at cIoU 0.5 so far",
                f"{run.config.get('select_on', '')}, epoch {best['epoch']}",
            )
        )
    if run.rate:
        waiting = [entry["waiting"] for entry in run.epochs]
        share = f"{100 * sum(waiting) / len(waiting):.1f}% of it waiting for data" if waiting else ""
        found.append((f"{speed(run.rate)}/s", "pairs trained on", share))
    if run.seconds is not None:
        starts = run.events.get("resume", 0)
        resumed = ("", "resumed once")[starts] if starts < 2 else f"resumed {starts} times"
        found.append((duration(run.seconds), "in all", resumed))
    if run.best_epoch():
        selected = run.summary["selected"]
        found.append((f"epoch {run.best_epoch()}", f"best of {len(run.epochs)}", f"on the {selected['split']} split"))
    inside = "".join(
        f'<div class="card tile"><b>{text(value)}</b><span>{text(words)}</span>'
        + (f"<em>{text(more)}</em>" if more else "")
        + "</div>"
        for value, words, more in found
    )
    return f'<div class="tiles">{inside}</div>' if found else ""


def comparison(runs: list[Run]) -> str:
    """Every run, the baselines of the first, and the published rows where they are of the same kind of data."""
    rows = []
    for run in runs:
        config, test = run.config, run.results.get("test")
        machine = run.environment.get("machine", {})
        rows.append(
            _row(
                run.label,
                config.get("objective", {}).get("method", "?"),
                test["pairs"] if test else "",
                test and test["success_at_half"],
                test and test["auc"],
                run.best_epoch() or "",
                speed(run.rate) if run.rate else "",
                duration(run.seconds) if run.seconds is not None else "",
                machine.get("gpu") or machine.get("cpu", ""),
                strong=True,
            )
        )
        for key, words in RESULTS.items():
            if key != "test" and key in run.results and (len(runs) == 1 or key == "untrained"):
                found = run.results[key]
                of = words if len(runs) == 1 else f"{words}, {run.label}"
                rows.append(_row(of, "", found["pairs"], found["success_at_half"], found["auc"]))
    demo = all(run.config.get("data", {}).get("root") == "demo" for run in runs)
    if not demo:
        for row in paper.ROWS:
            rows.append(
                _row(
                    f"{row.name}, {row.data}: {row.source}", "published", "", row.success_at_half, row.auc, kind="paper"
                )
            )
    heads = "".join(
        f"<th{' class=n' if right else ''}>{text(words)}</th>"
        for words, right in (
            ("", 0),
            ("success at cIoU 0.5, %", 1),
            ("AUC, %", 1),
            ("test pairs", 1),
            ("epoch", 1),
            ("pairs/s", 1),
            ("time", 1),
            ("method", 0),
            ("on", 0),
        )
    )
    below = "" if not demo else '<p class="sub">The published figures are of other data than the demo\'s world.</p>'
    return (
        f'<h2>Results</h2><div class="card scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{below}"
    )


def _row(name, method, pairs, half, auc, epoch="", rate="", time="", where="", *, strong=False, kind="") -> str:
    figure = 'class="n strong"' if strong else 'class="n"'
    return (
        f'<tr{f" class={kind}" if kind else ""}><td class="wrap{" strong" if strong else ""}">{text(name)}</td>'
        f"<td {figure}>{per_cent(half)}</td><td {figure}>{per_cent(auc)}</td><td class=n>{text(pairs)}</td>"
        f"<td class=n>{text(epoch)}</td><td class=n>{text(rate)}</td><td class=n>{text(time)}</td>"
        f"<td>{text(method)}</td><td>{text(where)}</td></tr>"
    )


def curves(runs: list[Run]) -> str:
    """Losses, success and AUC by epoch, success against threshold, scores of the pairs, speed."""
    charts, one = [], len(runs) == 1
    parts = dict.fromkeys(name for run in runs for entry in run.epochs for name in entry["losses"])
    if one:
        lines = [Series(name, points(runs[0], "losses", name), at) for at, name in enumerate(parts)]
        charts.append(line_chart("Training loss", lines, x_label="epoch", mark_x=runs[0].best_epoch()))
        lines = [
            Series(words, percent(points(runs[0], "selection", key)), at, dots=True)
            for at, (key, words) in enumerate((("success_at_half", "success at cIoU 0.5"), ("auc", "AUC")))
        ]
        title = f"On the {runs[0].config.get('select_on', 'selection')} split"
        charts.append(
            line_chart(title, lines, x_label="epoch", y_label="%", y_range=(0, 100), mark_x=runs[0].best_epoch())
        )
    else:
        for name in parts:
            lines = [Series(run.label, points(run, "losses", name), at) for at, run in enumerate(runs)]
            charts.append(line_chart(f"Training: {name}", [line for line in lines if line.points], x_label="epoch"))
        for key, words in (("success_at_half", "Success at cIoU 0.5"), ("auc", "AUC")):
            lines = [Series(r.label, percent(points(r, "selection", key)), at, dots=True) for at, r in enumerate(runs)]
            charts.append(
                line_chart(f"{words}, selection split", lines, x_label="epoch", y_label="%", y_range=(0, 100))
            )
    lines = []
    for at, run in enumerate(runs):
        for number_, (key, words) in enumerate(RESULTS.items()):
            if key in run.results and (one or key == "test"):
                curve = [(float(x), 100 * y) for x, y in zip(THRESHOLDS, run.results[key]["curve"], strict=True)]
                lines.append(Series(words if one else run.label, curve, number_ if one else at, dashed=key != "test"))
    if lines:
        charts.append(
            line_chart(
                "Test pairs at or above a cIoU",
                lines,
                x_label="cIoU threshold",
                y_label="%",
                x_range=(0, 1),
                y_range=(0, 100),
                mark_x=0.5,
            )
        )
    if one and runs[0].pairs:
        scores = [0.0 if pair["ciou"] is None else pair["ciou"] for pair in runs[0].pairs]
        charts.append(histogram("Test pairs by their cIoU", scores, 20, "cIoU", 0.5))
    rates = [Series(run.label, points(run, "pairs_per_second"), at) for at, run in enumerate(runs)]
    top = max((y for line in rates for _, y in line.points), default=1.0)
    charts.append(line_chart("Training speed", rates, x_label="epoch", y_label="pairs/s", y_range=(0, 1.15 * top)))
    waits = [Series(run.label, percent(points(run, "waiting")), at) for at, run in enumerate(runs)]
    most = max((y for line in waits for _, y in line.points), default=1.0)
    charts.append(
        line_chart(
            "Time spent waiting for data", waits, x_label="epoch", y_label="%", y_range=(0, max(1.0, 1.15 * most))
        )
    )
    return f'<h2>Curves</h2><div class="charts">{"".join(charts)}</div>'


def classes(runs: list[Run]) -> str:
    """Pairs, success rate and AUC of every class that occurs in a test result."""
    shown = [run for run in runs if run.results.get("test", {}).get("per_class")]
    if not shown:
        return ""
    found = [run.results["test"]["per_class"] for run in shown]
    names = sorted(
        {name for each in found for name in each},
        key=lambda name: (-max(each.get(name, {}).get("pairs", 0) for each in found), name),
    )
    heads = "<th>class</th><th class=n>pairs</th>"
    for run in shown:
        of = f"{run.label}: " if len(shown) > 1 else ""
        heads += f"<th class=n>{text(of)}success at 0.5, %</th><th class=n>AUC, %</th>"
    rows = []
    for name in names:
        cells = f"<td class=wrap>{text(name)}</td>"
        cells += f"<td class=n>{text(max(each.get(name, {}).get('pairs', 0) for each in found))}</td>"
        for each in found:
            result = each.get(name)
            half = result["success_at_half"] if result else None
            meter = f'<span class="meter"><i style="width:{100 * half:.1f}%"></i></span>' if half is not None else ""
            cells += f"<td class=n>{per_cent(half)}{meter}</td><td class=n>{per_cent(result and result['auc'])}</td>"
        rows.append(f"<tr>{cells}</tr>")
    return (
        f'<h2>Classes</h2><div class="card scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def galleries(runs: list[Run]) -> str:
    """Best, middle and worst localizations of each run that kept them."""
    shown = [(at, run) for at, run in enumerate(runs) if run.pictures]
    if not shown:
        return ""
    out = "<h2>Localizations of the test split</h2>"
    out += '<p class="sub">The number is a pair\'s cIoU; green: ground truth; white: where the scaled heat is 0.5.</p>'
    for at, run in shown:
        out += (f"<h3>{text(run.label)}</h3>" if len(runs) > 1 else "") + section(run.pictures, at)
    return out


def times(runs: list[Run]) -> str:
    """Where each run's time went, and what its profile found."""
    out = ""
    for run in runs:
        of = f"<h3>{text(run.label)}</h3>" if len(runs) > 1 else ""
        inside = stacked_bar(run.stages()) if run.stages() else ""
        if gaps := run.profile.get("gaps"):
            lines = "".join(f"<li>{text(line)}</li>" for line in gaps)
            inside += f'<h3>The step\'s largest gaps, by its profile</h3><ol class="gaps">{lines}</ol>'
        if inside:
            out += f'{of}<div class="card">{inside}</div>'
    return f"<h2>Where the time went</h2>{out}" if out else ""


def settings(runs: list[Run]) -> str:
    """What differs between the runs, and all settings of each."""
    out = ""
    if len(runs) > 1:
        rows = "".join(
            f"<tr><td>{text(name)}</td>{''.join(f'<td class=wrap>{text(value)}</td>' for value in values)}</tr>"
            for name, values in differences(runs)
        )
        heads = "".join(f"<th>{text(run.label)}</th>" for run in runs)
        inside = f"<table><thead><tr><th>setting</th>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        out += f'<div class="card scroll">{inside if rows else "The runs have the same settings."}</div>'
    for run in runs:
        rows = "".join(
            f"<tr><td>{text(name)}</td><td class=wrap>{text(value)}</td></tr>"
            for name, value in flatten(run.config).items()
        )
        of = f" of {text(run.label)}" if len(runs) > 1 else ""
        out += (
            f"<details><summary>All settings{of}</summary>"
            f'<div class="card scroll"><table><tbody>{rows}</tbody></table></div></details>'
        )
    return f"<h2>Settings</h2>{out}"


def environments(runs: list[Run]) -> str:
    """Versions, machine and source of each run."""
    out = ""
    for run in runs:
        rows = "".join(
            f"<tr><td>{text(name)}</td><td class=wrap>{text(value)}</td></tr>"
            for name, value in flatten(run.environment).items()
        )
        of = f" of {text(run.label)}" if len(runs) > 1 else ""
        out += (
            f"<details><summary>Environment{of}</summary>"
            f'<div class="card scroll"><table><tbody>{rows}</tbody></table></div></details>'
        )
    where = ", ".join(str(run.folder) for run in runs)
    return f"{out}<footer>Made by python -m essl_fast.report from {text(where)}</footer>"
