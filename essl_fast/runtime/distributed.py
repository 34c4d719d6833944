"""Several processes that train one model, one per GPU: torchrun starts them, this file joins them.

    torchrun --nproc-per-node=8 -m essl_fast.train --config full --out runs/full

Every rank computes the same plan and the same results, so that no rank has to tell another what to do: batches are a
function of (seed, epoch, rank, number of ranks), gradients are averaged (by DDP, or after what a CUDA graph holds of a
step), batch statistics are taken over all ranks unless these take batches by turns, and evaluation results are gathered
on all of them. Only rank 0 prints and writes.
"""

import contextlib
import datetime
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from essl_fast.common.errors import InputError, short

RESTARTS = "TORCHELASTIC_RESTART_COUNT"  # how often torchrun has started the processes again


class World(NamedTuple):
    """This process and the processes that train with it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes of this machine: the number of its GPU
    restarts: int = 0  # how often torchrun has started this group again

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0


ALONE = World()


NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
REMEDY = "start several processes with torchrun --nproc-per-node=N -m essl_fast.train ..., or unset WORLD_SIZE"


def world_of(environment: Mapping[str, str] | None = None) -> World:
    """The world that torchrun's environment variables describe; a variable that is empty counts as not set.

    Raises:
        InputError: there are several processes, and a variable is missing or no value that torchrun gives.
    """
    environment = os.environ if environment is None else environment
    given = {name: value for name in (*NAMES, RESTARTS) if (value := environment.get(name, "").strip())}
    size = _number(given, "WORLD_SIZE", 1, 1)
    if size == 1:
        # Other variables may be left from elsewhere. Only torchrun sets this one.
        return World(restarts=int(given[RESTARTS]) if given.get(RESTARTS, "").isdecimal() else 0)
    if missing := [name for name in NAMES if name not in given]:
        raise InputError(
            f"WORLD_SIZE is set but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not: {REMEDY}"
        )
    _number(given, "MASTER_PORT", 0, 1, 65535)
    rank, local = _number(given, "RANK", 0, 0, size - 1), _number(given, "LOCAL_RANK", 0, 0, size - 1)
    return World(rank, size, local, _number(given, RESTARTS, 0, 0))


def _number(given: Mapping[str, str], name: str, default: int, least: int, most: int | None = None) -> int:
    """A variable's whole number; ``default`` if it is not set. InputError if it is none, or out of its range."""
    text = given.get(name)
    if text is None:
        return default
    if text.isdecimal() and len(text) < 10 and least <= int(text) and (most is None or int(text) <= most):
        return int(text)
    wanted = f"from {least} to {most}" if most is not None else f"from {least} on"
    more = " (Kubernetes sets such a variable for a service called master)" if "://" in text else ""
    raise InputError(f"the variable {name} is {short(text)}{more}, not a number {wanted}: {REMEDY}")


def own_device(name: str, world: World) -> str:
    """The device setting of this rank: with several processes, "cuda" means the GPU with its local rank.

    Raises:
        InputError: the setting names one GPU for all processes, or there are fewer GPUs than processes.
    """
    if world.size == 1 or name.startswith("cpu"):
        return name
    if ":" in name:
        raise InputError(f"device: {name} names one GPU for {world.size} processes: use cuda, and each takes its own")
    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    count = torch.cuda.device_count()
    if world.local_rank >= count:
        raise InputError(
            f"process {world.local_rank} of this machine has no GPU of its own, there are {count}: "
            f"use --nproc-per-node={count or 1}" + ("" if count else " or --device cpu")
        )
    return f"cuda:{world.local_rank}"


