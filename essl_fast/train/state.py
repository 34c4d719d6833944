"""The state of a run: what its checkpoints hold, and what a run that resumes one may change."""

from pathlib import Path

import torch

from essl_fast import checkpoints, config, models
from essl_fast.common.errors import InputError, in_shell
from essl_fast.runtime import distributed
from essl_fast.runtime.distributed import World
from essl_fast.train.optimizer import optimizer_state
from essl_fast.train.trainer import Trainer


def runs_on(trainer: Trainer) -> str:
    """Device and dtype that the "auto" settings gave: two runs that differ here do not compute the same numbers."""
    return f"{trainer.device.type} in {str(trainer.dtype).removeprefix('torch.')}"


def _header(trainer: Trainer) -> dict:
    """What every checkpoint of a run begins with."""
    # Frozen weights that no published file holds, and a head that the objective does not train.
    keep = [*models.unpublished_parts(trainer.settings.model), "head."]
    return {
        "config": config.to_dict(trainer.settings),
        "data_root": trainer.manifest.place,
        "data": trainer.manifest.header,
        "model": checkpoints.trained_state(trainer.model, keep=keep),
    }


def best_state(trainer: Trainer, average: bool = False) -> dict:
    """What best.pt holds: the weights, and how they were selected.

    average: what best-ema.pt holds; the averaged weights are then in the model.
    """
    return {"kind": "best", **_header(trainer), "best": trainer.best_average if average else trainer.best}


def faulty_state(trainer: Trainer) -> dict:
    """What a replay of a step that was not finite needs besides the fault itself."""
    return best_state(trainer) | {"runs_on": runs_on(trainer), "scale": trainer.step.scaler.get_scale()}


def last_state(trainer: Trainer) -> dict:
    """What last.pt holds: everything that :func:`resume` needs to go on as if nothing had happened.

    All ranks call it together.
    """
    trainer.read_losses()
    world, losses, speed = trainer.world, trainer.losses, trainer.speed
    average = trainer.step.average
    averaged = {} if average is None else {"ema": average.state_dict(), "best_average": trainer.best_average}
    return {
        **averaged,
        "kind": "last",
        **_header(trainer),
        "optimizer": optimizer_state(trainer.step.optimizer, trainer.step.rates),
        "scaler": trainer.step.scaler.state_dict(),
        "loader": trainer.loader.state_dict(),
        "rng": torch.get_rng_state(),
        "epoch": trainer.epoch,
        "step": trainer.steps,
        "seconds": dict(speed.seconds),
        "pairs": speed.pairs,
        "sums": dict(losses.sums),
        "seen": distributed.gather(speed.seen, world),
        "history": trainer.history,
        "counted": losses.counted,
        "not_finite": trainer.faults.not_finite,
        "untrained": trainer.untrained,
        "best": trainer.best,
        "epoch_seconds": dict(speed.epoch_seconds),
        "untimed": dict(speed.untimed),
        "elapsed": speed.total_seconds(),
        "runs_on": runs_on(trainer),
    }


def computes(settings: dict, on: str) -> dict:
    """The settings that have more than one name for the same computation, as what they mean on a device.

    Args:
        settings: as `config.to_dict` gives them.
        on: what :func:`runs_on` says.
    """
    gpu = on.startswith("cuda")
    rounds = gpu and settings["precision"] == "tf32"
    # Where nothing is compiled unless the settings insist, auto is off.
    compiled = "off" if settings["compile"] == "auto" and not gpu else settings["compile"]
    return settings | {"precision": f"{on.split(' in ')[-1]}{', tf32' * rounds}", "compile": compiled}


