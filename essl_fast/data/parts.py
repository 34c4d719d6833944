"""One video → one part: the JPEG frames and sound windows of its pairs, on disk until the shards are assembled.

    PARTS/<video>.part     the bytes, one member after another
    PARTS/<video>.json     fingerprint of the task, where each member lies, what was left out; written last

A part whose fingerprint fits its task is finished and is never made again: that is what makes `prepare` resumable. The
fingerprint covers what was asked for and the video file's name, size and time of change.

`run_tasks` hands videos to worker processes, each of its own interpreter that imports no more than this module: it
starts in a third of a second whatever the caller has imported, needs no guarded main module, and a decoder that crashes
on a broken file costs that file, not the run.
"""

from __future__ import annotations

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

from PIL import Image

from essl_fast.config import InputError
from essl_fast.data import media
from essl_fast.files import atomic_file

JPEG = {"quality": 95, "subsampling": 0}  # 4:4:4: chroma is kept at full resolution
CRASHED = "decoder crashed"
_VERSION = 1  # of what a part holds for a task


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
        stat = os.stat(self.path)
        told = (_VERSION, JPEG, Path(self.path).name, stat.st_size, stat.st_mtime_ns, self.requests)
        return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()


def finished_part(task: Task, folder: Path) -> dict | None:
    """The part's index if the part is there, whole and made for this very task, else None."""
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
        except media.MediaError as error:
            count = len(task.requests) - len(members) - len(left_out)
            left_out.append(("", error.reason, f"{error.detail} ({count} pair{'s' * (count != 1)})"))
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

    With one worker everything happens in this process. A video that crashes its worker yields an index that leaves all
    of it out and has no part on disk. InputError if a part cannot be written.
    """
    if workers <= 1:
        for task in tasks:
            try:
                yield task, make_part(task, folder)
            except OSError as error:
                raise _cannot(folder, str(error)) from error
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
        if self.process is None:
            self._start()
            if self.stopped:
                self.stop()
        process = self.process
        try:
            process.stdin.write(json.dumps(asdict(task)).encode() + b"\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = b""
        if reply.endswith(b"\n"):
            answer = json.loads(reply)
            if "cannot_write" in answer:
                raise _cannot(self.folder, answer["cannot_write"])
            return answer
        process.stdin.close()
        code = process.wait()
        process.stdout.close()
        self.process = None
        if code >= 0 and not self.stopped:
            raise RuntimeError(f"the worker that read {task.path} ended with status {code}; its traceback is above")
        how = f"{Path(task.path).name}: its worker was ended by signal {-code} ({len(task.requests)} pairs)"
        return {"members": {}, "left_out": [["", CRASHED, how]]}

    def _start(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "essl_fast.data.parts", str(self.folder)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env={**os.environ, "PYTHONPATH": paths})

    def stop(self) -> None:
        self.stopped = True
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _serve(folder: Path) -> None:
    """The worker: until stdin ends, make the part of each task that comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller decides when this ends
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not look like a reply
    for line in sys.stdin.buffer:
        told = json.loads(line)
        task = Task(told["video"], told["path"], tuple((key, fid, time) for key, fid, time in told["requests"]))
        try:
            answer = make_part(task, folder)
        except OSError as error:
            answer = {"cannot_write": str(error)}
        replies.write(json.dumps(answer).encode() + b"\n")
        replies.flush()


def _cannot(folder: Path, why: str) -> InputError:
    return InputError(f"cannot make a part in {folder}: {why}; free some space or choose another --out, then run again")


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
