"""Which parts of a profiled step are slow, in words: the stages farthest above their floors, each with what to try.

Every sentence follows from the numbers: the times of the stages, floors that were measured on the same machine (see
floors.py), and how the run was set.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

BETWEEN = "between the stages"


class Measured(NamedTuple):
    """Milliseconds per step of a stage."""

    host: float
    device: float  # on the GPU; equal to host if there is none


class Floor(Protocol):
    """The least time of a stage, and why: see floors.py, which need not be imported here."""

    @property
    def seconds(self) -> float: ...

    @property
    def why(self) -> str: ...


class Setting(NamedTuple):
    """How the run was set, as far as that says what could be tried."""

    gpu: bool
    compiled: bool
    captured: bool  # the step was replayed as a CUDA graph
    precision: str  # float32, bfloat16, float16
    batch: int
    threads: int  # decoding threads
    cores: int
    streams: bool  # pairs are decoded again in every epoch


class Gap(NamedTuple):
    """A stage and how far it is above its floor, in milliseconds per step."""

    stage: str
    milliseconds: float
    floor: float
    words: str

    @property
    def above(self) -> float:
        return self.milliseconds - self.floor


def find(
    step: float,
    stages: dict[str, Measured],
    floors: Mapping[str, Floor],
    setting: Setting,
    operators: list[tuple[str, float]],
    most: int = 3,
) -> list[Gap]:
    """The largest gaps, the largest first.

    Args:
        step: milliseconds of a whole step.
        stages: the stages of the step, by name. The time between them counts as a stage whose floor is 0.
        floors: the floors by stage; a stage without one is left out.
        setting: how the run was set.
        operators: name and milliseconds per step of the slowest operators, the slowest first.
        most: at most so many gaps; there are fewer if fewer stages are above their floors.
    """
    spent = {name: each.host if name == "data" or not setting.gpu else each.device for name, each in stages.items()}
    spent[BETWEEN] = max(0.0, step - sum(spent.values()))
    found = []
    for name, milliseconds in spent.items():
        floor = floors.get(name)
        if name == BETWEEN or floor is not None:
            least = 1e3 * floor.seconds if floor else 0.0
            if milliseconds > least:
                found.append(Gap(name, milliseconds, least, ""))
    found.sort(key=lambda gap: -gap.above)
    return [gap._replace(words=describe(gap, step, stages, floors, setting, operators)) for gap in found[:most]]


def describe(gap: Gap, step: float, stages, floors, setting: Setting, operators) -> str:
    """A gap in one or two sentences, and what to try."""
    share = 100 * gap.above / step
    if gap.stage == BETWEEN:
        what = f"{gap.stage}: {gap.milliseconds:.2f} ms a step in no stage, {share:.0f}% of the step"
    elif gap.stage == "data":
        what = f"data: the step waits {gap.milliseconds:.2f} ms for its batch, {share:.0f}% of the step"
    else:
        reached = 100 * gap.floor / gap.milliseconds
        what = (
            f"{gap.stage}: {gap.milliseconds:.2f} ms, {gap.above:.2f} ms above its floor of {gap.floor:.2f} ms "
            f"({floors[gap.stage].why}): {reached:.0f}% of what the machine does, {share:.0f}% of the step to be won"
        )
    return f"{what}. Try: {'; '.join(remedies(gap, stages, setting, operators))}"


def remedies(gap: Gap, stages: dict[str, Measured], setting: Setting, operators: list[tuple[str, float]]) -> list[str]:
    """What to try about a gap, the likeliest first; at least one thing."""
    tries = []
    if gap.stage == "data":
        if setting.streams:
            tries.append("data.resident always, or a larger data.resident_budget_gb: pairs are then decoded once")
        if setting.threads < setting.cores:
            tries.append(f"data.threads {setting.cores} (now {setting.threads})")
        return tries or ["a trace that holds a later epoch: this one may still decode what later epochs have in memory"]
    measured = stages.get(gap.stage)
    host = measured.host if measured else 0.0
    computing = gap.stage in ("forward", "backward", "step")
    if setting.gpu and gap.stage != "views" and not setting.captured and host > 0.9 * gap.milliseconds:
        tries.append(
            f"cuda_graphs, or a larger data.batch_size (now {setting.batch}): the host takes {host:.2f} ms to launch it"
        )
    if computing and setting.gpu and not setting.compiled:
        tries.append("compile on")
    if computing and setting.gpu and setting.precision == "float32":
        tries.append("precision bf16")
    if gap.stage == BETWEEN:
        what = "launches and bookkeeping of the host" if setting.gpu else "reading losses, logging, other processes"
        tries.append(f"a larger data.batch_size (now {setting.batch}), which spreads it over more pairs ({what})")
    elif gap.stage == "optimizer":
        tries.append(f"a larger data.batch_size (now {setting.batch}): the update costs the same for any")
    elif gap.stage == "views":
        tries.append("`python -m essl_fast.doctor`, which says whether the compiled module makes them")
    elif operators:
        own = [each for each in operators if gap.stage != "forward" or "backward" not in each[0].lower()]
        longest = ", ".join(f"{name} {milliseconds:.2f} ms" for name, milliseconds in own[:3])
        tries.append(f"the trace at what takes longest in a step: {longest}")
    return tries or ["the trace, which shows what runs in it"]
