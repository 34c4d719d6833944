"""What watches a training run: progress on the terminal, the log, TensorBoard, and loggers of your own.

A logger of your own is an :class:`Observer` that is made with (settings, run directory, complete epochs), and found by
its name in `loggers`. An earlier process may have logged epochs after the complete ones: they are trained again.

    from essl_fast import register_logger
    from essl_fast.train import Observer

    @register_logger("mine")
    class Mine(Observer):
        def __init__(self, settings, folder, epoch): ...
        def on_epoch(self, entry): ...

    python -m essl_fast.train --import my_module --loggers '[mine]'
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from essl_fast import config
from essl_fast.common.errors import reason
from essl_fast.common.registry import Registry
from essl_fast.train.events import Fault, Preparation, Reading

LOGGERS = Registry("logger", setting="loggers", own=("essl_fast.train.tensorboard", "essl_fast.train.loggers"))
register_logger = LOGGERS.register


class Observer:
    """Watches a run from the process that leads it. Every method does nothing here: override what you need.

    A logger that raises an exception is left out from there on, with a warning: it does not end the run.
    ``pictures``: how many pairs :meth:`on_pictures` should get at each evaluation.
    """

    pictures = 0

    @classmethod
    def check(cls) -> None:
        """Raise InputError if it cannot be used here, for example if a package is missing. Called before slow work."""

    def on_start(self, resumed: bool, facts: dict) -> None:
        """Before the first step. facts: environment, config, data, step, changed, passed, weights: plain values."""

    def on_message(self, text: str) -> None:
        """A line for the user."""

    def on_train_start(self, epochs: int, steps_per_epoch: int, steps_done: int) -> None:
        """The training loop begins."""

    def on_step(self, epoch: int, reading: Reading | None) -> None:
        """A step of ``epoch`` (from 0) was launched. reading: where losses were read after it."""

    def on_prepared(self, done: Preparation, step: int, graphs: dict[str, int]) -> None:
        """The run's step number ``step`` (from 1) compiled, warmed up or was captured.

        graphs: how many graphs were compiled for it: "hits" came from the cache, "misses" were made.
        """

    def on_skipped(self, key: str, reason: str, epoch: int) -> None:
        """A pair does not decode and is left out from ``epoch`` (from 1) on."""

    def on_not_finite(self, fault: Fault, file: Path | None, passed: bool) -> None:
        """A step was not finite. file: what replay reads; passed: the run goes on without the step."""

    def on_evaluation(self, split: str, pairs: int, count: int) -> None:
        """Further ``count`` of the ``pairs`` of a split were localized by this process."""

    def on_baseline(self, name: str, result: dict) -> None:
        """A baseline (the untrained model, or a prior) was evaluated on the test split."""

    def on_epoch(self, entry: dict) -> None:
        """An epoch is complete. entry: the same as in the history: epoch (from 1), losses, pairs_per_second, ..."""

    def on_pictures(self, split: str, epoch: int, samples: list[dict]) -> None:
        """Some pairs of a split were localized by the weights of ``epoch`` (from 1), always the same ones.

        samples: frame (S, S, 3) uint8, similarity (h, w), boxes (K, 4) on the 224 grid, key, ciou and title of each.
        """

    def on_warning(self, epoch: int, text: str) -> None:
        """Something about the run so far is likely to be wrong."""

    def on_stop(self, signal: str, epoch: int, step: int, checkpoint: Path) -> None:
        """A signal ends the run after ``step``, which ``checkpoint`` holds."""

    def on_train_end(self) -> None:
        """The training loop has ended, also by an error."""

    def on_end(self, summary: dict) -> None:
        """The run is complete. summary: what summary.json holds."""

    def close(self) -> None:
        """The last call: release what the observer holds."""


class Observers(Observer):
    """Passes every event on to several observers, in their order."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = list(observers)
        self._optional: dict[int, str] = {}  # id of an observer that the run does not need -> its name
        self._epoch = 0

    def add(self, observer: Observer) -> None:
        """Add an observer whose errors end the run."""
        self.observers.append(observer)

    def add_logger(self, name: str, make: Callable[[], Observer], epoch: int) -> None:
        """Make and add a logger. Its errors, also of making it, are warnings, and the run goes on without it.

        epoch: complete epochs, for the warning.
        """
        self._epoch = epoch
        try:
            observer = make()
        except Exception as error:  # a user's module may raise anything
            self._warn(name, error)
            return
        self._optional[id(observer)] = name
        self.observers.append(observer)

    def _tell(self, observer: Observer, event: str, *args, **kwargs) -> None:
        if event == "on_epoch":
            self._epoch = args[0]["epoch"]
        if id(observer) not in self._optional:
            getattr(observer, event)(*args, **kwargs)
            return
        try:
            getattr(observer, event)(*args, **kwargs)
        except Exception as error:
            self.observers.remove(observer)
            self._warn(self._optional.pop(id(observer)), error)
            if event != "close":
                with contextlib.suppress(Exception):
                    observer.close()

    def _warn(self, name: str, error: Exception) -> None:
        self.on_warning(self._epoch, f"logger {name}: {reason(error)}; the run goes on without it")


def _forward(name: str):
    def tell(self: Observers, *args, **kwargs) -> None:
        for observer in tuple(self.observers):
            self._tell(observer, name, *args, **kwargs)

    tell.__name__, tell.__doc__ = name, getattr(Observer, name).__doc__
    return tell


for _name in vars(Observer):
    if _name == "close" or _name.startswith("on_"):
        setattr(Observers, _name, _forward(_name))


def logger_names(settings: config.Config) -> list[str]:
    """The loggers that the settings ask for, by name."""
    names = list(settings.loggers)
    return names if "tensorboard" in names or not settings.tensorboard else [*names, "tensorboard"]


def pictures_wanted(settings: config.Config) -> int:
    """How many pairs of each evaluation the loggers of a run want to draw: no more than `overlays`."""
    wanted = [getattr(LOGGERS.get(name), "pictures", 0) for name in logger_names(settings)]
    return min(settings.overlays, max(wanted, default=0))
