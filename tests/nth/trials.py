"""One failure of a disk, and what comes of it.

equal   the work ends well, and its result is that of a disk that never fails
told    one line names the file and the remedy (or that an optional file is not there); the last good state opens;
        the same work on a mended disk then gives the equal result
lost    anything else, and work that does not end
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.nth.disk import KINDS, VARIANTS, Disk, Failure
from tests.nth.stages import Stage

EQUAL, TOLD, LOST = OUTCOMES = ("equal", "told", "lost")
# A remedy is an imperative: what to do, or which command goes on; or the list of what prepare left out, with reasons.
REMEDY = re.compile(
    r"\b(free|choose|check|give|run `|run again|run prepare again|mend|restore|delete|use|copy|try|complete without|"
    r"run the same command|make sure|leave|raise|train writes|goes on|memory of this machine)\b|--resume|"
    r"left out \(all of it:|name another folder"
)


PATIENCE = 60.0  # seconds that a work of about 0.1 s may take, before and after its disk is mended


class Hung(BaseException):
    """The work has not ended in time. No handler of ours takes it for an error of its own."""


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Hung in the block if it does not end in time, also where it waits for a lock. Only in the main thread."""

    def end(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE, 1)  # and again, where something caught it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Outcome(NamedTuple):
    """What came of a failure: one of OUTCOMES, and the line that was said, or what is lost."""

    what: str
    why: str
    fired: bool  # whether there was such an operation


def count(stage: Stage, out: Path) -> dict[str, int]:
    """How many operations of each kind the work of a stage takes."""
    shutil.rmtree(out, ignore_errors=True)
    stage.start(out)
    with Disk(out.parent).mounted() as disk:  # what the work reads lies beside it
        code, said = stage.run(out)
    assert code == 0 and stage.differs(out) is None, said
    return disk.counts


def attempt(stage: Stage, out: Path, failure: Failure) -> Outcome:
    """Let one operation of a stage's work fail."""
    shutil.rmtree(out, ignore_errors=True)
    stage.start(out)
    with Disk(out.parent, failure).mounted() as disk:
        try:
            with ending():
                code, said = stage.run(out)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return Outcome(LOST, f"{disk.failed}: {traceback.format_exc(limit=-6)}", True)
    if not disk.failed:
        return Outcome(EQUAL, "", False)
    try:
        with ending():
            return _judged(stage, out, failure, disk.failed, code, said)
    except (Exception, Hung):
        return Outcome(LOST, f"{disk.failed}: {said}: then {traceback.format_exc(limit=-6)}", True)


def _judged(stage: Stage, out: Path, failure: Failure, where: str, code: int, said: str) -> Outcome:
    lines = [line for line in said.splitlines() if line.strip()]
    if code == 0:
        differs = stage.differs(out)
        if differs is None:
            return Outcome(EQUAL, "", True)
        named = next((line for line in lines if REMEDY.search(line) and _names(line, differs.split(", "), out)), None)
        if named is None:
            return Outcome(LOST, f"{where}: it ended well, and {differs} is not as it should be: {said}", True)
        shutil.rmtree(out)
        stage.start(out)
    else:
        named = lines[-1] if lines else ""
        if failure.kind != "memory" and not (REMEDY.search(named) and _names(named, [], out)):
            return Outcome(LOST, f"{where}: the line names no file or no remedy: {said!r}", True)
        if failure.kind == "memory" and "memory" not in named.lower():
            return Outcome(LOST, f"{where}: the line does not say that memory is short: {said!r}", True)
        if lost := stage.good(out):
            return Outcome(LOST, f"{where}: {lost} after {named}", True)
    with Disk(out.parent).mounted():
        code, said = stage.run(out)
    if code or (differs := stage.differs(out)):
        return Outcome(LOST, f"{where}: on a mended disk {differs if not code else said}", True)
    return Outcome(TOLD, named.replace(str(out), "OUT"), True)


def _names(line: str, files: list[str], out: Path) -> bool:
    """Whether a line names one of the files, or a path on the disk that failed."""
    return str(out.parent) in line or any(Path(name).name in line for name in files)


def all_of(stage: Stage, out: Path) -> Iterator[tuple[Failure, Outcome]]:
    """Every failure of a stage, kind by kind, up to the first number that no operation has any more."""
    for kind in KINDS:
        for error, stays in VARIANTS[kind]:
            number = 0
            while True:
                number += 1
                failure = Failure(kind, number, error, stays)
                found = attempt(stage, out, failure)
                if not found.fired:
                    break
                yield failure, found
