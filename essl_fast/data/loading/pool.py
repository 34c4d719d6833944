"""The resident pool: every pair is decoded once, and stays where training reads it.

    first epoch    decoder ──▶ batch ──▶ pool.put      each pair is trained on as it comes, and kept
    later epochs   order ──▶ rows ──▶ two_views(pool.frames, rows, ...), pool.sound[rows]

What a batch takes from the pool is its rows: no frame is decoded, resized or copied again, and what is computed from
sound alone (the log-mel spectrogram) is computed once. The pool changes neither which pairs a batch holds nor their
values: it fills in whatever order pairs are asked for, and a pair that is not there yet is decoded when it is. So a run
that is resumed in mid-epoch, or with the pool on that began without, goes on with exactly the same batches.

A pair takes side * side * 3 bytes of frame and 73,728 of log-mel, or 1,536 of embeddings where the audio network is
frozen (half in bf16): at side 246 that is 249 or 179 KiB, 388 or 278 MiB for Chaotic World's 1,595 training pairs, 90
or 64 GiB for its 378,093 annotated instances.

On several ranks, each has a pool of the whole split where that fits, and fills it with the pairs that it meets itself:
in every epoch those of `order.epoch_order` for its rank, which are others each time. After k epochs on w ranks a share
(1 - 1/w)^k of the pairs is still decoded on demand. Where the whole does not fit, each rank keeps a share of the pairs,
and rows are exchanged (`shared_pool`); so it does where the order is the same in every epoch, since it needs no more.
All of that is exact: the same batches as streaming, for any number of ranks.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from essl_fast.common.errors import InputError
from essl_fast.data.loading.exchange import Exchange, on_device
from essl_fast.data.loading.order import Step, epoch_batches
from essl_fast.data.shards import SAMPLES

Resident = Literal["auto", "always", "never"]
Sound = Callable[[torch.Tensor], torch.Tensor]
Lost = list[tuple[int, str]]  # positions of pairs that do not decode, with the reason

# Of the memory that is free when the run begins. The rest is for activations, which PyTorch has not asked for yet; on
# a CPU also for the page cache, without which the shards would be read from disk.
GPU_SHARE, HOST_SHARE = 0.6, 0.5
GB = 10**9


def samples(pcm: torch.Tensor) -> torch.Tensor:
    """Keep the sound as it is, (B, 48000) int16."""
    return pcm


def float_samples(sound: torch.Tensor) -> torch.Tensor:
    """`samples` of a folder that holds float32: (B, 48000) float32."""
    return sound.float()


class Kept(NamedTuple):
    """What a pool keeps of a pair's sound: its shape without the batch's dimension, and its type."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, sound: Sound, device: torch.device | str) -> Kept:
        """By calling `sound` with a pair of silence."""
        with torch.no_grad():
            made = sound(torch.zeros(1, SAMPLES, dtype=torch.int16, device=device))
        if len(made) != 1:
            raise ValueError(f"sound must keep the batch's dimension, and gave {tuple(made.shape)} for one pair")
        return cls(tuple(made.shape[1:]), made.dtype)

    def pair_bytes(self, side: int) -> int:
        return side * side * 3 + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def bytes_per_pair(side: int, sound: Sound = samples, device: torch.device | str = "cpu") -> int:
    """What a pair takes in a pool on `device`, where `sound` is called to know."""
    return Kept.of(sound, device).pair_bytes(side)


