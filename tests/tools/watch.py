"""A clock that only a test moves: what takes how long is then no matter of the machine and its load."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

import pytest


class Watch:
    """Stands in for the module `time` where a module has imported it; all its clocks show `now`, in seconds."""

    def __init__(self) -> None:
        self.now = 1024.0  # sums with binary fractions are exact

    @classmethod
    def of(cls, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> Watch:
        """One for some modules, until the test ends. Others keep the clocks of the machine."""
        watch = cls()
        for module in modules:
            assert module.time is time
            monkeypatch.setattr(module, "time", watch)
        return watch

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)
