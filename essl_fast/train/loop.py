"""The training loop.

for each epoch:
    for each batch:
        step                      two views, forward, backward, update
        checkpoint                every so many steps, and when a signal came; a signal then ends the run
    evaluate                      on the selection split; the best weights so far become best.pt; if they have not
                                  become better for long, the run ends
    checkpoint                    last.pt: where all of it stands
"""

import signal
from collections.abc import Callable
from typing import NoReturn

from essl_fast import config
from essl_fast.runtime.stopping import Stopped, Stopping
from essl_fast.train.collapse import collapse_warning
from essl_fast.train.ending import ended_early, has_ended, why_early
from essl_fast.train.observers import pictures_wanted
from essl_fast.train.rundir import RunDirectory
from essl_fast.train.state import best_state, last_state
from essl_fast.train.trainer import Trainer


def train(trainer: Trainer, directory: RunDirectory, stopping: Stopping) -> None:
    """Train to the last epoch: evaluate, keep the best weights, keep where the run stands.

    Args:
        trainer: training begins where it stands.
        directory: gets best.pt and last.pt.
        stopping: says whether a signal asks for the end. All ranks act on it at the same step.

    Raises:
        Stopped: after the step, or the evaluation, in which a signal came to any rank; last.pt is then of that step.
        FloatingPointError: a step was not finite and the settings do not let the run go on.
    """
    settings, observers = trainer.settings, trainer.observers
    observers.on_train_start(settings.epochs, trainer.steps_per_epoch, trainer.steps)
    try:
        while not has_ended(trainer):
            for raw in trainer.batches():
                trainer.take_step(raw)
                signum = stopping.agreed(trainer.world) if looks_for_signal(trainer) else 0
                if signum or due(settings.checkpoint_steps, trainer.steps):
                    directory.save_last(last_state(trainer))
                if signum:
                    stop(trainer, directory, signum)

            entry = trainer.end_epoch()
            if trainer.epoch == settings.epochs or due(settings.eval_every, trainer.epoch):
                select(trainer, directory, entry)
            last = has_ended(trainer)
            observers.on_epoch(entry)  # before last.pt: killed in between, the epoch is logged twice, not never
            signum = stopping.agreed(trainer.world)
            if last or signum or due(settings.checkpoint_epochs, trainer.epoch):
                directory.save_last(last_state(trainer))
            if warning := collapse_warning(trainer.history, config.own_batch(settings)):
                observers.on_warning(trainer.epoch, warning)
            if signum:
                stop(trainer, directory, signum)
        if ended_early(trainer):
            observers.on_message(why_early(trainer))
        if trainer.best is None:  # it was ended before its first evaluation: what was trained is evaluated now
            select(trainer, directory, trainer.history[-1])
            directory.save_last(last_state(trainer))
    finally:
        observers.on_train_end()


def train_epoch(trainer: Trainer, after_step: Callable[[], None] = lambda: None) -> dict:
    """Train the rest of the current epoch, without evaluation or checkpoints, and return its entry of the history."""
    for raw in trainer.batches():
        trainer.take_step(raw)
        after_step()
    return trainer.end_epoch()


def due(every: int, count: int) -> bool:
    """Whether ``count`` is a multiple of ``every``; never if ``every`` is 0."""
    return bool(every) and count % every == 0


def looks_for_signal(trainer: Trainer) -> bool:
    """Whether to look for a signal after this step. Several ranks must agree, which takes time: they rarely look."""
    return trainer.world.size == 1 or due(trainer.losses.every, trainer.steps)


def select(trainer: Trainer, directory: RunDirectory, entry: dict) -> None:
    """Evaluate the selection split, add the result to the epoch's entry, and keep the best weights so far."""
    found = trainer.evaluate(trainer.settings.select_on, show=pictures_wanted(trainer.settings))
    result = found.result(trainer.manifest)
    entry["selection"] = {key: result[key] for key in ("success_at_half", "auc")}
    if trainer.is_best(entry["selection"], found.trusted_from(trainer.manifest)):
        directory.save_best(best_state(trainer))
    if found.samples:
        trainer.observers.on_pictures(trainer.settings.select_on, trainer.epoch, found.samples)
    if trainer.step.average is not None:
        with trainer.step.average.applied():
            average = trainer.evaluate(trainer.settings.select_on)
            result = average.result(trainer.manifest)
            entry["selection_ema"] = {key: result[key] for key in ("success_at_half", "auc")}
            if trainer.is_best(entry["selection_ema"], average.trusted_from(trainer.manifest), average=True):
                directory.save_best(best_state(trainer, average=True), average=True)


def stop(trainer: Trainer, directory: RunDirectory, signum: int) -> NoReturn:
    """End the run after a signal; last.pt holds where it stands."""
    name = signal.Signals(signum).name
    trainer.observers.on_stop(name, trainer.epoch, trainer.steps, directory.last)
    raise Stopped(signum)