def gather(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """table[rows], by one thread on a CPU.

    PyTorch would wake its OpenMP threads for a megabyte, and these spin for milliseconds after it, on the cores that
    the views are made on next: loading took half as long again on two cores.
    """
    if table.is_cuda:
        return table.index_select(0, rows)
    found = torch.empty(len(rows), *table.shape[1:], dtype=table.dtype)
    bytes_of, into = (part.flatten(1).view(torch.uint8).numpy() for part in (table, found))
    np.take(bytes_of, rows.numpy(), axis=0, out=into, mode="clip")  # "raise" would go by way of a copy
    return found


class Pool:
    """Frames and sound of n pairs, by their position in a loader's order. Memory is taken at once.

    frames (rows, side, side, 3) uint8; sound (rows, ...), what the loaders' `sound` made of each pair's samples; both
    on `device`; a row for each pair, unless `rows` says how many. there (n,) bool, on the host: which pairs are in it.
    held: every batch's frames are this pool's, whatever its rows; else they are the batch's own, (b, side, side, 3).
    """

    held = True

    def __init__(self, n: int, side: int, kept: Kept, device: torch.device | str = "cpu", rows: int | None = None):
        rows = n if rows is None else rows
        try:
            with torch.inference_mode(False):  # also where an evaluation asks first: it must be writable everywhere
                self.frames = torch.empty(rows, side, side, 3, dtype=torch.uint8, device=device)
                self.sound = torch.empty(rows, *kept.shape, dtype=kept.dtype, device=device)
        except RuntimeError as error:  # the budget was the user's
            size = _gb(rows * kept.pair_bytes(side))
            raise InputError(
                f"data.resident_budget_gb: {device} did not give {size} GB for a pool of {rows} pairs: make it smaller"
            ) from error
        self.there = np.zeros(n, bool)

    def __len__(self) -> int:
        return len(self.there)

    def begin(self, epoch: int, order: dict[str, Any]) -> None:
        """Before anything else, with the epoch that comes first, and the settings of `epoch_batches`."""

    def elsewhere(self) -> np.ndarray:
        """(n,) bool: pairs that are never put here."""
        return np.zeros(len(self), bool)

    def steps(self, epoch: int, order: dict[str, Any]) -> Iterator[Step]:
        """The steps of an epoch. It may be called in any thread."""
        return (Step(batch, batch, [batch], False) for batch in epoch_batches(epoch=epoch, **order))

    def put(self, positions: np.ndarray, frames: torch.Tensor, sound: torch.Tensor) -> None:
        """Keep the pairs at `positions` (b,) int64: copies of `frames` (b, side, side, 3) and `sound` (b, ...)."""
        (rows,) = on_device(self.frames.device, self._rows(positions))
        self.frames.index_copy_(0, rows, frames)
        self.sound.index_copy_(0, rows, sound)
        self.there[positions] = True

    def settle(self, step: Step, lost: Lost) -> Lost:
        """Once all that this rank needs for a step was put; `lost`: what did not decode since this last returned any.
        What all ranks lost, [] where they did not ask each other."""
        return []

    def batch(self, step: Step, lost: np.ndarray, following: Step | None) -> tuple[torch.Tensor, ...]:
        """(frames, rows, sound) of the step's pairs but those in `lost` (n,) bool, where frames[rows] are theirs; after
        `settle`. following: the step that comes next, where it is known. Every rank calls it for every step."""
        (rows,) = on_device(self.frames.device, self._rows(step.asked[~lost[step.asked]]))
        return self.frames, rows, gather(self.sound, rows)

    def _rows(self, positions: np.ndarray) -> np.ndarray:
        return positions


class Pools:
    """The pools of a run, which share one budget; loaders of the same pairs share a pool.

    resident: auto takes a pool where it fits the budget, always insists, never takes none. budget_gb: in 10^9 bytes; 0
    is 60% of the memory that is free on a GPU by now, or half of what the host has available (of what its control group
    may take), shared by the processes that torchrun started on it; of all ranks', the smallest. shared: where several
    ranks train, which may exchange rows by `exchange`, each keeps a share of the pairs: auto does so where the whole
    does not fit. notes: lines for the user on what did not fit.
    """

    def __init__(
        self,
        resident: Resident = "auto",
        budget_gb: float = 0,
        device: torch.device | str = "cpu",
        shared: Resident = "auto",
        exchange: Exchange | None = None,
    ):
        self.resident, self.device, self.notes = resident, torch.device(device), []
        self.shared, self.exchange = shared, exchange
        self._given = budget_gb > 0
        self._left = int(budget_gb * GB) if self._given or resident == "never" else _budget(self.device)
        if exchange is not None:  # else one rank might have a pool, and wait for another that streams
            self._left = exchange.least(self._left)
        self._taken: dict[Hashable, Pool | None] = {}

    def take(
        self,
        what: str,
        pairs: Hashable,
        n: int,
        side: int,
        sound: Sound = samples,
        *,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> Pool | None:
        """A pool for n pairs, `what` in words and `pairs` to tell them apart, which this rank of several asks for in
        another order each epoch or (shuffle False) in the same one; None: stream them. InputError where always was
        asked for and it does not fit. Every rank asks for the same."""
        key = (pairs, n, side, sound, rank, world_size, shuffle or world_size == 1)
        if key not in self._taken:
            new = functools.partial(self._new, what, n, side, sound, rank, world_size, shuffle)
            self._taken[key] = None if self.resident == "never" else new()
        return self._taken[key]

    def _new(
        self, what: str, n: int, side: int, sound: Sound, rank: int, world_size: int, shuffle: bool
    ) -> Pool | None:
        from essl_fast.data.loading.shared_pool import SharedPool  # it is a Pool

        kept = Kept.of(sound, self.device)
        may_share = world_size > 1 and (not shuffle or (self.exchange is not None and self.shared != "never"))
        whole = not may_share or (shuffle and self.shared == "auto")
        missing = ""
        if whole:
            need = n * kept.pair_bytes(side)
            if need <= self._left:
                self._left -= need
                return Pool(n, side, kept, self.device)
            missing = self._missing(need, n)
        if may_share:
            share = -(-n // world_size)
            need = share * kept.pair_bytes(side)
            if need <= self._left:
                if missing:
                    self.notes.append(
                        f"{what} is kept in shares, {share} pairs on each of {world_size} processes, which exchange "
                        f"them in every step: whole, it needs {missing}"
                    )
                self._left -= need
                return SharedPool(n, side, kept, self.device, rank, world_size, self.exchange if shuffle else None)
            missing = self._missing(need, share, f" in each of {world_size} processes")
        if self.resident == "always":
            verb = "raise" if self._given else "set"
            raise InputError(
                f"data.resident: always, but {what} needs {missing.partition(' (')[0]}; {verb} "
                "data.resident_budget_gb, or use auto or never"
            )
        self.notes.append(f"{what} is streamed, not kept: that needs {missing}")
        return None

    def _missing(self, need: int, pairs: int, where: str = "") -> str:
        return (
            f"{_gb(need)} GB for {pairs} pairs{where}, and {_gb(self._left)} GB of the budget are left "
            f"({_gb(need - self._left)} GB missing; data.resident_budget_gb sets the budget)"
        )


def _gb(size: int) -> str:
    return f"{max(size, 0) / GB:.3g}"


def _budget(device: torch.device) -> int:
    if device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    return int(HOST_SHARE * host_memory()) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def host_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: what the kernel calls available, and no more than is left to any control
    group (version 2 or 1) that it is in. `root`: where proc and sys are."""
    meminfo = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
    room = [1024 * int(meminfo["MemAvailable"].split()[0])]
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            top = root / "sys/fs/cgroup/memory"
        else:
            continue
        group = top / path.lstrip("/")  # in a container it may be the host's path, and only the top be there
        while group != top:
            room += _room(group, *names)
            group = group.parent
        room += _room(top, *names)
    return max(0, min(room))


def _room(group: Path, limit: str, used: str, idle: str) -> list[int]:
    """Bytes left to a control group, [] if it has no limit. Page cache that nobody uses counts as left."""
    try:
        most, taken = (group / limit).read_text().strip(), int((group / used).read_text())
        cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [] if most == "max" else [int(most) - taken + int(cache.get(idle, 0))]
