"""Run a training step that was not finite again, and find the first value that is infinite or not a number."""

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from essl_fast import checkpoints, config, kernels
from essl_fast.common.errors import InputError
from essl_fast.data.loading import Loader, RawBatch
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import loader_settings
from essl_fast.models import objectives
from essl_fast.train.events import Fault
from essl_fast.train.state import runs_on
from essl_fast.train.trainer import Trainer


class Place(NamedTuple):
    """Something that is not finite."""

    kind: str  # "weight", "input", "output", "loss", "gradient"
    name: str
    what: str  # how many of its values, and of which kind
    keys: tuple[str, ...] = ()  # the pairs that have them; empty if all pairs have them, or if that is not known


class Report(NamedTuple):
    """The result of a replay. The places are in the order in which the step computes: the first is the origin."""

    fault: Fault
    places: list[Place]
    losses: dict[str, float]
    operation: str  # what autograd's anomaly detection says, "" if nothing
    then: str  # device and dtype of the step
    now: str  # device and dtype of the replay


def nonfinite(value: Tensor) -> str | None:
    """How many of a tensor's values are infinite or not a number, in words; None if there are none."""
    if not value.is_floating_point() or bool(value.isfinite().all()):
        return None
    nan, infinite = int(value.isnan().sum()), int(value.isinf().sum())
    parts = [f"{count} {name}" for count, name in ((nan, "nan"), (infinite, "inf")) if count]
    return f"{' and '.join(parts)} of {value.numel()} values"


def tensors(value) -> Iterator[Tensor]:
    """The tensors in a module's output: one, or several in tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors(each)


class Watch:
    """Hooks on every module of a model. They note outputs, and gradients of outputs, that are not finite."""

    def __init__(self, model: nn.Module, keys: list[str]) -> None:
        self.keys = keys
        self.outputs: list[Place] = []
        self.gradients: list[Place] = []
        self._hooks = [module.register_forward_hook(self._seen(name)) for name, module in model.named_modules() if name]

    def _seen(self, name: str):
        def hook(module: nn.Module, inputs, output) -> None:
            label = f"{name} ({type(module).__name__})"
            for value in tensors(output):
                if found := nonfinite(value):
                    self.outputs.append(Place("output", label, found, self._pairs(value)))
                if value.requires_grad:
                    value.register_hook(lambda gradient, label=label: self._gradient(label, gradient))

        return hook

    def _gradient(self, label: str, gradient: Tensor) -> None:
        if found := nonfinite(gradient):
            self.gradients.append(Place("gradient", f"of the output of {label}", found, self._pairs(gradient)))

    def _pairs(self, value: Tensor) -> tuple[str, ...]:
        """The pairs whose values are not finite. The first axis is all pairs of view 1, then all pairs of view 2."""
        if not value.ndim or len(value) % len(self.keys) or len(value) // len(self.keys) not in (1, 2):
            return ()
        bad = ~value.flatten(1).isfinite().all(dim=1) if value.ndim > 1 else ~value.isfinite()
        bad = bad.view(-1, len(self.keys)).any(dim=0)
        named = zip(self.keys, bad.tolist(), strict=True)
        return () if bool(bad.all()) else tuple(key for key, wrong in named if wrong)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def batches_of(trainer: Trainer, fault: Fault) -> list[RawBatch]:
    """The batches of the step, each rank after rank; several if gradients were added up.

    Raises:
        InputError: the data gives other pairs.
    """
    settings, found = trainer.settings, []
    every = settings.optim.accumulate
    for rank in range(fault.ranks):
        with Loader(
            trainer.manifest,
            trainer.data.splits,
            batch_size=config.own_batch(settings, fault.ranks),
            global_batch=config.shared_batch(settings),
            turns=config.turns(settings, fault.ranks),
            side=config.STORED_SIDE,
            device=trainer.device,
            shuffle=True,
            last_batch=settings.data.last_batch,
            epochs=fault.epoch + 1,
            rank=rank,
            world_size=fault.ranks,
            **loader_settings(settings, trainer.model, trainer.dtype),
        ) as loader:
            loader.seek(fault.epoch, fault.step * every)
            found.append(list(itertools.islice(loader.each_step(), every)))
    given = [raw for batches in found for raw in batches if raw is not None]
    if [row for raw in given for row in raw.index.tolist()] != fault.rows:
        raise InputError(f"{trainer.manifest.place} does not give the pairs that the step had: is it the same data?")
    return [_of_all_ranks(batches, trainer.device) for batches in zip(*found, strict=True)]


def _of_all_ranks(parts: Sequence[RawBatch | None], device: torch.device) -> RawBatch:
    """The ranks' parts of a batch, rank after rank; None where a rank has none of it."""
    batches = [raw for raw in parts if raw is not None]
    frames, sound, index = (
        torch.cat([getattr(raw, name)[raw.rows] if name == "frames" else getattr(raw, name) for raw in batches])
        for name in ("frames", "sound", "index")
    )
    return RawBatch(frames, torch.arange(len(index), device=device), sound, index)


def trainer_of(state: dict, root: Path | str, device: torch.device, precision: str) -> Trainer:
    """A trainer with the step's settings and weights, on the prepared data in ``root``."""
    settings = checkpoints.settings_of(state)
    settings.compile, settings.data.resident = "off", "never"
    settings.precision = precision or settings.precision  # type: ignore[assignment]  # the Trainer checks it
    settings.data.batch_size = max(settings.data.batch_size, config.own_batch(settings))  # of all ranks at once
    manifest = Manifest.load(root, (settings.data.cache, settings.data.cache_gb))
    if state["data"] != manifest.header:
        raise InputError(f"{manifest.place} is not the data set that the step was of; give its folder with --data")
    trainer = Trainer(settings, manifest, device)
    trainer.loader.close()
    checkpoints.load_trained(trainer.model, state["model"])
    return trainer


