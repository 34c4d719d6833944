"""The results of a split from one process, and those of all processes joined."""

from typing import NamedTuple

import numpy as np
import torch


class Columns:
    """Values of every pair by name, added batch after batch, on the device until :func:`arrays` reads them."""

    def __init__(self) -> None:
        self._batches: dict[str, list[torch.Tensor]] = {}

    def add(self, **values: torch.Tensor) -> None:
        """Values of a batch, (B, ...) each; the names are the same for every batch."""
        for name, value in values.items():
            self._batches.setdefault(name, []).append(value)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All values so far, (N, ...) each; {} if there was no batch."""
        return {name: torch.cat(batches) for name, batches in self._batches.items()}


def arrays(columns: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The columns on the host."""
    return {name: column.cpu().numpy() for name, column in columns.items()}


class Part(NamedTuple):
    """The results of a split from one process, or from all of them."""

    columns: dict[str, np.ndarray]  # "rows" (N,), and (N, ...) of other names, in any order; {} for no pair
    frames: dict[int, np.ndarray]  # of pairs to draw, by manifest row
    lost: int  # pairs that did not decode


def together(parts: list[Part]) -> Part:
    """The parts of all processes as one, its columns sorted by row."""
    found = [part.columns for part in parts if part.columns]
    columns = {name: np.concatenate([part[name] for part in found]) for name in found[0]} if found else {}
    if columns:
        order = np.argsort(columns["rows"])
        columns = {name: column[order] for name, column in columns.items()}
    frames = {row: frame for part in parts for row, frame in part.frames.items()}
    return Part(columns, frames, sum(part.lost for part in parts))
