"""Findings: what a check says, and what happens when a check itself fails."""

from __future__ import annotations

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
        remedy = f"mend what it names, or {INSTALL}"
        found.append(Finding(topic, STOPS, f"could not be examined: {what}", remedy, {"error": what}))
    return found
