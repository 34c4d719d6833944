"""Child processes that import what their parent imports, whatever folder they start in."""

import os
import sys

from essl_fast.common.files import PACKAGE


def with_package(more: dict[str, str] | None = None) -> dict[str, str]:
    """Environment variables, ``more`` among them, for a Python child process that finds modules as this process does.

    The child's search path is this process's, in its order. So it imports the same essl_fast, and also the same version
    of everything else, where several are installed.
    """
    paths = [os.path.abspath(path) for path in sys.path if isinstance(path, str)]  # "" is the current folder
    if str(PACKAGE.parent) not in paths:  # the package was found in another way
        paths.insert(0, str(PACKAGE.parent))
    path = os.pathsep.join(dict.fromkeys(paths))
    # SAFEPATH: or else -m would put the current folder before all of them.
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **(more or {})}
