"""What tells users of a fault in what they gave."""


class InputError(ValueError):
    """Something the user gave is wrong. The message says what, in which file, and what to do next."""


def short(text: str) -> str:
    """A text in quotes for a message, cut to 60 characters."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
