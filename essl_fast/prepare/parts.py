"""One video → one part: the frames and sound windows of its pairs, on disk until they are in a shard.

    PARTS/<video>.part     the bytes, one pair after another
    PARTS/<video>.json     fingerprint of the task, where each pair lies, what was left out; written last

A part whose fingerprint fits its task is finished and is not made again: that is what makes `prepare` resumable. The
fingerprint covers what was asked for and the video file's name, size and time of change. Parts are not synced to the
disk, which would cost more than to make one again: after a restart of the machine, none of them counts.

A pair's frame is decoded and stored as JPEG, or, where the task says so, copied as a clip, without decoding anything.
A frame that no clip can be cut of is stored as JPEG after all, and the part says why.

`make_in_order` hands videos to worker processes, each of its own interpreter that imports no more than this module: it
starts in a third of a second whatever the caller has imported, needs no guarded main module, and a decoder that crashes
on a broken file costs that file, not the run. A worker that others end (out of memory, say) costs no file: its video is
tried again. Workers end with the process that started them, however that ends. Parts come out in the order of the
tasks, and only so many are made ahead of the one that is due: disk and memory do not grow with the data set.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from urllib.parse import quote

import av
import numpy as np
from PIL import Image

from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_file, sealed, unsealed
from essl_fast.common.subprocesses import with_package
from essl_fast.data import media
from essl_fast.data.datasets import hdf5
from essl_fast.data.datasets.listed import HDF5, MIDDLE, STILL, VIDEO
from essl_fast.data.media import audio, clips, limits, nvdec, stills
from essl_fast.data.media.stills import JPEG
from essl_fast.data.shards import tars

CRASHED = "decoder crashed"
NOT_ON_GPU = "no GPU here decodes the video"  # why a frame is a JPEG and no clip; so are the next and clips.NO_CLIP
TOO_LARGE = "clip too large"
LARGEST_CLIP = 4 << 20  # bytes; a JPEG of 1080p takes 1 MB at most
AHEAD = 8192  # pairs that may wait for the part that is due, about 1 GB
_VERSION = 3  # of what a part holds for a task
_FAULTS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}  # a process's own doing
_SERVE = ("-m", "essl_fast.prepare.parts")  # what a worker's interpreter runs


def stem_of(video: str) -> str:
    """A file name for a video of any name."""
    name = quote(video, safe="")
    return name if len(name) <= 100 else f"{name[:80]}-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"


@dataclass(frozen=True)
class Task:
    """A video file and the pairs wanted of it: (key, fid, time in seconds) each. clips: copy the frames' packets;
    decoders: only of videos that these decode, where they are given; and where frames are to be decoded, the GPU's
    decoders do that for such videos.

    kind: MIDDLE, the one pair is the middle of the video, whatever its fid and time say; STILL, it is a picture file
    and the middle of the sound file `sound`; HDF5, `path` and `sound` are HDF5 files, and `rows` the pairs' rows.
    floats: of a STILL the sound is stored as float32, as that of HDF5 is, and not as int16.
    """

    video: str
    path: str
    requests: tuple[tuple[str, int, float], ...]
    clips: bool = False
    decoders: nvdec.Decoders | None = None
    kind: str = VIDEO
    sound: str = ""
    rows: tuple[int, ...] = ()
    floats: bool = False

    def stem(self) -> str:
        return stem_of(self.video)

    def fingerprint(self) -> str:
        asked = (
            self.clips,
            self.decoders and sorted(self.decoders.items()),
            self.requests,
            self.kind,
            self.rows,
            self.floats,
        )
        told = [_VERSION, JPEG, asked]
        for path in filter(None, (self.path, self.sound)):
            try:
                stat = os.stat(path)
            except OSError as error:
                raise media.unreadable(Path(path), error) from error
            told += Path(path).name, stat.st_size, stat.st_mtime_ns
        return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()

    def lost(self, reason: str, detail: str) -> dict:
        """The index of a part without a pair."""
        return lost_part(len(self.requests), reason, detail)


def lost_part(pairs: int, reason: str, detail: str) -> dict:
    """The index of a part of a video that gives none of its pairs. Its fingerprint says that there is no such file."""
    detail = f"{media.as_text(detail)} ({pairs} pair{'s' * (pairs != 1)})"
    return {"fingerprint": "", "bytes": 0, "members": {}, "left_out": [["", reason, detail]], "pictures": []}


def finished_part(task: Task, folder: Path, fingerprint: str) -> dict | None:
    """The part's index if the part is there, whole, and made for a task of this fingerprint, else None."""
    try:
        index = unsealed((folder / f"{task.stem()}.json").read_bytes())
        whole = (folder / f"{task.stem()}.part").stat().st_size == index["bytes"] and index["boot"] == _boot()
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return index if whole and index["fingerprint"] == fingerprint else None


