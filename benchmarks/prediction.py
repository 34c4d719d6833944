"""What a step that was only compiled would take on a GPU: arithmetic on its launches, and no measurement.

Rates: an H200 multiplied bf16 matrices at 790 TFLOP/s and copied 4.3 TB/s (measured), 80% and 90% of its data sheet.
Other chips are taken to reach the same shares of theirs. A launch is expected to take the longest of

* its FLOPs at 70% of that rate: what cuDNN and cuBLAS reach on this network's shapes is not known yet;
* its bytes, read once and written once, at the copy's rate;
* 2 us: no kernel takes less, also in a CUDA graph.

Its floor is what would be left of it in the best step that can be thought of: a product at the full rate; the bytes of
our own ops and of the optimizer; and nothing of kernels that only pass over maps, whose work a neighbour could do.
The goal is the same sum for engines that exist: products at 75% of the rate, bytes at 90% of the copy's. No MFU can be
above the share that products reach: 70% as expected, 75% by the goal.
Not counted: atomics, access that is not coalesced, what an engine of cuDNN's reads twice, gaps between launches.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from tests.phantom.chips import CHIPS, Chip
from tests.phantom.launches import Launch

FLOP_SHARE, COPY_SHARE = 790e12 / CHIPS["h200"].flop, 4.3e12 / CHIPS["h200"].bandwidth
ENGINE_SHARE = 0.7  # of the product's rate that a library's call is expected to reach
LEAST = 2e-6  # seconds
GOAL_ENGINES, GOAL_COPIES = 0.75, 0.9  # of the two rates
NEEDED = ("essl_fast.", "aten._fused_adamw_")  # calls whose bytes nothing else could move


@dataclass(frozen=True)
class Rates:
    """What a chip is taken to reach."""

    flop: float  # FLOP/s of a large bf16 product
    copy: float  # bytes/s, read plus written

    @classmethod
    def of(cls, chip: Chip) -> "Rates":
        return cls(FLOP_SHARE * chip.flop, COPY_SHARE * chip.bandwidth)

    def expected(self, launch: Launch) -> float:
        """Seconds."""
        return max(launch.flop / (ENGINE_SHARE * self.flop), launch.bytes / self.copy, LEAST)

    def floor(self, launch: Launch, engines: float = 1.0, copies: float = 1.0) -> float:
        """Seconds, at these shares of the rates."""
        if launch.flop or launch.name.startswith(NEEDED):
            return max(launch.flop / (engines * self.flop), launch.bytes / (copies * self.copy))
        return 0.0

    def goal(self, launch: Launch) -> float:
        """Seconds."""
        return self.floor(launch, GOAL_ENGINES, GOAL_COPIES)


@dataclass
class Part:
    """Launches that belong together."""

    name: str
    count: int = 0
    bytes: float = 0.0
    flop: float = 0.0
    floor: float = 0.0  # seconds
    goal: float = 0.0  # seconds
    expected: float = 0.0  # seconds

    def add(self, launch: Launch, rates: Rates) -> None:
        self.count += 1
        self.bytes += launch.bytes
        self.flop += launch.flop
        self.floor += rates.floor(launch)
        self.goal += rates.goal(launch)
        self.expected += rates.expected(launch)

    @property
    def above(self) -> float:
        """Seconds over the floor."""
        return self.expected - self.floor


def kind_of(launch: Launch) -> str:
    """What a launch does, for the table of a step's parts."""
    if launch.flop:
        return "convolutions, products"
    if launch.name.startswith(NEEDED):
        return "own ops, optimizer"
    return "generated kernels" if launch.kind == "triton" else "PyTorch's kernels"


@dataclass
class Prediction:
    """A step on a chip."""

    name: str
    pairs: int
    rates: Rates
    whole: Part
    parts: list[Part]  # by stage and kind
    worst: list[Part]  # launches of one name and shape, the furthest above their floor first

    @classmethod
    def of(cls, name: str, launches: Iterable[Launch], chip: Chip, pairs: int) -> "Prediction":
        rates, whole = Rates.of(chip), Part("step")
        parts: dict[str, Part] = defaultdict(lambda: Part(""))
        single: dict[str, Part] = defaultdict(lambda: Part(""))
        for launch in launches:
            shape = f" {[list(s) for s in launch.shapes[:2]]}" if launch.flop else ""
            for group, key in ((parts, f"{launch.stage}: {kind_of(launch)}"), (single, launch.name + shape)):
                group[key].name = key
                group[key].add(launch, rates)
            whole.add(launch, rates)
        worst = sorted(single.values(), key=lambda part: -part.above)
        return cls(name, pairs, rates, whole, sorted(parts.values(), key=lambda part: -part.expected), worst)

    @property
    def pairs_per_second(self) -> float:
        return self.pairs / self.whole.expected

    @property
    def mfu(self) -> float:
        """Share of the product's rate that the whole step reaches."""
        return self.whole.flop / self.rates.flop / self.whole.expected

    def record(self, worst: int = 10) -> dict:
        """Plain values."""
        numbers = {"pairs_per_second": self.pairs_per_second, "mfu": self.mfu, "rates": asdict(self.rates)}
        lists = {"parts": [asdict(part) for part in self.parts], "worst": [asdict(part) for part in self.worst[:worst]]}
        return {"name": self.name, "pairs": self.pairs, **numbers, "whole": asdict(self.whole), **lists}
