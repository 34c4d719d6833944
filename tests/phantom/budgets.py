"""The budgets of compiled steps: what budgets.json keeps, and what a step is held to.

Counts are exact. A change that moves one, also downwards, brings the new table along and says why in its message.
"""

import json
from pathlib import Path

import torch

FILE = Path(__file__).with_name("budgets.json")
SLACK = 0.002  # of the bytes
COLUMNS = ("graphs", "kernels", "launches", "calls", "gigabytes", "atomics", "relayouts")
UPDATE = "if that is meant, run `python -m tests.phantom --update` ({how}) and say in the commit's message why"

Budget = dict[str, float | int]


def load(file: Path = FILE) -> dict[str, Budget]:
    """The budgets by the name of their case."""
    return json.loads(file.read_text())["steps"] if file.exists() else {}


def made_with(file: Path = FILE) -> str:
    """The version of PyTorch that the table was made with."""
    return json.loads(file.read_text())["torch"] if file.exists() else ""


def holds(version: str) -> bool:
    """Whether a table of this version of PyTorch is one for the installed version: another one generates other code."""
    return version == torch.__version__.partition("+")[0]


def save(found: dict[str, Budget], file: Path = FILE) -> None:
    """Write the budgets of some cases; those of the others stay, unless another PyTorch made them."""
    version = torch.__version__.partition("+")[0]
    kept = load(file) if made_with(file) == version else {}
    lines = [f"    {json.dumps(name)}: {json.dumps(each)}" for name, each in sorted((kept | found).items())]
    file.write_text(f'{{\n  "torch": "{version}",\n  "steps": {{\n' + ",\n".join(lines) + "\n  }\n}\n")


def faults(name: str, have: Budget, budgets: dict[str, Budget], version: str, how: str = "add --all") -> list[str]:
    """A line for each number that is not the table's.

    Args:
        name: of the case.
        have: its numbers.
        budgets: the table.
        version: of PyTorch that the table was made with; if it is not the installed one, nothing is held.
        how: what else the command needs to run the case.
    """
    if not holds(version):
        return []
    if name not in budgets:
        return [f"{name} has no budget: {UPDATE.format(how=how)}"]
    want = budgets[name]
    slack = {"gigabytes": SLACK * want["gigabytes"]}
    wrong = [c for c in COLUMNS if c not in want or abs(have[c] - want[c]) > slack.get(c, 0)]
    told = ", ".join(f"{column} {want.get(column, 'unknown')} -> {have[column]}" for column in wrong)
    return [f"{name}: {told}: {UPDATE.format(how=how)}"] if wrong else []


def table(found: dict[str, Budget]) -> str:
    """The numbers of some cases, as Markdown."""
    head = ["step", *COLUMNS]
    rows = [[name, *(f"{each[c]:g}" for c in COLUMNS)] for name, each in found.items()]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
