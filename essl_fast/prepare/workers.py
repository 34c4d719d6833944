"""Processes that make parts, and the order in which the parts come.

Each worker is an interpreter of its own that imports no more than this module. So it starts in a third of a second
whatever the caller has imported, it needs no guarded main module, and a decoder that crashes on a broken file costs
this file, not the run. A worker that somebody else ends (the system when memory is short, say) costs no file: its video
is tried again. Workers end with the process that started them, however that ends. Parts come in the order of the tasks,
and only a limited number is made in advance, so that disk and memory do not grow with the data set.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from essl_fast.common.errors import InputError
from essl_fast.common.subprocesses import with_package
from essl_fast.data import media
from essl_fast.prepare.parts import finished_part, make_part
from essl_fast.prepare.tasks import Task

CRASHED = "decoder crashed"
AHEAD = 8192  # pairs that may wait for the next part in order, about 1 GB
WORKER = ("-m", "essl_fast.prepare.workers")  # what the interpreter of a worker runs
_FAULTS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}  # the process's own fault


@dataclass(eq=False)
class _Waiting:
    """A video that was handed to a worker, or needs none.

    Attributes:
        video: its name.
        pairs: how many are wanted of it.
        index: of its part, or the future of it; None, or a future of None: the index is on disk.
        task: None if there is no part to make.
        fingerprint: of the task.
    """

    video: str
    pairs: int
    index: dict | Future | None
    task: Task | None = None
    fingerprint: str = ""


def make_in_order(
    tasks: Iterable[tuple[str, Task | dict]], folder: Path, workers: int, ahead: int = AHEAD
) -> Generator[tuple[str, dict], None, None]:
    """Make the parts of some videos, several at a time, and yield them in order.

    A part that is there is not made again. A video that crashes its worker, or that disappears meanwhile, gives an
    index that leaves all of it out, and has no part on disk. Until the caller asks for more, only the parts of the next
    `workers` videos are made, and of as many further ones as have `ahead` pairs together.

    Args:
        tasks: (video, its task). A dict instead of the task is the index itself.
        folder: of the parts.
        workers: how many processes.
        ahead: how many pairs may wait.

    Yields:
        (video, index of its part).

    Raises:
        InputError: a part cannot be written, or one worker after another is ended from outside.
    """
    crew = [Worker(folder) for _ in range(workers)]
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in crew:
        idle.put(worker)

    def work(task: Task) -> dict | None:
        worker = idle.get()
        try:
            return worker.make(task)
        finally:
            idle.put(worker)

    tasks, coming = iter(tasks), None
    waiting: deque[_Waiting] = deque()
    pairs = 0
    with contextlib.ExitStack() as pipes, ThreadPoolExecutor(workers) as pool:
        for worker in crew:
            pipes.callback(worker.close)  # when the pool's threads have ended
        try:
            while True:
                while (coming := coming or next(tasks, None)) is not None:
                    video, task = coming
                    count = 0 if isinstance(task, dict) else len(task.requests)
                    if len(waiting) > workers and pairs + count > ahead:
                        break
                    waiting.append(_hand_out(video, task, folder, lambda task: pool.submit(work, task)))
                    pairs, coming = pairs + count, None
                if not waiting:
                    return
                due = waiting[0]
                yield due.video, _index_of(due, folder)
                waiting.popleft()
                pairs -= due.pairs
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in crew:
                worker.stop()  # a thread that waits for its reply then gets the end of the pipe, and returns


def _hand_out(video: str, task: Task | dict, folder: Path, submit: Callable[[Task], Future]) -> _Waiting:
    """Give a task to a worker, unless its part is there or cannot be made."""
    if isinstance(task, dict):
        return _Waiting(video, 0, task)
    pairs = len(task.requests)
    try:
        fingerprint = task.fingerprint()
    except media.MediaError as error:
        return _Waiting(video, pairs, task.lost(error.reason, error.detail))
    part = finished_part(task, folder, fingerprint)
    done = part is not None and "again" not in part
    return _Waiting(video, pairs, None if done else submit(task), task, fingerprint)


def _index_of(due: _Waiting, folder: Path) -> dict:
    """The index of a part, when it is finished. InputError if it is gone from the disk."""
    index = due.index.result() if isinstance(due.index, Future) else due.index
    if index is not None and [lost[1] for lost in index["left_out"][:1]] == [CRASHED]:
        index["fingerprint"] = due.fingerprint  # it is not tried again, unless the file changes
    elif index is None:
        assert due.task is not None  # what has no task has an index
        index = finished_part(due.task, folder, due.fingerprint)
        if index is None:
            raise InputError(f"the part of {due.video} in {folder} is gone or {due.task.path} has changed: run again")
    return index


class Worker:
    """An interpreter that makes parts: it reads a line of JSON for each task and answers with one for each part."""

    def __init__(self, folder: Path):
        self.folder, self.stopped = folder, False
        self.process: subprocess.Popen[bytes] | None = None

    def make(self, task: Task) -> dict | None:
        """Make the part. Returns None, or, if there can be no part, its index. InputError as `make_in_order`."""
        for attempt in (1, 2):
            taken, answer, code = self._ask(task)
            if answer is not None and "cannot_write" in answer:
                raise InputError(
                    f"cannot make a part in {self.folder}: {answer['cannot_write']}; free some space or choose another "
                    "--out, then run again"
                )
            if answer is not None:
                return task.lost(*answer["lost"]) if "lost" in answer else None
            if self.stopped or (taken and -code in _FAULTS):
                return task.lost(CRASHED, f"{Path(task.path).name}: its worker was ended by signal {-code}")
            if taken and code >= 0:
                raise RuntimeError(f"the worker that read {task.path} ended with status {code}; its traceback is above")
            if attempt == 2:
                by = f"signal {-code}" if code < 0 else f"status {code}"
                by += " (out of memory?)" if -code == signal.SIGKILL else ""
                what = f"a worker was ended by {by} while reading {task.path}"
                raise InputError(f"{what}: use fewer --workers and run again")
        raise AssertionError("the second attempt returns or raises")

    def start(self) -> None:
        """Start the interpreter. InputError if the system refuses."""
        command = [sys.executable, *WORKER, str(self.folder), str(os.getpid())]
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=with_package())
        except OSError as error:
            raise InputError(f"cannot start a worker ({error}): use fewer --workers and run again") from error

    def stop(self) -> None:
        """End the interpreter, also while it works."""
        self.stopped = True
        if (process := self.process) is not None:  # the thread that reads its reply sets `self.process` to None
            process.kill()
            process.wait()

    def close(self) -> None:
        """Close the pipes of an interpreter that was ended. No thread may wait for its reply."""
        if self.process is not None:
            assert self.process.stdout is not None and self.process.stdin is not None  # pipes
            self.process.stdout.close()
            with contextlib.suppress(BrokenPipeError):  # closing flushes what it did not take
                self.process.stdin.close()

    def _ask(self, task: Task) -> tuple[bool, dict | None, int]:
        """(whether the worker got the task, its answer or None, its exit code if there is no answer)."""
        if self.process is None:
            self.start()
            if self.stopped:
                self.stop()
        process, taken, reply = self.process, False, b""
        assert process is not None and process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asdict(task)).encode() + b"\n")
            process.stdin.flush()
            taken = True
            reply = process.stdout.readline()
        if reply.endswith(b"\n"):
            return True, json.loads(reply), 0
        with contextlib.suppress(BrokenPipeError):  # closing flushes what the dead worker did not take
            process.stdin.close()
        code = process.wait()
        process.stdout.close()
        self.process = None
        return taken, None, code


def serve(folder: Path, parent: int) -> None:
    """The program of a worker: make the part of each task that comes, until stdin ends.

    Args:
        folder: of the parts.
        parent: process id of the caller.
    """
    if sys.platform == "linux":  # elsewhere a worker without its caller ends after the current video, with its stdin
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG: die when the parent dies
        if os.getppid() != parent:
            return  # it died before that
    media.hold_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the caller decides when workers end
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not look like a reply
    for line in sys.stdin.buffer:
        fields = json.loads(line)
        fields |= {"requests": tuple(map(tuple, fields["requests"])), "rows": tuple(fields["rows"])}
        replies.write(json.dumps(_answer(Task(**fields), folder)).encode() + b"\n")
        replies.flush()


def _answer(task: Task, folder: Path) -> dict[str, Any]:
    """Make a part. {} if it is there now, else why it cannot be."""
    try:
        make_part(task, folder)
        return {}
    except media.MediaError as error:
        return {"lost": [error.reason, error.detail]}
    except OSError as error:
        return {"cannot_write": str(error)}


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
