"""The process that reads damaged input: with little memory, and nobody minds if it dies.

    python -m tests.fuzz.child PLACE TARGET...

makes the targets' parts under PLACE/parts/TARGET, says "ready", and then answers each request, a line of JSON
{"target", "name", "size", "watch"} and so many bytes, with a line of JSON: {"seconds", "new", "refused", "failure"}.
`new`: lines of essl_fast that no request before it reached, where `watch` asked for it. `failure`: null, or what was
raised, where, and its traceback.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path

MEMORY = 4 << 30  # bytes; a fuzzed file has some 10 KB
OURS = str(Path(__file__).resolve().parents[2] / "essl_fast")


class Watch:
    """Which lines of ours were reached."""

    def __init__(self):
        self.seen: set[tuple] = set()

    def __enter__(self) -> Watch:
        self.before = len(self.seen)
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        self.new = len(self.seen) - self.before

    def _call(self, frame, event, argument):
        return self._line if frame.f_code.co_filename.startswith(OURS) else None

    def _line(self, frame, event, argument):
        self.seen.add((frame.f_code, frame.f_lineno))
        return self._line


class Fence:
    """What targets do to anything outside of a folder: files opened for writing, removed, renamed or made, programs
    started, connections opened. Python reports these before it does them; FFmpeg only reads."""

    STARTS = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect", "pty.spawn")
    CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
    WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def __init__(self, root: Path):
        self.root, self.up, self.passed = os.path.realpath(root), False, []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self.up:
            return
        paths, base = (), ""
        if event in self.STARTS:
            self.passed.append(f"{event} {arguments!r}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & self.WRITING:
            paths = arguments[:1]
        elif event in self.CHANGES:
            paths, folder = arguments[:2], arguments[-1]  # a folder that the path is in, or -1
            base = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else ""
        for path in paths:
            if isinstance(path, (str, bytes, os.PathLike)):
                place = os.path.realpath(os.path.join(base, os.fsdecode(path)))
                if place != os.devnull and os.path.commonpath([place, self.root]) != self.root:
                    self.passed.append(f"{event} {place}")


def failure_of(error: BaseException) -> dict:
    """What was raised and the last place of ours that it came through, which tells failures apart."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "essl_fast" in frame.filename] or list(frames)
    place = f"{Path(ours[-1].filename).name}:{ours[-1].name}:{ours[-1].line}" if ours else "?"
    text = "".join(traceback.format_exception(error, limit=-12))
    return {"what": type(error).__name__, "where": place, "trace": text[-6000:]}


def answer(target, place: Path, name: str, data: bytes, watch: Watch | None, fence: Fence) -> dict:
    """Run a target once."""
    refused, failure, begun = "", None, time.perf_counter()
    fence.passed.clear()
    fence.up = True
    try:
        with watch or contextlib.nullcontext():
            target.run(place, name, data)
    except Exception as error:
        if isinstance(error, target.allowed):
            refused = type(error).__name__
        else:
            failure = failure_of(error)
    finally:
        fence.up = False
    if fence.passed:
        failure = {"what": "outside", "where": fence.passed[0][:200], "trace": "\n".join(fence.passed)}
    took = time.perf_counter() - begun
    return {"seconds": took, "new": watch.new if watch else 0, "refused": refused, "failure": failure}


def serve(root: Path, names: list[str]) -> None:
    faulthandler.enable()
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    warnings.simplefilter("ignore")
    from tests.fuzz.targets import TARGETS

    watch, fence = Watch(), Fence(root)
    for name in names:
        place = root / "work" / name
        place.mkdir(parents=True, exist_ok=True)
        for part, data in TARGETS[name].parts(place).items():
            path = root / "parts" / name / part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    replies.write(b"ready\n")
    replies.flush()
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        data = sys.stdin.buffer.read(asked["size"])
        target = TARGETS[asked["target"]]
        place, watching = root / "work" / target.name, watch if asked["watch"] else None
        told = answer(target, place, asked["name"], data, watching, fence)
        if told["failure"] and told["failure"]["what"] == "MemoryError":
            gc.collect()
        replies.write(json.dumps(told).encode() + b"\n")
        replies.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2:])
