"""All settings, for docs/settings.md: python docs/list_settings.py, after a setting or its text has changed."""

from __future__ import annotations

import argparse
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is not current")
    options = parser.parse_args()
    page = page_with(tables())
    if options.check:
        return int(page != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
