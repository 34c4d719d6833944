"""The state of a loader in a checkpoint, and whether a loader can continue from it."""

from __future__ import annotations

from typing import Any

from essl_fast.common.errors import InputError
from essl_fast.data.loading.settings import LoaderSettings
from essl_fast.data.shards import Shards

STATE_VERSION = 1


def identity(settings: LoaderSettings, shards: Shards) -> dict[str, Any]:
    """Everything that the batches of all epochs depend on, as plain values.

    Those of all ranks together: with a global batch neither their number nor a rank's batch size is part of it.
    """
    own = {"batch_size": settings.batch_size, "world_size": settings.world_size}
    return {
        "data": shards.fingerprint,
        "splits": list(settings.splits),
        "pairs": len(shards),
        "side": settings.side,
        **({"global_batch": settings.global_batch} if settings.global_batch else own),
        "seed": settings.seed,
        "shuffle": settings.shuffle,
        "last_batch": settings.last_batch,
    }


def make_state(identity: dict[str, Any], epoch: int, step: int) -> dict[str, Any]:
    """The state of a loader whose next batch is `step` of `epoch`."""
    return {"version": STATE_VERSION, "epoch": epoch, "step": step, "settings": identity}


def position_in(state: dict[str, Any], identity: dict[str, Any]) -> tuple[int, int]:
    """The (epoch, step) of a state that a loader of this identity can continue from.

    Raises:
        InputError: the state is of another version, or of a loader that would give other batches.
    """
    if state.get("version") != STATE_VERSION:
        raise InputError(f"the loader's state has version {state.get('version')}, this code reads {STATE_VERSION}")
    before = state["settings"]
    if "global_batch" in identity and "batch_size" in before:
        before = before | {"global_batch": _global_batch(before)}
    if "global_batch" in before and "global_batch" not in identity:
        identity = {"global_batch": 0} | identity  # it is this that changed, and not what it stood for
    for name, ours in identity.items():
        theirs = before.get(name)
        if theirs != ours:
            what = "the prepared data" if name == "data" else f"{name} (was {theirs!r}, is {ours!r})"
            raise InputError(f"cannot continue exactly, since this changed: {what}. Use what it was, or start anew")
    return state["epoch"], state["step"]


def _global_batch(before: dict[str, Any]) -> int | None:
    """The global batch of a loader that had none, if its steps are those of one; None if its last steps differ."""
    whole = before["batch_size"] * before["world_size"]
    rest = before["pairs"] % whole
    same = before["last_batch"] == "drop" or not 0 < rest < before["world_size"]
    return whole if same else None
