"""The resident pool: every pair is decoded once, and stays where training reads it.

    first epoch    decoder ──▶ batch ──▶ pool.put      each pair is trained on as it comes, and kept
    later epochs   order ──▶ rows ──▶ two_views(pool.frames, rows, ...), pool.sound[rows]

What a batch takes from the pool is its rows: no frame is decoded, resized or copied again, and what is computed from
sound alone (the log-mel spectrogram) is computed once. The pool changes neither which pairs a batch holds nor their
values: it fills in whatever order pairs are asked for, and a pair that is not there yet is decoded when it is. So a run
that is resumed in mid-epoch, or with the pool on that began without, goes on with exactly the same batches.

A pair takes side * side * 3 bytes of frame and 73,728 of log-mel: 249 KiB at side 246, 388 MiB for Chaotic World's
1,595 training pairs, 90 GiB for its 378,093 annotated instances.

On several ranks each has a pool of the whole split and fills it with the pairs that it meets itself: in every epoch
those of `order.epoch_order` for its rank, which are others each time. After k epochs on w ranks a share (1 - 1/w)^k of
the pairs is still decoded on demand. That is exact (the same batches as streaming, for any number of ranks) and needs
no exchange, at the price of memory: a split must fit each GPU. Pools that hold a share each, with the rows exchanged
between GPUs at the start of an epoch, are not built.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from essl_fast.config import InputError
from essl_fast.data.shards import SAMPLES

Resident = Literal["auto", "always", "never"]
Sound = Callable[[torch.Tensor], torch.Tensor]

# Of the memory that is free when the run begins. The rest is for activations, which PyTorch has not asked for yet; on
# a CPU also for the page cache, without which the shards would be read from disk.
GPU_SHARE, HOST_SHARE = 0.6, 0.5
GB = 10**9


def samples(pcm: torch.Tensor) -> torch.Tensor:
    """Keep the sound as it is, (B, 48000) int16."""
    return pcm


def _kept(sound: Sound) -> torch.Tensor:
    """What `sound` makes of one pair, of silence: for its shape and type."""
    with torch.no_grad():
        kept = sound(torch.zeros(1, SAMPLES, dtype=torch.int16))
    if len(kept) != 1:
        raise ValueError(f"sound must keep the batch's dimension, and gave {tuple(kept.shape)} for one pair")
    return kept


def bytes_per_pair(side: int, sound: Sound = samples) -> int:
    """What a pair takes in a pool."""
    return side * side * 3 + _kept(sound).nbytes


class Pool:
    """Frames and sound of n pairs, by their position in a loader's order. Memory is taken at once.

    frames (n, side, side, 3) uint8; sound (n, ...), what the function of that name made of each pair's samples (1,
    48000) int16; both on `device`. there (n,) bool, on the host: which pairs were put in.
    """

    def __init__(self, n: int, side: int, device: torch.device | str = "cpu", sound: Sound = samples):
        kept = _kept(sound)
        try:
            with torch.inference_mode(False):  # also where an evaluation asks first: it must be writable everywhere
                self.frames = torch.empty(n, side, side, 3, dtype=torch.uint8, device=device)
                self.sound = torch.empty(n, *kept.shape[1:], dtype=kept.dtype, device=device)
        except RuntimeError as error:  # the budget was the user's
            size = _gb(n * bytes_per_pair(side, sound))
            raise InputError(
                f"data.resident_budget_gb: {device} did not give {size} GB for a pool of {n} pairs: make it smaller"
            ) from error
        self.there = np.zeros(n, bool)

    def __len__(self) -> int:
        return len(self.there)

    def put(self, positions: np.ndarray, rows: torch.Tensor, frames: torch.Tensor, sound: torch.Tensor) -> None:
        """Keep the pairs at `positions` (b,) int64, which `rows` has on the pool's device: copies of `frames` (b, side,
        side, 3) and `sound` (b, ...)."""
        self.frames.index_copy_(0, rows, frames)
        self.sound.index_copy_(0, rows, sound)
        self.there[positions] = True


class Pools:
    """The pools of a run, which share one budget; loaders of the same pairs share a pool.

    resident: auto takes a pool where it fits the budget, always insists, never takes none. budget_gb: in 10^9 bytes; 0
    is 60% of the memory that is free on a GPU by now, or half of what the host has available (of what its control group
    may take), shared by the processes that torchrun started on it. notes: lines for the user on what did not fit.
    """

    def __init__(self, resident: Resident = "auto", budget_gb: float = 0, device: torch.device | str = "cpu"):
        self.resident, self.device, self.notes = resident, torch.device(device), []
        self._given = budget_gb > 0
        self._left = int(budget_gb * GB) if self._given or resident == "never" else _budget(self.device)
        self._taken: dict[Hashable, Pool | None] = {}

    def take(self, what: str, pairs: Hashable, n: int, side: int, sound: Sound = samples) -> Pool | None:
        """A pool for n pairs, `what` in words and `pairs` to tell them apart; None: stream them. InputError where
        always was asked for and it does not fit."""
        key = (pairs, n, side, sound)
        if key not in self._taken:
            self._taken[key] = None if self.resident == "never" else self._new(what, n, side, sound)
        return self._taken[key]

    def _new(self, what: str, n: int, side: int, sound: Sound) -> Pool | None:
        need = n * bytes_per_pair(side, sound)
        if need <= self._left:
            self._left -= need
            return Pool(n, side, self.device, sound)
        sizes = f"{_gb(need)} GB for {n} pairs, and {_gb(self._left)} GB of the budget are left"
        if self.resident == "always":
            verb = "raise" if self._given else "set"
            raise InputError(
                f"data.resident: always, but {what} needs {sizes}; {verb} data.resident_budget_gb, or use auto or never"
            )
        self.notes.append(
            f"{what} is streamed, not kept: that needs {sizes} ({_gb(need - self._left)} GB missing; "
            "data.resident_budget_gb sets the budget)"
        )
        return None


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
