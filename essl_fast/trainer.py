"""One training run: model, optimizer, loader, and where they stand."""

import math
import os
import shutil
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from essl_fast import checkpoint, config, distributed, kernels, models, objectives, runlog
from essl_fast.config import InputError
from essl_fast.data.loader import Loader, RawBatch
from essl_fast.data.pool import Pools
from essl_fast.data.shards import Manifest
from essl_fast.distributed import ALONE, World
from essl_fast.evaluate import evaluate, evaluation_loader, loader_settings, pick_precision
from essl_fast.profiling import StepProfile, stage

# Settings that may differ between a checkpoint and the run that resumes it: where things are, how often to look, how
# long to train. The data may have moved; that it is the same is checked by its manifest.
FREE = ("out", "name", "overlays", "checkpoint_", "eval_every", "data.root", "data.threads", "data.prefetch", "epochs",
        "data.resident", "data.on_error", "data.max_errors", "demo.cache")  # fmt: skip


def forbidden(changed: list[str]) -> list[str]:
    """Of the lines of :func:`config.difference`, those that a resumed run may not have."""
    hard = [line for line in changed if not line.startswith(FREE)]
    # A weight file may have moved; its content is checked by its hash. To "none" or from it is another network.
    return [line for line in hard if "_weights: " not in line or "none" in line.split()]


def build_optimizer(model: models.Localizer, optim: config.OptimConfig) -> torch.optim.AdamW:
    """AdamW with the recipe's groups, in the published order; fused: one pass over all parameters of a group."""
    return torch.optim.AdamW(model.parameter_groups(optim), betas=(0.9, 0.999), eps=1e-8, fused=True)


def learning_rate_factor(schedule: str, step: int, steps: int, warmup: int) -> float:
    """What the learning rates are multiplied with at ``step`` of ``steps``."""
    if schedule == "constant":
        return 1.0
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def wants_compile(setting: str, device: torch.device) -> bool:
    """Whether the step is compiled; InputError if that is asked for and cannot be done."""
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    has_compiler = any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang"))
    if setting == "off" or (setting == "auto" and device.type != "cuda"):
        return False
    if has_compiler and (device.type != "cuda" or headers.is_file()):
        return True
    missing = f"{headers} is missing" if has_compiler else "there is no C compiler"
    if setting == "on":
        raise InputError(f"compile: {missing}, and torch.compile needs it; install gcc and python3-dev, or use off")
    return False


