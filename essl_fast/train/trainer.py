"""One training run: model, optimizer, loader, and where they stand."""

import time
from dataclasses import replace

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from essl_fast import checkpoints, config, kernels, models
from essl_fast.common.errors import InputError
from essl_fast.data.datasets import labels
from essl_fast.data.loading.exchange import Exchange
from essl_fast.data.loading.loader import Loader, RawBatch
from essl_fast.data.loading.pool import Pools
from essl_fast.data.shards import Manifest
from essl_fast.evaluate.evaluation import evaluate
from essl_fast.evaluate.loaders import evaluation_loader, loader_settings
from essl_fast.evaluate.protocol import consensus_of
from essl_fast.kernels import fp8
from essl_fast.models import objectives
from essl_fast.profiling.profile import StepProfile
from essl_fast.runtime import distributed
from essl_fast.runtime.compiling import compile_training, wants_compile
from essl_fast.runtime.devices import pick_precision
from essl_fast.runtime.distributed import ALONE, World
from essl_fast.runtime.stages import stage
from essl_fast.train import collapse, faults, progress
from essl_fast.train.graphs import CudaCapture, Inputs, Stepper, wants_capture
from essl_fast.train.rates import Rates, learning_rate_factor, optimizer_state

# Settings that may differ between a checkpoint and the run that resumes it: where things are, how often to look, how
# long to train. The data may have moved; that it is the same is checked by its manifest.
FREE = (
    "out",
    "name",
    "overlays",
    "tensorboard",
    "checkpoint_",
    "eval_every",
    "data.root",
    "data.threads",
    "data.prefetch",
    "epochs",
    "data.resident",
    "data.on_error",
    "data.max_errors",
    "demo.cache",
    "on_nonfinite",
    "max_nonfinite",
    "compile_cache",
    "cuda_graphs",
    "model.pcm_checkpoint",
)


def forbidden(changed: list[str]) -> list[str]:
    """Of the lines of :func:`config.difference`, those that a resumed run may not have."""
    hard = [line for line in changed if not line.startswith(FREE)]
    # A weight file may have moved; its content is checked by its hash. To "none" or from it is another network.
    return [line for line in hard if "_weights: " not in line or "none" in line.split()]


def build_optimizer(model: models.Localizer, optim: config.OptimConfig) -> torch.optim.AdamW:
    """AdamW with the recipe's groups, in the published order; fused: one pass over all parameters of a group."""
    return torch.optim.AdamW(model.parameter_groups(optim), betas=(0.9, 0.999), eps=1e-8, fused=True)


