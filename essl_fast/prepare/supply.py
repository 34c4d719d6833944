"""Where the parts of videos come from: made here, or (see `joining`) made elsewhere before."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Protocol

from essl_fast.prepare.plan import Plan
from essl_fast.prepare.workers import make_in_order


class Supply(Protocol):
    """What assembling asks for parts."""

    def fingerprint(self, number: int) -> str:
        """The fingerprint of a video's task, by its number in the plan; "" if its files are missing."""
        ...

    def folder(self, video: str) -> Path:
        """The folder that holds a video's part."""
        ...

    def coming(self, first: int) -> Generator[tuple[str, dict], None, None]:
        """(video, index of its part) of the videos from number `first` on, in the order of the plan."""
        ...


class Made:
    """Parts that processes of this machine make."""

    def __init__(self, plan: Plan, parts: Path, workers: int):
        """workers: how many processes; parts: the folder."""
        self._plan, self._parts, self._workers = plan, parts, workers
        self.fingerprint = plan.fingerprint

    def folder(self, video: str) -> Path:
        del video
        return self._parts

    def coming(self, first: int) -> Generator[tuple[str, dict], None, None]:
        left = range(first, len(self._plan))
        return make_in_order(map(self._plan.task, left), self._parts, max(1, min(self._workers, len(left))))