def views_of(trainer: Trainer, fault: Fault, raw: RawBatch) -> tuple[Tensor, Tensor, Tensor]:
    """The views of the step's pairs, their boxes view by view, and which pairs are labelled."""
    with torch.no_grad():
        views, top, left, flip = kernels.random_views(
            raw.frames, raw.rows, raw.index, trainer.settings.seed, fault.epoch, config.SIZE, trainer.dtype
        )
        boxes, labelled = (known[raw.index] for known in trainer.data.labels)
        return views, kernels.view_boxes(boxes, top, left, flip, config.STORED_SIDE, config.SIZE), labelled


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """No warnings: anomaly detection prints the whole traceback of the forward pass; the table says where it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def replay(state: dict, root: Path | str, device: torch.device, precision: str = "") -> Report:
    """Run a step that was not finite again.

    Args:
        state: what :func:`essl_fast.checkpoints.load` gave for a nonfinite-EPOCH-STEP.pt.
        root: the prepared folder, or its URL, that the run was trained on.
        device: where to run the step.
        precision: a value of the setting ``precision``; "" is the run's own.

    Raises:
        InputError: the data is not what the step was trained on.
    """
    trainer, fault = trainer_of(state, root, device, precision), Fault(**state["fault"])
    model, batches = trainer.model.train(), batches_of(trainer, fault)
    places = [Place("weight", name, found) for name, value in model.state_dict().items() if (found := nonfinite(value))]
    values: dict[str, float] = {}
    operation, gradients, labels = "", [], trainer.data.labels
    labelled = [int(labels.labelled[raw.index].sum()) for raw in batches]
    with _silent(), torch.autograd.set_detect_anomaly(True, check_nan=True):
        for raw, count in zip(batches, labelled, strict=True):
            mine = torch.tensor([len(raw.index), count]), torch.tensor([len(fault.rows), sum(labelled)])
            shares = objectives.Shares.of(*mine, 1) if len(batches) > 1 else objectives.WHOLE
            met, losses, operation, later = replay_batch(trainer, fault, raw, shares, state.get("scale", 1.0))
            places += met
            gradients += later
            values = {name: values.get(name, 0.0) + loss for name, loss in losses.items()}
            if operation:
                break
    places += gradients
    last = ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    places += [Place("gradient", f"of {name}", found) for name, value in last if (found := nonfinite(value))]
    return Report(fault, places, values, operation, state.get("runs_on", ""), runs_on(trainer))


def replay_batch(
    trainer: Trainer, fault: Fault, raw: RawBatch, shares: objectives.Shares, scale: float
) -> tuple[list[Place], dict[str, float], str, list[Place]]:
    """One batch of the step, forward and backward; its gradients are added to those that are there.

    Returns:
        What is not finite up to the losses; the losses; what autograd's anomaly detection says, "" if nothing; and
        the gradients of modules' outputs that are not finite.
    """
    model, device, dtype = trainer.model, trainer.device, trainer.dtype
    views, boxes, labelled = views_of(trainer, fault, raw)
    inputs = (("views", views), ("sound", raw.sound))
    places = [Place("input", name, found) for name, value in inputs if (found := nonfinite(value))]
    watch, operation = Watch(model, [trainer.manifest.key(row) for row in raw.index.tolist()]), ""
    try:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            forward = model(views, raw.sound)
            losses = trainer.step.objective(forward, boxes, labelled, shares)
        places += watch.outputs
        outputs = zip(forward._fields, forward, strict=True)
        places += [Place("output", name, found) for name, value in outputs if (found := nonfinite(value))]
        parts = reversed(losses.items())  # before their sum
        places += [Place("loss", name, found) for name, value in parts if (found := nonfinite(value))]
        try:
            (losses["loss"] * scale).backward()
        except RuntimeError as error:
            if "returned nan values" not in str(error):
                raise
            operation = str(error).splitlines()[0]
    finally:
        watch.close()
    return places, {name: value.item() for name, value in losses.items()}, operation, watch.gradients


def report_lines(report: Report) -> Iterator[str]:
    """The report in lines."""
    fault = report.fault
    yield f"epoch {fault.epoch + 1}, step {fault.step + 1}: {len(fault.keys)} pairs, {', '.join(fault.keys)}"
    if report.then != report.now:
        yield f"the step ran on {report.then}, this is {report.now}"
    if fault.later:
        yield f"the weights are those of {fault.later} steps later: they were read from the GPU only then"
    yield "losses: " + ", ".join(f"{name} {value:.6g}" for name, value in report.losses.items())
    if not report.places and not report.operation:
        yield "everything is finite this time" + (
            "; replay it on what it ran on, with --device and --precision" if report.then != report.now else ""
        )
        return
    for number, place in enumerate(report.places[:10]):
        where = f"{place.kind} {place.name}: {place.what}"
        only = f"; only of {', '.join(place.keys)}" if place.keys else ""
        yield ("first not finite: " if not number else "then: ") + where + only
    if len(report.places) > 10:
        yield f"and {len(report.places) - 10} more"
    if report.operation:
        yield f"backward: {report.operation}"
