"""Cases of the matrix: kills, disks, and other processes."""

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

from essl_fast import checkpoints
from tests.faults import worlds
from tests.faults.acts import begun, case, evaluated, prepared_again, resumed, succeeds, told, until
from tests.faults.server import Child
from tests.faults.worlds import Bench
from tests.tools.ports import free_port

ENDED = {signal.SIGKILL: {-9}, signal.SIGTERM: {-15, 143}, signal.SIGINT: {130}}
KILLS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT (Ctrl-C)": signal.SIGINT}
FULL = "/dev/full"  # whoever writes there is told that the disk is full

# ---------------------------------------------------------------- kills


def _kill_prepare(fault: str) -> None:
    by = KILLS[fault]

    @case(fault, "prepare")
    def _(bench: Bench) -> None:
        out = bench.new("data")
        child = bench.server.start("prepare", *bench.prepare(out))
        until(child, lambda: any(out.glob(".parts/*.part")))
        time.sleep(random.Random(fault).uniform(0, 0.1))
        child.kill(by)
        assert child.wait() in ENDED[by] | {0}, child.said()
        prepared_again(bench, out)


def _kill_training(fault: str) -> None:
    by = KILLS[fault]

    @case(fault, "training")
    def _(bench: Bench) -> None:
        child, out = begun(bench)
        time.sleep(random.Random(fault).uniform(0, 0.2))
        child.kill(by)
        assert child.wait() in ENDED[by], child.said()
        if by != signal.SIGKILL:
            assert f"--resume {out}" in child.said() and "stopped after step" in child.said()
        resumed(bench, out)

    @case(fault, "checkpoint")
    def _(bench: Bench) -> None:
        child, out = begun(bench)
        until(child, (out / ".last.pt.partial").exists)
        child.kill(by)
        assert child.wait() in ENDED[by], child.said()
        assert checkpoints.damage(out / "last.pt") is None
        resumed(bench, out)


def _kill_evaluation(fault: str) -> None:
    by = KILLS[fault]

    @case(fault, "evaluation")
    def _(bench: Bench) -> None:
        before = worlds.hashes(bench.reference)
        result = bench.new("result.json")
        child = bench.server.start("evaluate", bench.reference / "best.pt", "--device", "cpu", "--json", result)
        time.sleep(random.Random(fault).uniform(0.02, 0.1))
        child.kill(by)
        assert child.wait() in ENDED[by] | {0}, child.said()
        assert not result.exists() or json.loads(result.read_text())
        assert worlds.hashes(bench.reference) == before
        evaluated(bench, bench.reference)


for _fault in KILLS:
    _kill_prepare(_fault)
    _kill_training(_fault)
    _kill_evaluation(_fault)


# ---------------------------------------------------------------- the disk


@case("full disk", "prepare")
def _(bench: Bench) -> None:
    out = bench.new("data")
    (out / ".parts").mkdir(parents=True)
    (out / ".manifest.json.partial").symlink_to(FULL)
    told(bench.server.start("prepare", *bench.prepare(out)), out, "No space left", "free some space")
    prepared_again(bench, out)


@case("full disk", "training")
def _(bench: Bench) -> None:
    child, out = begun(bench, writes=1)
    (out / ".summary.json.partial").symlink_to(FULL)
    told(child, out / "summary.json", "No space left", f"--resume {out}")
    assert not (out / "summary.json").exists()
    resumed(bench, out)


@case("full disk", "checkpoint")
def _(bench: Bench) -> None:
    child, out = begun(bench, writes=1)
    while True:  # between two writes of it
        try:
            (out / ".last.pt.partial").symlink_to(FULL)
            break
        except FileExistsError:
            time.sleep(0.001)
    told(child, out / "last.pt", "No space left", f"--resume {out}")
    assert checkpoints.damage(out / "last.pt") is None
    resumed(bench, out)


@case("full disk", "evaluation")
def _(bench: Bench) -> None:
    result = bench.new("result.json")
    result.with_name(f".{result.name}.partial").symlink_to(FULL)
    told(
        bench.server.start("evaluate", bench.reference / "best.pt", "--device", "cpu", "--json", result),
        result,
        "No space left",
    )
    assert not result.exists()


