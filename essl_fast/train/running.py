"""python -m essl_fast.train: train a localizer, evaluate it, and leave everything in a run directory.

run directory   config.yaml     the settings, all of them
                log.jsonl       environment, every epoch, every evaluation
                last.pt         the state that --resume continues from, exactly
                last-1.pt       the one before it, from which --resume continues should last.pt be damaged
                best.pt         the weights of the best epoch on the selection split
                summary.json    results of the trained model and of what it must beat
                curves.png, overlays.png
                test_pairs.jsonl, gallery.npz      cIoU of every test pair; frames and maps of some, for the report
                report.html     all of it to look at; `python -m essl_fast.report` makes it again, or of several runs
                tensorboard/    with --tensorboard true
                profile/        with --profile: trace.json, for Perfetto
                nonfinite-E-S.pt    a step that was not finite, for `python -m essl_fast.replay`
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from essl_fast import checkpoints, config
from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_file, write_json
from essl_fast.data.shards import Manifest
from essl_fast.evaluate.loaders import evaluation_loader
from essl_fast.evaluate.priors import boxes_prior, centre_prior
from essl_fast.evaluate.protocol import consensus_of, warn_of_consensus
from essl_fast.evaluate.tables import table
from essl_fast.kernels import native
from essl_fast.profiling import explain
from essl_fast.profiling.profile import StepProfile
from essl_fast.report import figures, gallery
from essl_fast.report.runs import RESULTS as LABELS
from essl_fast.report.writing import write_report
from essl_fast.runtime import distributed, provenance, runlog
from essl_fast.runtime.compiling import cache_counts, keep_cache, wants_compile
from essl_fast.runtime.distributed import ALONE, World
from essl_fast.runtime.stopping import Stopped, Stopping
from essl_fast.train import collapse, faults, ownership, progress, tensorboard
from essl_fast.train.graphs import Preparation
from essl_fast.train.trainer import Trainer

PROG = "python -m essl_fast.train"


def demo_data(settings: config.Config, console) -> tuple[Path, dict]:
    """Make and prepare the synthetic world unless it is there; its prepared folder and every object of its frames."""
    from essl_fast.data.synthetic.world import make_world
    from essl_fast.prepare.preparing import PreparedDifferently, prepare

    demo = settings.demo
    home = Path(demo.cache or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser().resolve()
    place = home if demo.cache else home / "essl_fast"
    place = place / f"demo-{demo.codec}-{demo.train_videos}-{demo.test_videos}-{demo.seed}"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"demo.cache: cannot write {place} ({error}); give a folder with --demo.cache DIR") from error
    size = {"train_videos": demo.train_videos, "test_videos": demo.test_videos}
    world = make_world(place / "world", **size, seed=demo.seed, codec=demo.codec, overwrite=True)
    make = functools.partial(prepare, world.videos, world.annotations, place / "prepared", visual="jpeg")  # everywhere
    try:
        make()
    except PreparedDifferently:  # by an earlier version. The folder is the demo's: nobody should have to delete it.
        console.print(f"{place / 'prepared'} is another version's: making it again", highlight=False, soft_wrap=True)
        shutil.rmtree(place / "prepared")
        make()
    console.print(f"demo world: {place}", highlight=False, soft_wrap=True)
    return place / "prepared", json.loads(world.objects.read_text())


def baselines(trainer: Trainer, rows: np.ndarray, objects: dict | None, untrained: dict | None) -> dict[str, dict]:
    """What the trained model must beat, on the rows of the test split that it was tested on."""
    from essl_fast.data.datasets.annotations import boxes_to_grid

    consensus, manifest = consensus_of(trainer.settings, trainer.manifest), trainer.manifest
    results = {"untrained": untrained} if untrained else {}
    results["centre_prior"] = centre_prior(manifest, rows, consensus)
    if objects:
        guesses = {}
        for row in rows:
            largest = max(objects[manifest.key(row)], key=lambda thing: thing["area"])
            guesses[manifest.key(row)] = boxes_to_grid([largest["box"]], 320, 180)[0].tolist()
        results["largest_object_prior"] = boxes_prior(manifest, rows, consensus, guesses)
    return results


def save_last(trainer: Trainer, out: Path) -> None:
    """last.pt of where all ranks stand."""
    state = trainer.state()  # on every rank: they read their losses together
    if trainer.world.leads:
        checkpoints.save(out / "last.pt", state, trainer.settings.checkpoint_keep)


def keep_fault(trainer: Trainer, out: Path, log, say, fault: faults.Fault) -> Path | None:
    """Keep a step that was not finite for a replay, log and tell it; its file, None if there is none."""
    file = fault.file(out) if len(trainer.not_finite) <= faults.KEPT else None
    if file and trainer.world.leads:
        try:
            more = {"fault": fault._asdict(), "runs_on": trainer.runs_on(), "scale": trainer.scaler.get_scale()}
            checkpoints.save(file, trainer.best_state() | {"kind": "nonfinite", **more})
        except OSError as error:  # the fault itself is to be told, whatever the disk says
            say(f"cannot write {file}: {error.strerror}")
            file = None
    log.write("not_finite", **fault._asdict(), file=file and file.name)
    if trainer.settings.on_nonfinite == "skip":
        say(f"passed over step {fault.step + 1} of epoch {fault.epoch + 1}, which was not finite")
    return file


def _without_best(trainer: Trainer, out: Path) -> list[str]:
    """Where best.pt was damaged or deleted, the best of the epochs to come is to take its place; a line that says so.

    After the last epoch there are none to come: then the end of the run tells it."""
    if trainer.best is None or trainer.epoch >= trainer.settings.epochs:
        return []
    path = out / "best.pt"
    wrong = checkpoints.fault(path) if path.is_file() else "it is gone"
    if wrong is None or (wrong == checkpoints.UNSEALED and checkpoints.load(path)):
        return []
    trainer.best = None
    return [f"{path} ({wrong}): the best of the epochs from here on will be the run's best"]


def _nothing_left(trainer: Trainer) -> list[str]:
    """A line that says so where a run has all its epochs, or more, behind it."""
    done, asked = trainer.epoch, trainer.settings.epochs
    why = f"the run has already trained {done} epochs, so with --epochs {asked} there is nothing to train"
    return [f"{why}: it is evaluated again"] if done >= asked else []


def fit(trainer: Trainer, out: Path, log, console, stopping: Stopping) -> None:
    """Train to the last epoch: evaluate on the selection split, keep the best weights, keep where we stand.

    Raises Stopped after the step, or the evaluation, in which a signal came to any rank; last.pt is then of that step.
    """
    settings, manifest, world = trainer.settings, trainer.manifest, trainer.world

    def stop(signum: int) -> None:
        log.write("stop", signal=signal.Signals(signum).name, epoch=trainer.epoch, step=trainer.step)
        bars.line(f"stopped after step {trainer.step}, which {out / 'last.pt'} holds")
        raise Stopped(signum)

    def on_step() -> None:
        signum = stopping.agreed(world) if world.size == 1 or trainer.step % trainer.read_every == 0 else 0
        if signum or (settings.checkpoint_steps and trainer.step % settings.checkpoint_steps == 0):
            save_last(trainer, out)
        if signum:
            stop(signum)

    with progress.EpochBars(console, settings.epochs, len(trainer.loader), done=trainer.step) as bars:
        while trainer.epoch < settings.epochs:
            entry = trainer.train_epoch(bars, on_step)
            last = trainer.epoch == settings.epochs
            if last or (settings.eval_every and trainer.epoch % settings.eval_every == 0):
                found = trainer.evaluate(settings.select_on).result(manifest)
                entry["selection"] = {key: found[key] for key in ("success_at_half", "auc")}
                if trainer.is_best(entry["selection"]) and trainer.world.leads:
                    checkpoints.save(out / "best.pt", trainer.best_state())
            log.write("epoch", **entry)  # before last.pt: killed in between, the epoch is logged twice, not never
            signum = stopping.agreed(world)
            if last or signum or trainer.epoch % settings.checkpoint_epochs == 0:
                save_last(trainer, out)
            bars.line(describe(entry, settings.select_on))
            if warning := collapse.collapse(trainer.history, settings.data.batch_size):
                log.write("warning", epoch=trainer.epoch, text=warning)
                bars.line(f"warning: {warning}")
            if signum:
                stop(signum)


def describe(entry: dict, split: str) -> str:
    """An epoch's entry of the history as a line."""
    losses = ", ".join(f"{name} {value:.4f}" for name, value in entry["losses"].items())
    line = f"epoch {entry['epoch']:>3}: {losses}, {entry['pairs_per_second']:.1f} pairs/s"
    line += f", {100 * entry['waiting']:.0f}% waiting for data"
    if found := entry.get("selection"):
        line += f"; {split}: success {100 * found['success_at_half']:.1f}%, AUC {100 * found['auc']:.1f}%"
    return line