@contextlib.contextmanager
def joined(world: World, device: torch.device, minutes: float = 30) -> Iterator[None]:
    """Within the context the processes of ``world`` are one group, with NCCL on GPUs and gloo on CPUs.

    A rank that waits longer than ``minutes`` for the others gives up with an error, so that none waits for ever for a
    dead one. After an error the group is not taken apart, because NCCL would wait for ranks that wait for this one: end
    the process with :func:`give_up`.
    """
    if world.size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    timeout = datetime.timedelta(minutes=minutes)
    try:
        with _told(f"rank {world.rank} waits for the other {world.size - 1} processes at {place}"):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=_own_store(world, timeout),
                rank=world.rank,
                world_size=world.size,
                timeout=timeout,
                device_id=device if device.type == "cuda" else None,
            )
    except (dist.DistError, ValueError, RuntimeError, OSError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = f"the {world.size} processes of WORLD_SIZE could not be joined at {place}, MASTER_ADDR:MASTER_PORT"
        raise InputError(f"{what} ({line}): {REMEDY}") from error
    yield
    dist.destroy_process_group()


def _own_store(world: World, timeout: datetime.timedelta) -> dist.Store:
    """The store through which the processes find each other, under a name that no group before this one had.

    torchrun keeps one store over its restarts (seen with PyTorch 2.11): it holds the addresses of processes that are
    gone, and a new group would wait for those. How often a machine has restarted differs between machines, so rank 0
    chooses the name, and tells it to each rank that asks with a word of its own.
    """
    store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=timeout))
    store.set_timeout(timeout)
    word = uuid.uuid4().hex
    if not world.leads:
        store.set(f"essl_fast/asks/{world.rank}", word)
        name = store.get(f"essl_fast/name/{word}").decode()
        store.set(f"essl_fast/has/{name}/{world.rank}", "")
        return dist.PrefixStore(name, store)
    end, left = time.monotonic() + timeout.total_seconds(), set(range(1, world.size))
    while left:
        for rank in sorted(left):
            if store.check([f"essl_fast/asks/{rank}"]):  # perhaps that of a process that is gone: it changes then
                store.set(f"essl_fast/name/{store.get(f'essl_fast/asks/{rank}').decode()}", word)
            if store.check([f"essl_fast/has/{word}/{rank}"]):
                left.remove(rank)
        if left and time.monotonic() > end:
            raise dist.DistStoreError(f"ranks {', '.join(map(str, sorted(left)))} did not come")
        time.sleep(0.01)
    return dist.PrefixStore(word, store)


@contextlib.contextmanager
def _told(line: str, after: float = 30.0) -> Iterator[None]:
    """Print a line if what is inside takes longer than ``after`` seconds."""
    timer = threading.Timer(after, lambda: print(f"{line}; {REMEDY}", file=sys.stderr))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def give_up(world: World, device: torch.device, code: int) -> None:
    """End this process at once after an error, if it is on a GPU and others train with it: torchrun then ends those.

    A normal exit would run NCCL's destructors, which may wait for the other ranks until their timeout.
    """
    if world.size > 1 and device.type == "cuda":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def leader_first(world: World) -> contextlib.AbstractContextManager[None]:
    """Rank 0 runs the body of the context first, then the other ranks run it. An error of rank 0 ends all ranks."""
    return _leader_first(world) if world.size > 1 else contextlib.nullcontext()


@contextlib.contextmanager
def _leader_first(world: World) -> Iterator[None]:
    if not world.leads:
        if (reason := share(None, world)) is not None:
            raise InputError(f"rank 0 stopped: {reason}")
        yield
        return
    try:
        yield
    except BaseException as error:
        share(str(error) or type(error).__name__, world)
        raise
    share(None, world)


def share(value: Any, world: World) -> Any:
    """Rank 0's value, on every rank. Plain Python values; they go through the CPU."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather(value: Any, world: World) -> list[Any]:
    """The values of all ranks, in the order of the ranks, on every rank."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def total(values: torch.Tensor, world: World) -> torch.Tensor:
    """The sum of the ranks' tensors, on the device, without waiting for it."""
    if world.size > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def stacked(values: torch.Tensor, most: int, world: World) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of all ranks, which may have different numbers of them, on every rank; without waiting, or a gradient.

    Args:
        values: (V, B, D) of this rank.
        most: no rank has more than these rows B.
        world: the ranks.

    Returns:
        (V, ranks * most, D) float32, padded with zeros, and (ranks * most,) float32: 1 for each row that is none.
    """
    marked = torch.nn.functional.pad(values.detach().float(), (0, 1), value=1.0)
    mine = torch.nn.functional.pad(marked, (0, 0, 0, most - values.shape[1])).contiguous()
    parts = mine.new_empty(world.size * len(mine), *mine.shape[1:])
    dist.all_gather_into_tensor(parts, mine)
    every = parts.unflatten(0, (world.size, -1)).transpose(0, 1).flatten(1, 2)
    return every[..., :-1], every[0, :, -1]
