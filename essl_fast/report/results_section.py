"""The results in a report: the figures that matter most, runs and published results in a table, results by class."""

from essl_fast.report import paper
from essl_fast.report.alike import groups
from essl_fast.report.formatting import duration, per_cent, speed, text
from essl_fast.report.runs import RESULTS, Run

HEADS = (  # (words, whether the column is right-aligned)
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


OF_DEMO = "The published figures are of other data than the demo's world."
OF_OTHERS = "Published figures stand only beside the data set that they are of, which prepare calls chaotic."


def tiles(runs: list[Run]) -> str:
    """The most important figures of a single run; "" for several."""
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
    """Every run and its baselines (of several, only the untrained model); what is published of the same data set.

    A column tells the group of runs that were not trained and tested alike.
    """
    rows, of_each = [], groups(runs)[0]
    for at, run in enumerate(runs):
        group = of_each[at] if of_each else None
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
                group=group,
            )
        )
        for key, words in RESULTS.items():
            if key != "test" and key in run.results and (len(runs) == 1 or key == "untrained"):
                found = run.results[key]
                of = words if len(runs) == 1 else f"{words}, {run.label}"
                rows.append(_row(of, "", found["pairs"], found["success_at_half"], found["auc"], group=group))
    shown = {paper.SETS[name] for run in runs if (name := run.data_name()) in paper.SETS}
    for row in paper.ROWS:
        if row.data in shown:
            name = f"{row.name}, {row.data}: {row.source}"
            none = "" if of_each else None
            rows.append(_row(name, "published", "", row.success_at_half, row.auc, kind="paper", group=none))
    shown_heads = (*HEADS[:3], ("group", 1), *HEADS[3:]) if of_each else HEADS
    heads = "".join(f"<th{' class=n' if right else ''}>{text(words)}</th>" for words, right in shown_heads)
    demo = all(run.data_name() == "demo" for run in runs)
    below = f'<p class="sub">{text(paper.OPEN if shown else OF_DEMO if demo else OF_OTHERS)}</p>'
    return (
        f'<h2>Results</h2><div class="card scroll wide"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{below}"
    )


def _row(
    name, method, pairs, half, auc, epoch="", rate="", time="", where="", *, strong=False, kind="", group=None
) -> str:
    """A row. group: its cell in the column of groups; None without such a column."""
    figure = 'class="n strong"' if strong else 'class="n"'
    of_group = "" if group is None else f"<td class=n>{text(group)}</td>"
    return (
        f'<tr{f" class={kind}" if kind else ""}><td class="wrap{" strong" if strong else ""}">{text(name)}</td>'
        f"<td {figure}>{per_cent(half)}</td><td {figure}>{per_cent(auc)}</td>{of_group}"
        f"<td class=n>{text(pairs)}</td>"
        f"<td class=n>{text(epoch)}</td><td class=n>{text(rate)}</td><td class=n>{text(time)}</td>"
        f"<td>{text(method)}</td><td>{text(where)}</td></tr>"
    )


def classes(runs: list[Run]) -> str:
    """Pairs, success and AUC of each class, in the test results of the runs."""
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
