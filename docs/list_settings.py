"""All settings, for docs/settings.md: python docs/list_settings.py, after a setting or its text has changed."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "settings.md"
BEGIN = "<!-- settings: made by docs/list_settings.py -->\n"
GROUPS = {  # in the order of the page; "" holds those without a group
    "": "The run",
    "data": "Data",
    "model": "The network",
    "objective": "What training minimises",
    "optim": "The optimizer",
    "demo": "The demo's world",
}


def rows_of(group: str) -> list[str]:
    """A row for each setting of a group."""
    from essl_fast import checkpoints, config

    told = {action.dest: action for action in config.parser("train")._actions}
    rows = []
    for name in config.leaves():
        if name.rpartition(".")[0] == group:
            values, text = (str(what).replace("%%", "%") for what in (told[name].metavar, told[name].help))
            free = "" if checkpoints.forbidden([f"{name}: one -> another"]) else "yes"
            cells = f"`{name}`", values.replace("|", ", "), default_of(name), text.replace("|", "\\|"), free
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def default_of(name: str) -> str:
    """A setting's default, as a file has it."""
    from essl_fast import config

    value = config.value_of(config.Config(), name)
    if isinstance(value, bool):
        value = str(value).lower()
    return "empty" if value == "" else f"`{value}`"


def tables() -> str:
    """All tables, Markdown."""
    head = ["| setting | value or unit | default | what it does | may change |", "| --- | --- | --- | --- | --- |"]
    return "\n".join("\n".join([f"## {title}", "", *head, *rows_of(group), ""]) for group, title in GROUPS.items())


def page_with(made: str) -> str:
    """The page with these tables in the place of its own."""
    return f"{PAGE.read_text(encoding='utf-8').partition(BEGIN)[0]}{BEGIN}\n{made}"


if __name__ == "__main__":
    PAGE.write_text(page_with(tables()), encoding="utf-8")
