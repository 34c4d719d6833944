"""The page of `essl_fast.reproduce`: tables and pictures in one HTML file that needs no network."""

import base64
from html import escape
from pathlib import Path

from essl_fast.report.style import CSS


def page(
    title: str, note: str, tables: list[tuple[str, tuple[str, ...], list[list[str]]]], pictures: list[tuple[str, Path]]
) -> str:
    """HTML of a title, a note, tables (title, column heads, lines) and PNG pictures (caption, file).

    Cells between the first and the last column hold numbers. All text is escaped; pictures are inside the page.
    """
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="sub">{escape(note)}</p>']
    for name, heads, lines in tables:
        parts.append(f'<h2>{escape(name)}</h2><div class="card scroll"><table><thead>{_line("th", heads)}</thead>')
        parts.append("<tbody>" + "".join(_line("td", line) for line in lines) + "</tbody></table></div>")
    for caption, path in pictures:
        data = base64.b64encode(path.read_bytes()).decode()
        image = f'<img alt="{escape(caption)}" style="width:100%" src="data:image/png;base64,{data}">'
        parts.append(f'<figure class="chart" style="margin-top:18px">{image}<p>{escape(caption)}</p></figure>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _line(tag: str, cells) -> str:
    last = len(cells) - 1
    inside = "".join(
        f"<{tag}{' class=n' if 0 < at < last else ''}>{escape(cell)}</{tag}>" for at, cell in enumerate(cells)
    )
    return f"<tr>{inside}</tr>"
