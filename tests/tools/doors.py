"""The commands' doors, to call in this process."""

import importlib
import importlib.util
from types import ModuleType


def door(name: str) -> ModuleType:
    """The module that `python -m NAME` runs."""
    found = importlib.util.find_spec(name)
    return importlib.import_module(f"{name}.__main__" if found.submodule_search_locations else name)
