"""When a run has nothing left to train: after its last epoch, or when it has not become better for long."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from essl_fast.train.trainer import Trainer


def patience_is_spent(trainer: Trainer) -> bool:
    """Whether the last evaluation found nothing better in so many epochs that the settings end the run.

    It follows from the history alone, so a run that goes on knows it, too.
    """
    evaluated = [entry["epoch"] for entry in trainer.history if "selection" in entry]
    if not trainer.settings.patience or trainer.best is None or not evaluated:
        return False
    return evaluated[-1] - trainer.best["epoch"] >= trainer.settings.patience


def has_ended(trainer: Trainer) -> bool:
    """Whether nothing is left to train."""
    return trainer.epoch >= trainer.settings.epochs or patience_is_spent(trainer)


def ended_early(trainer: Trainer) -> bool:
    """Whether patience has ended the run before its last epoch."""
    return trainer.epoch < trainer.settings.epochs and patience_is_spent(trainer)


def why_early(trainer: Trainer) -> str:
    """A line that says why a run ended before its last epoch, and how it would go on."""
    settings, best = trainer.settings, trainer.best
    assert best is not None  # or no patience is spent
    return (
        f"no better result on {settings.select_on} since epoch {best['epoch']} (patience {settings.patience}): the run "
        f"ends with epoch {trainer.epoch} of {settings.epochs}; --resume with --patience 0 would go on"
    )