def check_resume(trainer: Trainer, state: dict, out: str | Path) -> list[str]:
    """The settings that differ from the checkpoint's, if they may differ; InputError if anything else differs."""
    if state.get("kind") != "last":
        raise InputError("only last.pt can be resumed; best.pt holds weights alone")
    before = config.to_dict(
        config.from_dict(state["config"])
    )  # settings that are newer than the checkpoint had their defaults
    now, was_on, is_on = config.to_dict(trainer.settings), state["runs_on"], runs_on(trainer)
    if was_on != is_on:
        raise InputError(
            f"the checkpoint was made on {was_on}, this run would be on {is_on}: resume it on a machine like the "
            "first, with its --device and --precision"
        )
    changed = config.difference(before, now)
    meant, means = computes(before, was_on), computes(now, is_on)
    if trainer.settings.data.global_batch:
        meant, means = shares_out(meant, len(state["seen"])), shares_out(means, trainer.world.size)
    if hard := checkpoints.forbidden(config.difference(meant, means)):
        raise InputError("the checkpoint was made with other settings: " + "; ".join(hard) + ". Resume without them.")
    if state["data"] != trainer.manifest.header:
        raise InputError(
            f"{trainer.manifest.place} is not the data set that the checkpoint was trained on; give its folder with "
            f"--data.root DIR (it was {state.get('data_root', 'another')})"
        )
    check_ranks(state, trainer.settings, trainer.world.size, out)
    return changed


def shares_out(settings: dict, ranks: int) -> dict:
    """Settings (as :func:`computes` gives them) as what some processes together compute: one global batch."""
    data = settings["data"]
    pairs = data["global_batch"] or data["batch_size"] * settings["optim"]["accumulate"] * ranks
    return settings | {"data": data | {"batch_size": 0, "global_batch": pairs}}


def check_ranks(state: dict, settings: config.Config, ranks: int, out: str | Path) -> None:
    """InputError if a checkpoint was made by another number of processes, and the order of the pairs depends on it.

    The message names the command that goes on. It needs no trainer: what else would not fit this number of processes
    is then not told first.
    """
    if (before := len(state["seen"])) == ranks or settings.data.global_batch:
        return
    then = config.from_dict(state["config"])
    then.data.global_batch = config.update_pairs(then, before)
    options = f"--data.global_batch {then.data.global_batch}"
    if (own := config.own_batch(then, ranks)) > settings.data.batch_size:
        options += f" --data.batch_size {own}"
    raise InputError(
        f"the checkpoint was made by {before} process{'es' * (before > 1)}, this run has {ranks}, and the order of the "
        f"pairs depends on their number, unless they share a global batch: add {options}, or go on with: "
        f"{command(before)} --resume {in_shell(out)}"
    )


def command(ranks: int) -> str:
    """The beginning of a command line that trains with some processes on this machine."""
    return (
        f"torchrun --standalone --nproc-per-node={ranks} -m essl_fast.train"
        if ranks > 1
        else "python -m essl_fast.train"
    )


def resume(trainer: Trainer, state: dict, out: str | Path = "DIR") -> list[str]:
    """Continue from :func:`last_state`, and return the settings that differ from its own.

    out: the run directory, for messages.

    Raises:
        InputError: the run may not go on with these settings, this data or this device.
    """
    changed = check_resume(trainer, state, out)
    checkpoints.load_trained(trainer.model, state["model"])
    step, losses, speed = trainer.step, trainer.losses, trainer.speed
    step.optimizer.load_state_dict(state["optimizer"])
    step.rates.attach(step.optimizer)
    step.scaler.load_state_dict(state["scaler"])
    trainer.loader.load_state_dict(state["loader"])
    torch.set_rng_state(state["rng"])
    trainer.epoch, trainer.steps = state["epoch"], state["step"]
    trainer.history, trainer.best = list(state["history"]), state["best"]
    if step.average is not None:
        step.average.load_state_dict(state["ema"])
        trainer.best_average = state["best_average"]
    trainer.untrained = state.get("untrained")
    trainer.faults.not_finite = list(state.get("not_finite", []))
    losses.resume(dict(state["sums"]), state.get("counted", state["seen"]))  # version 1 counted all
    speed.pairs, speed.seen = state["pairs"], of_rank(state["seen"], trainer.world)
    speed.seconds = {**speed.seconds, **state["seconds"]}
    speed.epoch_seconds = {**speed.epoch_seconds, **state["epoch_seconds"]}
    were = len(state["seen"])
    untimed = dict(state.get("untimed", speed.untimed))  # an earlier version timed all
    speed.untimed = {name: count * were // trainer.world.size for name, count in untimed.items()}
    speed.elapsed = state["elapsed"]
    return changed


def of_rank(counts: list[int], world: World) -> int:
    """A rank's part of what the ranks have counted; where their number has changed, the sum is shared out anew."""
    if len(counts) == world.size:
        return counts[world.rank]
    whole, rest = divmod(sum(counts), world.size)
    return whole + (world.rank < rest)
