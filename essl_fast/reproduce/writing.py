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
    text = [f"# SemiPL, reproduced: {', '.join(parts)}\n", protocol_line(plan) + "\n"]
    text += [markdown(title, lines) for title, lines in found]
    text.append(f"{paper.OPEN}\n")
    text += [f"![{caption}]({path.name})\n\n{caption}\n" for caption, path in drawn]
    with atomic_file(plan.out / "report.md") as file:
        file.write("\n".join(text).encode())
    html = page(
        "SemiPL, reproduced", f"{protocol_line(plan)} {paper.OPEN}", [(t, HEAD, lines) for t, lines in found], drawn
    )
    with atomic_file(plan.out / "report.html") as file:
        file.write(html.encode())
    write_json(plan.out / "results.json", {**results.to_dict(), "finding": finding(results)})
    for title, lines in found:
        console.print(console_table(title, lines))
    told = [protocol_line(plan), *([finding(results)] if "fractions" in parts else []), paper.OPEN]
    for line in (*told, f"report: {plan.out / 'report.html'}"):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def markdown(title: str, lines: list[list[str]]) -> str:
    """A table as Markdown."""
    cells = [HEAD, ["---"] * len(HEAD), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return f"## {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def console_table(title: str, lines: list[list[str]]) -> Table:
    """A table for the console."""
    out = Table(title=Text(title))
    for at, column in enumerate(HEAD):
        out.add_column(column, justify="right" if 0 < at < len(HEAD) - 1 else "left")
    for line in lines:
        out.add_row(*map(Text, line))
    return out
