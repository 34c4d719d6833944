"""The parts of one training run, and where it stands. `loop.py` says in which order they work."""

import functools
from collections.abc import Callable, Iterator

import torch

from essl_fast import config, models
from essl_fast.common.errors import InputError
from essl_fast.data.loading import Loader, RawBatch
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import Evaluation, consensus_of, evaluate
from essl_fast.kernels import fp8
from essl_fast.pretrain import small_weights
from essl_fast.profiling import StepProfile
from essl_fast.runtime import distributed, stages
from essl_fast.runtime.compiling import cache_counts
from essl_fast.runtime.devices import pick_precision
from essl_fast.runtime.distributed import ALONE, World
from essl_fast.train import collapse
from essl_fast.train.accumulation import Group, grouped, updates_of
from essl_fast.train.data import TrainingData
from essl_fast.train.events import Fault, Preparation, Reading
from essl_fast.train.faults import Faults
from essl_fast.train.meters import LossMeter, SpeedMeter, StepLosses
from essl_fast.train.observers import Observers
from essl_fast.train.step import Losses, TrainStep

READ_EVERY = 20  # steps between two readings of the losses on a GPU; each reading waits for the GPU


def build_model(
    settings: config.Config, device: torch.device, dtype: torch.dtype, world: World, say: Callable[[str], None]
) -> tuple[models.Localizer, list[str]]:
    """The model of a run on its device, and which pretrained weights it was given.

    Raises:
        InputError: the device cannot run ``model.trunk_fp8``.
        WeightsError: a published weight file is missing or damaged.
    """
    model = models.build(settings.model)
    loaded = models.load_pretrained(model, settings.model)
    if models.made_parts(settings.model):
        with distributed.leader_first(world):  # which makes them, if they are not there
            made = small_weights(settings.model.small_weights, say)
        if made is not None:
            loaded.append(models.load_made(model, settings.model, made))
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's stub lacks memory_format
    if settings.model.trunk_fp8 and not fp8.runs(device, dtype):
        raise InputError("model.trunk_fp8: on a GPU it takes sm_89 or later and precision bf16; leave it off")
    model.prepare(dtype)
    return model, loaded


