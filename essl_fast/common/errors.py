"""Errors in what a user gave: arguments, settings, files."""

import shlex
from collections.abc import Sequence


class InputError(ValueError):
    """Something that the user gave is wrong. The message says what, in which file, and what to do."""


class Notice(UserWarning):
    """A warning for the user. Commands print it as a line, and no other package's."""


def memory_is_short(error: BaseException) -> bool:
    """Whether an error says that this machine has no memory left. PyTorch says that with a RuntimeError of its own."""
    return isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def gpu_is_full(error: BaseException) -> bool:
    """Whether an error says that a GPU has no memory left, by PyTorch's allocator or by CUDA itself."""
    said = "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"
    return type(error).__name__ == "OutOfMemoryError" or any(each in str(error) for each in said)


def short(text: str) -> str:
    """A text in quotes for a message, shortened to 60 characters."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def in_shell(path: object) -> str:
    """A path as a word of a command line that a message names: in quotes where a shell needs them."""
    return shlex.quote(str(path))


def any_of(choices: Sequence[str]) -> str:
    """ "a, b or c"."""
    return " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))


def reason(error: BaseException) -> str:
    """An error in one line, for a message: an OSError as its file and what is wrong, others with their type."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    kind = "" if isinstance(error, InputError) else type(error).__name__
    line = ": ".join(part for part in (kind, text) if part)
    return line if len(line) <= 300 else f"{line[:297]}..."
