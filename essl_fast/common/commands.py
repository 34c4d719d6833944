"""What the commands have in common: how they begin and end, and with which exit code.

    if __name__ == "__main__":
        from essl_fast.common.commands import begin

        begin()
    import torch
    ...
    if __name__ == "__main__":
        sys.exit(command(main, PROG))

Every error is one line, `python -m essl_fast.NAME: error: what is wrong, and what to do`. This module imports nothing
of ours until there is one: doctor has to work where the rest cannot be imported.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from essl_fast import __version__
from essl_fast.common.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console


def begin() -> None:
    """Let Ctrl-C end the program at once and silently, by the signal itself, until :func:`command` takes over.

    Importing PyTorch takes seconds, and a Ctrl-C meanwhile would print a long traceback. Only for a module that is run,
    above its imports: importing one changes no signal. SIGINT that a shell has set to be ignored stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def command(main: Callable[[], int], prog: str) -> int:
    """Run a command's main, and give its exit code: what the user can mend becomes one line and exit code 2."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # of begin
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return main()
    except InputError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder without the right to write
        print(
            f"{prog}: error: cannot write or read {error.filename or 'a file'}: {error.strerror or error}",
            file=sys.stderr,
        )
        return 2
    except FloatingPointError as error:  # training went astray: nothing of the user's input is wrong
        print(f"{prog}: stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:  # or train's Stopped, which knows the signal
        print(f"{prog}: stopped", file=sys.stderr)
        return getattr(error, "code", 130)


class Options(argparse.ArgumentParser):
    """A command's options, and --version. A wrong option is an error of one line, without the list of all options."""

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        self.add_argument("--version", action="version", version=f"essl_fast {__version__}", help="print the version")

    def add_imports(self) -> None:
        """Add --import MODULE, which may be repeated; the names are in ``imports``."""
        self.add_argument(
            "--import",
            dest="imports",
            action="append",
            default=[],
            metavar="MODULE",
            help="import a module of your own first, in which a part that the checkpoint names is registered",
        )

    def add_weights(self) -> None:
        """Add --model.vgg16_weights and --model.vggish_weights; the given paths are in ``weights``, by name."""
        self.set_defaults(weights={})
        for name in ("vgg16", "vggish"):
            self.add_argument(
                f"--model.{name}_weights",
                action=_Weights,
                dest="weights",
                const=name,
                metavar="PATH",
                help=f"the file of {name}'s published weights, if it has moved",
            )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; --help explains the options\n")


class _Weights(argparse.Action):
    """Keeps a path under the option's name, in a dict that options share."""

    def __call__(self, parser, options, value, flag=None) -> None:
        options.weights = {**options.weights, self.const: value}


def say_imports(console: Console, names: list[str]) -> None:
    """Tell the user which modules a checkpoint named, as their code has run."""
    if names:
        console.print(f"the checkpoint uses {', '.join(names)}", highlight=False, soft_wrap=True, markup=False)


def console(quiet: bool = False) -> Console:
    """Wide enough in a pipe that no line of ours is wrapped. quiet: prints nothing."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 132, quiet=quiet)
