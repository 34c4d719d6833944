"""One run of a row: whether it has ended, and training it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from essl_fast import checkpoints, config
from essl_fast.common.commands import one_line
from essl_fast.common.errors import InputError
from essl_fast.common.urls import placed, redacted
from essl_fast.data.shards import Manifest
from essl_fast.reproduce.plan import PROG
from essl_fast.runtime.stopping import SIGNALS, Stopped


def finished(folder: Path, arguments: list[str]) -> dict | None:
    """The summary of a run that has ended; None if it has not ended, or not begun.

    Args:
        folder: the run directory.
        arguments: train's command line for it (`Plan.arguments`).

    Raises:
        InputError: the folder holds a run with other settings or on other data, or its summary is damaged.
    """
    try:
        summary = json.loads((folder / "summary.json").read_bytes())
        found = config.from_dict(summary["config"])
        numbers = [summary["seconds"], *(summary["test"][key] for key in ("pairs", "success_at_half", "auc"))]
        if not all(isinstance(number, (int, float)) for number in numbers) or not {"curve"} <= summary["test"].keys():
            raise ValueError
        _ = summary["selected"]["epoch"]
    except FileNotFoundError:
        if checkpoints.existing(folder / "last.pt") and (folder / "config.yaml").is_file():
            _check_settings(folder, config.parse(["--config", str(folder / "config.yaml")], PROG)[0], arguments)
        return None
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(f"{folder / 'summary.json'} is damaged: delete {folder} and run again") from None
    root = _check_settings(folder, found, arguments)
    # The data set may have moved, or another one may be at its place. train itself checks a run that goes on.
    if root != "demo" and checkpoints.load(folder / "best.pt")["data"] != Manifest.load(placed(root)).header:
        raise InputError(f"{folder} was trained on other data than {redacted(root)}: give another --out, or delete it")
    return summary


def _check_settings(folder: Path, found: config.Config, arguments: list[str]) -> str:
    """InputError if a run's settings differ from those of the arguments; else the data folder of the arguments."""
    wanted = config.parse(arguments, PROG)[0]
    different = config.difference(config.to_dict(found), config.to_dict(wanted))
    # A resumed run may have another number of epochs; here that would be another result.
    if hard := [line for line in different if checkpoints.forbidden([line]) or line.startswith("epochs: ")]:
        raise InputError(f"{folder} is of other settings ({'; '.join(hard)}): give another --out, or delete it")
    return wanted.data.root


_RUNNING: set[subprocess.Popen] = set()  # trainings of this process that have not ended
_STARTS = threading.Lock()  # held while one of them is started, or while it is said that no more may be
_OVER = threading.Event()  # no more may be


class _Late:
    """A signal that came while the main thread started a training, which would go on unknown if it was raised then."""

    waits, signum = False, 0


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """While a training is started and noted: signals of `stopped_by_sigterm` are raised at the end of the block."""
    main = threading.current_thread() is threading.main_thread()
    with _STARTS:
        if _OVER.is_set():
            raise RuntimeError("stopped before it began")
        _Late.waits = main
        try:
            yield
        finally:
            _Late.waits = False
            signum, _Late.signum = _Late.signum, 0
            if signum:
                raise Stopped(signum)


@contextlib.contextmanager
def side_by_side(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that calls :func:`train` in `count` threads; an error within the block ends the trainings that run."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException as error:
        with _STARTS:
            _OVER.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for child in list(_RUNNING):
            _end(child, error)
        raise
    finally:
        pool.shutdown()
        _OVER.clear()


def _end(child: subprocess.Popen, error: BaseException) -> None:
    """Let a training write its checkpoint and end. Ctrl-C reaches it as well; SIGTERM may have reached only us."""
    if isinstance(error, Stopped) or not isinstance(error, KeyboardInterrupt):
        child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(60)
    child.kill()
    child.wait()


def train(folder: Path, arguments: list[str], threads: int = 0) -> None:
    """Train in another process, from the last checkpoint if there is one. Its output goes to FOLDER.log.

    Args:
        folder: the run directory.
        arguments: train's command line.
        threads: of PyTorch, where the user's environment does not say; 0 is as many as there are cores.

    Raises:
        RuntimeError: training failed; the message has the last line of its output.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    given = [*arguments, "--resume" if checkpoints.existing(folder / "last.pt") else "--out", str(folder)]
    environment = ({"OMP_NUM_THREADS": str(threads)} if threads else {}) | os.environ | {"PYTHONUNBUFFERED": "1"}
    child: subprocess.Popen | None = None
    with open(log, "ab") as out:
        try:
            with _starting():
                child = subprocess.Popen(
                    [sys.executable, "-m", "essl_fast.train", *given],
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=environment,
                )
                _RUNNING.add(child)
            code = child.wait()
        except BaseException as error:
            if child is not None:
                _end(child, error)
            raise
        finally:
            if child is not None:
                _RUNNING.discard(child)
    if code:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"exit code {code}: {lines[-1] if lines else 'no output'} (all of it: {log})")


def last_line(log: Path) -> str:
    """The last line that a training has printed so far; it says at most 200 characters of it."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return one_line(lines[-1])[:200] if lines else "it has printed nothing yet"


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Within the block, SIGTERM and a scheduler's warnings end this command and the training that it started, as
    Ctrl-C does.

    Outside the main thread it changes nothing: only the main thread can catch signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        if _Late.waits:
            _Late.signum = signum
            return
        raise Stopped(signum)

    caught = [each for each in SIGNALS if each != signal.SIGINT and signal.getsignal(each) == signal.SIG_DFL]
    before = {signum: signal.signal(signum, stop) for signum in caught}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