def describe_preparation(done: Preparation, graphs: dict[str, int]) -> str:
    """What a step did beside training, as a line."""
    verb = "compiled" if done.phase == "compile" else "captured as a CUDA graph"
    line = f"step of {done.batch} pairs {verb} in {done.seconds:.1f} s"
    if done.phase == "compile" and any(graphs.values()):
        line += f" ({graphs['hits']} of {sum(graphs.values())} graphs from the cache)"
    return f"{line}, which is not in the pairs/s"


def slower_parts(trainer: Trainer) -> list[str]:
    """A line for everything that runs more slowly here than it could, with the remedy."""
    lines = []
    if not native.available():
        lines.append(f"PyTorch alone makes the views, more slowly: {native.why_unavailable()}")
    elif trainer.device.type == "cuda" and not native.has_cuda():
        lines.append(
            "PyTorch alone makes the views, more slowly: the compiled module has no CUDA part; run "
            "`ESSL_CUDA=1 pip install .` in the source folder, which says what is missing"
        )
    if trainer.device.type == "cuda" and trainer.settings.compile == "auto" and not trainer.compiled:
        lines.append("the step runs uncompiled, more slowly: torch.compile needs a C compiler and Python's headers")
    return lines + trainer.pools.notes


def run(
    settings: config.Config,
    out: Path,
    resume: Path | None,
    console,
    device: torch.device,
    world: World = ALONE,
    profile_steps: int = 0,
) -> dict:
    """Train to the end and write the run directory (rank 0 does); the summary. profile_steps: trace so many steps."""
    with contextlib.ExitStack() as held:
        return _run(settings, out, resume, console, device, world, profile_steps, held)


