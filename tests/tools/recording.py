"""A capture for machines without a GPU: it records what PyTorch dispatches, and replays that with the same tensors.

As in a CUDA graph, a replay knows nothing of Python: every number and every tensor of the recorded calls is what it was
then, and only what tensors hold may have changed. Unlike CUDA, the CPU has to compute while it records; the recorder
puts back what that changed, since a capture changes nothing.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# A value that the host reads, or numbers that it makes a tensor of, which a GPU would have to be sent: illegal in a
# capture.
READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "item", "lift_fresh")
COLLECTIVES = ("c10d", "_c10d_functional")  # what a graph replays is not watched: the step captures none


class Recorder(TorchDispatchMode):
    """Collects (function, arguments, results) of everything that is dispatched while it is on."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function.overloadpacket.__name__ in READS or function.namespace in COLLECTIVES:
            raise RuntimeError(f"operation not permitted while capturing: {function}")
        results = function(*arguments, **(keywords or {}))
        self.calls.append((function, arguments, keywords or {}, results))
        return results


def memory(tensor):
    return tensor.untyped_storage().data_ptr()


class RecordedStep:
    """A `Capture` that records operators; ``state()`` lists the tensors that a step changes."""

    def __init__(self, state):
        self.state, self.calls, self.ran, self.replays = state, [], 0, 0

    def run(self, work):
        self.ran += 1
        return work()

    def record(self, work):
        before = [(tensor, tensor.detach().clone()) for tensor in self.state()]
        with Recorder() as recorder:
            result = work()
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
            result.fill_(float("nan"))  # nothing has been computed yet
        self.calls = recorder.calls
        return result

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for function, arguments, keywords, results in self.calls:
            given = {memory(t) for t in tree_flatten((arguments, keywords))[0] if isinstance(t, torch.Tensor)}
            new = function(*arguments, **keywords)
            for mine, fresh in zip(tree_flatten(results)[0], tree_flatten(new)[0], strict=True):
                if isinstance(mine, torch.Tensor) and mine.numel() and memory(mine) not in given:
                    mine.copy_(fresh)  # a view or a result in place is where it was
