"""What a run measures: its losses, its speed, and where its time goes."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from essl_fast.runtime import distributed
from essl_fast.runtime.distributed import World


class StepLosses(NamedTuple):
    """The losses of one step, on the host."""

    # (B,) int64: this rank's pairs
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    step: int  # of the epoch, from 0
    losses: dict[str, float]  # means over the ranks
    finite: bool
    later: int  # steps that were launched after it and before the host read it
    pairs: int  # of all ranks


class LossMeter:
    """The losses of the epoch so far.

    They stay on the device until :meth:`read` fetches all of them in one transfer, since reading waits for a GPU.

    Attributes:
        every: steps between two readings.
        unread: losses that are still on the device.
        sums: sums of the losses that were read, each multiplied by its number of pairs.
        counted: pairs of all ranks in the sums. Steps that were not finite are left out.
    """

    def __init__(self, world: World, every: int) -> None:
        self._world, self.every = world, every
        self.unread: list[tuple[Tensor, dict[str, Tensor], int]] = []
        self.sums: dict[str, float] = {}
        self.counted = 0

    @property
    def due(self) -> bool:
        """Whether there are enough unread losses to read them."""
        return len(self.unread) >= self.every

    def add(self, index: Tensor, losses: dict[str, Tensor], step: int) -> None:
        """Add the losses (0-d, on the device) of a step with the pairs ``index`` (B,)."""
        self.unread.append((index, losses, step))

    def read(self) -> list[StepLosses]:
        """Read what was added since the last call, in order. All ranks call it together."""
        unread, self.unread = self.unread, []
        if not unread:
            return []
        table = torch.stack([torch.stack(list(losses.values())) for _, losses, _ in unread])
        counts = torch.tensor([len(index) for index, _, _ in unread]).to(table)
        totals = distributed.total(torch.cat([table, counts[:, None]], 1), self._world)
        means, pairs = (totals[:, :-1] / self._world.size).tolist(), totals[:, -1].tolist()
        found = []
        for number, ((index, losses, step), values) in enumerate(zip(unread, means, strict=True), 1):
            named = dict(zip(losses, values, strict=True))
            finite = not named.pop("non_finite") and abs(named["loss"]) < float("inf")
            found.append(StepLosses(index, step, named, finite, len(unread) - number, int(pairs[number - 1])))
        return found

    def count(self, step: StepLosses) -> None:
        """Add a step to the epoch's sums."""
        self.counted += step.pairs
        for name, value in step.losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * step.pairs

    def resume(self, sums: dict[str, float], counted: int | list[int]) -> None:
        """Go on with a checkpoint's sums. In older ones rank 0's pairs weighted them, and each rank counted its own."""
        whole = counted if isinstance(counted, int) else sum(counted)
        weight = 1.0 if isinstance(counted, int) else whole / max(1, counted[0])
        self.sums, self.counted = {name: value * weight for name, value in sums.items()}, whole

    def means(self) -> dict[str, float]:
        """The epoch's losses so far, means over the pairs of all ranks."""
        return {name: total / max(1, self.counted) for name, total in self.sums.items()}

    def reset(self) -> None:
        """A new epoch begins."""
        self.sums, self.counted = {}, 0


class SpeedMeter:
    """Pairs per second, and where the time of a run goes.

    Time is added up between two calls of :meth:`tick`. A step that compiles, warms up or is captured counts separately.

    Attributes:
        seconds: seconds of the run for train (with the waiting), eval, wait (for data) and compile.
        epoch_seconds: the same for the epoch so far.
        pairs: pairs of all ranks in the run.
        seen: pairs of this rank in the epoch so far.
        untimed: pairs of this rank, in the run and in the epoch, in steps whose time counts as compile.
        share: pairs of all ranks for each that would be there if all had as many as this one; of the last whole epoch.
    """

    def __init__(self, world: World, waited: Callable[[], float]) -> None:
        """``waited`` returns the seconds that the host has waited for the loader so far."""
        self._world, self._waited = world, waited
        self.seconds = {"train": 0.0, "eval": 0.0, "wait": 0.0, "compile": 0.0}
        self.epoch_seconds = {"train": 0.0, "wait": 0.0, "compile": 0.0}
        self.untimed = {"run": 0, "epoch": 0}
        self.pairs = self.seen = 0
        self.share = 1.0
        self.began, self.elapsed = (
            time.perf_counter(),
            0.0,
        )  # when this process began; seconds of the processes before it
        self.skip()

    def skip(self) -> None:
        """Do not count the time since the last tick."""
        self._last, self._waited_before = time.perf_counter(), self._waited()

    def tick(self) -> None:
        """Count the time since the last tick as training."""
        passed, waited = time.perf_counter() - self._last, self._waited() - self._waited_before
        self.skip()
        for sums in (self.seconds, self.epoch_seconds):
            sums["train"] += passed
            sums["wait"] += waited

    def prepared(self, seconds: float, pairs: int) -> None:
        """Count ``seconds`` of the time since the last tick as compile: a step with ``pairs`` pairs of this rank."""
        self._last += seconds
        for sums in (self.seconds, self.epoch_seconds):
            sums["compile"] += seconds
        self.untimed = {name: count + pairs for name, count in self.untimed.items()}

    def add(self, pairs: int) -> None:
        """Count a step that was launched with ``pairs`` pairs of this rank."""
        self.seen += pairs
        self.pairs += pairs * self._world.size

    def settle(self, seen: list[int]) -> int:
        """Count what each rank has seen in the epoch, which with a global batch is not the same; the sum."""
        whole, counted = sum(seen), self.seen * self._world.size
        self.pairs += whole - counted
        self.share = whole / max(1, counted)
        return whole

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """What goes by inside is spent on evaluation."""
        begin = time.perf_counter()
        yield
        self.seconds["eval"] += time.perf_counter() - begin

    def reset(self) -> None:
        """A new epoch begins."""
        self.seen, self.untimed["epoch"] = 0, 0
        self.epoch_seconds = {"train": 0.0, "wait": 0.0, "compile": 0.0}

    def rate(self) -> float:
        """Pairs per second of all ranks in the epoch so far."""
        return self.share * rate(self._world.size, self.seen, self.untimed["epoch"], self.epoch_seconds)

    def mean_rate(self) -> float:
        """Pairs per second of all ranks in the run so far."""
        return rate(self._world.size, self.pairs // self._world.size, self.untimed["run"], self.seconds)

    def waiting(self) -> float:
        """Share of the epoch's time so far in which the host waited for data."""
        return self.epoch_seconds["wait"] / max(self.epoch_seconds["train"], 1e-9)

    def total_seconds(self) -> float:
        """Seconds since the run began, over all processes that worked on it."""
        return self.elapsed + time.perf_counter() - self.began


def rate(ranks: int, pairs: int, untimed: int, seconds: dict[str, float]) -> float:
    """Pairs per second of all ranks, of which each had ``pairs``.

    Steps that compiled, warmed up or were captured, with ``untimed`` pairs, and their time count only if there were no
    others.
    """
    if pairs > untimed:
        return ranks * (pairs - untimed) / max(seconds["train"], 1e-9)
    return ranks * pairs / max(seconds["train"] + seconds["compile"], 1e-9)
