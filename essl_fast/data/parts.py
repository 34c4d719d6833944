"""One video → one part: the JPEG frames and sound windows of its pairs, on disk until the shards are assembled.

    PARTS/<video>.part     the bytes, one member after another
    PARTS/<video>.json     fingerprint of the task, where each member lies, what was left out; written last

A part whose fingerprint fits its task is finished and is never made again: that is what makes `prepare` resumable. The
fingerprint covers what was asked for and the video file's name, size and time of change.

`run_tasks` hands videos to worker processes, each of its own interpreter that imports no more than this module: it
starts in a third of a second whatever the caller has imported, needs no guarded main module, and a decoder that crashes
on a broken file costs that file, not the run. A worker that others end (out of memory, say) costs no file: its video is
tried again. Workers end with the process that started them, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from urllib.parse import quote

import av
from PIL import Image

from essl_fast.config import InputError
from essl_fast.data import media
from essl_fast.files import atomic_file

JPEG = {"quality": 95, "subsampling": 0}  # 4:4:4: chroma is kept at full resolution
CRASHED = "decoder crashed"
_VERSION = 2  # of what a part holds for a task
_FAULTS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}  # a process's own doing
_SERVE = ("-m", "essl_fast.data.parts")  # what a worker's interpreter runs


@dataclass(frozen=True)
class Task:
    """A video file and the pairs wanted of it: (key, fid, time in seconds) each."""

    video: str
    path: str
    requests: tuple[tuple[str, int, float], ...]

    def stem(self) -> str:
        name = quote(self.video, safe="")
        return name if len(name) <= 100 else f"{name[:80]}-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"

    def fingerprint(self) -> str:
        try:
            stat = os.stat(self.path)
        except OSError as error:
            raise media.unreadable(Path(self.path), error) from error
        told = (_VERSION, JPEG, Path(self.path).name, stat.st_size, stat.st_mtime_ns, self.requests)
        return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()


def finished_part(task: Task, folder: Path) -> dict | None:
    """The part's index if the part is there, whole and made for this very task, else None. MediaError as `make_part`
    would leave the whole video out with, if the video file is gone meanwhile."""
    try:
        index = json.loads((folder / f"{task.stem()}.json").read_bytes())
        whole = (folder / f"{task.stem()}.part").stat().st_size == index["bytes"]
    except (FileNotFoundError, ValueError):
        return None
    return index if whole and index["fingerprint"] == task.fingerprint() else None


def make_part(task: Task, folder: Path) -> dict:
    """Decode the task's pairs and write its part. Returns the part's index:

    {"fingerprint", "bytes", "members": {key: [offset, JPEG bytes, sound bytes]}, "left_out": [[key or "", reason,
    detail], ...]}; a key of "" means the whole video, with all its pairs.
    """
    print_of_task = task.fingerprint()  # before decoding: a file that changes meanwhile will not fit
    folder.mkdir(parents=True, exist_ok=True)
    data, index = folder / f"{task.stem()}.part", folder / f"{task.stem()}.json"
    members: dict[str, list[int]] = {}
    left_out: list[tuple[str, str, str]] = []
    with atomic_file(data, str(os.getpid())) as file:
        try:
            for key, jpeg, sound in _decode(task, left_out):
                members[key] = [file.tell(), len(jpeg), len(sound)]
                file.write(jpeg)
                file.write(sound)
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, av.FFmpegError):
                raise  # not the video's fault: the part cannot be written
            if not isinstance(error, media.MediaError):  # no file may end the run of all others
                said = getattr(error, "strerror", None) or str(error).replace(task.path, Path(task.path).name)
                told = f"{Path(task.path).name}: {type(error).__name__}: {said}"
                error = media.MediaError(media.UNREADABLE, told)
            left = len(task.requests) - len(members) - len(left_out)
            left_out.append(("", error.reason, f"{error.detail} ({left} pair{'s' * (left != 1)})"))
        size = file.tell()
    part = {"fingerprint": print_of_task, "bytes": size, "members": members, "left_out": sorted(left_out)}
    with atomic_file(index, str(os.getpid())) as file:
        file.write(json.dumps(part).encode())
    return part


def _decode(task: Task, left_out: list) -> Iterator[tuple[str, bytes, bytes]]:
    """(key, JPEG, 96,000 bytes of int16 little-endian sound) of each pair that the file can give."""
    path = Path(task.path)
    found = media.probe(path)
    sound = media.decode_sound(path, until=max(time for _, _, time in task.requests) + media.SECONDS / 2)
    heard = []
    for key, fid, time in task.requests:
        window = media.sound_window(sound.mono, sound.rate, time)
        if window is not None and (hole := sound.hole(time)):
            left_out.append((key, media.SOUND_TRUNCATED, f"{path.name}: 3 s around {time:g} s: {hole}"))
            continue
        if window is not None:
            heard.append((key, fid, time, window))
            continue
        broken = (sound.damage or found.truncated) if time >= media.SECONDS / 2 else ""
        if broken:
            left_out.append((key, media.SOUND_TRUNCATED, f"3 s around {time:g} s: {broken}"))
        else:
            length = len(sound.mono) / sound.rate
            left_out.append((key, media.WINDOW, f"{path.name}: 3 s around {time:g} s, the track has {length:.2f} s"))
    for at, frame in media.decode_frames(path, [(fid, time) for _, fid, time, _ in heard], found):
        key, _, _, window = heard[at]
        if isinstance(frame, media.MediaError):
            left_out.append((key, frame.reason, frame.detail))
            continue
        jpeg = io.BytesIO()
        Image.fromarray(frame).save(jpeg, "JPEG", **JPEG)
        pcm = media.to_pcm16(media.to_stored(window, sound.rate))
        yield key, jpeg.getvalue(), pcm.astype("<i2").tobytes()


class PartReader:
    """Reads members of many parts in any order; keeps at most 128 files open."""

    def __init__(self, folder: Path):
        self.folder, self._open = folder, OrderedDict()

    def read(self, task: Task, part: dict, key: str) -> tuple[bytes, bytes]:
        """The pair's JPEG and sound."""
        stem = task.stem()
        if stem not in self._open:
            if len(self._open) == 128:
                self._open.popitem(last=False)[1].close()
            self._open[stem] = open(self.folder / f"{stem}.part", "rb")
        self._open.move_to_end(stem)
        offset, jpeg, sound = part["members"][key]
        self._open[stem].seek(offset)
        return self._open[stem].read(jpeg), self._open[stem].read(sound)

    def __enter__(self) -> PartReader:
        return self

    def __exit__(self, *_) -> None:
        while self._open:
            self._open.popitem()[1].close()


