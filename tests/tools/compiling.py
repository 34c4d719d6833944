"""Compiling a whole forward pass without a GPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from essl_fast.models import Localizer


def losses_of_one_graph(model: Localizer, objective: Callable, *inputs: Tensor) -> dict[str, Tensor]:
    """The losses under bf16 autocast, as a GPU computes them, from one graph that is captured without a break.

    inputs: views (V, B, 3, H, W), sound (B, ...), boxes (V, B, K, 4), labelled (B,).
    """

    def losses(*inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return objective(model(*inputs[:2]), *inputs[2:])

    graphs = []

    def capture(graph, _):
        graphs.append(graph)
        return graph.forward

    found = torch.compile(losses, fullgraph=True, dynamic=False, backend=capture)(*inputs)
    assert len(graphs) == 1
    return found
