"""The HTML page of the results: tables and pictures in one file that needs no network."""

import base64
from html import escape
from pathlib import Path

from essl_fast.report import CSS


def page(
    title: str, note: str, tables: list[tuple[str, tuple[str, ...], list[list[str]]]], pictures: list[tuple[str, Path]]
) -> str:
    """The page as HTML. All text is escaped, and the pictures are inside the page.

    Args:
        title: above everything.
        note: below the title.
        tables: (title, column heads, lines); the columns between the first and the last hold numbers.
        pictures: (caption, PNG file).
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
