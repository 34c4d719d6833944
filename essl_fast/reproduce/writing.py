"""Writing the results: Markdown, HTML, JSON, and tables on the console."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from essl_fast.common.files import atomic_file, write_json
from essl_fast.report import paper
from essl_fast.reproduce.page import page
from essl_fast.reproduce.results import HEAD, Results, finding, protocol_line, tables


def write(parts: list[str], results: Results, drawn: list[tuple[str, Path]], console: Console) -> None:
    """Write report.md, report.html and results.json, and print the tables.

    drawn: (caption, PNG file) of each figure.
    """
    plan = results.plan
    found = tables(parts, results)
    what = "Sweep" if plan.swept else f"SemiPL, reproduced: {', '.join(parts)}"
    note = finding(results) if plan.swept else paper.OPEN
    text = [f"# {what}\n", protocol_line(plan) + "\n"]
    text += [markdown(title, lines, heads) for title, heads, lines in found]
    text.append(f"{note}\n")
    text += [f"![{caption}]({path.name})\n\n{caption}\n" for caption, path in drawn]
    with atomic_file(plan.out / "report.md") as file:
        file.write("\n".join(text).encode())
    title = "Sweep" if plan.swept else "SemiPL, reproduced"
    html = page(title, f"{protocol_line(plan)} {note}", found, drawn)
    with atomic_file(plan.out / "report.html") as file:
        file.write(html.encode())
    write_json(plan.out / "results.json", {**results.to_dict(), "finding": finding(results)})
    for title, heads, lines in found:
        console.print(console_table(title, lines, heads))
    told = [protocol_line(plan), *([finding(results)] if "fractions" in parts else []), note]
    for line in (*told, f"report: {plan.out / 'report.html'}"):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def markdown(title: str, lines: list[list[str]], heads: tuple[str, ...] = HEAD) -> str:
    """A table as Markdown."""
    cells = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return f"## {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def console_table(title: str, lines: list[list[str]], heads: tuple[str, ...] = HEAD) -> Table:
    """A table for the console."""
    out = Table(title=Text(title))
    for at, column in enumerate(heads):
        out.add_column(column, justify="right" if 0 < at < len(heads) - 1 else "left")
    for line in lines:
        out.add_row(*map(Text, line))
    return out
