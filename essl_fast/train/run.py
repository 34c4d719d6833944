"""A whole training run, from the settings to the summary: what `python -m essl_fast.train` does."""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from essl_fast import checkpoints, config, models
from essl_fast.common import commands
from essl_fast.common.errors import InputError, in_shell
from essl_fast.common.outputs import output_folder
from essl_fast.common.urls import is_url, lacks, redacted
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import warn_of_consensus
from essl_fast.profiling import StepProfile
from essl_fast.runtime import distributed, provenance
from essl_fast.runtime.compiling import keep_cache, wants_compile
from essl_fast.runtime.devices import pick_device
from essl_fast.runtime.distributed import ALONE, World
from essl_fast.runtime.stopping import Stopping
from essl_fast.train import loop
from essl_fast.train.demo import demo_data
from essl_fast.train.ending import has_ended
from essl_fast.train.logfile import LogFile
from essl_fast.train.observers import LOGGERS, Observers, logger_names
from essl_fast.train.opening import opening_lines
from essl_fast.train.progress import TerminalProgress
from essl_fast.train.results import conclude
from essl_fast.train.rundir import AUTO, RunDirectory, find_run, owned
from essl_fast.train.state import check_ranks, command, faulty_state, last_state, resume
from essl_fast.train.trainer import Trainer

COMMAND = "python -m essl_fast.train"


class Data(NamedTuple):
    """What a run is trained and tested on."""

    manifest: Manifest
    objects: dict | None  # every object of each pair's frame, where that is known (the demo)
    seconds: float  # that it took to make and open


class Past(NamedTuple):
    """What a resumed run goes on from."""

    checkpoint: Path | None  # None: the run begins
    state: dict | None
    passed: list[str]  # a line for each checkpoint that was passed over, and for a best.pt that is lost


def fit(
    settings: config.Config | str = "demo",
    overrides: Sequence[str] = (),
    *,
    resume: str | Path = "",
    profile: int = 0,
    quiet: bool = False,
    report: Callable[[dict, Path, Console], None] = lambda summary, out, console: None,
) -> dict:
    """Train, evaluate, and leave everything in a run directory: what the command does, with the same defaults.

    Args:
        settings: a Config, the name of a shipped config, or a YAML file. A Config is changed: `data.root` becomes
            absolute, `optim.accumulate` what `data.global_batch` needs.
        overrides: like ["--epochs", "3"] or ["epochs=3"]; only where ``settings`` is a name or a file.
        resume: run directory to continue; "" begins a run; "auto" continues the one in `out` if it has a checkpoint,
            with the settings that are given here.
        profile: how many training steps to trace.
        quiet: print nothing.
        report: called at the end with the summary, the run directory and the terminal.

    Returns:
        What summary.json holds.

    Raises:
        InputError: a setting, a file or the data is wrong; the message says what to do.
        FloatingPointError: a step was not finite.
        Stopped: Ctrl-C or SIGTERM; the run directory holds where it stands.
    """
    if isinstance(settings, str):
        held = resume and str(resume) != AUTO
        settings = config.load(str(Path(resume) / "config.yaml") if held else settings, overrides)
    check(settings)
    world = distributed.world_of()
    device = pick_device(distributed.own_device(settings.device, world))
    console = commands.console(quiet=quiet or not world.leads, kept=True)
    with distributed.joined(world, device):
        out, checkpoint = find_run(settings, str(resume), world)
        with ended_well(out, console, device, world), made_for_a_run(out, world):
            output_folder(out, "out")
            summary = run(settings, out, checkpoint, console, device, world, profile)
    report(summary, out, console)
    return summary


def check(settings: config.Config) -> None:
    """InputError for settings that name what is not there, before anything slow is done."""
    models.check(settings)
    if not settings.data.root:
        raise InputError(
            "data.root: name the prepared folder with --data.root DIR (python -m essl_fast.prepare makes one), or "
            "train on the synthetic world with --data.root demo"
        )
    for name in logger_names(settings):
        LOGGERS.get(name).check()


@contextlib.contextmanager
def made_for_a_run(out: Path, world: World) -> Iterator[None]:
    """Remove an empty run directory after an error: the run has not begun, and its directory was only its name."""
    try:
        yield
    except BaseException:
        if world.leads:
            with contextlib.suppress(OSError):  # it is not there, or holds files
                out.rmdir()
        raise


