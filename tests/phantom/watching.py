"""Watches what PyTorch dispatches: waits for the GPU, copies between host and GPU, changes of layout."""

import traceback
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests import ROOT
from tests.phantom.layout import strides

# Ops whose result the host has to know, as a value or as a shape.
WAITS = frozenset(
    "_local_scalar_dense is_nonzero nonzero item equal masked_select unique _unique2 unique_dim unique_consecutive "
    "bincount repeat_interleave".split()
)
COPIES = frozenset(("clone", "_to_copy", "copy_", "contiguous"))
LARGE = 1 << 20  # elements of a map whose change of layout costs time


def here() -> str:
    """The line of the package, or of these tests, that the dispatched call comes from."""
    places = (str(ROOT / "essl_fast"), str(ROOT / "tests"))
    frames = [frame for frame in traceback.extract_stack()[:-2] if frame.filename.startswith(places)]
    frames = [frame for frame in frames if frame.filename != __file__]
    own = [frame for frame in frames if frame.filename.startswith(places[0])] or frames
    return f"{own[-1].filename.removeprefix(f'{ROOT}/')}:{own[-1].lineno}" if own else "?"


def order(tensor: Tensor) -> tuple[int, ...]:
    """The axes that have more than one element, from the outermost to the innermost in memory."""
    axes = [axis for axis in range(tensor.ndim) if tensor.shape[axis] != 1]
    return tuple(sorted(axes, key=lambda axis: -tensor.stride(axis)))


class Watch(TorchDispatchMode):
    """While it is on, collects what a step on a GPU must not do.

    Attributes:
        faults: a line for each wait for the GPU and for each op with tensors of both devices.
        calls: how often each op was called.
        relayouts: how often each line copies a large tensor into another order of axes.
        timed: whether cuDNN timed its engines for convolutions: a set of answers.
    """

    @property
    def collectives(self) -> list[str]:
        """The ops by which processes exchange something."""
        return sorted(name for name in self.calls if name.startswith(("c10d", "_c10d_functional")))

    @classmethod
    def is_infra_mode(cls) -> bool:  # otherwise Dynamo compiles nothing while it is on
        return True

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.calls: Counter[str] = Counter()
        self.relayouts: Counter[str] = Counter()
        self.timed: set[bool] = set()

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        name = function.overloadpacket.__name__
        taken = [t for t in tree_leaves((given, named)) if isinstance(t, Tensor)]
        if name in WAITS and any(t.is_cuda for t in taken):  # before the call, which a fake tensor may refuse
            self.faults.append(f"{function} waits for the GPU, at {here()}")
        out = function(*given, **(named or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.calls[str(function)] += 1
        if "conv" in name:
            self.timed.add(torch.backends.cudnn.benchmark)
        devices = {t.device.type for t in (*taken, *made)}
        if len(devices) > 1:
            shapes = [tuple(t.shape) for t in taken[:2]]
            self.faults.append(f"{function} has tensors of host and GPU {shapes}, at {here()}")
        if name in COPIES and taken and made and made[0].numel() >= LARGE and taken[-1].shape == made[0].shape:
            if order(taken[-1]) != order(made[0]):
                self.relayouts[here()] += 1
        return out


def same_form(name: str, have: Tensor, want: Tensor, dtype: torch.dtype | None = None) -> list[str]:
    """A line if a tensor's device, dtype, shape or strides are not those of another (the dtype: if one is given)."""
    dtype = dtype or want.dtype
    mine = (have.device, have.dtype, tuple(have.shape), strides(have))
    its = (want.device, dtype, tuple(want.shape), strides(want))
    return [] if mine == its else [f"{name} is {mine}, not {its}"]
