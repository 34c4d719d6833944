"""Further interpreters that run this very package, wherever they are started from."""

import os
from pathlib import Path

from essl_fast.common.files import PACKAGE


def with_package(more: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a child process that is to import the same essl_fast as this one, with ``more`` in it."""
    paths = [str(Path(PACKAGE).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(more or {})}
