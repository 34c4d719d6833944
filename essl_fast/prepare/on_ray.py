"""Parts of a data set as tasks of a Ray cluster (`--engine ray`): what several machines do by hand with `--part`.

Ray places the tasks, and starts one again elsewhere if its machine dies: a part that was begun goes on. What a task is
given are the options alone. It reads the annotations and writes its part itself, so all machines need the same
essl_fast and see the same folders.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from essl_fast.common.errors import InputError, reason
from essl_fast.common.registry import import_modules
from essl_fast.data.datasets import read_dataset
from essl_fast.prepare.dividing import RECORD
from essl_fast.prepare.folder import PARTS
from essl_fast.prepare.reporting import Reporter
from essl_fast.prepare.run import prepare_part
from essl_fast.prepare.slices import Slice, slices_in

_MOST_WORKERS = 8  # of a part, unless --workers says more: what one machine takes


class _Outcome(NamedTuple):
    """Of a task.

    Attributes:
        host: the machine that it ran on.
        made: the part is in the folder; False if the folder was joined already.
        wrong: why there is no part.
    """

    host: str
    made: bool = False
    wrong: str = ""


def parts_on_ray(
    data: Mapping[str, Any],
    run: Mapping[str, Any],
    *,
    count: int | None = None,
    imports: Sequence[str] = (),
    say: Reporter,
) -> None:
    """Make all parts of a prepared folder on a Ray cluster, or finish them; `prepare_dataset` joins them then.

    The cluster is the one that this process, RAY_ADDRESS or this machine has; without any, this machine alone.

    Args:
        data: which data set, as `read_dataset` takes it.
        run: the other arguments of `prepare_part`; `out` is on a disk that all machines see.
        count: of parts. None: as many as the folder holds parts of, or else as the cluster makes at the same time.
        imports: modules that each task imports first.
        say: the reporter.

    Raises:
        InputError: Ray is missing or has no machine for a part, the folder holds parts of another count, or a part
            cannot be made. The other parts are made nevertheless.
    """
    ray, out = _ray(), Path(run["out"]).absolute()
    found = {part.total for part in slices_in(out / PARTS)}
    if count and found - {count}:
        some = min(found)
        raise InputError(f"{out} holds parts of {some}, not of {count}: give --parts {some}, or delete them")
    with _cluster(ray):
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        workers, at_once = _places(machines, run)
        count = count or min(found, default=at_once)
        say.line(f"{count} parts, {at_once} at the same time, on {_counted(len(machines))} of Ray")
        need = {"num_cpus": workers, "num_gpus": _gpus(run)}
        task = ray.remote(**need)(_make)
        given = _absolute(data), {**run, "out": out, "workers": workers}, tuple(imports)
        parts = (Slice(number, count) for number in range(1, count + 1))
        _wait(ray, {task.remote(part, *given): part for part in parts}, out, say)


def _make(part: Slice, data: dict, run: dict, imports: Sequence[str]) -> _Outcome:
    """A task: make a part. What the user can mend is told, not raised: Ray would print it as a traceback."""
    host = socket.gethostname()
    try:
        import_modules(imports)
        made = prepare_part(read_dataset(data), number=part.number, count=part.total, progress=False, **run)
    except (InputError, OSError) as error:
        return _Outcome(host, wrong=reason(error))
    return _Outcome(host, made is not None)


def _wait(ray: Any, waiting: dict[Any, Slice], out: Path, say: Reporter) -> None:
    """Wait for all tasks. InputError if a part could not be made."""
    failed: list[str] = []
    with say.bar("parts", len(waiting)) as step:
        while waiting:
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            part = waiting.pop(done)
            try:
                outcome = ray.get(done)
            except ray.exceptions.RayError as error:  # its machine, its process, or a fault of ours
                outcome = _Outcome("a machine", wrong=reason(getattr(error, "cause", None) or error))
            wrong = outcome.wrong
            if outcome.made and not (out / PARTS / part.folder / RECORD).exists():
                wrong = f"it is not in {out / PARTS}: give an --out on a disk that all machines see"
            if wrong:
                failed.append(f"part {part}, on {outcome.host}: {wrong}")
                say.line(failed[-1])
            step(1)
    if failed:
        more = f" ({len(failed) - 1} further parts failed)" if failed[1:] else ""
        raise InputError(f"--engine ray: {failed[0]}{more}; what was made is kept: the same command goes on")


def _ray() -> Any:
    """Ray. InputError if it is missing."""
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise InputError(
            f"--engine ray: the package ray cannot be imported ({error}): pip install ray (or pip install '.[ray]' in "
            "the source folder), or make the parts with --part"
        ) from error
    return ray


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Connected to a cluster, or to one of this machine alone. A connection that was there stays."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS")
        which = f"RAY_ADDRESS={address}" if address else "this machine's cluster"
        raise InputError(f"--engine ray: {which} cannot be reached ({reason(error)}): see `ray status`") from error
    try:
        yield
    finally:
        ray.shutdown()


def _gpus(run: Mapping[str, Any]) -> int:
    """GPUs of a part."""
    return int(run.get("decoder") == "nvdec")


def _places(machines: Sequence[Mapping[str, float]], run: Mapping[str, Any]) -> tuple[int, int]:
    """(workers of a part, parts at the same time). InputError if no machine has room for a part."""
    cores = [int(machine.get("CPU", 0)) for machine in machines]
    workers = run.get("workers") or max(1, min([_MOST_WORKERS, *filter(None, cores)]))
    gpus = _gpus(run)
    at_once = 0
    for machine, has in zip(machines, cores, strict=True):
        at_once += min(has // workers, int(machine.get("GPU", 0)) if gpus else has)
    if not at_once:
        what = f"{workers} CPUs (--workers)" + " and a GPU (--decoder nvdec)" * gpus
        most = max(cores, default=0)
        raise InputError(f"--engine ray: no machine has {what}; of {_counted(len(cores))} the largest has {most} CPUs")
    return workers, at_once


def _counted(machines: int) -> str:
    """A number of machines, in words."""
    return f"{machines} machine{'s' * (machines != 1)}"


def _absolute(data: Mapping[str, Any]) -> dict[str, Any]:
    """Options whose paths do not depend on the current folder, which is another one in a task."""

    def changed(value: Any) -> Any:
        if isinstance(value, list):
            return [changed(each) for each in value]
        return value.absolute() if isinstance(value, Path) else value

    return {name: changed(value) for name, value in data.items()}
