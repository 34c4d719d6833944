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
import errno
import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from essl_fast import __version__
from essl_fast.common import streams
from essl_fast.common.errors import InputError, Notice, any_of, gpu_is_full, memory_is_short, short
from essl_fast.common.nearest import did_you_mean
from essl_fast.common.values import a_path

if TYPE_CHECKING:
    from rich.console import Console


NO_MORE = (
    "the system allows no more threads or processes: raise its limit (ulimit -u, a container's number of pids), or use "
    "fewer (--data.threads of train, --workers of prepare)"
)
_REMEDIES = {  # by error number
    errno.EMFILE: "raise the limit with ulimit -n",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, then run it again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "get the right to it, or give another place"),
}
_runs_a_program = False  # begin was called: the signals of this process are the command's


def begin() -> None:
    """Let Ctrl-C end the program at once and silently, by the signal itself, until :func:`command` takes over.

    A Ctrl-C during slow imports would print a long traceback. Call it only in a module that is run as a program, above
    its imports: importing a module must not change signals. If a shell has set SIGINT to be ignored, it stays ignored.
    """
    global _runs_a_program
    _runs_a_program = True
    _open_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _open_streams() -> None:
    """Give the program its three streams, where it was started without one (`>&-`, some schedulers).

    Otherwise the next file that is opened would get the number 1, and what libraries print would go into it. And let a
    character that the terminal's encoding does not have be printed as an escape, not end the command.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))
        elif number and hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def slow_imports() -> Iterator[None]:
    """Let Ctrl-C end a command at once and silently during slow imports: PyTorch alone takes seconds.

    It changes nothing if no command runs as a program.

    Raises:
        InputError: the current folder was removed. PyTorch would end the process without a word that helps.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise InputError(f"the current folder is gone ({error.strerror}): change into another one") from error
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
    with warnings.catch_warnings():
        warnings.showwarning = functools.partial(_show_warning, prog)
        return _exit_code(main, prog)


