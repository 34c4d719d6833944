"""The named stages of a training step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.profiler import record_function

# "step" is a replay of the whole step as one CUDA graph, which holds what are stages of an uncaptured one.
STAGES = ("data", "views", "log-mel", "forward", "backward", "optimizer", "step")
_PREFIX = "essl_fast: "


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Marks what runs inside as the stage ``name``, one of STAGES. Not for use inside a compiled function."""
    with record_function(_PREFIX + name):
        if torch.cuda.is_available():
            with torch.cuda.nvtx.range(name):
                yield
        else:
            yield
