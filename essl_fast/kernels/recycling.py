"""Large CPU tensors whose memory is used again, since getting new memory costs more than writing the values into it.

The views of a float32 batch of 64 pairs have 77 MB. PyTorch's CPU allocator asks the system for that each time, and the
system fills it with zeros, page by page, before the first write. Here the memory of a tensor waits, once the tensor and
all its views are gone, for the next tensor of the same size.
"""

import contextlib
import mmap
import threading
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

LEAST = 1 << 20  # bytes; PyTorch allocates smaller tensors
KEPT = 4  # blocks that wait, the latest; so blocks of sizes that are no longer used are freed

_waiting: deque[mmap.mmap] = deque()
_lock = threading.RLock()  # reentrant: a garbage collection inside the lock may give a block back


def _give_back(block: mmap.mmap) -> None:
    with _lock:
        _waiting.append(block)
        if len(_waiting) > KEPT:
            _waiting.popleft()


def _held() -> tuple[mmap.mmap, ...]:
    """The blocks that wait, in a copy: a garbage collection may give blocks back while one looks at them."""
    while True:
        with contextlib.suppress(RuntimeError):  # it did so while they were copied: once more
            return tuple(_waiting)


def _block(size: int) -> mmap.mmap:
    with _lock:
        for block in reversed(_held()):
            if len(block) == size and block in _waiting:
                _waiting.remove(block)
                return block
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # private, also after a fork
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A contiguous CPU tensor with undefined values, like torch.empty, perhaps in the memory of an earlier tensor."""
    size = torch.Size(shape).numel() * dtype.itemsize
    if size < LEAST:
        return torch.empty(shape, dtype=dtype)
    block = _block(size)
    array = np.frombuffer(block, np.uint8)
    weakref.finalize(array, _give_back, block).atexit = False  # the tensor keeps the array alive
    return torch.from_numpy(array).view(dtype).view(shape)
