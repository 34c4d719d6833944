"""matplotlib without the user's surroundings: a picture is the same, whatever a notebook or a file of settings says.

MPLBACKEND of a notebook may name a backend that is not installed here, matplotlibrc may ask for LaTeX, and names of
videos and classes are text, in which `$` begins no formula.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from essl_fast.common.files import atomic_file

# Fonts with characters that matplotlib's own lacks; of these, the installed ones are asked in this order.
FURTHER_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "IPAexGothic",
    "Droid Sans Fallback",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Unifont",
)
LONGEST = 80  # characters of a name in a picture
_HIDDEN = {"MPLBACKEND": None, "MATPLOTLIBRC": os.devnull}  # what matplotlib sees of these while it is imported


def load() -> Any:
    """matplotlib. Its import does not depend on the environment; afterwards the user's settings hold for the user."""
    import sys

    first = "matplotlib" not in sys.modules
    before = {name: os.environ.get(name) for name in _HIDDEN}
    with _silent():
        _set_environment(_HIDDEN)
        try:
            import matplotlib
        finally:
            _set_environment(before)
        if first:
            with contextlib.suppress(Exception):  # a wrong file of settings spoils no picture
                matplotlib.rc_file(matplotlib.matplotlib_fname())
    return matplotlib


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """matplotlib prints nothing: neither that a home folder cannot be written, nor that a font lacks a character."""
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Within the context matplotlib draws with its own defaults, takes text as it is, and prints nothing."""
    matplotlib = load()
    with _silent():
        from matplotlib import font_manager

    with _silent(), matplotlib.rc_context():
        matplotlib.rcdefaults()
        there = {font.name for font in font_manager.fontManager.ttflist}
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", *(name for name in FURTHER_FONTS if name in there)]
        matplotlib.rcParams["text.parse_math"] = False
        yield


def figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure of ``size`` (width, height) inches, and its axes, an array (rows, columns). No window is opened."""
    from matplotlib.figure import Figure

    made = Figure(figsize=size, layout="constrained")
    return made, made.subplots(rows, columns, squeeze=False)


def save(made: Any, path: Path, dpi: int) -> None:
    """Write a figure as a PNG file that is complete or not there."""
    with atomic_file(Path(path)) as file:
        made.savefig(file, format="png", dpi=dpi)


def shown(text: str) -> str:
    """A name as a picture shows it: one line, not too long, without what no font draws."""
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in str(text))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
