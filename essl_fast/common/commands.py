"""What the commands have in common: how they begin, read their options, and end with an exit code.

    if __name__ == "__main__":
        from essl_fast.common.commands import begin

        begin()
    ...
    def main(argv=None) -> int:
        options = parse(argv)
        with slow_imports():
            from essl_fast.train.run import fit
        ...
    if __name__ == "__main__":
        sys.exit(command(main, PROG))

The arguments are read first, so that --help, --version and a wrong option answer at once. Every error is one line,
`python -m essl_fast.NAME: error: what is wrong, and what to do`. This module imports only what always works, because
doctor has to run where other packages are broken or missing.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn

from essl_fast import __version__
from essl_fast.common.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console


_runs_a_program = False  # begin was called: the signals of this process are the command's


def begin() -> None:
    """Let Ctrl-C end the program at once and silently, by the signal itself, until :func:`command` takes over.

    A Ctrl-C during slow imports would print a long traceback. Call it only in a module that is run as a program, above
    its imports: importing a module must not change signals. If a shell has set SIGINT to be ignored, it stays ignored.
    """
    global _runs_a_program
    _runs_a_program = True
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def slow_imports() -> Iterator[None]:
    """Let Ctrl-C end a command at once and silently during slow imports: PyTorch alone takes seconds.

    It changes nothing if no command runs as a program.
    """
    before = signal.getsignal(signal.SIGINT)
    if not _runs_a_program or before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def command(main: Callable[[], int], prog: str) -> int:
    """Run a command's main and return its exit code: an error that the user can fix is one line and exit code 2."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as begin has set it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return main()
    except InputError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that must not be written
        print(
            f"{prog}: error: cannot write or read {error.filename or 'a file'}: {error.strerror or error}",
            file=sys.stderr,
        )
        return 2
    except FloatingPointError as error:  # training diverged: the input itself is not wrong
        print(f"{prog}: stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:  # or train's Stopped, which has the exit code of its signal
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
    """Print which modules of the user a checkpoint has imported, because their code has run."""
    if names:
        console.print(f"the checkpoint uses {', '.join(names)}", highlight=False, soft_wrap=True, markup=False)


def console(quiet: bool = False) -> Console:
    """A console to print on; in a pipe it is wide enough not to wrap our lines. ``quiet``: it prints nothing."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 132, quiet=quiet)
