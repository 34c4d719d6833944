"""Messages between ranks that keep a share of the pairs each: rows of their pools, and now and then a Python object.

Every rank knows by itself which rows go where (see `shared_pool`), so nothing is announced: each table is one
all-to-all of bytes. On CPUs that is gloo in a process group of its own. On GPUs it is NCCL, on a stream of its own but
in the default group, which the training step uses too: kernels of two communicators that are under way at once may wait
for one another for ever, if the GPUs start them in different orders. One communicator keeps the order in which the
ranks' main threads ask, which is the same on all of them. The rows of a step are sent before the step ahead of it
starts, so that they wait for none of its sums of gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from essl_fast.data.loading.rows import index_tensor


class Transfer:
    """Rows on their way to this rank."""

    def __init__(self, tables: list[torch.Tensor], work: list, ready: torch.cuda.Event | None):
        self._tables, self._work, self._ready = tables, work, ready

    def wait(self) -> list[torch.Tensor]:
        """The received rows of each table, (k, ...), those of rank 0 first.

        On a GPU, the current stream waits for them; the host does not.
        """
        for work in self._work:
            work.wait()
        if self._ready is not None:
            current = torch.cuda.current_stream(self._tables[0].device)
            current.wait_event(self._ready)
            for table in self._tables:
                table.record_stream(current)
        return self._tables


class Exchange:
    """Between `size` ranks; `rank` is this one.

    Every rank makes one at the same place of its program, after the default process group, and calls the methods in
    the same order.
    """

    def __init__(self, rank: int, size: int, device: torch.device):
        self.rank, self.size, self.device = rank, size, device
        self._objects = dist.new_group(backend="gloo")
        gpu = device.type == "cuda"
        self._rows = dist.group.WORLD if gpu else self._objects
        self._stream = torch.cuda.Stream(device) if gpu else None

    def smallest(self, value: int) -> int:
        """The smallest of the ranks' numbers."""
        return min(self.gather(value))

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, rank 0's first. Values are pickled."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._objects)
        return values

    def send_rows(
        self,
        tables: Sequence[torch.Tensor],
        rows: Sequence[np.ndarray],
        coming: Sequence[int],
        written: torch.cuda.Event | None = None,
    ) -> Transfer:
        """Send rows of each table to every rank, and receive theirs.

        What is sent is copied first, so the tables may change afterwards.

        Args:
            tables: (n, ...) each.
            rows: for each rank, the rows (k,) int64 that go to it.
            coming: for each rank, how many rows come from it.
            written: event after which the tables hold these rows; None: when the current stream gets here.
        """
        going = [len(part) for part in rows]
        came, work = [], []
        if self._stream is not None and written is None:
            written = torch.cuda.current_stream(self.device).record_event()
        with torch.cuda.stream(self._stream), torch.no_grad():  # a stream of None changes nothing
            if self._stream is not None and written is not None:
                self._stream.wait_event(written)
            index = index_tensor(self.device, np.concatenate(rows))
            for table in tables:
                packed = table.flatten(1).view(torch.uint8).index_select(0, index)  # NCCL has no int16
                out = torch.empty(sum(coming), packed.shape[1], dtype=torch.uint8, device=self.device)
                done = dist.all_to_all_single(
                    out, packed, list(coming), going, group=self._rows, async_op=self._stream is None
                )
                work += [done] if self._stream is None else []
                came.append(out.view(table.dtype).view(-1, *table.shape[1:]))
            event = None if self._stream is None else self._stream.record_event()
        return Transfer(came, work, event)
