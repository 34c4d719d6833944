"""Settings from YAML files and command lines."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from essl_fast.common.commands import Options, in_our_words
from essl_fast.common.errors import InputError, in_shell, short
from essl_fast.common.files import PACKAGE
from essl_fast.common.nearest import did_you_mean
from essl_fast.config import reading
from essl_fast.config.settings import Config, faults, leaves, name_fault, to_dict
from essl_fast.config.yamls import Plain

_KEPT = " (of a run)"  # in messages, of a value in a run directory's own config.yaml
NO_MODULE = "--import: give the name of a module, as Python imports it: my_package.part"


def configs_folder() -> Path:
    """The folder of the shipped YAML files: in the installed package, or beside it in a clone.

    Raises:
        InputError: the installation has no such folder.
    """
    for place in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if (place / "demo.yaml").is_file():
            return place
    raise InputError(f"the shipped configs are not beside {PACKAGE}; install essl_fast again")


def find_file(name: str) -> Path:
    """The file of a config.

    Args:
        name: a path (also of a FIFO, as shells make it for `<(command)`), or the name of a shipped config ("semipl",
            "paper/table2_sspl_wo_pcm").

    Raises:
        InputError: there is no such file and no shipped config of this name.
    """
    path, folder = Path(os.path.expanduser(name)), configs_folder()
    try:
        if path.exists() and not path.is_dir():
            return path
        shipped = folder / f"{name}.yaml"
        if shipped.is_file():
            return shipped
        is_run = (path / "config.yaml").is_file()
    except (OSError, ValueError):  # longer than a path can be, or with a zero byte
        is_run = False
    if is_run:
        raise InputError(
            f"--config: {name} is a run directory; give {path / 'config.yaml'}, or --resume {in_shell(name)}"
        )
    names = shipped_names()
    near = did_you_mean(Path(name).stem, names)
    raise InputError(f"config {short(name)} is neither a file nor one of the shipped configs: {', '.join(names)}{near}")


def shipped_names() -> list[str]:
    """The names of the shipped configs, sorted."""
    folder = configs_folder()
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def load(name: str = "demo", overrides: Sequence[str] = ()) -> Config:
    """The config of a file or shipped name, with overrides like ["--data.batch_size", "64"] or ["epochs=3"].

    Raises:
        InputError: there is no such file, or a setting is unknown or impossible.
    """
    names = [word.partition("=")[0] for word in overrides]  # a URL may have a = in its query
    alone = [name.startswith("-") or name == word or "://" in name for name, word in zip(names, overrides, strict=True)]
    arguments = [word if as_it_is else f"--{word}" for word, as_it_is in zip(overrides, alone, strict=True)]
    return parse(["--config", name, *arguments], prog="essl_fast.config.settings")[0]


class SettingsOptions(Options):
    """The parser of Config, with --config and --version; commands add their own options to it."""

    def error(self, message: str) -> NoReturn:
        text = in_our_words(message)
        raise InputError(NO_MODULE if text == "--import: needs a value" else text)

    def unknown(self, word: str, more=()) -> str:
        name = word.partition("=")[0].lstrip("-")
        if word.startswith("--") and name in reading.GROUPS:
            place = "; the prepared folder is --data.root DIR" if name == "data" else ""
            known = ", ".join(f"--{each}" for each in leaves() if each.startswith(f"{name}."))
            return f"--{name}: is a group of settings{place or f': {known}'}"
        return super().unknown(word, more)


def parser(prog: str, description: str = "", extra: Callable[[Options], None] | None = None) -> SettingsOptions:
    """The argument parser of Config, with --config and --version; ``extra`` adds a command's own options."""
    from essl_fast.config import helping

    made = SettingsOptions(prog=prog, description=description, add_help=False)
    for flag, every in (("--help", False), ("--help-all", True)):
        text = f"show {'all settings' if every else 'the settings that people change'}"
        made.add_argument(*(["-h"] if not every else []), flag, action=helping.Help, every=every, help=text)
    text = "YAML file (- is standard input), or the name of a shipped config; several: the later ones win"
    made.add_argument("--config", action="append", default=[], metavar="FILE", help=text)
    text = "import a module of your own first, which registers parts; may be repeated"
    made.add_argument("--import", dest="import", action="append", default=[], metavar="MODULE", help=text)
    text = "print the settings as a YAML file, and end"
    made.add_argument("--print_config", "--print-config", dest="print_config", action="store_true", help=text)
    if extra:
        extra(made)
    about = helping.texts()
    for name, kind in leaves().items():
        named: dict[str, Any]
        named = {"dest": name, "default": argparse.SUPPRESS, "metavar": helping.kind_of(name, kind), "type": Plain}
        made.add_argument(f"--{name}", help=about[name].replace("%", "%%"), **named)
        if get_origin(kind) is list:
            made.add_argument(f"--{name}+", action="append", help=argparse.SUPPRESS, **{**named, "dest": f"{name}+"})
    return made


