"""The named stages of a training step, which profilers show."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.profiler import record_function

# "step" is a replay of the step as one CUDA graph, which holds all the other stages but "data". With several processes
# "exchange" and "optimizer" follow it; without a graph, gradients are exchanged within "backward".
STAGES = ("data", "views", "log-mel", "forward", "backward", "exchange", "optimizer", "step")
PREFIX = "essl_fast: "  # of the names in a trace


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Mark what runs inside as the stage ``name``, one of STAGES. It cannot be used inside a compiled function."""
    with record_function(PREFIX + name):
        if torch.cuda.is_available():
            with torch.cuda.nvtx.range(name):
                yield
        else:
            yield
