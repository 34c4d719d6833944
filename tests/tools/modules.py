"""Modules such as users write, which register parts of their own."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from essl_fast.models import registry
from essl_fast.train.observers import LOGGERS


@contextlib.contextmanager
def own_module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> Iterator[None]:
    """A module ``name`` with this text in the current folder; what it registered is gone afterwards."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    registries = (registry.TRUNKS, registry.AUDIO, registry.HEADS, registry.OBJECTIVES, LOGGERS)
    before = [set(each.names()) for each in registries]
    try:
        yield
    finally:
        sys.modules.pop(name, None)
        for each, names in zip(registries, before, strict=True):
            for new in set(each.names()) - names:
                each.remove(new)
