"""Feeds targets damaged inputs, in a child process that is started again where it dies, and collects what fails."""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.mutate import mutate

ROOT = Path(__file__).resolve().parents[2]
SERVE = ("-m", "tests.fuzz.child")
DEADLINE = 10.0  # seconds that an input may take
_START = 120.0  # seconds until a child is ready


@dataclass(frozen=True)
class Failure:
    """An input that made a target fail. what: the exception, "signal N", "hang" or "outside"; where: the line of ours
    it came from, which tells failures apart."""

    target: str
    name: str
    data: bytes
    what: str
    where: str
    trace: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.target, self.what, self.where


class Child:
    """A running `tests.fuzz.child`. `parts`: target → part → sound bytes."""

    def __init__(self, place: Path, targets: list[str], deadline: float = DEADLINE):
        self.place, self.targets, self.deadline = place, targets, deadline
        self.parts: dict[str, dict[str, bytes]] = {}
        self.restarts = -1
        self._start()

    def _start(self) -> None:
        self.restarts += 1
        self.place.mkdir(parents=True, exist_ok=True)
        self._log = self.place / "child.log"
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TRITON_INTERPRET": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self.place),
        }
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *SERVE, str(self.place), *self.targets],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        if self._line(_START) != b"ready\n":
            self.close()
            raise RuntimeError(f"the fuzzer's child did not start:\n{self._log.read_text(errors='replace')[-4000:]}")
        for target in self.targets:
            root = self.place / "parts" / target
            files = sorted(path for path in root.rglob("*") if path.is_file())
            self.parts[target] = {str(path.relative_to(root)): path.read_bytes() for path in files}

    def _line(self, patience: float) -> bytes | None:
        """A line of the child's, b"" when it has ended, None when it takes too long. A line comes at once."""
        ready, _, _ = select.select([self.process.stdout], [], [], patience)
        return self.process.stdout.readline() if ready else None

    def ask(self, target: str, name: str, data: bytes, watch: bool = False) -> dict:
        """The child's answer; one with a failure where it died or hung, and then it is a new child."""
        asked = {"target": target, "name": name, "size": len(data), "watch": watch}
        begun = time.perf_counter()
        try:
            self.process.stdin.write(json.dumps(asked).encode() + b"\n" + data)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended: its answer says so
        line = self._line(self.deadline)
        if line:
            return json.loads(line)
        if line is None:
            self.process.send_signal(signal.SIGABRT)  # its faulthandler says where it was
        code = self.process.wait()
        trace = self._log.read_text(errors="replace")[-6000:]
        self.close()
        self._start()
        what = "hang" if line is None else f"signal {-code}" if code < 0 else f"exit {code}"
        frames = [text for text in trace.splitlines() if "File" in text and "essl_fast" in text]
        failure = {"what": what, "where": frames[0].strip() if frames else "?", "trace": trace}
        return {"seconds": time.perf_counter() - begun, "new": 0, "refused": "", "failure": failure}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # what it did not take is of no use any more


@dataclass
class Tally:
    """What came of fuzzing a target."""

    target: str
    executions: int = 0
    refused: int = 0
    grown: int = 0  # inputs that reached lines which none before them had
    seconds: float = 0.0
    slowest: float = 0.0
    failures: dict[tuple, Failure] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.executions / self.seconds if self.seconds else 0.0


def fuzz(child: Child, target: str, *, executions: int = 0, minutes: float = 0.0, seed: int = 0, watch: bool = True):
    """Fuzz a target so many times, or for so long. -> Tally. The inputs are a function of the seed and, where `watch`
    keeps those that reach new lines as seeds of others, of the code."""
    rng = random.Random(f"{target}/{seed}")
    corpus = [(name, data) for name, data in child.parts[target].items()]
    tally, begun = Tally(target), time.perf_counter()
    sound = list(corpus)  # first as they are: they must pass, and what they reach is nothing new
    while (tally.executions < executions) if executions else (time.perf_counter() - begun < 60 * minutes):
        if sound:
            name, data = sound.pop()
        else:
            young = rng.randrange(max(0, len(corpus) - 20), len(corpus))
            name, data = corpus[rng.randrange(len(corpus)) if rng.random() < 0.7 else young]
            data = mutate(rng, name, data, [other for _, other in corpus[:50]])
        told = child.ask(target, name, data, watch)
        tally.executions += 1
        tally.refused += bool(told["refused"])
        tally.slowest = max(tally.slowest, told["seconds"])
        if told["failure"]:
            failure = Failure(target, name, data, **told["failure"])
            tally.failures.setdefault(failure.key, failure)
        elif told["new"] and len(data) < 1 << 20:
            tally.grown += 1
            corpus.append((name, data))
    tally.seconds = time.perf_counter() - begun
    return tally


def save(failure: Failure, folder: Path) -> Path:
    """Keep an input that failed, and how, in a folder. -> the input's file."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.blake2b(failure.data, digest_size=5).hexdigest()
    path = folder / f"{failure.target}-{digest}-{Path(failure.name).name}"
    path.write_bytes(failure.data)
    told = f"{failure.target} {failure.name}: {failure.what} at {failure.where}\n\n{failure.trace}\n"
    path.with_name(f"{path.name}.why.txt").write_text(told)
    return path