def run_tasks(tasks: Sequence[Task], folder: Path, workers: int) -> Iterator[tuple[Task, dict]]:
    """Make the tasks' parts, `workers` at a time, and yield each with its index as it ends, in any order.

    A video that crashes its worker yields an index that leaves all of it out and has no part on disk; so does one that
    is gone meanwhile. InputError if a part cannot be written, or if worker after worker is ended from outside.
    """
    if not tasks:
        return
    idle: SimpleQueue[_Worker] = SimpleQueue()
    crew = [_Worker(folder) for _ in range(workers)]
    for worker in crew:
        idle.put(worker)

    def work(task: Task) -> dict:
        worker = idle.get()
        try:
            return worker.make(task)
        finally:
            idle.put(worker)

    # Few tasks are handed out ahead, so that an interrupt ends the run soon.
    todo, running = iter(tasks), {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                while len(running) < workers and (task := next(todo, None)) is not None:
                    running[pool.submit(work, task)] = task
                if not running:
                    break
                done: set[Future] = wait(running, return_when=FIRST_COMPLETED).done
                for future in done:
                    yield running.pop(future), future.result()
        finally:
            for worker in crew:
                worker.stop()  # a thread that waits for a reply then gets its end and returns


class _Worker:
    """An interpreter that makes parts: a line of JSON for each task in, one for each index out."""

    def __init__(self, folder: Path):
        self.folder, self.process, self.stopped = folder, None, False

    def make(self, task: Task) -> dict:
        file, count = Path(task.path).name, len(task.requests)
        for attempt in (1, 2):
            taken, answer, code = self._ask(task)
            if answer is not None and "cannot_write" in answer:
                raise _cannot(self.folder, answer["cannot_write"])
            if answer is not None:
                return answer
            if self.stopped or (taken and -code in _FAULTS):
                how = f"{file}: its worker was ended by signal {-code} ({count} pair{'s' * (count != 1)})"
                return {"members": {}, "left_out": [["", CRASHED, how]]}
            if taken and code >= 0:
                raise RuntimeError(f"the worker that read {task.path} ended with status {code}; its traceback is above")
            if attempt == 2:
                by = f"signal {-code}" if code < 0 else f"status {code}"
                by += " (out of memory?)" if -code == signal.SIGKILL else ""
                what = f"a worker was ended by {by} while reading {task.path}"
                raise InputError(f"{what}: use fewer --workers and run again")

    def _ask(self, task: Task) -> tuple[bool, dict | None, int]:
        """(whether the worker got the task, its answer or None, its exit code in the latter case)."""
        if self.process is None:
            self._start()
            if self.stopped:
                self.stop()
        process, taken, reply = self.process, False, b""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asdict(task)).encode() + b"\n")
            process.stdin.flush()
            taken = True
            reply = process.stdout.readline()
        if reply.endswith(b"\n"):
            return True, json.loads(reply), 0
        with contextlib.suppress(BrokenPipeError):  # it flushes what the dead worker did not take
            process.stdin.close()
        code = process.wait()
        process.stdout.close()
        self.process = None
        return taken, None, code

    def _start(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, *_SERVE, str(self.folder), str(os.getpid())]
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env={**os.environ, "PYTHONPATH": paths})
        except OSError as error:
            raise InputError(f"cannot start a worker ({error}): use fewer --workers and run again") from error

    def stop(self) -> None:
        self.stopped = True
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _serve(folder: Path, parent: int) -> None:
    """The worker: until stdin ends, make the part of each task that comes."""
    if sys.platform == "linux":  # elsewhere an orphan ends after the video it is at, when its stdin ends
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG: die when the parent does
        if os.getppid() != parent:
            return  # it was quicker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller decides when this ends
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not look like a reply
    for line in sys.stdin.buffer:
        told = json.loads(line)
        task = Task(told["video"], told["path"], tuple((key, fid, time) for key, fid, time in told["requests"]))
        try:
            answer = make_part(task, folder)
        except media.MediaError as error:
            detail = f"{error.detail} ({len(task.requests)} pair{'s' * (len(task.requests) != 1)})"
            answer = {"members": {}, "left_out": [["", error.reason, detail]]}
        except OSError as error:
            answer = {"cannot_write": str(error)}
        replies.write(json.dumps(answer).encode() + b"\n")
        replies.flush()


def _cannot(folder: Path, why: str) -> InputError:
    return InputError(f"cannot make a part in {folder}: {why}; free some space or choose another --out, then run again")


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
