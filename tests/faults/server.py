"""A process that has imported everything and forks a child for each command: what a child costs is its work alone.

`python -m tests.faults.server` reads a JSON object a line and answers each with one:

    {"start": [COMMAND, ARGUMENT, ...], "said": FILE, "cwd": FOLDER, "bound": true, "set": {}}  ->  {"pid": N}
    {"wait": N, "seconds": S}  ->  {"code": C}, None where it still runs

COMMAND is train, prepare, evaluate or replay. `bound`: file permissions hold for the child, also where it is root's;
`set`: further environment variables; with PAUSE=S a child waits for S seconds before it syncs a file, so that whoever
watches it sees files half written, and comes before its end on machines of any speed. The server has a single thread
whenever it forks, so no lock can be held by a thread that the child does not have.
"""

import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = 64  # width of the head: the checkpoints of a run are then some 100 KB and not 130 MB


def shrink() -> None:
    """Models get a small head, and nobody draws pictures: the same code, less to compute and to write."""
    from essl_fast.models import heads
    from essl_fast.report import figures
    from essl_fast.train import results

    head = heads.SimSiamHead
    heads.SimSiamHead = lambda channels: head(channels, SMALL, SMALL // 4)
    for module, names in ((figures, ("curves", "overlays")), (results, ("write_report",))):
        for name in names:
            assert callable(getattr(module, name))
            setattr(module, name, lambda *_, **__: None)


def be_bound() -> None:
    """Give up root's right to write where permissions forbid it (CAP_DAC_OVERRIDE); others do not have it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    for at in (0, 1):  # effective, permitted
        data[at] &= ~(1 << 1)
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def be_slow(pause: float) -> None:
    """Wait before each sync of a file."""
    sync = os.fsync

    def late(handle: int) -> None:
        time.sleep(pause)
        sync(handle)

    os.fsync = late


def run(command: str, arguments: list[str]) -> int:
    from essl_fast.common import commands
    from tests.tools.doors import door

    module = door(f"essl_fast.{command}")
    return commands.command(lambda: module.main(arguments), module.PROG)


def child(asked: dict) -> int:
    """What a forked child does; its exit status."""
    os.setsid()
    said = os.open(asked["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(asked["cwd"])
    os.environ.update(asked["set"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if pause := float(os.environ.pop("PAUSE", 0)):
        be_slow(pause)
    if asked["bound"]:
        be_bound()
    command, *arguments = asked["start"]
    try:
        return run(command, arguments)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1


def serve() -> None:
    """Import whatever a child might want, then answer until stdin ends."""
    import torch
    import torch._dynamo  # which an optimizer imports

    for name in ("evaluate.__main__", "prepare.__main__", "replay", "train.__main__", "data.loading.decoder"):
        importlib.import_module(f"essl_fast.{name}")
    torch.set_num_threads(1)
    shrink()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: whoever asks decides
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "start" in asked:
            threads = len(os.listdir("/proc/self/task"))
            assert threads == 1, f"{threads} threads: a fork may hang"
            pid = os.fork()
            if not pid:
                code = child(asked)
                sys.stdout.flush()
                sys.stderr.flush()
                finish(code)
            answer = {"pid": pid}
        else:
            answer = {"code": wait(asked["wait"], asked["seconds"])}
        print(json.dumps(answer), flush=True)


def finish(code: int) -> None:
    """End as an interpreter does, atexit's functions included, but for what belongs to the server."""
    import atexit

    atexit._run_exitfuncs()
    os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


class Child:
    """A command that the server runs."""

    def __init__(self, server: "Server", pid: int, said: Path) -> None:
        self.server, self.pid, self._said, self.code = server, pid, said, None

    def wait(self, seconds: float = 600) -> int:
        """Its exit status, minus the signal's number where one ended it; AssertionError if it does not end in time."""
        if (code := self.poll(seconds)) is None:
            self.kill(signal.SIGKILL)
            self.poll(60)
            raise AssertionError(f"it did not end within {seconds} s:\n{self.said()}")
        return code

    def poll(self, seconds: float = 0) -> int | None:
        if self.code is None:
            self.code = self.server.ask({"wait": self.pid, "seconds": seconds})["code"]
        return self.code

    def kill(self, by: int) -> None:
        """Send it a signal; nothing happens if it has ended (it is a zombie until :meth:`poll` says so)."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, by)

    def said(self) -> str:
        return self._said.read_text(errors="replace")


class Server:
    """The other end: starts the process, and children by it."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self._count = Path(scratch), 0
        self.scratch.mkdir(parents=True, exist_ok=True)
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
        environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert "ready" in self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        assert line, "the server died: see what it said on stderr"
        return json.loads(line)

    def ask(self, question: dict) -> dict:
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def start(self, command: str, *arguments: object, bound: bool = False, **variables: object) -> Child:
        self._count += 1
        said = self.scratch / f"said-{self._count}.txt"
        started = self.ask(
            {
                "start": [command, *map(str, arguments)],
                "said": str(said),
                "bound": bound,
                "cwd": str(self.scratch),
                "set": {k: str(v) for k, v in variables.items()},
            }
        )
        return Child(self, started["pid"], said)

    def run(self, command: str, *arguments: object, bound: bool = False) -> tuple[int, str]:
        """(exit status, what it said) of a command that is left to end."""
        it = self.start(command, *arguments, bound=bound)
        return it.wait(), it.said()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=120)
        self._process.stdout.close()


if __name__ == "__main__":
    serve()
