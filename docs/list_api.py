"""The tables of public names in docs/api.md: python docs/list_api.py, after a name or its docstring has changed."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "api.md"
BEGIN, END = "<!-- names: made by docs/list_api.py -->\n", "<!-- names end -->\n"
PACKAGES = {  # in the order of the page
    "essl_fast": "What most programs need",
    "essl_fast.kernels": "The ops",
    "essl_fast.models": "Networks",
    "essl_fast.objectives": "Objectives",
    "essl_fast.metrics": "Metrics",
    "essl_fast.data.datasets": "Readers of data sets",
    "essl_fast.data.loading": "From a prepared folder to batches",
    "essl_fast.data.shards": "The prepared folder",
    "essl_fast.checkpoints": "Checkpoints",
    "essl_fast.checkpoint": "The published code's checkpoints",
    "essl_fast.prepare": "Preparing",
    "essl_fast.train": "Training",
    "essl_fast.evaluate": "Evaluating",
    "essl_fast.localize": "Localizing",
    "essl_fast.export": "Exporting",
    "essl_fast.report": "Reports",
    "essl_fast.reproduce": "Reproducing",
    "essl_fast.app": "The page in the browser",
    "essl_fast.config": "Settings",
}


def names_of(module: ModuleType) -> list[str]:
    """What a package exports: its `__all__`, or what it defines or imports by name under no underscore."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=str.lower)
    held = {name: value for name, value in vars(module).items() if inspect.isroutine(value) or inspect.isclass(value)}
    return sorted(name for name, value in held.items() if value.__module__.startswith("essl_fast") and name[0] != "_")


def first_sentence(value: object) -> str:
    """The beginning of a docstring, on one line."""
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", text).replace("``", "`").replace("|", r"\|")
    return text.partition(". ")[0].strip().rstrip(".") or "?"


def call_of(name: str, value: object) -> str:
    """A function or class with the names of its arguments."""
    if not (inspect.isroutine(value) or inspect.isclass(value)):
        return name
    try:
        arguments = inspect.signature(value).parameters.values()
    except (ValueError, TypeError):
        return name
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return f"{name}({', '.join(stars.get(one.kind, '') + one.name for one in arguments if one.name != 'self')})"


def row(name: str, value: object) -> str:
    """A row of a table. A plain value has no docstring of its own: it is shown itself, if it is short."""
    if isinstance(value, ModuleType) or inspect.isroutine(value) or inspect.isclass(value):
        told = first_sentence(value)
    else:
        shown = repr(value)
        if isinstance(value, (set, frozenset)):  # its own order is another one in each process
            shown = f"{{{', '.join(sorted(map(repr, value)))}}}"
        told = f"`{shown}`" if len(shown) < 60 else f"a {type(value).__name__}"
    return f"| `{call_of(name, value)}` | {told} |"


def tables() -> str:
    """All tables, Markdown."""
    parts = []
    for package, title in PACKAGES.items():
        module = importlib.import_module(package)
        rows = [row(name, getattr(module, name)) for name in names_of(module)]
        parts.append("\n".join([f"### {title}: `{package}`", "", "| name | is |", "| --- | --- |", *rows, ""]))
    return "\n".join(parts)


def page_with(names: str) -> str:
    """The page with these tables in the place of its own."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{names}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page_with(tables()), encoding="utf-8")