class Trainer:
    """One run: model, optimizer, loader, and where they stand; this process's part of it where several train."""

    def __init__(
        self, settings: config.Config, manifest: Manifest, device: torch.device, world: World = ALONE
    ) -> None:
        self.settings, self.manifest, self.device, self.world = settings, manifest, device, world
        torch.manual_seed(settings.seed)
        self.dtype = pick_precision(settings.precision, device)
        self.model = models.build(settings.model)
        self.loaded = models.load_pretrained(self.model, settings.model)
        self.model.to(device, memory_format=torch.channels_last)
        if settings.objective.method == "supervised":
            self.model.head.requires_grad_(False)  # nothing compares the views
        self.optimizer = build_optimizer(self.model, settings.optim)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.objective = objectives.build(settings.objective)
        self.compiled = wants_compile(settings.compile, device)
        if self.compiled and settings.data.on_error == "skip":  # a batch that lost pairs is a graph of its own
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        compile_step = torch.compile(fullgraph=True, dynamic=False) if self.compiled else lambda step: step
        self.network, self.losses_of = self.model, self._losses_of
        if world.size == 1:
            self.losses_of = compile_step(self._losses_of)
        else:
            models.synchronize(self.model)
            self.model.forward = compile_step(self.model.forward)  # DDP itself cannot be part of a graph
            self.network = DistributedDataParallel(
                self.model, broadcast_buffers=False, gradient_as_bucket_view=True,
                find_unused_parameters=settings.model.pcm and not settings.model.pcm_cycles,  # then b has no gradient
            )  # fmt: skip
        # The published protocol selects on the test set and trains on all training videos.
        self.train_splits = ["train", "val"] if settings.select_on == "test" and manifest.pairs("val") else ["train"]
        data = settings.data
        self.pools = Pools(data.resident, data.resident_budget_gb, device)
        self.faults: dict[int, str] = {}  # pairs that were skipped: row in the manifest, reason
        self.on_fault = lambda row, reason: None  # called for each of them
        self.loader = Loader(
            manifest, self.train_splits, batch_size=data.batch_size, side=config.STORED_SIDE, device=device,
            shuffle=True, last_batch=data.last_batch, epochs=settings.epochs, least=2 if world.size == 1 else 1,
            pools=self.pools, on_fault=self._fault, rank=world.rank, world_size=world.size, **loader_settings(settings),
        )  # fmt: skip
        # What is evaluated gets its place in memory now, so that what does not fit is known at once.
        ahead = [
            evaluation_loader(manifest, split, settings, device, self.pools, world=world)
            for split in self.eval_splits()
        ]
        self.excluded = sum(loader.excluded for loader in [self.loader, *ahead])
        pairs = self.loader.pairs
        if data.last_batch == "keep" and world.size == 1 and pairs % data.batch_size == 1:
            raise InputError(
                f"data.batch_size: {pairs} training pairs leave a last batch of one pair, and batch norm needs two; "
                f"choose another size, or --data.last_batch drop"
            )
        self.boxes = torch.from_numpy(np.array(manifest.boxes)).to(device)
        self.labelled = torch.from_numpy(np.array(manifest.labelled)).to(device)
        if settings.objective.method == "supervised" and not self.labelled[manifest.rows("train")].any():
            raise InputError(f"{manifest.root}: objective.method supervised needs labelled pairs, and none has a box")
        self.epoch = self.step = 0
        self.seconds = {"train": 0.0, "eval": 0.0, "wait": 0.0}
        self.epoch_seconds = {"train": 0.0, "wait": 0.0}  # of the epoch so far
        self.begin, self.elapsed = time.perf_counter(), 0.0  # of this process; of those before it
        self.pairs = 0
        self.sums: dict[str, float] = {}  # of the epoch's losses so far, times pairs
        self.seen = 0  # pairs of the epoch so far
        self.unread: list[tuple[torch.Tensor, dict]] = []  # losses still on the device, with their pairs
        self.read_every = 1 if device.type == "cpu" else 20  # reading waits for the GPU
        self.history: list[dict] = []
        self.best: dict | None = None
        self.profile: StepProfile | None = None

    def eval_splits(self) -> list[str]:
        """The splits that the run evaluates, those that the data has."""
        return [split for split in sorted({self.settings.select_on, "test"}) if self.manifest.pairs(split)]

    def _fault(self, row: int, reason: str) -> None:
        if row not in self.faults:
            self.faults[row] = reason
            self.on_fault(row, reason)

    def _share_faults(self) -> None:
        """What other ranks skipped is this rank's news, too."""
        for faults in distributed.gather(self.faults, self.world):
            for row, reason in faults.items():
                self._fault(row, reason)

    def _losses_of(self, views, log_mel, boxes, labelled, shares=objectives.WHOLE):
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.objective(self.network(views, log_mel), boxes, labelled, shares)

    def _shares(self, labelled: torch.Tensor) -> objectives.Shares:
        """What this rank's batch weighs among those of all ranks."""
        if self.world.size == 1:
            return objectives.WHOLE
        counts = torch.stack([torch.ones_like(labelled, dtype=torch.float32).sum(), labelled.sum()])
        return objectives.Shares.of(counts, distributed.total(counts, self.world), self.world.size)

    def train_step(self, raw: RawBatch) -> dict[str, torch.Tensor]:
        """Two views of each pair, forward, backward, update; the losses (0-d, on the device)."""
        settings, size = self.settings, config.SIZE
        with stage("views"):
            views, top, left, flip = kernels.random_views(
                raw.frames, raw.rows, raw.index, settings.seed, self.epoch, size, self.dtype
            )
            boxes = kernels.view_boxes(self.boxes[raw.index], top, left, flip, config.STORED_SIDE, size)
            labelled = self.labelled[raw.index]
        with stage("forward"):
            losses = self.losses_of(views, raw.sound, boxes, labelled, self._shares(labelled))
        with stage("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(losses["loss"]).backward()
        with stage("optimizer"):
            self._update()
        return {name: value.detach() for name, value in losses.items()}

    def _update(self) -> None:
        if self.settings.optim.clip_norm:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.optim.clip_norm)
        per_epoch, optim = len(self.loader), self.settings.optim
        factor = learning_rate_factor(
            optim.schedule, self.step, self.settings.epochs * per_epoch, round(optim.warmup * per_epoch)
        )
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def read_losses(self) -> float:
        """Add the losses still on the device to the epoch's sums, in one transfer; the last of them."""
        loss = float("nan")
        if self.unread:
            table = torch.stack([torch.stack(list(losses.values())) for _, losses in self.unread])
            table = (distributed.total(table, self.world) / self.world.size).tolist()
            for (index, losses), values in zip(self.unread, table, strict=True):
                loss = values[0]
                if not np.isfinite(loss):
                    keys = ", ".join(self.manifest.key(row) for row in index.tolist())
                    raise FloatingPointError(
                        f"the loss is {loss} in epoch {self.epoch + 1}; lower the learning rates or use --precision "
                        f"fp32. The batch's pairs: {keys}"
                    )
                for name, value in zip(losses, values, strict=True):
                    self.sums[name] = self.sums.get(name, 0.0) + value * len(index)
            self.unread.clear()
        return loss

    def train_epoch(self, bars: runlog.EpochBars, on_step) -> dict:
        """The rest of the current epoch; its entry of the history."""
        self.model.train()
        clock = Clock(self)
        for raw in self._batches():
            self.unread.append((raw.index, self.train_step(raw)))
            count, text = len(raw.index), ""
            self.seen, self.step = self.seen + count, self.step + 1
            self.pairs += count * self.world.size
            if len(self.unread) >= self.read_every:
                loss = self.read_losses()
                clock.tick()
                text = f"loss {loss:.4f}, {self.rate():.1f} pairs/s, {100 * self.waiting():.0f}% waiting for data"
            bars.step(self.epoch, text)
            clock.tick()
            if self.profile is not None:
                self.profile.step()
            on_step()
            clock.skip()  # a checkpoint's time is not the training's
        self.read_losses()
        self._share_faults()
        clock.tick()
        entry = {
            "epoch": self.epoch + 1,
            "losses": {name: total / self.seen for name, total in self.sums.items()},
            "pairs": sum(distributed.gather(self.seen, self.world)),
            "pairs_per_second": self.rate(),
            "waiting": self.waiting(),
        }
        self.epoch, self.sums, self.seen = self.epoch + 1, {}, 0
        self.epoch_seconds = {"train": 0.0, "wait": 0.0}
        self.history.append(entry)
        return entry

    def _batches(self):
        """The loader's batches, each wait for one marked as the stage "data"."""
        batches = iter(self.loader)
        while True:
            with stage("data"):
                raw = next(batches, None)
            if raw is None:
                return
            yield raw

    def rate(self) -> float:
        """Pairs per second of all ranks in the epoch so far."""
        return self.world.size * self.seen / max(self.epoch_seconds["train"], 1e-9)

    def waiting(self) -> float:
        """Share of the epoch's time so far in which the host waited for data."""
        return self.epoch_seconds["wait"] / max(self.epoch_seconds["train"], 1e-9)

    def total_seconds(self) -> float:
        """Seconds since the run began, over all processes that worked on it."""
        return self.elapsed + time.perf_counter() - self.begin

    def evaluate(self, split: str, show: int = 0):
        begin = time.perf_counter()
        found = evaluate(
            self.model, self.manifest, split, self.settings, self.device, self.dtype, show, self.pools, self._fault,
            self.world,
        )  # fmt: skip
        self._share_faults()
        self.seconds["eval"] += time.perf_counter() - begin
        return found

    def is_best(self, found: dict) -> bool:
        """Whether a result on the selection split beats all before it: by success rate, then by AUC."""
        score = [found["success_at_half"], found["auc"]]
        if self.best is not None and score <= self.best["score"]:
            return False
        self.best = {"epoch": self.epoch, "score": score, "split": self.settings.select_on}
        return True

    def weights(self) -> dict:
        """The trained weights and buffers, and the frozen ones where no published file holds them."""
        model = self.settings.model
        settings = {"trunk.": model.vgg16_weights, "audio.": model.vggish_weights}
        return checkpoint.trained_state(self.model, keep=[part for part, given in settings.items() if given == "none"])

    def best_state(self) -> dict:
        """What best.pt holds."""
        return {
            "kind": "best",
            "config": config.to_dict(self.settings),
            "data_root": str(self.manifest.root),
            "data": self.manifest.header,
            "model": self.weights(),
            "best": self.best,
        }

    def state(self) -> dict:
        """Everything that :meth:`resume` needs to go on as if nothing had happened."""
        self.read_losses()
        return {
            "kind": "last", "config": config.to_dict(self.settings), "data_root": str(self.manifest.root),
            "data": self.manifest.header, "model": self.weights(), "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(), "loader": self.loader.state_dict(), "rng": torch.get_rng_state(),
            "epoch": self.epoch, "step": self.step, "seconds": dict(self.seconds), "pairs": self.pairs,
            "sums": dict(self.sums), "seen": distributed.gather(self.seen, self.world), "history": self.history,
            "best": self.best,
            "epoch_seconds": dict(self.epoch_seconds), "elapsed": self.total_seconds(), "runs_on": self.runs_on(),
        }  # fmt: skip

    def runs_on(self) -> str:
        """What "auto" settings came to: two runs that differ here do not compute the same numbers."""
        return f"{self.device.type} in {str(self.dtype).removeprefix('torch.')}"

    def resume(self, state: dict) -> list[str]:
        """Continue from :meth:`state`; returns the free settings that differ, refuses any other difference."""
        if state.get("kind") != "last":
            raise InputError("only last.pt can be resumed; best.pt holds weights alone")
        changed = config.difference(state["config"], config.to_dict(self.settings))
        if hard := forbidden(changed):
            raise InputError(
                "the checkpoint was made with other settings: " + "; ".join(hard) + ". Resume without them."
            )
        if state["runs_on"] != self.runs_on():
            raise InputError(
                f"the checkpoint was made on {state['runs_on']}, this run would be on {self.runs_on()}: "
                "resume it on a machine like the first"
            )
        if state["data"] != self.manifest.header:
            raise InputError(
                f"{self.manifest.root} is not the data set that the checkpoint was trained on; give its folder"
            )
        checkpoint.load_trained(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.loader.load_state_dict(state["loader"])
        torch.set_rng_state(state["rng"])
        self.epoch, self.step, self.pairs = state["epoch"], state["step"], state["pairs"]
        self.seen = state["seen"][self.world.rank]
        self.seconds, self.sums = dict(state["seconds"]), dict(state["sums"])
        self.history, self.best = list(state["history"]), state["best"]
        self.epoch_seconds, self.elapsed = dict(state["epoch_seconds"]), state["elapsed"]
        return changed


class Clock:
    """Adds the time between ticks, and what of it the loader waited, to a trainer's sums."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.skip()

    def skip(self) -> None:
        """Start anew from here."""
        self.last, self.waited = time.perf_counter(), self.trainer.loader.waited

    def tick(self) -> None:
        passed, waited = time.perf_counter() - self.last, self.trainer.loader.waited - self.waited
        self.skip()
        for sums in (self.trainer.seconds, self.trainer.epoch_seconds):
            sums["train"] += passed
            sums["wait"] += waited
