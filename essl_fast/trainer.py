"""One training run: model, optimizer, loader, and where they stand."""

import math
import os
import shutil
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch

from essl_fast import checkpoint, config, kernels, models, objectives, runlog
from essl_fast.config import InputError
from essl_fast.data.loader import Loader, RawBatch
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import evaluate, loader_threads, pick_precision

# Settings that may differ between a checkpoint and the run that resumes it: where things are, how often to look, how
# long to train. The data may have moved; that it is the same is checked by its manifest.
FREE = ("out", "name", "overlays", "checkpoint_", "eval_every", "data.root", "data.threads", "data.prefetch", "epochs",
        "demo.cache")  # fmt: skip


def forbidden(changed: list[str]) -> list[str]:
    """Of the lines of :func:`config.difference`, those that a resumed run may not have."""
    hard = [line for line in changed if not line.startswith(FREE)]
    # A weight file may have moved; its content is checked by its hash. To "none" or from it is another network.
    return [line for line in hard if "_weights: " not in line or "none" in line.split()]


def build_optimizer(model: models.Localizer, optim: config.OptimConfig) -> torch.optim.AdamW:
    """AdamW with the recipe's groups, in the published order; fused where the parameters are on a GPU."""
    fused = next(model.parameters()).is_cuda
    return torch.optim.AdamW(model.parameter_groups(optim), betas=(0.9, 0.999), eps=1e-8, fused=fused)


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
    """One run: model, optimizer, loader, and where they stand."""

    def __init__(self, settings: config.Config, manifest: Manifest, device: torch.device) -> None:
        self.settings, self.manifest, self.device = settings, manifest, device
        torch.manual_seed(settings.seed)
        self.dtype = pick_precision(settings.precision, device)
        self.model = models.build(settings.model)
        self.loaded = models.load_pretrained(self.model, settings.model)
        self.model.to(device, memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.model, settings.optim)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.objective = objectives.build(settings.objective)
        self.compiled = wants_compile(settings.compile, device)
        compile_step = torch.compile(fullgraph=True, dynamic=False) if self.compiled else lambda step: step
        self.losses_of = compile_step(self._losses_of)
        # The published protocol selects on the test set and trains on all training videos.
        self.train_splits = ["train", "val"] if settings.select_on == "test" and manifest.pairs("val") else ["train"]
        self.loader = Loader(
            manifest, self.train_splits, batch_size=settings.data.batch_size, side=config.STORED_SIDE, device=device,
            seed=settings.seed, shuffle=True, last_batch=settings.data.last_batch,
            threads=loader_threads(settings), prefetch=settings.data.prefetch,
        )  # fmt: skip
        self.loader_pairs = pairs = sum(manifest.pairs(split) for split in self.train_splits)
        if settings.data.last_batch == "keep" and pairs % settings.data.batch_size == 1:
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

    def _losses_of(self, views, log_mel, boxes, labelled):
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.objective(self.model(views, log_mel), boxes, labelled)

    def train_step(self, raw: RawBatch) -> dict[str, torch.Tensor]:
        """Two views of each pair, forward, backward, update; the losses (0-d, on the device)."""
        settings, size = self.settings, config.SIZE
        top, left, flip = kernels.view_params(settings.seed, self.epoch, raw.index, config.STORED_SIDE - size)
        rows = torch.arange(len(raw.index), device=self.device)
        views = kernels.two_views(raw.frames, rows, top, left, flip, size, self.dtype)
        boxes = kernels.view_boxes(self.boxes[raw.index], top, left, flip, config.STORED_SIDE, size)

        losses = self.losses_of(views, kernels.log_mel(raw.pcm), boxes, self.labelled[raw.index])
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(losses["loss"]).backward()
        if settings.optim.clip_norm:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.optim.clip_norm)
        per_epoch, optim = len(self.loader), settings.optim
        factor = learning_rate_factor(
            optim.schedule, self.step, settings.epochs * per_epoch, round(optim.warmup * per_epoch)
        )
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {name: value.detach() for name, value in losses.items()}

    def read_losses(self) -> float:
        """Add the losses still on the device to the epoch's sums, in one transfer; the last of them."""
        loss = float("nan")
        if self.unread:
            table = torch.stack([torch.stack(list(losses.values())) for _, losses in self.unread]).tolist()
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
        for raw in self.loader:
            self.unread.append((raw.index, self.train_step(raw)))
            count, text = len(raw.index), ""
            self.seen, self.pairs, self.step = self.seen + count, self.pairs + count, self.step + 1
            if len(self.unread) >= self.read_every:
                loss = self.read_losses()
                clock.tick()
                text = f"loss {loss:.4f}, {self.rate():.1f} pairs/s, {100 * self.waiting():.0f}% waiting for data"
            bars.step(self.epoch, text)
            clock.tick()
            on_step()
            clock.skip()  # a checkpoint's time is not the training's
        self.read_losses()
        clock.tick()
        entry = {
            "epoch": self.epoch + 1,
            "losses": {name: total / self.seen for name, total in self.sums.items()},
            "pairs": self.seen,
            "pairs_per_second": self.rate(),
            "waiting": self.waiting(),
        }
        self.epoch, self.sums, self.seen = self.epoch + 1, {}, 0
        self.epoch_seconds = {"train": 0.0, "wait": 0.0}
        self.history.append(entry)
        return entry

    def rate(self) -> float:
        """Pairs per second in the epoch so far."""
        return self.seen / max(self.epoch_seconds["train"], 1e-9)

    def waiting(self) -> float:
        """Share of the epoch's time so far in which the host waited for data."""
        return self.epoch_seconds["wait"] / max(self.epoch_seconds["train"], 1e-9)

    def total_seconds(self) -> float:
        """Seconds since the run began, over all processes that worked on it."""
        return self.elapsed + time.perf_counter() - self.begin

    def evaluate(self, split: str, show: int = 0):
        begin = time.perf_counter()
        found = evaluate(self.model, self.manifest, split, self.settings, self.device, self.dtype, show)
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
            "sums": dict(self.sums), "seen": self.seen, "history": self.history, "best": self.best,
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
        self.epoch, self.step, self.pairs, self.seen = state["epoch"], state["step"], state["pairs"], state["seen"]
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
