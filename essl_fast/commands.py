"""What the commands have in common: how they begin and end, and with which exit code.

    if __name__ == "__main__":
        from essl_fast.commands import begin

        begin()
    import torch
    ...
    if __name__ == "__main__":
        sys.exit(command(main, PROG))

Every error is one line, `python -m essl_fast.NAME: error: what is wrong, and what to do`. This module imports nothing
of ours until there is one: doctor has to work where the rest cannot be imported.
"""

import signal
import sys
from collections.abc import Callable


def begin() -> None:
    """Let Ctrl-C end the program at once and silently, by the signal itself, until :func:`command` takes over.

    Importing PyTorch takes seconds, and a Ctrl-C meanwhile would print a long traceback. Only for a module that is run,
    above its imports: importing one changes no signal. SIGINT that a shell has set to be ignored stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wrong_input() -> tuple[type[Exception], ...]:
    """What tells of the user's input; the models' error only where they are there: prepare does without PyTorch."""
    from essl_fast.config import InputError

    models = sys.modules.get("essl_fast.models")
    return (InputError, models.WeightsError) if models else (InputError,)


def command(main: Callable[[], int], prog: str) -> int:
    """Run a command's main, and give its exit code: what the user can mend becomes one line and exit code 2."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # of begin
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return main()
    except _wrong_input() as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder without the right to write
        print(f"{prog}: error: cannot write or read {error.filename or 'a file'}: {error.strerror or error}",
              file=sys.stderr)  # fmt: skip
        return 2
    except FloatingPointError as error:  # training went astray: nothing of the user's input is wrong
        print(f"{prog}: stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:  # or train's Stopped, which knows the signal
        print(f"{prog}: stopped", file=sys.stderr)
        return getattr(error, "code", 130)
