"""Child processes that import this very package, whatever folder they start in."""

import os

from essl_fast.common.files import PACKAGE


def with_package(more: dict[str, str] | None = None) -> dict[str, str]:
    """Environment variables, ``more`` among them, for a child process that imports the same essl_fast as this one."""
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(more or {})}
