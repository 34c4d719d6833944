"""Errors in what a user gave: arguments, settings, files."""

from collections.abc import Sequence


class InputError(ValueError):
    """Something that the user gave is wrong. The message says what, in which file, and what to do."""


def short(text: str) -> str:
    """A text in quotes for a message, shortened to 60 characters."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def any_of(choices: Sequence[str]) -> str:
    """ "a, b or c"."""
    return " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
