"""How tensors lie in memory, as far as it matters. Unlike the rest of the pretence, this may follow torch."""

from torch import Tensor


def strides(tensor: Tensor) -> tuple[int, ...]:
    """The strides of the axes that have more than one element: the others may be anything."""
    return tuple(step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size != 1)