def choices_of(kind: Any) -> tuple[str, ...]:
    """The values that a setting can have, if they can be listed; for the completion of shells."""
    if kind is bool:
        return ("true", "false")
    return get_args(kind) if get_origin(kind) is Literal else ()


def _joined(argv: Sequence[str], known: set[str]) -> list[str]:
    """The arguments, with values that begin with a dash joined to their settings: --optim.lr_head=-1."""
    words, at = [], 0
    while at < len(argv):
        word, after = argv[at], argv[at + 1] if at + 1 < len(argv) else ""
        joins = word in known and after.startswith("-") and not after.startswith("--")
        words.append(f"{word}={after}" if joins else word)
        at += 1 + joins
    return words


def parse(
    argv: Sequence[str],
    prog: str,
    description: str = "",
    extra: Callable[[Options], None] | None = None,
    default: str = "demo",
) -> tuple[Config, argparse.Namespace]:
    """The Config of a command line. Options win over files wherever they stand, later files over earlier ones.

    Args:
        argv: the arguments, without the program's name.
        prog: the program's name, for help and errors.
        description: for help.
        extra: called with the parser, to add the command's own options.
        default: file or shipped name, used if the arguments have no --config.

    Returns:
        The config, and the namespace that holds the command's own options.

    Raises:
        InputError: an argument is wrong.
    """
    own = parser(prog, description, extra)
    space = own.parse_args(_joined(list(argv), {f"--{name}" for name in leaves()}))
    for module in getattr(space, "import"):
        if not module or module.startswith("-"):
            raise InputError(NO_MODULE)
    found: dict[str, Any] = {}
    said: dict[str, str] = {}  # where a value is from, for messages
    for name in space.config or [default]:
        file = None if name == "-" else find_file(name)
        held = reading.file_values(reading.read_text(file), str(file or "standard input"))
        found |= held
        of = _KEPT if file and (file.parent / "log.jsonl").is_file() else ""
        said |= {each: f"{file or 'standard input'}: {each}{of}" for each in held}
    kinds, given = leaves(), vars(space)
    for name in kinds.keys() & given.keys():
        said[name] = f"--{name}"
        found[name] = reading.checked(name, given[name], kinds[name], said[name])
    for name in ("imports", "loggers"):
        more = [reading.checked(name, each, kinds[name], f"--{name}") for each in given.get(f"{name}+", ())]
        found[name] = [*found.get(name, []), *(word for words in more for word in words)]
    found["imports"] = list(dict.fromkeys([*found["imports"], *getattr(space, "import")]))
    config = _made(found)
    for name, fault in faults(config):
        raise InputError(f"{said.get(name, name)}: {fault}")
    why = name_fault(config.name)
    if why and not (said.get("name") or "").endswith(_KEPT):
        raise InputError(f"{said.get('name', 'name')}: {why}")
    if space.print_config:
        import yaml

        print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
        raise SystemExit(0)
    return config, space


def _made(found: dict[str, Any], kind: type = Config, prefix: str = "") -> Any:
    """A dataclass of settings; what is not found has its default."""
    hints, values = get_type_hints(kind), {}
    for each in fields(kind):
        name = f"{prefix}{each.name}"
        if is_dataclass(hints[each.name]):
            values[each.name] = _made(found, hints[each.name], f"{name}.")
        elif name in found:
            values[each.name] = found[name]
    return kind(**values)
