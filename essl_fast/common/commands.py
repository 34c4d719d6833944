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
    """A command's options, of which a wrong one is an error of one line, without the list of all."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; --help explains the options\n")


def console(quiet: bool = False) -> Console:
    """Wide enough in a pipe that no line of ours is wrapped. quiet: prints nothing."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 132, quiet=quiet)
