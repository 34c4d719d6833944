"""The one door of settings' values: the text of a file or of a command line, read as its setting's kind.

A text means the same in both. `null` is the default of a setting that may be empty (out), and else is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from essl_fast.common import values
from essl_fast.common.errors import InputError, any_of, short
from essl_fast.common.nearest import did_you_mean
from essl_fast.config.settings import MAY_BE_EMPTY, PATHS, Config, in_words, leaves, value_of
from essl_fast.config.yamls import LONGEST, Plain, texts

_READERS = {bool: values.truth, int: values.whole, float: values.number}
GROUPS = tuple(dict.fromkeys(name.partition(".")[0] for name in leaves() if "." in name))


def value(name: str, given: object, kind: Any) -> Any:
    """The value of a setting.

    Args:
        name: "data.batch_size".
        given: a text, :class:`Plain` if it had no quotes; or a list of texts, or whatever a file held.
        kind: the setting's type hint.

    Raises:
        ValueError: the text is none of its kind; the message says what it must be.
    """
    if get_origin(kind) is list:
        return _several(given)
    if not isinstance(given, str):
        what = "a group of settings" if isinstance(given, dict) else "a list"
        raise ValueError(f"must be {in_words(kind)}, got {what}")
    if isinstance(given, Plain) and values.is_null(given):
        if name in MAY_BE_EMPTY:
            return ""
        default = value_of(Config(), name)
        raise ValueError(
            f"{'nothing' if not given else short(given)[1:-1]} is no value of it; leave it out for the default, "
            f"{str(default).lower() if isinstance(default, bool) else default}"
        )
    if get_origin(kind) is Literal:
        return _one_of([str(known) for known in get_args(kind)], given)
    if kind is str:
        return _text(name, given)
    try:
        return _READERS[kind](given)
    except ValueError as error:
        raise ValueError(f"{error}, got {short(given)}") from None


def _text(name: str, given: str) -> str:
    if not given and name not in MAY_BE_EMPTY:
        raise ValueError("must not be empty")
    try:
        if name in PATHS:
            given.encode()  # the settings are written into files of UTF-8
            return values.path(str(given), "any" if name == "data.root" else "")
        if not given.isprintable():
            raise ValueError("must be a text without control characters")
    except UnicodeEncodeError:
        raise ValueError(f"must be a path in UTF-8, got {short(given)}") from None
    except ValueError as error:
        raise ValueError(f"{error}, got {values.shown(given)}") from None
    return str(given)


def _one_of(known: list[str], given: str) -> str:
    if given in known:
        return str(given)
    raise ValueError(f"must be {any_of(known)}, got {short(given)}{did_you_mean(given, known)}")


def _several(given: object) -> list[str]:
    """A list of texts: of a file, or as a command line has it, `[a, b]` or one word."""
    if isinstance(given, Plain):
        given = texts(str(given)) if given.startswith("[") else [] if values.is_null(given) else [given]
    items = [given] if isinstance(given, str) else given
    if not isinstance(items, list):
        raise ValueError("must be a list of texts such as [a, b]")
    for item in items:
        if not isinstance(item, str) or not item.isprintable() or values.is_null(item):
            raise ValueError(f"must be a list of texts such as [a, b], got {short(str(item))} in it")
    return [str(item) for item in items]


def read_text(file: Path | None) -> str:
    """What a file of settings holds, or standard input for None. At most a bit more than settings can have is read.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    try:
        with open(file or sys.stdin.fileno(), encoding="utf-8-sig", closefd=file is not None) as opened:
            return opened.read(LONGEST + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"--config: {file or 'standard input'} cannot be read as settings ({reason})") from error


def file_values(text: str, source: str) -> dict[str, Any]:
    """The settings of a YAML text, by their names: {"data.batch_size": 64}.

    Args:
        text: groups, or names with dots: `data: {batch_size: 64}` is `data.batch_size: 64`.
        source: where it is from, for messages.

    Raises:
        InputError: it is no YAML, has no settings in it, or one that is unknown, there twice or impossible.
    """
    try:
        held = texts(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ").replace('in "<file>", ', "in ")
        raise InputError(f"{source}: not a file of settings ({reason})") from error
    if held is None or isinstance(held, Plain) and values.is_null(held):
        raise InputError(f"{source}: the file has no settings in it")
    if not isinstance(held, dict):
        raise InputError(f"{source}: not a file of settings: it holds no names with values, such as epochs: 40")
    kinds, found = leaves(), {}
    for name, given in _opened(held, source):
        if name not in kinds:
            raise InputError(f"{source}: {unknown(name, kinds)}")
        if name in found:
            raise InputError(f"{source}: {name} is there twice")
        found[name] = checked(name, given, kinds[name], f"{source}: {name}")
    return found


def checked(name: str, given: object, kind: Any, said: str) -> Any:
    """:func:`value`, with an InputError that begins as ``said``."""
    try:
        return value(name, given, kind)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{said}: {' '.join(str(error).split())}") from error


def _opened(held: Mapping[Any, Any], source: str, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Names and values of a mapping, groups opened. A group without any line is empty."""
    for key, given in held.items():
        if not isinstance(key, str):
            raise InputError(f"{source}: {short(str(key))} is no name of a setting")
        name = f"{prefix}{key}"
        if name not in GROUPS:
            yield name, given
        elif isinstance(given, dict):
            yield from _opened(given, source, f"{name}.")
        elif not (isinstance(given, Plain) and values.is_null(given)):
            raise InputError(f"{source}: {name}: {short(str(given))} is no group of settings")


def unknown(name: str, kinds: Iterable[str]) -> str:
    """What to say of a name that no setting has."""
    return f"there is no setting {short(name)[1:-1]}{did_you_mean(name, kinds)}"
