"""What ranks that keep a share of the pairs each send each other: rows of their pools, and a few words.

It has process groups of its own, so it meets no collective of the training step. Which rows go where, every rank knows
by itself (`shared_pool`), so nothing is announced: one all-to-all of bytes a table. On GPUs that is NCCL on a stream of
its own, on CPUs gloo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def on_device(device: torch.device, *arrays: np.ndarray) -> torch.Tensor:
    """(len(arrays), b) int64, in one transfer that the host does not wait for."""
    table = torch.from_numpy(np.stack(arrays))
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


class Swap:
    """Rows on their way. `wait` gives them: those of rank 0 first."""

    def __init__(self, tables: list[torch.Tensor], work: list, ready: torch.cuda.Event | None):
        self._tables, self._work, self._ready = tables, work, ready

    def wait(self) -> list[torch.Tensor]:
        """The rows of each table that came here. On a GPU the host does not wait: the current stream does."""
        for work in self._work:
            work.wait()
        if self._ready is not None:
            current = torch.cuda.current_stream(self._tables[0].device)
            current.wait_event(self._ready)
            for table in self._tables:
                table.record_stream(current)
        return self._tables


class Exchange:
    """Between `size` ranks, of which this is `rank`. Every rank makes one, at the same place in its program, after the
    default process group; and calls its methods in the same order."""

    def __init__(self, rank: int, size: int, device: torch.device):
        self.rank, self.size, self.device = rank, size, device
        self._words = dist.new_group(backend="gloo")
        gpu = device.type == "cuda"
        self._rows = dist.new_group(backend="nccl") if gpu else self._words
        self._stream = torch.cuda.Stream(device) if gpu else None

    def least(self, value: int) -> int:
        """The smallest of the ranks' numbers."""
        return min(self.tell(value))

    def tell(self, value: Any) -> list[Any]:
        """Every rank's value, in the ranks' order."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._words)
        return values

    def swap(
        self,
        tables: Sequence[torch.Tensor],
        rows: Sequence[np.ndarray],
        coming: Sequence[int],
        ready: torch.cuda.Event | None = None,
    ) -> Swap:
        """Send `rows[r]` (k,) int64 of each table (n, ...) to rank r, and get `coming[r]` rows from it.

        ready: after it the tables are written. What goes and comes is copied: the tables may change meanwhile.
        """
        going = [len(part) for part in rows]
        came, work = [], []
        if self._stream is not None and ready is None:
            ready = torch.cuda.current_stream(self.device).record_event()
        with torch.cuda.stream(self._stream), torch.no_grad():  # of None: nothing
            if self._stream is not None:
                self._stream.wait_event(ready)
            (index,) = on_device(self.device, np.concatenate(rows))
            for table in tables:
                packed = table.flatten(1).view(torch.uint8).index_select(0, index)  # NCCL has no int16
                out = torch.empty(sum(coming), packed.shape[1], dtype=torch.uint8, device=self.device)
                done = dist.all_to_all_single(
                    out, packed, list(coming), going, group=self._rows, async_op=self._stream is None
                )
                work += [done] if self._stream is None else []
                came.append(out.view(table.dtype).view(-1, *table.shape[1:]))
            event = None if self._stream is None else self._stream.record_event()
        return Swap(came, work, event)
