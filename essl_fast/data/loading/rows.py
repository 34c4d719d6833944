"""Rows of tables on a device: their numbers go there, their values come out."""

from __future__ import annotations

import numpy as np
import torch


def index_tensor(device: torch.device, index: np.ndarray) -> torch.Tensor:
    """A copy of index (b,) int64 on `device`. The host does not wait for the transfer."""
    tensor = torch.from_numpy(np.array(index))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def gather_rows(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """table[rows], a copy: (n, ...), (b,) int64 -> (b, ...). On a CPU one thread does it.

    PyTorch would wake its OpenMP threads for a megabyte. They then spin for milliseconds on the cores that make the
    views next: with them, loading took half as long again on two cores.
    """
    if table.is_cuda:
        return table.index_select(0, rows)
    found = torch.empty(len(rows), *table.shape[1:], dtype=table.dtype)
    source, target = (part.flatten(1).view(torch.uint8).numpy() for part in (table, found))
    np.take(source, rows.numpy(), axis=0, out=target, mode="clip")  # "raise" would copy once more
    return found