class Trainer:
    """One run: model, optimizer, loader, and where they stand; this process's part of it where several train."""

    def __init__(self, settings: config.Config, manifest: Manifest, device: torch.device, world: World = ALONE) -> None:
        self.settings, self.manifest, self.device, self.world = settings, manifest, device, world
        torch.manual_seed(settings.seed)
        self.dtype = pick_precision(settings.precision, device)
        self.model = models.build(settings.model)
        self.loaded = models.load_pretrained(self.model, settings.model)
        self.model.to(device, memory_format=torch.channels_last)
        if settings.model.trunk_fp8 and not fp8.runs(device, self.dtype):
            raise InputError("model.trunk_fp8: on a GPU it takes sm_89 or later and precision bf16; leave it off")
        self.model.prepare(self.dtype)
        if settings.objective.method == "supervised":
            self.model.head.requires_grad_(False)  # nothing compares the views
        self.optimizer = build_optimizer(self.model, settings.optim)
        self.rates = Rates(self.optimizer, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.objective = objectives.build(replace(settings.objective, consensus=consensus_of(settings, manifest)))
        self.guard = faults.Guard(self.model, device, latch=settings.on_nonfinite == "stop")
        self.compiled = wants_compile(settings.compile, device)
        if self.compiled and settings.data.on_error == "skip":  # a batch that lost pairs is a graph of its own
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        self.network, self.losses_of = self.model, self._losses_of
        if world.size == 1:
            if self.compiled:
                self.losses_of = torch.compile(self._losses_of, fullgraph=True, dynamic=False)
        else:
            models.synchronize(self.model)
            # DDP itself cannot be part of a graph, and a part's gradients are there when its whole graph has run back:
            # a graph each lets the head's, most of all, be summed over the ranks while the PCM's are computed.
            for part in self.model.children() if self.compiled else ():
                compile_training(part)
            self.network = DistributedDataParallel(
                self.model,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=settings.model.pcm and not settings.model.pcm_cycles,  # then b has no gradient
            )
        # The published protocol selects on the test set and trains on all training videos.
        self.train_splits = ["train", "val"] if settings.select_on == "test" and manifest.pairs("val") else ["train"]
        data = settings.data
        swaps = world.size > 1 and "never" not in (data.resident, data.resident_shared)
        exchange = Exchange(world.rank, world.size, device) if swaps else None
        self.pools = Pools(data.resident, data.resident_budget_gb, device, data.resident_shared, exchange)
        self.faults: dict[int, str] = {}  # pairs that were skipped: row in the manifest, reason
        self.on_fault = lambda row, reason: None  # called for each of them
        self.loader = Loader(
            manifest,
            self.train_splits,
            batch_size=data.batch_size,
            side=config.STORED_SIDE,
            device=device,
            shuffle=True,
            last_batch=data.last_batch,
            epochs=settings.epochs,
            least=2 if world.size == 1 else 1,
            pools=self.pools,
            on_fault=self._fault,
            rank=world.rank,
            world_size=world.size,
            **loader_settings(settings, self.model, self.dtype),
        )
        # What is evaluated gets its place in memory now, so that what does not fit is known at once.
        ahead = [
            evaluation_loader(manifest, split, settings, self.model, device, self.dtype, self.pools, world=world)
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
        labelled = labels.labelled(manifest, self.train_splits, data.labelled_fraction)
        if settings.objective.method == "supervised" and not labelled[manifest.rows("train")].any():
            raise InputError(
                f"{manifest.root}: objective.method supervised needs labelled pairs, and none has a box"
                + (f" at data.labelled_fraction {data.labelled_fraction:g}" if data.labelled_fraction < 1 else "")
            )
        self.labels_dropped = int((manifest.labelled & ~labelled).sum())
        self.labelled = torch.from_numpy(labelled).to(device)
        captured = wants_capture(settings, device, self.dtype, world.size)
        self.stepper = Stepper(
            self._step,
            self.optimizer,
            data.batch_size,
            CudaCapture(device) if captured else None,
            held=self.loader.pool is not None and self.loader.pool.held,
            compiled=self.compiled,
            must=settings.cuda_graphs == "on",
            mark=lambda: stage("step"),
            device=device,
        )
        self.on_prepared = lambda preparation: None  # called for each `stepping.Preparation`
        self.epoch = self.step = 0
        self.seconds = {"train": 0.0, "eval": 0.0, "wait": 0.0, "compile": 0.0}
        self.epoch_seconds = {"train": 0.0, "wait": 0.0, "compile": 0.0}  # of the epoch so far
        self.untimed = {"run": 0, "epoch": 0}  # pairs of this rank in steps whose time is "compile", not "train"
        self.begin, self.elapsed = time.perf_counter(), 0.0  # of this process; of those before it
        self.pairs = 0
        self.sums: dict[str, float] = {}  # of the epoch's losses so far, times pairs
        self.seen = 0  # pairs of the epoch so far
        self.counted = 0  # of them, those whose losses are in the sums: not those of steps that were not finite
        self.unread: list[tuple[torch.Tensor, dict, int]] = []  # pairs, losses still on the device, step of the epoch
        self.not_finite: list[dict] = []  # steps that were passed over, as `safety.Fault` has them
        self.on_not_finite = lambda fault: None  # called for each of them, also for the one that stops the run
        self.read_every = 1 if device.type == "cpu" else 20  # reading waits for the GPU
        self.history: list[dict] = []
        self.untrained: dict | None = None  # what the model scored before its first step, where that was asked
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
        for skipped in distributed.gather(self.faults, self.world):
            for row, reason in skipped.items():
                self._fault(row, reason)

    def _losses_of(self, views, log_mel, boxes, labelled, shares=objectives.WHOLE):
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            forward = self.network(views, log_mel)
            losses = self.objective(forward, boxes, labelled, shares)
            if self.settings.objective.method in collapse.COMPARING:
                losses |= collapse.projection_spread(forward.z)
            return losses

    def _shares(self, labelled: torch.Tensor) -> objectives.Shares:
        """What this rank's batch weighs among those of all ranks."""
        if self.world.size == 1:
            return objectives.WHOLE
        counts = torch.stack([torch.ones_like(labelled, dtype=torch.float32).sum(), labelled.sum()])
        return objectives.Shares.of(counts, distributed.total(counts, self.world), self.world.size)

    def train_step(self, raw: RawBatch) -> dict[str, torch.Tensor]:
        """Two views of each pair, forward, backward, update; the losses (0-d, on the device)."""
        optim, per_epoch, margin = self.settings.optim, len(self.loader), config.STORED_SIDE - config.SIZE
        steps, warmup = self.settings.epochs * per_epoch, round(optim.warmup * per_epoch)
        self.rates.scale(learning_rate_factor(optim.schedule, self.step, steps, warmup))
        with stage("views"):
            windows = kernels.view_params(self.settings.seed, self.epoch, raw.index, margin)
        return self.stepper(Inputs(raw.frames, raw.rows, raw.sound, raw.index, *windows))

    def _step(self, batch: Inputs) -> dict[str, torch.Tensor]:
        """What a CUDA graph can hold of the step: all that changes from one to the next is in tensors."""
        self.guard.begin()
        windows = batch.top, batch.left, batch.flip
        with stage("views"):
            views = kernels.two_views(batch.frames, batch.rows, *windows, config.SIZE, self.dtype)
            boxes = kernels.view_boxes(self.boxes[batch.index], *windows, config.STORED_SIDE, config.SIZE)
            labelled = self.labelled[batch.index]
        with stage("forward"):
            losses = self.losses_of(views, batch.sound, boxes, labelled, self._shares(labelled))
        with stage("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(losses["loss"]).backward()
        with stage("optimizer"):
            self._update(losses["loss"])
        return {name: value.detach() for name, value in losses.items()} | {"non_finite": self.guard.flag.clone()}

    def _update(self, loss: torch.Tensor) -> None:
        norm = None
        if self.settings.optim.clip_norm:
            self.scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.optim.clip_norm)
        if self.scaler.is_enabled():  # overflows are its daily bread: it looks for them itself
            self.guard.judge(loss, None)
        else:
            norm = faults.gradient_norm(self.model.parameters()) if norm is None else norm
            # Ranks share the gradients but not the loss, and must decide alike.
            self.optimizer.found_inf = self.guard.judge(loss if self.world.size == 1 else norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.guard.settle()

    def read_losses(self) -> float:
        """Add the losses still on the device to the epoch's sums, in one transfer; the last of them."""
        loss = float("nan")
        if self.unread:
            unread, self.unread = self.unread, []  # also if one of them ends the run
            table = torch.stack([torch.stack(list(losses.values())) for _, losses, _ in unread])
            table = (distributed.total(table, self.world) / self.world.size).tolist()
            for at, ((index, losses, step), values) in enumerate(zip(unread, table, strict=True), 1):
                found = dict(zip(losses, values, strict=True))
                loss = found["loss"]
                if found.pop("non_finite") or not np.isfinite(loss):
                    self._pass_over(index, found, step, len(unread) - at)
                    continue
                self.counted += len(index)
                for name, value in found.items():
                    self.sums[name] = self.sums.get(name, 0.0) + value * len(index)
        if self.scaler.is_enabled() and self.scaler.get_scale() < faults.LEAST_SCALE:
            raise FloatingPointError(
                f"fp16: the gradients overflow at every loss scale, down to {self.scaler.get_scale():g}, in epoch "
                f"{self.epoch + 1}; use --precision bf16 or fp32, or lower the learning rates"
            )
        return loss

    def _pass_over(self, index: torch.Tensor, losses: dict, step: int, later: int) -> None:
        """A step that was not finite: keep it for a replay; FloatingPointError unless the settings pass over it."""
        rows = [row for part in distributed.gather(index.tolist(), self.world) for row in part]
        keys = [self.manifest.key(row) for row in rows]
        latched = self.guard.latch
        if latched and not self.scaler.is_enabled():  # else steps of the same reading have changed the model since
            later = 0
        fault = faults.Fault(self.epoch, step, rows, keys, losses, later, self.world.size)
        self.not_finite.append(fault._asdict())
        file = self.on_not_finite(fault)
        epoch = sum(entry["epoch"] == self.epoch for entry in self.not_finite)
        most = max(1, int(self.settings.max_nonfinite * len(self.loader)))
        if self.settings.on_nonfinite == "skip" and epoch <= most:
            return
        raise FloatingPointError(faults.describe(fault, file, most if not latched else None))

    def train_epoch(self, bars: progress.EpochBars, on_step) -> dict:
        """The rest of the current epoch; its entry of the history."""
        self.model.train()
        clock = Clock(self)
        for raw in self._batches():
            before = len(self.stepper.prepared)
            self.unread.append((raw.index, self.train_step(raw), self.loader.step - 1))
            for preparation in self.stepper.prepared[before:]:
                clock.apart(preparation.seconds)
                self.untimed = {name: pairs + preparation.batch for name, pairs in self.untimed.items()}
                self.on_prepared(preparation)
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
        means = {name: total / max(1, self.counted) for name, total in self.sums.items()}
        spread = {name: means.pop(name) for name in collapse.SPREAD if name in means}
        entry = {
            "epoch": self.epoch + 1,
            "losses": means,
            **spread,
            "not_finite": sum(fault["epoch"] == self.epoch for fault in self.not_finite),
            "pairs": sum(distributed.gather(self.seen, self.world)),
            "pairs_per_second": self.rate(),
            "waiting": self.waiting(),
        }
        self.epoch, self.sums, self.seen, self.counted = self.epoch + 1, {}, 0, 0
        self.epoch_seconds, self.untimed["epoch"] = {"train": 0.0, "wait": 0.0, "compile": 0.0}, 0
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
        return self._rate(self.seen, self.untimed["epoch"], self.epoch_seconds)

    def mean_rate(self) -> float:
        """Pairs per second of all ranks in the run so far."""
        return self._rate(self.pairs // self.world.size, self.untimed["run"], self.seconds)

    def _rate(self, pairs: int, untimed: int, seconds: dict[str, float]) -> float:
        """Without the steps that compiled, warmed up or captured, and their time; with them if there were no others."""
        if pairs > untimed:
            return self.world.size * (pairs - untimed) / max(seconds["train"], 1e-9)
        return self.world.size * pairs / max(seconds["train"] + seconds["compile"], 1e-9)

    def waiting(self) -> float:
        """Share of the epoch's time so far in which the host waited for data."""
        return self.epoch_seconds["wait"] / max(self.epoch_seconds["train"], 1e-9)

    def total_seconds(self) -> float:
        """Seconds since the run began, over all processes that worked on it."""
        return self.elapsed + time.perf_counter() - self.begin

    def evaluate(self, split: str, show: int = 0):
        begin = time.perf_counter()
        found = evaluate(
            self.model,
            self.manifest,
            split,
            self.settings,
            self.device,
            self.dtype,
            show,
            self.pools,
            self._fault,
            self.world,
        )
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
        return checkpoints.trained_state(self.model, keep=[part for part, given in settings.items() if given == "none"])

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
            "kind": "last",
            "config": config.to_dict(self.settings),
            "data_root": str(self.manifest.root),
            "data": self.manifest.header,
            "model": self.weights(),
            "optimizer": optimizer_state(self.optimizer),
            "scaler": self.scaler.state_dict(),
            "loader": self.loader.state_dict(),
            "rng": torch.get_rng_state(),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": dict(self.seconds),
            "pairs": self.pairs,
            "sums": dict(self.sums),
            "seen": distributed.gather(self.seen, self.world),
            "history": self.history,
            "counted": distributed.gather(self.counted, self.world),
            "not_finite": self.not_finite,
            "untrained": self.untrained,
            "best": self.best,
            "epoch_seconds": dict(self.epoch_seconds),
            "untimed": dict(self.untimed),
            "elapsed": self.total_seconds(),
            "runs_on": self.runs_on(),
        }

    def runs_on(self) -> str:
        """What "auto" settings came to: two runs that differ here do not compute the same numbers."""
        return f"{self.device.type} in {str(self.dtype).removeprefix('torch.')}"

    def resume(self, state: dict) -> list[str]:
        """Continue from :meth:`state`; returns the free settings that differ, refuses any other difference."""
        if state.get("kind") != "last":
            raise InputError("only last.pt can be resumed; best.pt holds weights alone")
        before = config.to_dict(config.from_dict(state["config"]))  # settings that came later had their defaults
        changed = config.difference(before, config.to_dict(self.settings))
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
        checkpoints.load_trained(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.attach(self.optimizer)
        self.scaler.load_state_dict(state["scaler"])
        self.loader.load_state_dict(state["loader"])
        torch.set_rng_state(state["rng"])
        self.epoch, self.step, self.pairs = state["epoch"], state["step"], state["pairs"]
        self.seen = state["seen"][self.world.rank]
        self.counted = state.get("counted", state["seen"])[self.world.rank]  # version 1 counted all
        self.not_finite, self.untrained = list(state.get("not_finite", [])), state.get("untrained")
        self.seconds, self.sums = {**self.seconds, **state["seconds"]}, dict(state["sums"])
        self.history, self.best = list(state["history"]), state["best"]
        self.epoch_seconds, self.elapsed = {**self.epoch_seconds, **state["epoch_seconds"]}, state["elapsed"]
        self.untimed = dict(state.get("untimed", self.untimed))  # an earlier version timed all
        return changed


class Clock:
    """Adds the time between ticks, and what of it the loader waited, to a trainer's sums."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.skip()

    def skip(self) -> None:
        """Start anew from here."""
        self.last, self.waited = time.perf_counter(), self.trainer.loader.waited

    def apart(self, seconds: float) -> None:
        """So much of the time since the last tick is the compiler's."""
        self.last += seconds
        for sums in (self.trainer.seconds, self.trainer.epoch_seconds):
            sums["compile"] += seconds

    def tick(self) -> None:
        passed, waited = time.perf_counter() - self.last, self.trainer.loader.waited - self.waited
        self.skip()
        for sums in (self.trainer.seconds, self.trainer.epoch_seconds):
            sums["train"] += passed
            sums["wait"] += waited