def _show_warning(prog: str, message: Warning | str, category: type, filename: str, *_: object) -> None:
    """Print a warning of ours as a line. Those of other packages are for developers, who ask for them with -W.

    The file does not tell them apart: a library names its caller, and our folder may be in the path of any package.
    """
    if sys.warnoptions or issubclass(category, Notice):
        with contextlib.suppress(OSError, ValueError):  # a stream that is gone
            print(f"{prog}: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _exit_code(main: Callable[[], int], prog: str) -> int:
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as begin has set it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return main()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a full disk or a closed pipe still gets its line
    except InputError as error:
        return _end(prog, f"error: {error}", 2)
    except OSError as error:  # a full disk, a folder that must not be written
        if isinstance(error, BrokenPipeError) and error.filename is None:
            _forget(sys.stdout)
            return _end(prog, "stopped: what read the output has ended", 128 + signal.SIGPIPE)
        if not _takes_text(sys.stdout):
            _forget(sys.stdout)
        if error.errno == errno.EAGAIN and error.filename is None:  # of fork
            return _end(prog, f"error: {NO_MORE}", 2)
        what = error.filename or "a file or standard output"
        remedy = _REMEDIES.get(error.errno or 0, "mend that, then run it again")
        return _end(prog, f"error: cannot write or read {what}: {error.strerror or error}; {remedy}", 2)
    except (RuntimeError, MemoryError) as error:
        if memory_is_short(error):
            return _end(prog, f"error: the memory of this machine is not enough{str(error) and f' ({error})'}", 2)
        if gpu_is_full(error):
            remedy = "take fewer pairs at a time (train: --data.batch_size), or end other programs on it"
            return _end(prog, f"error: the memory of the GPU is not enough ({_first_sentences(error)}); {remedy}", 2)
        if "can't start new thread" not in str(error):
            raise
        return _end(prog, f"error: {NO_MORE}", 2)
    except FloatingPointError as error:  # training diverged: the input itself is not wrong
        return _end(prog, f"stopped: {error}", 1)
    except KeyboardInterrupt as error:  # or train's Stopped, which has the exit code of its signal
        return _end(prog, "stopped", getattr(error, "code", 130))


def _first_sentences(error: BaseException) -> str:
    """What was asked for and what is free; what PyTorch says after that is for developers."""
    return ". ".join(one_line(error).split(". ")[:3]).removesuffix(".")


def one_line(text: object) -> str:
    """A text on one line, with control characters as escapes, at most 2,000 characters long."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= 2000 else f"{line[:2000]} ..."


def _end(prog: str, text: str, code: int) -> int:
    with contextlib.suppress(OSError, ValueError):  # where no one can read it, the exit code still tells
        sys.stderr.write(f"{prog}: {one_line(text)}\n")  # at once, or lines of several processes would mix
    return code


def _takes_text(stream) -> bool:
    """Whether what is left to print can be printed."""
    try:
        stream.flush()
    except OSError:
        return False
    return True


def _forget(stream) -> None:
    """Let what was printed to a stream and cannot be written vanish: Python would complain about it at its end."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass  # a stream without a descriptor: a test's, a notebook's


class Options(argparse.ArgumentParser):
    """A command's options, and --version. A wrong option is an error of one line, without the list of all options.

    Abbreviations of options are not taken: `--data` must not mean `--data-root` until there is a `--data`.
    """

    def __init__(self, *arguments, add_version: bool = True, **named) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **named})
        if add_version:
            text = f"essl_fast {__version__}"
            self.add_argument("--version", action="version", version=text, help="print the version")

    def parse_args(  # type: ignore[override]  # its stub tells one kind of namespace from another
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        if wrong := self._not_known(args):
            self.error(self.unknown(wrong))  # before argparse misses the option that was meant
        found, others = self.parse_known_args(args, namespace)
        if others:
            self.error(self.unknown(others[0]))
        return found

    def parse_own(self, args: Sequence[str] | None, other: Options) -> tuple[argparse.Namespace, list[str]]:
        """This parser's options, and the words that are left for the other. An option that neither has is an error."""
        if wrong := self._not_known(args, other._option_string_actions):
            self.error(other.unknown(wrong, self._option_string_actions))
        return self.parse_known_args(args)

    def _not_known(self, args: Sequence[str] | None, more: Container[str] = ()) -> str | None:
        """The first word that looks like an option and is none."""
        for word in list(sys.argv[1:] if args is None else args):
            name = word.partition("=")[0]
            if word == "--":
                break
            if word.startswith("--") and name not in self._option_string_actions and name not in more:
                return word
        return None

    def unknown(self, word: str, more: Iterable[str] = ()) -> str:
        """What to say of a word that no option takes; ``more`` options are known besides the parser's own."""
        if not word.startswith("-"):
            return f"there is no place for {short(word)}"
        name = word.partition("=")[0]
        known = dict.fromkeys(option for option in (*self._option_string_actions, *more) if option.startswith("--"))
        return f"there is no option {short(name)[1:-1]}{did_you_mean(name, known)}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            text = f"must be {any_of(choices)}, got {short(str(value))}{did_you_mean(str(value), choices)}"
            raise argparse.ArgumentError(action, text)

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
                type=a_path,
                dest="weights",
                const=name,
                metavar="PATH",
                help=f"the file of {name}'s published weights, if it has moved",
            )

    def error(self, message: str) -> NoReturn:
        text = in_our_words(message)
        more = "" if text.endswith("?") else "; --help explains the options"
        self.exit(2, f"{self.prog}: error: {text}{more}\n")


def in_our_words(message: str) -> str:
    """What argparse says, on one line and as our messages are."""
    return one_line(message.removeprefix("argument ").replace("expected one argument", "needs a value"))


class _Weights(argparse.Action):
    """Keeps a path under the option's name, in a dict that options share."""

    def __call__(self, parser, options, value, flag=None) -> None:
        options.weights = {**options.weights, self.const: str(value)}


def say_imports(console: Console, names: list[str]) -> None:
    """Print which modules of the user a checkpoint has imported, because their code has run."""
    if names:
        console.print(f"the checkpoint uses {', '.join(names)}", highlight=False, soft_wrap=True, markup=False)


def console(quiet: bool = False, on_stderr: bool = False, kept: bool = False) -> Console:
    """A console to print on, which prints text as it is: no markup, no emoji codes.

    In a pipe it is wide enough not to wrap our lines.

    Args:
        quiet: print nothing.
        on_stderr: standard output is kept for a command's result.
        kept: go on if the stream cannot be written (see `streams`), for a command whose results are files.
    """
    from rich.console import Console

    out = sys.stderr if on_stderr else streams.kept_stdout() if kept else sys.stdout
    return Console(
        file=out,  # type: ignore[arg-type]  # it only writes
        width=None if out is not None and out.isatty() else 132,
        quiet=quiet,
        markup=False,
        emoji=False,
        highlight=False,
    )