def closed(folder: Path) -> Path:
    """A folder that nobody may write to."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o555)
    return folder


@case("output without the right to write", "prepare")
def _(bench: Bench) -> None:
    out = closed(bench.new("closed")) / "data"
    told(bench.server.start("prepare", *bench.prepare(out), bound=True), out, "permission denied", "another place")
    out.parent.chmod(0o755)
    prepared_again(bench, out)


@case("output without the right to write", "training")
def _(bench: Bench) -> None:
    out = closed(bench.new("closed")) / "run"
    told(bench.server.start("train", *bench.train(out), bound=True), out, "permission denied", "another place")
    assert not out.exists()
    out.parent.chmod(0o755)
    succeeds(bench.server.start("train", *bench.train(out)))
    assert worlds.run_differs(out, bench.reference) is None


@case("output without the right to write", "checkpoint")
def _(bench: Bench) -> None:
    out = bench.new("run")
    child = bench.server.start("train", *bench.train(out), bound=True, PAUSE=0.1)
    until(child, (out / "last-1.pt").exists)
    out.chmod(0o555)
    told(child, "last.pt", "Permission denied", f"--resume {out}")
    out.chmod(0o755)
    assert checkpoints.damage(out / "last.pt") is None
    resumed(bench, out)


@case("output without the right to write", "evaluation")
def _(bench: Bench) -> None:
    result = closed(bench.new("closed")) / "result.json"
    arguments = bench.reference / "best.pt", "--device", "cpu", "--json", result
    told(bench.server.start("evaluate", *arguments, bound=True), result.name, "permission denied")


# ---------------------------------------------------------------- other processes


def children(pid: int) -> list[int]:
    """Processes that any thread of a process has started."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            found += map(int, file.read_text().split())
    return found


@case("a decoding worker killed", "prepare")
def _(bench: Bench) -> None:
    out = bench.new("data")
    child = bench.server.start("prepare", *bench.prepare(out, workers=2))
    until(child, lambda: bool(children(child.pid)))
    os.kill(children(child.pid)[0], signal.SIGKILL)
    succeeds(child)
    assert (found := worlds.data_differs(out, bench.prepared)) is None, found


def ranks(bench: Bench, *arguments: object) -> list[Child]:
    """Two processes that train together, as torchrun starts them."""
    place = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = bench.server.start
    return [started("train", *arguments, RANK=rank, LOCAL_RANK=rank, PAUSE=0.1, **place) for rank in (0, 1)]


@case("one rank of several killed", "training")
def _(bench: Bench) -> None:
    whole, out = bench.new("run"), bench.new("run")
    given = ["--data.batch_size", "2", "--baselines", "false"]
    for rank in ranks(bench, *bench.train(whole, *given)):
        succeeds(rank)
    both = ranks(bench, *bench.train(out, *given))
    until(both[0], (out / "last-1.pt").exists)
    both[1].kill(signal.SIGKILL)
    assert both[1].wait() == -9
    assert both[0].wait() == 1 and f"--resume {out}" in both[0].said(), both[0].said()
    assert checkpoints.damage(out / "last.pt") is None
    for rank in ranks(bench, "--resume", out):
        succeeds(rank)
    assert (found := worlds.run_differs(out, whole)) is None, found


@case("a second process at work on the same", "prepare")
def _(bench: Bench) -> None:
    out = bench.new("data")
    first = bench.server.start("prepare", *bench.prepare(out), PAUSE=0.1)
    until(first, lambda: any(out.glob(".parts/*.part")))
    os.kill(first.pid, signal.SIGSTOP)  # it takes its time
    told(bench.server.start("prepare", *bench.prepare(out)), "another prepare is at work on", out, "another --out")
    os.kill(first.pid, signal.SIGCONT)
    succeeds(first)
    assert (found := worlds.data_differs(out, bench.prepared)) is None, found


@case("a second process at work on the same", "training")
def _(bench: Bench) -> None:
    first, out = begun(bench)
    os.kill(first.pid, signal.SIGSTOP)
    second = bench.server.start("train", "--resume", out)
    told(second, "another training is at work in", out, first.pid, "another directory with --out")
    told(bench.server.start("train", *bench.train(out)), "holds a run already")
    os.kill(first.pid, signal.SIGCONT)
    succeeds(first)
    assert (found := worlds.run_differs(out, bench.reference)) is None, found
    assert not (out / ".lock").exists()


@case("a second process at work on the same", "evaluation")
def _(bench: Bench) -> None:
    first, out = begun(bench)
    until(first, (out / "best.pt").exists)
    os.kill(first.pid, signal.SIGSTOP)
    succeeds(bench.server.start("evaluate", out / "best.pt", "--device", "cpu"))
    os.kill(first.pid, signal.SIGCONT)
    succeeds(first)
    assert (found := worlds.run_differs(out, bench.reference)) is None, found
