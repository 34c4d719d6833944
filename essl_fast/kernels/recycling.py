"""Large CPU tensors whose memory is used again: the pages of fresh memory cost more than writing what goes into them.

A float32 batch of 64 pairs is 77 MB of views. PyTorch's CPU allocator gets that from the system anew each time, and the
system fills it with zeros, page by page, before the first write. Here memory that a tensor leaves behind (with all its
views) waits for the next tensor of that size.
"""

import contextlib
import mmap
import threading
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

LEAST = 1 << 20  # bytes; smaller tensors come from PyTorch
KEPT = 4  # blocks that wait, the latest: sizes that are not asked for any more go

_waiting: deque[mmap.mmap] = deque()
_lock = threading.RLock()  # a garbage collection inside the lock may bring a block back


def _give_back(block: mmap.mmap) -> None:
    with _lock:
        _waiting.append(block)
        if len(_waiting) > KEPT:
            _waiting.popleft()


def _block(size: int) -> mmap.mmap:
    with _lock:
        for block in reversed(tuple(_waiting)):  # a copy: a garbage collection may bring blocks back meanwhile
            if len(block) == size and block in _waiting:
                _waiting.remove(block)
                return block
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # private, also after a fork
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A contiguous CPU tensor of unknown content, like torch.empty, in memory that an earlier one may have left."""
    size = torch.Size(shape).numel() * dtype.itemsize
    if size < LEAST:
        return torch.empty(shape, dtype=dtype)
    block = _block(size)
    array = np.frombuffer(block, np.uint8)
    weakref.finalize(array, _give_back, block).atexit = False  # the tensor holds the array as long as it is in use
    return torch.from_numpy(array).view(dtype).view(shape)
