"""python -m essl_fast.train: train a localizer, evaluate it, and leave everything in a run directory.

run directory   config.yaml     the settings, all of them
                log.jsonl       environment, every epoch, every evaluation
                last.pt         the state that --resume continues from, exactly
                best.pt         the weights of the best epoch on the selection split
                summary.json    results of the trained model and of what it must beat
                curves.png, overlays.png
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from essl_fast import checkpoint, config, figures, kernels, models, objectives, runlog
from essl_fast.config import InputError
from essl_fast.data.loader import Loader, RawBatch
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import boxes_prior, centre_prior, command, evaluate, pick_device, pick_precision, table
from essl_fast.kernels import native

PROG = "python -m essl_fast.train"
# Settings that may differ between a checkpoint and the run that resumes it: where things are, how often to look, how
# long to train. The data may have moved; that it is the same is checked by its manifest.
FREE = ("out", "name", "overlays", "checkpoint_", "eval_every", "data.root", "data.threads", "data.prefetch", "epochs",
        "demo.cache")  # fmt: skip

LABELS = {  # the results of a summary, in words
    "test": "trained",
    "untrained": "untrained",
    "centre_prior": "centre prior",
    "largest_object_prior": "largest-object prior",
}


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
    return 0.5 * (1 + np.cos(np.pi * (step - warmup) / max(1, steps - warmup)))


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
        compiled = settings.compile == "on" or (settings.compile == "auto" and device.type == "cuda")
        self.losses_of = torch.compile(self._losses_of, fullgraph=True, dynamic=False) if compiled else self._losses_of
        # The published protocol selects on the test set and trains on all training videos.
        self.train_splits = ["train", "val"] if settings.select_on == "test" and manifest.pairs("val") else ["train"]
        self.loader = Loader(
            manifest, self.train_splits, batch_size=settings.data.batch_size, side=config.STORED_SIDE, device=device,
            seed=settings.seed, shuffle=True, last_batch=settings.data.last_batch,
            threads=settings.data.threads or None, prefetch=settings.data.prefetch,
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
        begin, waited, pairs = time.perf_counter(), self.loader.waited, self.pairs
        for raw in self.loader:
            self.unread.append((raw.index, self.train_step(raw)))
            count, text = len(raw.index), ""
            self.seen, self.pairs, self.step = self.seen + count, self.pairs + count, self.step + 1
            if len(self.unread) >= self.read_every:
                loss, passed = self.read_losses(), time.perf_counter() - begin
                waiting = 100 * (self.loader.waited - waited) / passed
                text = f"loss {loss:.4f}, {(self.pairs - pairs) / passed:.1f} pairs/s, {waiting:.0f}% waiting for data"
            bars.step(self.epoch, text)
            on_step()
        self.read_losses()
        passed = time.perf_counter() - begin
        self.seconds["train"] += passed
        self.seconds["wait"] += self.loader.waited - waited
        entry = {
            "epoch": self.epoch + 1,
            "losses": {name: total / self.seen for name, total in self.sums.items()},
            "pairs": self.seen,
            "pairs_per_second": (self.pairs - pairs) / passed,
            "waiting": (self.loader.waited - waited) / passed,
        }
        self.epoch, self.sums, self.seen = self.epoch + 1, {}, 0
        self.history.append(entry)
        return entry

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
        keep = "none" in (model.vgg16_weights, model.vggish_weights)
        return checkpoint.trained_state(self.model, keep_frozen=keep)

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
        }  # fmt: skip

    def resume(self, state: dict) -> list[str]:
        """Continue from :meth:`state`; returns the free settings that differ, refuses any other difference."""
        if state.get("kind") != "last":
            raise InputError("only last.pt can be resumed; best.pt holds weights alone")
        changed = config.difference(state["config"], config.to_dict(self.settings))
        hard = [line for line in changed if not line.startswith(FREE)]
        if hard:
            raise InputError(
                "the checkpoint was made with other settings: " + "; ".join(hard) + ". Resume without them."
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
        return changed


def demo_data(settings: config.Config, console) -> tuple[Path, dict]:
    """Make and prepare the synthetic world unless it is there; its prepared folder and every object of its frames."""
    from essl_fast.data.synthetic import make_world
    from essl_fast.prepare import prepare

    demo = settings.demo
    home = Path(demo.cache or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
    place = home if demo.cache else home / "essl_fast"
    place = place / f"demo-{demo.codec}-{demo.train_videos}-{demo.test_videos}-{demo.seed}"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"demo.cache: cannot write {place} ({error}); give a folder with --demo.cache DIR") from error
    world = make_world(
        place / "world", train_videos=demo.train_videos, test_videos=demo.test_videos, seed=demo.seed, codec=demo.codec
    )
    prepare(world.videos, world.annotations, place / "prepared")
    console.print(f"demo world: {place}", highlight=False, soft_wrap=True)
    return place / "prepared", json.loads(world.objects.read_text())


def baselines(trainer: Trainer, objects: dict | None, untrained: dict | None) -> dict[str, dict]:
    """What the trained model must beat, on the test split."""
    from essl_fast.data.annotations import boxes_to_grid

    consensus, manifest = trainer.settings.objective.consensus, trainer.manifest
    results = {"untrained": untrained} if untrained else {}
    results["centre_prior"] = centre_prior(manifest, "test", consensus)
    if objects:
        guesses = {}
        for row in manifest.rows("test"):
            largest = max(objects[manifest.key(row)], key=lambda thing: thing["area"])
            guesses[manifest.key(row)] = boxes_to_grid([largest["box"]], 320, 180)[0].tolist()
        results["largest_object_prior"] = boxes_prior(manifest, "test", consensus, guesses)
    return results


def fit(trainer: Trainer, out: Path, log: runlog.RunLog, console) -> None:
    """Train to the last epoch: evaluate on the selection split, keep the best weights, keep where we stand."""
    settings, manifest = trainer.settings, trainer.manifest

    def on_step() -> None:
        if settings.checkpoint_steps and trainer.step % settings.checkpoint_steps == 0:
            checkpoint.save(out / "last.pt", trainer.state())

    with runlog.EpochBars(console, settings.epochs, len(trainer.loader), done=trainer.step) as bars:
        while trainer.epoch < settings.epochs:
            entry = trainer.train_epoch(bars, on_step)
            last = trainer.epoch == settings.epochs
            if last or (settings.eval_every and trainer.epoch % settings.eval_every == 0):
                found = trainer.evaluate(settings.select_on).result(manifest)
                entry["selection"] = {key: found[key] for key in ("success_at_half", "auc")}
                if trainer.is_best(entry["selection"]):
                    checkpoint.save(out / "best.pt", trainer.best_state())
            if last or trainer.epoch % settings.checkpoint_epochs == 0:
                checkpoint.save(out / "last.pt", trainer.state())
            log.write("epoch", **entry)
            bars.line(describe(entry, settings.select_on))


def describe(entry: dict, split: str) -> str:
    """An epoch's entry of the history as a line."""
    losses = ", ".join(f"{name} {value:.4f}" for name, value in entry["losses"].items())
    line = f"epoch {entry['epoch']:>3}: {losses}, {entry['pairs_per_second']:.1f} pairs/s"
    line += f", {100 * entry['waiting']:.0f}% waiting for data"
    if found := entry.get("selection"):
        line += f"; {split}: success {100 * found['success_at_half']:.1f}%, AUC {100 * found['auc']:.1f}%"
    return line


