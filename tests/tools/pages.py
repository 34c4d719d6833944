"""Tables that a command writes into a page, between two lines of it."""

from pathlib import Path


def between(page: str, begin: str, text: str, end: str, where: Path) -> str:
    """The page's text with `text` between its lines `begin` and `end`. ValueError if `where` lacks one of these."""
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{where} lacks the lines {begin} and {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"
