"""Modules such as users write, which register parts of their own."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from essl_fast.common.registry import Registry
from essl_fast.models.registry import AUDIO, HEADS, OBJECTIVES, TRUNKS
from essl_fast.train.observers import LOGGERS

REGISTRIES = (TRUNKS, AUDIO, HEADS, OBJECTIVES, LOGGERS)


@contextlib.contextmanager
def own_module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> Iterator[None]:
    """A module ``name`` with this text in the current folder; what it registered is gone afterwards."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    known = registered()
    try:
        yield
    finally:
        forget(name, known)


def registered() -> dict[Registry, set[str]]:
    """The names that are registered now, by registry."""
    return {each: set(each.names()) for each in REGISTRIES}


def forget(name: str, known: dict[Registry, set[str]]) -> None:
    """Forget a module and all names that are registered now but not in ``known``: the next import runs it again."""
    sys.modules.pop(name, None)
    for registry, names in known.items():
        for new in set(registry.names()) - names:
            registry.remove(new)