def run(settings: config.Config, out: Path, resume: Path | None, console) -> dict:
    """Train to the end and write the run directory; the summary."""
    begin = time.perf_counter()
    device = pick_device(settings.device)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may pick another order of sums
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    state = checkpoint.load(resume) if resume else None
    root, objects = demo_data(settings, console) if settings.data.root == "demo" else (Path(settings.data.root), None)
    manifest = Manifest.load(root)
    if not manifest.pairs(settings.select_on):
        raise InputError(
            f"select_on: {root} has no {settings.select_on} split; prepare it with --validation above 0, "
            "or use --select_on test"
        )
    data_seconds = time.perf_counter() - begin
    trainer = Trainer(settings, manifest, device)
    changed = trainer.resume(state) if state else []

    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(yaml.safe_dump(config.to_dict(settings), sort_keys=False))
    log = runlog.RunLog(out / "log.jsonl")
    environment = runlog.environment(device)
    event = {"environment": environment, "config": config.to_dict(settings), "data": str(root), "step": trainer.step}
    log.write("resume" if state else "start", **event, changed=changed, weights=trainer.loaded)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad) / 1e6
    for line in (
        f"{settings.name}: {settings.objective.method}, {trainer.loader_pairs} training pairs, {trained:.1f} M trained "
        f"parameters, {device}, {str(trainer.dtype).removeprefix('torch.')}; run directory {out}",
        *(f"differs from the checkpoint: {line}" for line in changed),
        *([] if native.available() else [f"PyTorch alone makes the views, more slowly: {native.why_unavailable()}"]),
    ):
        console.print(line, highlight=False, soft_wrap=True)

    untrained = None
    if settings.baselines and trainer.step == 0:
        untrained = trainer.evaluate("test").result(manifest)
        log.write("baseline", name="untrained", result=untrained)
    elif settings.baselines:  # the first start wrote it
        past = [event for event in runlog.read_log(out / "log.jsonl") if event["event"] == "baseline"]
        untrained = past[-1]["result"] if past else None
    if not state:
        checkpoint.save(out / "last.pt", trainer.state())
    fit(trainer, out, log, console)

    checkpoint.load_trained(trainer.model, checkpoint.load(out / "best.pt")["model"])
    found = trainer.evaluate("test", show=settings.overlays)
    results = {"test": found.result(manifest)}
    if settings.baselines:
        results |= baselines(trainer, objects, untrained)
    protocol = "published: the best epoch on the test set itself" if settings.select_on == "test" else "clean"
    summary = {
        **results,
        "selected": {**trainer.best, "protocol": protocol},
        "seconds": time.perf_counter() - begin,
        "stage_seconds": {"data": data_seconds, **trainer.seconds},
        "pairs_per_second": trainer.pairs / max(trainer.seconds["train"], 1e-9),
        "config": config.to_dict(settings),
        "environment": environment,
    }
    runlog.write_json(out / "summary.json", summary)
    figures.curves(out / "curves.png", trainer.history, {LABELS[name]: result for name, result in results.items()})
    figures.overlays(out / "overlays.png", found.samples)
    log.write("end", **{key: summary[key] for key in ("test", "selected", "seconds", "pairs_per_second")})
    log.close()
    trainer.loader.close()
    return summary