@contextlib.contextmanager
def ended_well(out: Path, console: Console, device: torch.device, world: World) -> Iterator[None]:
    """If the run ends early, print how to go on, and make sure that no other rank waits for this one."""
    again = f"{command(world.size)} --resume {in_shell(out)}"
    try:
        yield
    except KeyboardInterrupt as error:
        if (out / "last.pt").exists():
            console.print(
                f"stopped; continue with: {again}",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )
        distributed.give_up(world, device, getattr(error, "code", 130))
        raise
    except Exception as error:
        if isinstance(error, OSError):
            then = f"mend that, then go on with: {again}" if out.is_dir() else "choose another --out"
            name, why = error.filename or out, error.strerror or str(error)
            error = InputError(f"cannot write or read {name}: {why}; {then}")
        if world.size > 1:
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            message = f"rank {world.rank}: {kind}{error}"
            if checkpoints.existing(out / "last.pt"):  # also where the reason is that another rank is gone
                message += f"; to go on: {again}"
            if isinstance(error, InputError) and device.type != "cuda":
                error = InputError(message)  # the command prints it
            else:
                sys.stderr.write(f"{COMMAND}: error: {message}\n")  # at once, or lines of ranks would mix
            distributed.give_up(world, device, 1)
        raise error


def run(
    settings: config.Config,
    out: Path,
    checkpoint: Path | None,
    console: Console,
    device: torch.device,
    world: World = ALONE,
    profile: int = 0,
) -> dict:
    """Train to the end, write the run directory, and return the summary. Only the leading rank writes.

    Args:
        settings: of the run.
        out: the run directory.
        checkpoint: the file to go on from, None to begin.
        console: where to print.
        device, world: of this process.
        profile: how many training steps to trace.
    """
    began = time.perf_counter()
    directory = RunDirectory(out, settings.checkpoint_keep, world.leads)
    progress = [TerminalProgress(console, settings.select_on)] if world.leads else []
    observers = Observers(*progress)
    with contextlib.ExitStack() as stack:
        for each in progress:
            stack.enter_context(each.heartbeat())
        if settings.deterministic:
            be_deterministic()
        past = load_past(settings, checkpoint, directory, world, stack, observers.on_message)
        settle_batches(settings, past, observers.on_message)
        data = open_data(settings, world, observers.on_message, progress=not console.quiet)
        warn_of_consensus(settings, data.manifest, console)
        if wants_compile(settings.compile, device) or device.type == "cuda":  # Triton compiles its kernels in any case
            keep_cache(settings.compile_cache)
        trainer = Trainer(settings, data.manifest, device, world, observers)
        trainer.speed.began = began
        changed = resume(trainer, past.state, out) if past.state else []
        past.passed.extend(without_best(trainer, directory))
        trainer.profile = StepProfile(directory.profile, device, profile) if profile and world.leads else None
        open_directory(trainer, directory, past, stack)
        environment = provenance.environment(device)
        facts = {
            "environment": environment,
            "config": config.to_dict(settings),
            **facts_of_data(settings, data.manifest),
            "step": trainer.steps,
            "changed": changed,
            "passed": past.passed,
            "weights": trainer.loaded,
        }
        observers.on_start(past.state is not None, facts)
        for line in opening_lines(trainer, directory, past.checkpoint, changed, past.passed):
            observers.on_message(line)
        score_untrained(trainer, directory)
        if past.state is None:
            directory.save_last(last_state(trainer))
        with Stopping() as stopping, trainer.loader:  # the loader stops decoding at the end, also after an error
            loop.train(trainer, directory, stopping)
        report_profile(trainer, directory, console)
        return conclude(trainer, directory, data.objects, data.seconds, environment)


def facts_of_data(settings: config.Config, manifest: Manifest) -> dict:
    """What the log says of the data: where it is, its name, and what its splits hold, by which runs are compared."""
    name = "demo" if settings.data.root == "demo" else manifest.name
    return {"data": manifest.place, "dataset": name, "splits": manifest.contents()}