def drop_part(video: str, folder: Path) -> None:
    """Remove a video's part, if there is one."""
    for kind in ("json", "part"):
        (folder / f"{stem_of(video)}.{kind}").unlink(missing_ok=True)


def make_part(task: Task, folder: Path) -> dict:
    """Make the task's part: its bytes and, after them, its index, which is also returned:

    {"fingerprint", "bytes", "boot", "members": {key: [offset, bytes of frame, of sound, its kind, target, quarters,
    CRC-32]}, "left_out": [[key or "", reason, detail], ...], "pictures": [[reason, detail, pairs], ...]}.

    A key of "" means the whole video, with all its pairs; "pictures" tells why frames are JPEG where clips were asked.
    """
    fingerprint = task.fingerprint()  # before decoding: a file that changes meanwhile will not fit
    folder.mkdir(parents=True, exist_ok=True)
    data, index = folder / f"{task.stem()}.part", folder / f"{task.stem()}.json"
    members: dict[str, list[int]] = {}
    left_out: list[tuple[str, str, str]] = []
    pictures: dict[str, list] = {}
    with atomic_file(data, str(os.getpid()), sync=not _boot()) as file:
        offset = 0
        try:
            for key, frame, place, sound in _decode(task, left_out, pictures):
                members[key] = [offset, len(frame), len(sound), *place, tars.pair_crc(frame, sound)]
                offset += file.write(frame) + file.write(sound)
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, av.FFmpegError):
                raise  # not the video's fault: the part cannot be written
            if not isinstance(error, media.MediaError):  # no file may end the run of all others
                said = getattr(error, "strerror", None) or str(error).replace(task.path, Path(task.path).name)
                told = f"{Path(task.path).name}: {type(error).__name__}: {said}"
                error = media.MediaError(media.UNREADABLE, told)
            left = len(task.requests) - len(members) - len(left_out)
            left_out.append(("", error.reason, f"{error.detail} ({left} pair{'s' * (left != 1)})"))
    part = {
        "fingerprint": fingerprint,
        "bytes": offset,
        "boot": _boot(),
        "members": members,
        "left_out": sorted(left_out),
        "pictures": [[reason, *rest] for reason, rest in pictures.items()],
    }
    with atomic_file(index, str(os.getpid()), sync=not _boot()) as file:
        file.write(sealed(part))
    return part