class Trainer:
    """One run: its parts, and where it stands. With several processes each has a trainer for its share of the pairs.

    Attributes:
        model, data, step: the localizer; loader, pools and labels; one training step.
        losses, speed, faults: the meters of this run, and what went wrong in it.
        epoch, steps: complete epochs, and steps since the run began.
        history: one entry for each complete epoch.
        untrained: the result of the model before its first step, if the settings ask for it.
        steps_per_epoch: updates of an epoch.
        best, best_average: epoch and score of best.pt and of best-ema.pt, and the similarity below which each is mostly
            wrong.
    """

    def __init__(
        self,
        settings: config.Config,
        manifest: Manifest,
        device: torch.device,
        world: World = ALONE,
        observers: Observers | None = None,
    ) -> None:
        self.settings, self.manifest, self.device, self.world = settings, manifest, device, world
        self.observers = Observers() if observers is None else observers
        torch.manual_seed(settings.seed)
        self.dtype = pick_precision(settings.precision, device)
        self.model, self.loaded = build_model(settings, device, self.dtype, world, self.observers.on_message)
        self.faults = Faults(settings, manifest, world, self.observers)
        self.data = TrainingData(settings, manifest, self.model, self.dtype, device, world, self._skip)
        shared = bool(settings.data.global_batch)
        self.steps_per_epoch = updates_of(len(self.loader), settings.optim.accumulate, settings.data.last_batch, shared)
        self.step = TrainStep(
            settings,
            self.model,
            self.data.labels,
            consensus=consensus_of(settings, manifest),
            steps_per_epoch=self.steps_per_epoch,
            held=self.loader.held,
            device=device,
            dtype=self.dtype,
            world=world,
        )
        self._graphs = cache_counts() if self.step.compiled else {}  # compiled so far in this process
        self._said: list[str] = []  # the step's notes that were reported
        self.losses = LossMeter(world, every=1 if device.type == "cpu" else READ_EVERY)
        self.speed = SpeedMeter(world, lambda: self.loader.waited)
        self.profile: StepProfile | None = None
        self.epoch = self.steps = 0
        self.history: list[dict] = []
        self.untrained: dict | None = None
        self.best: dict | None = None
        self.best_average: dict | None = None

    @property
    def loader(self) -> Loader:
        return self.data.loader

    def batches(self) -> Iterator[RawBatch | Group]:
        """The remaining updates' batches of the current epoch; each wait for one is marked as the stage "data"."""
        self.model.train()
        self.speed.skip()
        batches = grouped(self.loader, self.settings.optim.accumulate, self.settings.data.last_batch)
        while True:
            with stages.stage("data"):
                raw = next(batches, None)
            if raw is None:
                return
            yield raw
            self.speed.skip()  # the time of a checkpoint does not count as training

    def train_step(self, raw: RawBatch | Group) -> Losses:
        """Train on a batch without counting the step; its losses (0-d, on the device)."""
        return self.step(raw, self.epoch, self.steps)

    def take_step(self, raw: RawBatch | Group) -> None:
        """Train on a batch, count the step, and read the losses if that is due."""
        known = len(self.step.stepper.prepared)
        number = -(-self.loader.step // self.settings.optim.accumulate) - 1  # of the epoch's updates
        self.losses.add(raw.index, self.train_step(raw), number)
        for done in self.step.stepper.prepared[known:]:
            self._tell(done)
        self.speed.add(len(raw.index))
        self.steps += 1
        reading = None
        if self.losses.due:
            loss = self.read_losses()
            self.speed.tick()
            reading = Reading(loss, self.speed.rate(), self.speed.waiting())
        self.observers.on_step(self.epoch, reading)
        self.speed.tick()
        if self.profile is not None:
            self.profile.step()

    def _tell(self, done: Preparation) -> None:
        """Count a step that compiled, warmed up or was captured as such, and report it to the observers."""
        self.speed.prepared(done.seconds, done.batch)
        before, self._graphs = self._graphs, cache_counts() if self.step.compiled else {}
        made = {name: count - before[name] for name, count in self._graphs.items()}
        self.observers.on_prepared(done, self.steps + 1, made)
        for note in self.step.notes:
            if note not in self._said:
                self._said.append(note)
                self.observers.on_message(note)

    def end_epoch(self) -> dict:
        """Complete the current epoch, and return its entry of the history."""
        self.read_losses()
        self.faults.share(self.epoch + 1)
        self.speed.tick()
        means = self.losses.means()
        spread = {name: means.pop(name) for name in collapse.SPREAD if name in means}
        entry = {
            "epoch": self.epoch + 1,
            "losses": means,
            **spread,
            "not_finite": self.faults.count_in(self.epoch),
            "pairs": self.speed.settle(distributed.gather(self.speed.seen, self.world)),
            "pairs_per_second": self.speed.rate(),
            "waiting": self.speed.waiting(),
            "rates": self.step.rates.now(),
        }
        self.epoch += 1
        self.losses.reset()
        self.speed.reset()
        self.history.append(entry)
        return entry

    def read_losses(self) -> float:
        """Read the losses that are still on the device; the last of them, NaN if there were none.

        Raises:
            FloatingPointError: a step was not finite and the settings do not let the run go on.
        """
        loss = float("nan")
        for one in self.losses.read():
            loss = one.losses["loss"]
            if one.finite:
                self.losses.count(one)
            else:
                self._pass_over(one)
        self.step.check_scale(self.epoch)
        return loss

    def _pass_over(self, one: StepLosses) -> None:
        rows = [row for part in distributed.gather(one.index.tolist(), self.world) for row in part]
        latched = self.step.guard.latch
        # A latched guard let no later step change the model; in fp16 gradient scaling decides that, not the guard.
        later = 0 if latched and not self.step.scaler.is_enabled() else one.later
        keys = [self.manifest.key(row) for row in rows]
        fault = Fault(self.epoch, one.step, rows, keys, one.losses, later, self.world.size)
        self.faults.pass_over(fault, self.steps_per_epoch, latched)

    def _skip(self, row: int, reason: str) -> None:
        self.faults.skip(row, reason, self.epoch + 1)

    def evaluate(self, split: str, show: int = 0, guidance: bool = False) -> Evaluation:
        """Localize every pair of a split.

        Args:
            split: "train", "val" or "test".
            show: how many pairs to keep with their frames, to be drawn.
            guidance: also keep the trunk's object maps.
        """
        with self.speed.evaluating():
            found = evaluate(
                self.model,
                self.manifest,
                split,
                self.settings,
                self.device,
                self.dtype,
                show,
                self.data.pools,
                self._skip,
                self.world,
                guidance=guidance,
                on_batch=functools.partial(self.observers.on_evaluation, split, self.manifest.pairs(split)),
            )
            self.faults.share(self.epoch + 1)
        return found

    def is_best(self, found: dict, min_score: float | None = None, average: bool = False) -> bool:
        """Whether a result on the selection split beats all before it: by success rate, then by AUC.

        min_score: the similarity below which these weights are wrong more often than right; kept with them.
        average: it is that of the averaged weights, which are compared among themselves.
        """
        score, before = [found["success_at_half"], found["auc"]], self.best_average if average else self.best
        if before is not None and score <= before["score"]:
            return False
        now = {"epoch": self.epoch, "score": score, "split": self.settings.select_on, "min_score": min_score}
        self.best, self.best_average = (self.best, now) if average else (now, self.best_average)
        return True
