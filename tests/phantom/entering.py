"""Which functions of the package were called while the GPU was pretended."""

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from tests import ROOT
from tests.phantom.branches import PHANTOM, TABLE

PLACE = f"{ROOT}/essl_fast/"
ENTERED: set[str] = set()


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Within the context every call of a function of the package is noted."""

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PLACE):
            file = frame.f_code.co_filename.removeprefix(f"{ROOT}/")
            ENTERED.add(f"{file}::{frame.f_code.co_qualname}")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)


def faults() -> list[str]:
    """A line for each place that only a GPU takes, that TABLE says is entered here, and was not."""
    wanted = {place for place, (_, evidence) in TABLE.items() if evidence == PHANTOM}
    return [f"{place} was not entered; what else shows that it works on a GPU?" for place in sorted(wanted - ENTERED)]