def _run(
    settings: config.Config,
    out: Path,
    resume: Path | None,
    console,
    device: torch.device,
    world: World,
    profile_steps: int,
    held: contextlib.ExitStack,
) -> dict:
    """``held`` keeps the run directory until it is closed."""
    begin = time.perf_counter()

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may pick another order of sums
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    state, passed = None, []
    if resume:
        with distributed.leader_first(world):
            if world.leads:
                held.enter_context(ownership.owned(out, say))
        resume, state, passed = checkpoints.newest(resume)
    if settings.data.root == "demo":
        with distributed.leader_first(world):
            root, objects = demo_data(settings, console)
    else:
        root, objects = Path(settings.data.root).resolve(), None
        settings.data.root = str(root)  # a checkpoint may be used from any folder
    manifest = Manifest.load(root)
    if not manifest.pairs(settings.select_on):
        raise InputError(
            f"select_on: {root} has no {settings.select_on} split; prepare it with --validation above 0 (where no "
            "training pair has boxes, with --val-list), or use --select_on test"
        )
    warn_of_consensus(settings, manifest, console)
    data_seconds = time.perf_counter() - begin
    if wants_compile(settings.compile, device) or device.type == "cuda":  # Triton's kernels are compiled in any case
        keep_cache(settings.compile_cache)
    trainer = Trainer(settings, manifest, device, world)
    trainer.begin = begin
    changed = trainer.resume(state) if state else []
    passed += _without_best(trainer, out)
    if profile_steps and world.leads:
        trainer.profile = StepProfile(out / "profile", device, profile_steps)

    with distributed.leader_first(world):
        out.mkdir(parents=True, exist_ok=True)
        if world.leads and not resume:
            held.enter_context(ownership.owned(out, say))
            if checkpoints.kept(out / "last.pt"):
                raise InputError(f"out: a run was made in {out} in the meantime; choose another directory")
        if world.leads:
            with atomic_file(out / "config.yaml") as file:
                file.write(yaml.safe_dump(config.to_dict(settings), sort_keys=False).encode())
        log = runlog.RunLog(out / "log.jsonl") if world.leads else runlog.NoLog()
        if settings.tensorboard and world.leads:
            log = tensorboard.Both(log, tensorboard.TensorBoardLog(out / "tensorboard", trainer.epoch))
    environment = provenance.environment(device)
    event = {"environment": environment, "config": config.to_dict(settings), "data": str(root), "step": trainer.step}
    log.write("resume" if state else "start", **event, changed=changed, passed=passed, weights=trainer.loaded)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad) / 1e6
    for line in (
        f"{settings.name}: {settings.objective.method}, {trainer.loader.pairs} training pairs, {trained:.1f} M trained "
        f"parameters, {device}, {str(trainer.dtype).removeprefix('torch.')}"
        + (f", {world.size} processes" if world.size > 1 else "")
        + f"; run directory {out}",
        *(f"differs from the checkpoint: {line}" for line in changed),
        *(f"passed over: {line}" for line in passed),
        *([f"goes on from {resume}, step {trainer.step}"] if passed and resume else []),
        *_nothing_left(trainer),
        *slower_parts(trainer),
        *([f"{trainer.excluded} quarantined pairs are left out"] if trainer.excluded else []),
        *(
            [f"{trainer.labels_dropped} labelled pairs train without their boxes (data.labelled_fraction)"]
            if trainer.labels_dropped
            else []
        ),
    ):
        console.print(line, highlight=False, soft_wrap=True)

    def skipped(row: int, reason: str) -> None:
        key = manifest.key(row)
        log.write("skipped", key=key, reason=reason, epoch=trainer.epoch + 1)
        console.print(f"skipped {key}, which does not decode: {reason}", highlight=False, soft_wrap=True, markup=False)

    cached = cache_counts() if trainer.compiled else {}

    def prepared(done: Preparation) -> None:
        counts = cache_counts() if trainer.compiled else {}
        graphs = {name: count - cached[name] for name, count in counts.items()}
        cached.update(counts)
        log.write("compiled", **done._asdict(), step=trainer.step + 1, graphs=graphs)
        if done.phase != "warm-up":
            console.print(describe_preparation(done, graphs), highlight=False, soft_wrap=True)
        if trainer.stepper.note:
            console.print(trainer.stepper.note, highlight=False, soft_wrap=True, markup=False)

    trainer.on_fault, trainer.on_prepared = skipped, prepared
    trainer.on_not_finite = functools.partial(keep_fault, trainer, out, log, say)
    untrained = None
    if settings.baselines and trainer.step == 0:
        untrained = trainer.evaluate("test").result(manifest)
        log.write("baseline", name="untrained", result=untrained)
        trainer.untrained = untrained
    elif settings.baselines and not (untrained := trainer.untrained):  # of version 1: the first start wrote it
        past = [event for event in runlog.read_log(out / "log.jsonl") if event["event"] == "baseline"]
        untrained = past[-1]["result"] if past else None
    if not state:
        save_last(trainer, out)
    with Stopping() as stopping, trainer.loader:  # which stops decoding, however this ends
        fit(trainer, out, log, console, stopping)
    if trainer.profile is not None:
        trainer.profile.close()
        if trainer.profile.table is None:
            console.print(f"no profile: the run had no more than {trainer.profile.skip} steps", highlight=False)
        else:
            console.print(trainer.profile.table)
            for line in explain.largest_gaps(trainer, out / "profile" / "stages.json"):
                console.print(line, highlight=False, soft_wrap=True, markup=False)
            console.print(f"trace: {out / 'profile' / 'trace.json'}", highlight=False, soft_wrap=True)

    with distributed.leader_first(world):
        best = checkpoints.load(out / "best.pt")
    checkpoints.load_trained(trainer.model, best["model"])
    found = trainer.evaluate("test", show=settings.overlays)
    results = {"test": found.result(manifest)}
    if settings.baselines:
        results |= baselines(trainer, found.rows, objects, untrained)
    protocol = "published: the best epoch on the test set itself" if settings.select_on == "test" else "clean"
    summary = {
        **results,
        "selected": {**best["best"], "protocol": protocol},
        "seconds": trainer.total_seconds(),
        "stage_seconds": {"data": data_seconds, **trainer.seconds},
        "pairs_per_second": trainer.mean_rate(),
        "steps": dict(trainer.stepper.counts),
        "left_out": {"quarantined": trainer.excluded, "skipped": len(trainer.faults)},
        "config": config.to_dict(settings),
        "environment": environment,
    }
    if world.leads:
        write_json(out / "summary.json", summary)
        with evaluation_loader(manifest, "test", settings, trainer.model, device, trainer.dtype, trainer.pools) as test:
            gallery.write(out, manifest, found, test, -(-settings.overlays // 3))
        figures.curves(out / "curves.png", trainer.history, {LABELS[name]: result for name, result in results.items()})
        figures.overlays(out / "overlays.png", found.samples)
    log.write("end", **{key: summary[key] for key in ("test", "selected", "seconds", "pairs_per_second")})
    log.close()
    if world.leads:
        write_report([out], out / "report.html")
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
        f"results, checkpoints, log and pictures in {out}",
        highlight=False,
        soft_wrap=True,
    )


def find_run(settings: config.Config, resume: str, world: World) -> tuple[Path, Path | None]:
    """The run directory, and the checkpoint to go on from or None. InputError if the directory holds another run."""
    if resume:
        out = Path(resume)
        began = checkpoints.kept(out / "last.pt") or (out / "best.pt").exists()
        return out, out / "last.pt" if began else None  # one that ended before its first checkpoint begins again
    stamp = distributed.share(time.strftime("%Y%m%d-%H%M%S"), world)
    out = Path(settings.out or Path("runs") / f"{settings.name}-{stamp}")
    if world.restarts:  # torchrun has started the group again: the command is the first one's
        if not settings.out:
            raise InputError("out: torchrun's restart cannot tell which run to go on with; give --out DIR, or --resume")
        if checkpoints.kept(out / "last.pt"):
            return out, out / "last.pt"
    elif checkpoints.kept(out / "last.pt"):
        raise InputError(
            f"out: {out} holds a run already; continue it with --resume {out}, or choose another directory"
        )
    return out, None