@functools.cache
def _boot() -> str:
    """Which run of the machine this is, "" where nobody tells: then parts are synced."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _decode(
    task: Task, left_out: list, pictures: dict[str, list]
) -> Iterator[tuple[str, bytes, tuple[int, int, int], bytes]]:
    """(key, frame as it is stored, (JPEG, CLIP or PNG, target, quarters), 48,000 little-endian samples of sound, int16
    or of HDF5 float32) of each pair that the file can give."""
    path = Path(task.path)
    if task.kind == HDF5:
        for key, frame, sound in hdf5.stored_rows(path, Path(task.sound), task.requests, task.rows, left_out):
            yield key, frame, (tars.PNG, 0, 0), sound
        return
    if task.kind == STILL:
        picture, heard = stills.picture_file(path), stills.middle_sound(Path(task.sound))
        sound = heard.astype("<f4") if task.floats else audio.to_pcm16(heard).astype("<i2")
        yield task.requests[0][0], picture, (tars.JPEG, 0, 0), sound.tobytes()
        return
    found = media.probe(path)
    if task.kind == MIDDLE:
        heard, rate = [(task.requests[0][0], *stills.middle_frame(found), stills.middle_sound(path, False))], audio.RATE
    else:
        heard, rate = _windows(task, found, left_out)

    def pcm(window) -> bytes:
        return audio.to_pcm16(audio.to_stored(window, rate)).astype("<i2").tobytes()

    def instead(reason: str, detail: str, count: int = 1) -> None:
        pictures.setdefault(reason, [detail, 0])[1] += count

    refusal = nvdec.refusal(task.decoders, found) if heard and task.decoders else ""
    decode_frames = media.decode_frames
    if refusal and task.clips:
        instead(NOT_ON_GPU, f"{path.name}: {refusal}", len(heard))
    elif task.clips:
        left = []  # what no clip can be of
        for at, clip in clips.cut_clips(path, [(fid, time) for _, fid, time, _ in heard], found):
            key, _, _, window = heard[at]
            if isinstance(clip, media.MediaError) and clip.reason != clips.NO_CLIP:
                left_out.append((key, clip.reason, clip.detail))
            elif isinstance(clip, media.MediaError):
                instead(clip.reason, clip.detail)
                left.append(heard[at])
            elif len(clip.data) > LARGEST_CLIP:
                instead(TOO_LARGE, f"{path.name}: {len(clip.data) / 2**20:.1f} MB from one key frame to the frame")
                left.append(heard[at])
            else:
                yield key, clip.data, (tars.CLIP, clip.target, clip.quarters), pcm(window)
        heard = left
    elif task.decoders and not refusal:
        limits.release_memory()
        from essl_fast.data.media import hardware  # DALI, and a CUDA context: for those who asked for it

        decode_frames = hardware.decode_frames
    for at, frame in decode_frames(path, [(fid, time) for _, fid, time, _ in heard], found):
        key, _, _, window = heard[at]
        if isinstance(frame, media.MediaError):
            left_out.append((key, frame.reason, frame.detail))
            continue
        jpeg = io.BytesIO()
        Image.fromarray(frame).save(jpeg, "JPEG", **JPEG)
        yield key, jpeg.getvalue(), (tars.JPEG, 0, 0), pcm(window)


def _windows(task: Task, found: media.Probe, left_out: list) -> tuple[list[tuple[str, int, float, np.ndarray]], int]:
    """([(key, fid, time, its 3 s of sound), ...] of the pairs that have them, rate in Hz)."""
    path = Path(task.path)
    sound = audio.decode_sound(path, until=max(time for _, _, time in task.requests) + audio.SECONDS / 2)
    heard = []
    for key, fid, time in task.requests:
        window = audio.sound_window(sound.mono, sound.rate, time)
        if window is not None and (hole := sound.hole(time)):
            left_out.append((key, media.SOUND_TRUNCATED, f"{path.name}: 3 s around {time:g} s: {hole}"))
            continue
        if window is not None:
            heard.append((key, fid, time, window))
            continue
        broken = (sound.damage or found.truncated) if time >= audio.SECONDS / 2 else ""
        if broken:
            left_out.append((key, media.SOUND_TRUNCATED, f"3 s around {time:g} s: {broken}"))
        else:
            length = len(sound.mono) / sound.rate
            left_out.append((key, media.WINDOW, f"{path.name}: 3 s around {time:g} s, the track has {length:.2f} s"))
    return heard, sound.rate


def make_in_order(
    asked: Iterable[tuple[str, Task | dict]], folder: Path, workers: int, ahead: int = AHEAD
) -> Iterator[tuple[str, dict]]:
    """Make the parts of (video, task), `workers` at a time, and yield (video, index of its part) in their order; where
    a dict stands for a task, it is the index.

    Before the caller has asked for more, only parts of the `workers` next videos are made, and of as many beyond these
    as have `ahead` pairs altogether. A part that is there is not made again. A video that crashes its worker yields an
    index that leaves all of it out and has no part on disk; so does one that is gone meanwhile. InputError if a part
    cannot be written, or if worker after worker is ended from outside.
    """
    crew = [_Worker(folder) for _ in range(workers)]
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in crew:
        idle.put(worker)

    def work(task: Task) -> dict | None:
        worker = idle.get()
        try:
            return worker.make(task)
        finally:
            idle.put(worker)

    asked, coming = iter(asked), None
    waiting: deque[tuple[str, Task | None, str, dict | Future | None, int]] = deque()
    pairs = 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                while (coming := coming or next(asked, None)) is not None:
                    video, task = coming
                    count = 0 if isinstance(task, dict) else len(task.requests)
                    if len(waiting) > workers and pairs + count > ahead:
                        break
                    waiting.append((video, *_hand_out(task, folder, pool, work), count))
                    pairs, coming = pairs + count, None
                if not waiting:
                    return
                video, task, fingerprint, index, count = waiting[0]
                index = index.result() if isinstance(index, Future) else index
                if index is not None and index["left_out"][0][1:2] == [CRASHED]:
                    index["fingerprint"] = fingerprint  # it is not tried again, unless the file changes
                elif index is None and (index := finished_part(task, folder, fingerprint)) is None:
                    raise InputError(f"the part of {video} in {folder} is gone or {task.path} has changed: run again")
                yield video, index
                waiting.popleft()
                pairs -= count
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in crew:
                worker.stop()  # a thread that waits for a reply then gets its end and returns


def _hand_out(task: Task | dict, folder: Path, pool: ThreadPoolExecutor, work) -> tuple:
    """(task, its fingerprint, its index or the future of it; None or a future of None: the index is on disk)."""
    if isinstance(task, dict):
        return None, "", task
    try:
        fingerprint = task.fingerprint()
    except media.MediaError as error:
        return None, "", task.lost(error.reason, error.detail)
    done = finished_part(task, folder, fingerprint) is not None
    return task, fingerprint, None if done else pool.submit(work, task)


class _Worker:
    """An interpreter that makes parts: a line of JSON for each task in, one for each part out."""

    def __init__(self, folder: Path):
        self.folder, self.process, self.stopped = folder, None, False

    def make(self, task: Task) -> dict | None:
        """Make the part; or, where it cannot be, its index."""
        for attempt in (1, 2):
            taken, answer, code = self._ask(task)
            if answer is not None and "cannot_write" in answer:
                raise _cannot(self.folder, answer["cannot_write"])
            if answer is not None:
                return task.lost(*answer["lost"]) if "lost" in answer else None
            if self.stopped or (taken and -code in _FAULTS):
                how = f"{Path(task.path).name}: its worker was ended by signal {-code}"
                return task.lost(CRASHED, how)
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
        command = [sys.executable, *_SERVE, str(self.folder), str(os.getpid())]
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=with_package())
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
    limits.hold_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller decides when this ends
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not look like a reply
    for line in sys.stdin.buffer:
        told = json.loads(line)
        told |= {"requests": tuple(map(tuple, told["requests"])), "rows": tuple(told["rows"])}
        try:
            make_part(Task(**told), folder)
            answer = {}
        except media.MediaError as error:
            answer = {"lost": [error.reason, error.detail]}
        except OSError as error:
            answer = {"cannot_write": str(error)}
        replies.write(json.dumps(answer).encode() + b"\n")
        replies.flush()


def _cannot(folder: Path, why: str) -> InputError:
    return InputError(f"cannot make a part in {folder}: {why}; free some space or choose another --out, then run again")


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
