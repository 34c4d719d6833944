"""How much memory the pools of a run may take."""

from __future__ import annotations

import os
from pathlib import Path

import torch

# Shares of the memory that is free when the run begins. The rest is for activations, which PyTorch has not asked for
# yet; on a CPU also for the page cache, without which shards would be read from disk.
GPU_SHARE, HOST_SHARE = 0.6, 0.5
GB = 10**9


class Budget:
    """Bytes that pools on one device may still take.

    Attributes:
        left: bytes.
        given: whether the user gave the size; else it is a share of the free memory.
    """

    def __init__(self, size: int, given: bool):
        self.left, self.given = size, given

    @classmethod
    def of(cls, gigabytes: float, device: torch.device) -> Budget:
        """`gigabytes` * 10^9 bytes. If that is 0: 60% of the GPU's free memory, or half of the host's available memory,
        divided among the processes that torchrun started on the host."""
        if gigabytes > 0:
            return cls(int(gigabytes * GB), True)
        if device.type == "cuda":
            return cls(int(GPU_SHARE * torch.cuda.mem_get_info(device)[0]), False)
        return cls(int(HOST_SHARE * host_memory()) // processes_here(), False)

    def reserve(self, size: int) -> None:
        """Leave `size` bytes to others than pools, unless the user gave the budget."""
        if not self.given:
            self.left = max(0, self.left - size)

    def take(self, size: int) -> bool:
        """Whether `size` bytes are left; if so, they are taken."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def shortage(self, size: int, what: str) -> str:
        """Why `size` bytes for `what` do not fit, for the user."""
        return (
            f"{as_gigabytes(size)} GB for {what}, and {as_gigabytes(self.left)} GB of the budget are left "
            f"({as_gigabytes(size - self.left)} GB missing; data.resident_budget_gb sets the budget)"
        )


def processes_here() -> int:
    """How many processes torchrun started on this host to train together.

    1 if WORLD_SIZE does not say that there are several: its other variables may be left from elsewhere, or be empty.
    """
    size, local = (os.environ.get(name, "").strip() for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if not all(text.isdecimal() and len(text) < 10 for text in (size, local)):
        return 1
    return max(1, min(int(size), int(local)))


def as_gigabytes(size: int) -> str:
    """Bytes as text, in units of 10^9."""
    return f"{max(size, 0) / GB:.3g}"


def host_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take on the host.

    That is what the kernel calls available, but no more than is left to any control group (version 2 or 1) of this
    process.

    Args:
        root: folder that holds `proc` and `sys`.
    """
    meminfo = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
    limits = [1024 * int(meminfo["MemAvailable"].split()[0])]
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
        group = top / path.lstrip("/")  # in a container this may be the host's path, and only `top` exists
        while group != top:
            limits += _left_to_group(group, *names)
            group = group.parent
        limits += _left_to_group(top, *names)
    return max(0, min(limits))


def _left_to_group(group: Path, limit: str, used: str, idle: str) -> list[int]:
    """Bytes left to a control group, [] if it has no limit. Page cache that is not in use counts as left."""
    try:
        most, taken = (group / limit).read_text().strip(), int((group / used).read_text())
        cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [] if most == "max" else [int(most) - taken + int(cache.get(idle, 0))]
