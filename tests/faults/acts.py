"""What the cases of the matrix are made of: commands that are started, watched, killed, and have to end well."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults import worlds
from tests.faults.server import Child
from tests.faults.worlds import Bench

CASES: dict[tuple[str, str], Callable[[Bench], None]] = {}


def case(fault: str, stage: str):
    """Declares the function of a cell."""

    def declare(function: Callable[[Bench], None]) -> Callable[[Bench], None]:
        assert (fault, stage) not in CASES
        CASES[fault, stage] = function
        return function

    return declare


def until(child: Child, true: Callable[[], bool], seconds: float = 300) -> None:
    """Wait until `true()` while a child runs; AssertionError if the child ends first, or time runs out."""
    end = time.monotonic() + seconds
    while not true():
        assert child.code is None and child.poll() is None, f"it ended with {child.code}:\n{child.said()}"
        assert time.monotonic() < end, child.said()
        time.sleep(0.001)


def told(child: Child, *texts: object, code: int = 2) -> None:
    """The child ends with an error: its last line, which holds all of the texts."""
    assert child.wait() == code, child.said()
    line = child.said().strip().splitlines()[-1]
    assert all(str(text) in line for text in texts), child.said()
    assert "Traceback" not in child.said()


def succeeds(child: Child) -> str:
    assert child.wait() == 0, child.said()
    return child.said()


def resumed(bench: Bench, out: Path, *more: object) -> str:
    """Go on with a run to its end, which is the reference's; what was said."""
    said = succeeds(bench.server.start("train", "--resume", out, *more))
    assert (found := worlds.run_differs(out, bench.reference)) is None, found
    return said


def prepared_again(bench: Bench, out: Path) -> str:
    said = succeeds(bench.server.start("prepare", *bench.prepare(out)))
    assert (found := worlds.data_differs(out, bench.prepared)) is None, found
    return said


def evaluated(bench: Bench, out: Path, *more: object) -> None:
    """best.pt of a run gives the same results as the reference's."""
    result = bench.new("result.json")
    succeeds(bench.server.start("evaluate", out / "best.pt", "--device", "cpu", "--json", result, *more))
    found, summary = (json.loads(file.read_text()) for file in (result, bench.reference / "summary.json"))
    assert found["success_at_half"] == summary["test"]["success_at_half"] and found["auc"] == summary["test"]["auc"]


def begun(bench: Bench, *more: object, data: Path | None = None, writes: int = 2) -> tuple[Child, Path]:
    """A run that has written last.pt so often, and its directory."""
    out = bench.new("run")
    child = bench.server.start("train", *bench.train(out, *more, data=data), PAUSE=0.1)
    last, before = out / "last.pt", out / "last-1.pt"
    until(child, lambda: last.exists() and (writes < 2 or (before.exists() and not before.samefile(last))))
    return child, out


def interrupted(bench: Bench) -> Path:
    """A run that was killed after two writes of last.pt; a copy of the first one that was asked for."""
    kept = bench.root / "interrupted"
    if not kept.exists():
        child, out = begun(bench)
        child.kill(signal.SIGKILL)
        child.wait()
        out.rename(kept)
    return bench.copy(kept, "run")
