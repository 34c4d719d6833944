"""One reading of values: on a command line, in a file of settings, and for every command.

The text of a value means the same wherever it stands. What several readers of YAML or shells would take for different
things (010, 12:30) is refused. Each function raises ValueError with what a value must be: "must be a whole number".
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from essl_fast.common.errors import short
from essl_fast.common.urls import as_url, fault_of, is_url, lacks_place, redacted

Number = TypeVar("Number", int, float)

_WHOLE = re.compile(r"[+-]?\d(_?\d)*", re.ASCII)
_BASED = re.compile(r"[+-]?0(x[0-9a-f]+|o[0-7]+|b[01]+)", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d(_?\d)*(\.(\d(_?\d)*)?)?|\.\d(_?\d)*)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_NO_NUMBER = re.compile(r"([+-]?)\.?(inf|infinity|nan)", re.ASCII | re.IGNORECASE)
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
_NULL = ("", "~", "null")
_MOST_DIGITS = 30  # no setting is larger; Python itself refuses numbers of thousands of digits


def is_null(text: str) -> bool:
    """Whether a plain text is YAML's null: nothing, `~` or `null`."""
    return text.lower() in _NULL


def whole(text: str) -> int:
    """A whole number: 40, -1, 1_000, 0x28, 0o50, 0b101000; not 010, which is 8 to some readers and 10 to others."""
    plain = text.strip()
    if len(plain) > _MOST_DIGITS:
        raise ValueError(f"must be a whole number of at most {_MOST_DIGITS} digits")
    if _BASED.fullmatch(plain):
        return int(plain, 0)
    if not _WHOLE.fullmatch(plain):
        raise ValueError("must be a whole number such as 40")
    if re.match(r"[+-]?0[\d_]", plain):
        raise ValueError("must be a whole number without leading zeros, which some take for octal")
    return int(plain)


def number(text: str) -> float:
    """A number: 5, 5e-4, .5, 1_000.0, also inf and nan, which a range then refuses."""
    plain = text.strip()
    if found := _NO_NUMBER.fullmatch(plain):
        return float(f"{found[1]}{found[2]}")
    if not _NUMBER.fullmatch(plain):
        raise ValueError("must be a number such as 0.5 or 5e-4")
    if re.match(r"[+-]?0_?\d", plain):
        raise ValueError("must be a number without leading zeros, which some take for octal")
    return float(plain)


def truth(text: str) -> bool:
    """true or false, which may also be written yes, on, no and off."""
    plain = text.strip().lower()
    if plain not in (*_TRUE, *_FALSE):
        raise ValueError("must be true or false")
    return plain in _TRUE


def path(text: str, urls: str = "") -> str:
    """A path; `~` and `~name` at its beginning become the home folder, as in a shell.

    urls: a URL of this kind ("hf") may stand in its place, or one of "any". Others would name a folder `s3:` here.
    """
    if lacks_place(text):
        raise ValueError("names no bucket, host or folder")
    taken = urls == "any" or (urls and as_url(text).startswith(f"{urls}://"))
    if is_url(text) and not taken and not os.path.exists(text):
        raise ValueError("must be a path of this machine, not a URL")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("must be a path, without control characters")
    whole_text = os.path.expanduser(text)
    if text.startswith("~") and whole_text == text:
        raise ValueError(
            f"begins with {short(text.split('/')[0])}, and no home folder is known for it; write ./~ or all of it"
        )
    return whole_text


def _typed(read: Callable[[str], Number], low: float, high: float, unit: str) -> Callable[[str], Number]:
    def convert(text: str) -> Number:
        try:
            value = read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}, got {short(text)}") from None
        if not low <= value <= high:
            bounds = f"at least {low:,}" if high == float("inf") else f"from {low:,} to {high:,}"
            raise argparse.ArgumentTypeError(f"must be {bounds}{unit and ' ' + unit}, got {short(text)}")
        return value

    return convert


def whole_number(low: int, high: float = 2**31 - 1, unit: str = "") -> Callable[[str], int]:
    """A type for an option: a whole number from low to high."""
    return _typed(whole, low, high, unit)


def number_between(low: float, high: float, unit: str = "") -> Callable[[str], float]:
    """A type for an option: a number from low to high."""
    return _typed(number, low, high, unit)


def frame_size(text: str) -> tuple[int, int]:
    """A type for an option: width and height in pixels, written like 320x180."""
    sides = text.strip().lower().split("x")
    try:
        width, height = (whole(side) if side.isdecimal() else 0 for side in sides)
    except ValueError:
        width = height = 0
    if not (0 < width < 1 << 16 and 0 < height < 1 << 16):
        raise argparse.ArgumentTypeError(f"must be width x height in pixels, such as 320x180, got {short(text)}")
    return width, height


def _typed_path(text: str, urls: str = "") -> str:
    try:
        if not text:
            raise ValueError("must be a path")
        return path(text, urls)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, got {shown(text)}") from None


def shown(text: str) -> str:
    """A path or URL in quotes for a message: shortened, and without what is secret in it."""
    return short(redacted(text))


def a_path(text: str) -> Path:
    """A type for an option: a path of this machine that is not empty."""
    return Path(_typed_path(text))


def a_model(text: str) -> Path:
    """A type for an option: a path, or a model of the Hugging Face Hub such as hf://org/name."""
    return Path(_typed_path(text, "hf"))


def a_place(text: str) -> str | Path:
    """A type for an option: a folder or a URL."""
    found = _typed_path(text, "any")
    place = text if is_url(text) else Path(found)
    if not is_url(place):
        return place
    if fault := fault_of(url := as_url(place)):
        raise argparse.ArgumentTypeError(fault)
    return url


def flattened(values: dict, prefix: str = "") -> dict[str, str]:
    """Nested settings as texts by their dotted names: {"data.root": "prepared", ...}."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flattened(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = str(value)
    return found
