"""All commands of essl_fast behind one name.

essl-fast NAME ...                       the same as python -m essl_fast.NAME ...
essl-fast                                the commands, with a sentence each
essl-fast --print-completion bash        what a shell needs to complete commands and options (or zsh, tcsh)
"""

from __future__ import annotations

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from essl_fast.common.commands import Options, begin, command, slow_imports
from essl_fast.common.errors import InputError, short
from essl_fast.common.nearest import did_you_mean

PROG = "python -m essl_fast"
SCRIPT = "essl-fast"  # the console script that the installation makes
COMMANDS = {  # in the order of their use
    "doctor": "what training would use on this machine, and what prevents it or makes it slow",
    "prepare": "videos and annotations become the shards that training reads",
    "train": "train a localizer, evaluate it, and leave everything in a run directory",
    "evaluate": "how well a checkpoint localizes on a split, as a table and JSON",
    "localize": "where in a video its sound comes from, moment by moment",
    "app": "a page in the browser that localizes the sound of a video",
    "report": "one HTML page of a run, or of several side by side",
    "reproduce": "SemiPL's tables and figures, on your data",
    "pretrain": "the demo's small networks learn to see and hear, each by itself",
    "export": "a trained model as ONNX, torch.export, safetensors, a hub's folder, or SSPL's files",
    "replay": "where a training step that was not finite went wrong",
}
SHELLS = ("bash", "zsh", "tcsh")
FILES, FOLDERS = ("FILE", "PATH", "RUN", "VIDEO", "path"), ("DIR",)  # of options' metavars
RECIPES = {"bash": "_essl_fast_recipes", "zsh": "_files", "tcsh": "f"}  # completes --config; bash knows the names, too


def door(name: str) -> ModuleType:
    """The module that `python -m essl_fast.NAME` runs."""
    alone = ("pretrain", "replay")
    return importlib.import_module(f"essl_fast.{name}" if name in alone else f"essl_fast.{name}.__main__")


def parser(prog: str = PROG) -> Options:
    """The options that stand before a command's name."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    own = Options(
        prog=prog,
        usage=f"{prog} COMMAND ...",
        description=f"Fast training of event sound source localization.\n\ncommands\n{lines}",
        epilog=f"`{prog} COMMAND --help` explains a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = "print a script that completes commands and options in this shell: " + ", ".join(SHELLS)
    own.add_argument("--print-completion", choices=SHELLS, metavar="SHELL", help=text)
    return own


def completion(shell: str) -> str:
    """A shell's script that completes `essl-fast`; made from the commands' own parsers.

    Raises:
        InputError: the package shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise InputError("--print-completion: needs the package shtab: pip install shtab") from error
    from essl_fast import config

    whole = parser(SCRIPT)
    several = whole.add_subparsers(dest="command", metavar="COMMAND")
    kinds = config.leaves()
    for name, text in COMMANDS.items():
        own = door(name).parser()
        settings = [config.parser(name)] if name in ("doctor", "reproduce") else []
        added = several.add_parser(
            name, help=text, parents=[*settings, own], add_help=False, add_version=False, conflict_handler="resolve"
        )
        for action in added._actions:
            if action.dest in kinds and (choices := config.choices_of(kinds[action.dest])):
                action.choices = choices
            elif "--config" in action.option_strings:
                action.complete = RECIPES  # type: ignore[attr-defined]  # shtab reads it
            elif action.metavar in (*FILES, *FOLDERS) or action.dest == "checkpoint":
                kind = shtab.DIRECTORY if action.metavar in FOLDERS else shtab.FILE
                action.complete = kind  # type: ignore[attr-defined]  # shtab reads it
    names = " ".join(config.shipped_names())
    recipes = f'{RECIPES["bash"]}() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}'
    return shtab.complete(whole, shell, preamble={"bash": recipes})  # type: ignore[arg-type]  # a text by shell


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else ""
    if name in COMMANDS:
        with slow_imports():
            module = door(name)
        prog = f"{PROG} {name}" if PROG == SCRIPT else f"{PROG}.{name}"
        setattr(module, "PROG", prog)  # its messages name it  # noqa: B010
        return command(lambda: module.main(words[1:]), prog)
    if name and not name.startswith("-"):
        raise InputError(f"there is no command {short(name)}{did_you_mean(name, COMMANDS)}; {PROG} lists them")
    options = parser(PROG).parse_args(words)
    print(completion(options.print_completion) if options.print_completion else parser(PROG).format_help(), end="")
    return 0


def script() -> int:
    """The console script `essl-fast`."""
    global PROG
    begin()
    PROG = SCRIPT
    return command(main, PROG)


if __name__ == "__main__":
    sys.exit(command(main, PROG))