def be_deterministic() -> None:
    """Deterministic algorithms, for bit-equal reruns."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may pick another order of sums
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def load_past(
    settings: config.Config,
    checkpoint: Path | None,
    directory: RunDirectory,
    world: World,
    stack: contextlib.ExitStack,
    say: Callable[[str], None],
) -> Past:
    """Own the directory of a run that is resumed, until ``stack`` ends, and load its newest whole checkpoint.

    InputError if that was made by another number of processes, and the settings do not allow it.
    """
    if checkpoint is None:
        return Past(None, None, [])
    with distributed.leader_first(world):
        if world.leads:
            stack.enter_context(owned(directory.path, say))
    past = Past(*checkpoints.newest(checkpoint))
    if past.state and "seen" in past.state:  # best.pt has none, and is refused later
        check_ranks(past.state, settings, world.size, directory.path)
    return past


def settle_batches(settings: config.Config, past: Past, say: Callable[[str], None]) -> None:
    """Set `optim.accumulate` to what a global batch needs, and say so where the run begins."""
    before = config.from_dict(past.state["config"]) if past.state else None
    batches, given = config.update_batches(settings, before), settings.optim.accumulate
    settings.optim.accumulate = batches
    if batches != given and before is None:
        pairs = settings.data.global_batch
        say(f"data.global_batch: the {pairs} pairs of a step are {batches} batches of {pairs // batches}")


def open_data(settings: config.Config, world: World, say: Callable[[str], None], progress: bool = True) -> Data:
    """The data set of the settings, whose `data.root` and `data.cache` become absolute, or lose their secrets.

    InputError if it cannot be selected on.

    progress: show that of making the demo world.
    """
    began = time.perf_counter()
    objects = None
    root: str | Path
    if settings.data.root == "demo":
        with distributed.leader_first(world):
            root, objects = demo_data(settings.demo, say, progress)
    else:
        root = settings.data.root if is_url(settings.data.root) else Path(settings.data.root).resolve()
        settings.data.root = redacted(root)  # a checkpoint may be used from any folder
        settings.data.cache = settings.data.cache and str(Path(settings.data.cache).absolute())
        if lacks(root):
            raise InputError(
                f"data.root: there is no folder {root}; say where the data is with --data.root DIR, or make it with "
                "python -m essl_fast.prepare"
            )
    with distributed.leader_first(world) if is_url(root) else contextlib.nullcontext():  # one copies what describes it
        manifest = Manifest.load(root, (settings.data.cache, settings.data.cache_gb))
    if not manifest.pairs(settings.select_on):
        raise InputError(
            f"select_on: {manifest.place} has no {settings.select_on} split; prepare it with --validation above 0 "
            "(where no training pair has boxes, with --val-list), or use --select_on test"
        )
    return Data(manifest, objects, time.perf_counter() - began)


def without_best(trainer: Trainer, directory: RunDirectory) -> list[str]:
    """If best.pt or best-ema.pt was damaged or deleted, let the best of the next epochs replace it, and return a line
    that says so.

    After the last epoch nothing can replace it; the end of the run then raises the error.
    """
    said = []
    for average, file in ((True, directory.best_average), (False, directory.best)):
        if (trainer.best_average if average else trainer.best) is None or has_ended(trainer):
            continue
        if wrong := directory.best_fault(average):
            if average:
                trainer.best_average = None
            else:
                trainer.best = None
            said.append(f"{file} ({wrong}): the best of the epochs from here on will be the run's best")
    return said


def open_directory(trainer: Trainer, directory: RunDirectory, past: Past, stack: contextlib.ExitStack) -> None:
    """Make the run directory, or go on in it, and begin to log. InputError if another run was made there meanwhile."""
    settings, observers, leads = trainer.settings, trainer.observers, trainer.world.leads
    with distributed.leader_first(trainer.world):
        directory.path.mkdir(parents=True, exist_ok=True)
        if leads and past.checkpoint is None:
            stack.enter_context(owned(directory.path, observers.on_message))
            if directory.holds_a_run:
                raise InputError(f"out: a run was made in {directory.path} in the meantime; choose another directory")
        directory.save_config(settings)
        directory.set_aside()
        if leads:
            observers.add(LogFile(directory.log))
            for name in logger_names(settings):
                make = functools.partial(LOGGERS.get(name), settings, directory.path, trainer.epoch)
                observers.add_logger(name, make, trainer.epoch)
    stack.callback(observers.close)
    trainer.faults.keep_in(directory.path, lambda: faulty_state(trainer))


def score_untrained(trainer: Trainer, directory: RunDirectory) -> None:
    """Evaluate the model on the test split before its first step, if the settings ask for it."""
    if not trainer.settings.baselines or trainer.untrained:
        return
    if trainer.steps == 0:
        trainer.untrained = trainer.evaluate("test").result(trainer.manifest)
        trainer.observers.on_baseline("untrained", trainer.untrained)
    else:  # a checkpoint of version 1 does not have it: the first start wrote it into the log
        trainer.untrained = directory.logged_baseline("untrained")


def report_profile(trainer: Trainer, directory: RunDirectory, console: Console) -> None:
    """End a trace of training steps and say what it shows."""
    profile = trainer.profile
    if profile is None:
        return
    profile.close()
    if profile.table is None:
        console.print(f"no profile: the run had no more than {profile.skip} steps", highlight=False)
        return
    from essl_fast.profiling import ProfiledRun, largest_gaps  # with PyTorch's parts for tracing

    console.print(profile.table)
    profiled = ProfiledRun(
        settings=trainer.settings,
        device=trainer.device,
        dtype=trainer.dtype,
        trained=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        compiled=trainer.step.compiled,
        threads=trainer.loader.threads,
        streams=trainer.loader.streams,
        ranks=trainer.world.size,
    )
    for line in largest_gaps(profiled, profile, directory.profile / "stages.json"):
        trainer.observers.on_message(line)
    trainer.observers.on_message(f"trace: {directory.profile / 'trace.json'}")
