"""Where a step's time goes: exclusive wall time by named stage."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch


class StageClock:
    """Adds up seconds by stage. A stage inside another one is not counted in the outer one.

    It counts only the thread that made it; stages of other threads (the loader's) are ignored.

    ``synchronize``: wait for the GPU between stages, so that work is counted in the stage that launched it. This takes
    time itself: the shares are then right, but the total is longer than that of an undisturbed run.
    """

    def __init__(self, synchronize: bool = False) -> None:
        self.synchronize = synchronize
        self.seconds: dict[str, float] = {}
        self._thread = threading.get_ident()
        self._open: list[str] = []
        self._since = 0.0

    def _tick(self) -> None:
        if self.synchronize:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The time until the block ends is ``name``'s, but for stages that begin within it."""
        if threading.get_ident() != self._thread:
            yield
            return
        self._tick()
        self._open.append(name)
        try:
            yield
        finally:
            self._tick()
            self._open.pop()

    @contextlib.contextmanager
    def listen(self, owner: Any, attribute: str) -> Iterator[None]:
        """While the block runs, the stages that code marks with ``owner.attribute(name)``, a context manager, are ours.

        AttributeError if there is no such attribute.
        """
        before = getattr(owner, attribute)
        setattr(owner, attribute, self.stage)
        try:
            yield
        finally:
            setattr(owner, attribute, before)
