"""The HTML page of runs, section by section. Each section is a function of the runs that returns HTML, or "".

Everything that comes from a run (names, keys, settings, versions) goes through `text` before it is in the page.
"""

from essl_fast.common.values import flattened
from essl_fast.report.alike import groups
from essl_fast.report.charts import stacked_bar
from essl_fast.report.curves_section import curves
from essl_fast.report.formatting import text
from essl_fast.report.gallery_section import gallery_section
from essl_fast.report.results_section import classes, comparison, tiles
from essl_fast.report.runs import Run, differences
from essl_fast.report.sounds import MOST_BYTES
from essl_fast.report.style import CSS

# The browser must load nothing and run no script, whatever the names in a run contain.
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
UNLIKE = "These runs were not trained and tested alike: compare figures within a group only."


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
    """The title, and notes that a reader needs before the figures."""
    if len(runs) == 1:
        run = runs[0]
        out = f"<h1>{text(run.label)}</h1><p class='sub'>{text(summary_line(run))}</p>"
    else:
        out = f"<h1>{len(runs)} runs side by side</h1>"
        lines = groups(runs)[1]
        out += note(UNLIKE) * bool(lines) + "".join(map(note, lines))
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


def summary_line(run: Run) -> str:
    """A run in one line: method, networks, data, device."""
    config, machine = run.config, run.environment.get("machine", {})
    model = config.get("model", {})
    parts = [
        config.get("objective", {}).get("method", "?"),
        f"{model.get('trunk', '?')} and {model.get('audio', '?')}" + (" with PCM" if model.get("pcm") else ""),
        f"data {config.get('data', {}).get('root', '?')}",
        f"batch {config.get('data', {}).get('global_batch') or config.get('data', {}).get('batch_size', '?')}",
        machine.get("gpu") or machine.get("cpu") or run.environment.get("device", "?"),
    ]
    return " · ".join(str(part) for part in parts)


def note(line: str) -> str:
    """A highlighted line."""
    return f'<p class="note">{text(line)}</p>'


def galleries(runs: list[Run]) -> str:
    """The best, middle and worst localizations of each run that kept them."""
    shown = [(at, run) for at, run in enumerate(runs) if run.pictures]
    if not shown:
        return ""
    out = "<h2>Localizations of the test split</h2>"
    out += '<p class="sub">The number is a pair\'s cIoU; green: ground truth; white: where the scaled heat is 0.5.</p>'
    for at, run in shown:
        out += (f"<h3>{text(run.label)}</h3>" if len(runs) > 1 else "") + gallery_section(
            run.pictures, at, MOST_BYTES // len(shown)
        )
    return out


def times(runs: list[Run]) -> str:
    """How each run spent its time, and what its profile found."""
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
    """The settings that differ between the runs, and all settings of each."""
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
        out += _folded_table("All settings", run, run.config, len(runs) > 1)
    return f"<h2>Settings</h2>{out}"


def environments(runs: list[Run]) -> str:
    """Versions, machine and source of each run."""
    out = "".join(_folded_table("Environment", run, run.environment, len(runs) > 1) for run in runs)
    where = ", ".join(str(run.folder) for run in runs)
    return f"{out}<footer>Made by python -m essl_fast.report from {text(where)}</footer>"


def _folded_table(title: str, run: Run, values: dict, named: bool) -> str:
    """A table of nested values that opens with a click. named: add the run's label to the title."""
    rows = "".join(
        f"<tr><td>{text(name)}</td><td class=wrap>{text(value)}</td></tr>" for name, value in flattened(values).items()
    )
    of = f" of {text(run.label)}" if named else ""
    return (
        f"<details><summary>{title}{of}</summary>"
        f'<div class="card scroll"><table><tbody>{rows}</tbody></table></div></details>'
    )
