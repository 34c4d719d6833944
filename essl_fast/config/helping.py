"""What --help and --help-all of train print: tables of the settings with their values, units and defaults."""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from essl_fast.config.settings import PATHS, Config, leaves, value_of

OFTEN = (  # what people change
    "data.root",
    "data.batch_size",
    "data.threads",
    "data.resident",
    "data.labelled_fraction",
    "model.trunk",
    "model.audio",
    "model.pcm",
    "objective.method",
    "objective.supervised_weight",
    "optim.lr_sound",
    "optim.lr_pcm",
    "optim.lr_head",
    "epochs",
    "eval_every",
    "seed",
    "name",
    "out",
    "device",
    "precision",
)
UNITS = {
    "model.pcm_cycles": "cycles",
    "model.out_dim": "channels",
    "model.classes": "classes",
    "model.head_dim": "channels",
    "objective.supervised_weight": "factor",
    "objective.supervised_scale": "factor",
    "objective.consensus": "annotators",
    "optim.lr_sound": "rate",
    "optim.lr_pcm": "rate",
    "optim.lr_head": "rate",
    "optim.lr_trunk": "rate",
    "optim.weight_decay": "factor",
    "optim.warmup": "epochs",
    "optim.clip_norm": "norm",
    "optim.accumulate": "batches",
    "optim.ema": "decay",
    "data.cache_gb": "10^9 bytes",
    "data.batch_size": "pairs",
    "data.global_batch": "pairs",
    "data.threads": "threads",
    "data.prefetch": "batches",
    "data.resident_budget_gb": "10^9 bytes",
    "data.max_errors": "share, 0 to 1",
    "data.labelled_fraction": "share, 0 to 1",
    "demo.train_videos": "videos",
    "demo.test_videos": "videos",
    "demo.seed": "whole number",
    "epochs": "epochs",
    "seed": "whole number",
    "eval_every": "epochs",
    "patience": "epochs",
    "checkpoint_epochs": "epochs",
    "checkpoint_steps": "steps",
    "checkpoint_keep": "files",
    "max_nonfinite": "share, 0 to 1",
    "overlays": "pictures",
}
_NARROW = 108  # columns below which a setting's text stands under it


class Help(argparse.Action):
    """--help and --help-all."""

    def __init__(self, every: bool = False, **named: Any) -> None:
        super().__init__(nargs=0, default=argparse.SUPPRESS, **{**named, "dest": argparse.SUPPRESS})
        self._every = every

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        print(page(parser, self._every), end="")
        parser.exit()


@cache
def texts() -> dict[str, str]:
    """What each setting does, from the docstrings of its dataclass."""
    found = {}
    for name in leaves():
        group, _, last = name.rpartition(".")
        kind = get_type_hints(Config)[group] if group else Config
        found[name] = _arguments(kind).get(last, "")
    return found


@cache
def _arguments(kind: type) -> dict[str, str]:
    """The Args of a docstring; none where Python runs without docstrings (-OO)."""
    lines = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")[2].splitlines()
    found: dict[str, str] = {}
    for line in lines:
        if begun := re.match(r"    (\w+): (.*)", line):
            name, found[begun[1]] = begun[1], begun[2]
        elif line.strip() and found:
            found[name] += f" {line.strip()}"
    return found


def kind_of(name: str, kind: Any) -> str:
    """The values of a setting in a word or two: its unit, or what there is to choose from."""
    if kind is bool:
        return "true|false"
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is list:
        return "[NAME, ...]"
    return UNITS.get(name) or ("path" if name in PATHS else "name")


def default_of(name: str) -> str:
    """A setting's default as it is written in a file."""
    value = value_of(Config(), name)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[]"
    return str(value) if value != "" else "empty"


def page(parser: argparse.ArgumentParser, every: bool) -> str:
    """The help of a command that takes settings."""
    width = max(60, min(shutil.get_terminal_size((132, 24)).columns, 150))
    names = leaves() if every else OFTEN
    settings = [(f"--{name}", kind_of(name, leaves()[name]), default_of(name), texts()[name]) for name in names]
    own = [
        (", ".join(action.option_strings), str(action.metavar or ""), "", (action.help or "").replace("%%", "%"))
        for action in parser._actions
        if action.dest not in leaves() and action.help is not argparse.SUPPRESS
    ]
    text = [f"usage: {parser.prog} [--config FILE] [--SETTING VALUE ...]\n"]
    text += [textwrap.fill(parser.description, width) + "\n"] if parser.description else []
    text += ["options", *_table([("option", "value", "", "what it does"), *own], width), ""]
    text += ["settings" if every else f"settings that people change (all {len(leaves())}: --help-all)"]
    text += _table([("setting", "value or unit", "default", "what it does"), *settings], width)
    end = (
        "A setting is the same in a YAML file: `epochs: 3`, `data: {batch_size: 64}`. Options win over files wherever "
        "they stand, files over the defaults above. Without --config the file is demo, whose values differ from these."
    )
    return "\n".join([*text, "", textwrap.fill(end, width), ""])


def _table(rows: list[tuple[str, str, str, str]], width: int) -> Iterable[str]:
    """Rows of four cells, the first of them the head, in columns; in a narrow terminal the last cell goes below."""
    first, second, third = (max(len(row[at]) for row in rows) for at in range(3))
    second = min(second, 24)
    indent = 2 + first + 2 + second + 2 + (third + 2 if third else 0)
    for at, (name, kind, default, what) in enumerate(rows):
        cells = f"  {name:<{first}}  {kind:<{second}}  " + (f"{default:<{third}}  " if third else "")
        if width < _NARROW:
            yield cells.rstrip()
            yield from textwrap.wrap(what, width, initial_indent=" " * 6, subsequent_indent=" " * 6) if at else []
            continue
        below = " " * indent
        wrapped = textwrap.wrap(what, width, initial_indent=below, subsequent_indent=below) or [below]
        if len(cells) > indent:  # a list of choices that is wider than its column: the text begins below it
            yield cells.rstrip()
        else:
            wrapped[0] = cells + wrapped[0][indent:]
        yield from (line.rstrip() for line in wrapped)
