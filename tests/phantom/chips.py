"""The GPUs that are pretended, as NVIDIA's data sheets describe them."""

from typing import NamedTuple


class Chip(NamedTuple):
    """What NVIDIA's tables say of a GPU."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared: int  # KB that a block may have
    memory: int  # GB
    cache: int  # MB of L2
    flop: float  # FLOP/s of a dense bf16 product
    bandwidth: float  # bytes/s of its memory

    @property
    def arch(self) -> int:
        return 10 * self.capability[0] + self.capability[1]


CHIPS = {
    "a100": Chip("NVIDIA A100-SXM4-80GB", (8, 0), 108, 163, 80, 40, 312e12, 2.039e12),
    "h100": Chip("NVIDIA H100 80GB HBM3", (9, 0), 132, 227, 80, 50, 989e12, 3.35e12),
    "h200": Chip("NVIDIA H200", (9, 0), 132, 227, 141, 50, 989e12, 4.8e12),
    "b200": Chip("NVIDIA B200", (10, 0), 148, 227, 180, 126, 2250e12, 8.0e12),
}
