"""Findings: what a check says, and what happens when a check itself fails."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

OK, NOTE, SLOWER, STOPS = "ok", "note", "slower", "stops"
INSTALL = "run `pip install .` in the source folder"


@dataclass
class Finding:
    """The outcome of a check.

    Attributes:
        topic: a word or two.
        status: ok; note (worth knowing); slower (training runs, but could be faster); stops (training could not start).
        what: what was found.
        remedy: what to do about it; "" if there is nothing to do.
        values: the numbers in it.
    """

    topic: str
    status: str
    what: str
    remedy: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass
class Case:
    """What is examined, and what the checks found out so far.

    Attributes:
        settings: a config.Config.
        probe: whether to measure training itself.
        device, dtype: that training would use; None if that could not be found out.
        manifest: of the prepared data; None without.
    """

    settings: Any = None
    probe: bool = False
    device: Any = None
    dtype: Any = None
    manifest: Any = None


Check = Callable[[Case], Iterator[Finding]]


def guarded(topic: str, check: Check, case: Case) -> list[Finding]:
    """The findings of a check. An error in it becomes one more finding, which says that training could not start."""
    found = []
    try:
        for each in check(case):
            found.append(each)
    except Exception as error:  # a broken installation may raise anything
        what = " ".join(f"{type(error).__name__}: {error}".split())
        found.append(Finding(topic, STOPS, f"could not be examined: {what}", remedy_of(error), {"error": what}))
    return found


def remedy_of(error: Exception) -> str:
    """What to do about an error that no check foresaw."""
    place = getattr(error, "filename", None) or "what it names"
    if isinstance(error, PermissionError):
        return f"let this user read and write {place}, or name another place"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space on the disk"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files: ulimit -n 65536"
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return "free some memory, or choose a smaller --data.batch_size"
    if isinstance(error, (KeyError, RuntimeError)) and ("getpwuid" in str(error) or "home directory" in str(error)):
        return "give the user a name and a home folder: set USER and HOME"
    if isinstance(error, OSError):
        return f"mend {place}"
    return f"mend what it names, or {INSTALL}"