def report(summary: dict, out: Path, console) -> None:
    rows = {label: summary[name] for name, label in LABELS.items() if name in summary}
    console.print(
        table(f"test split (epoch {summary['selected']['epoch']} of the {summary['selected']['split']} split)", rows)
    )
    if summary["config"]["select_on"] == "test":
        console.print("published protocol: the epoch was chosen on the test set itself, so its figures are optimistic")
    console.print(
        f"{summary['seconds']:.0f} s in all, training at {summary['pairs_per_second']:.1f} pairs/s; "
        f"results, checkpoints, log and pictures in {out}", highlight=False, soft_wrap=True,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("WORLD_SIZE: training in several processes is not there yet; start one process")
    argv = list(sys.argv[1:] if argv is None else argv)

    def extra(parser) -> None:
        parser.add_argument("--resume", default="", help="run directory to continue, with its own settings (type: str)")

    description = (
        "Train a localizer of event sound sources. Without --config it trains the demo: SemiPL on a synthetic world."
    )
    at = next((i for i, a in enumerate(argv) if a == "--resume" or a.startswith("--resume=")), None)
    default = "demo"
    if at is not None:
        folder = Path(argv[at].split("=", 1)[1] if "=" in argv[at] else (argv[at + 1] if at + 1 < len(argv) else ""))
        default = str(folder / "config.yaml")
        if not Path(default).is_file():
            raise InputError(f"--resume: {folder} is not a run directory (it has no config.yaml)")
    settings, options = config.parse(argv, PROG, description, extra, default)
    if options.resume:
        out = Path(options.resume)
        resume = out / "last.pt"
    else:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        out, resume = Path(settings.out or Path("runs") / f"{settings.name}-{stamp}"), None
        if (out / "last.pt").exists():
            raise InputError(
                f"out: {out} holds a run already; continue it with --resume {out}, or choose another directory"
            )
    console = runlog.console()
    try:
        summary = run(settings, out, resume, console)
    except KeyboardInterrupt:
        if (out / "last.pt").exists():
            console.print(f"stopped; continue with: {PROG} --resume {out}", highlight=False, soft_wrap=True)
        raise
    report(summary, out, console)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, PROG))
