"""python -m benchmarks.compare REV: this version's speed beside another one's, on the CPU.

    python -m benchmarks.compare v0.9.0
    python -m benchmarks.compare HEAD~5 --benchmark step loader --rounds 20
    python -m benchmarks.compare v0.9.0 --fail-at 1.10     exit code 1 if something takes 10% longer, beyond the noise

Both versions are checked out beside this folder's (with its uncommitted changes), and run in turn: this, that, that,
this, and so on, with one thread each, so that what else the machine does disturbs both alike. A ratio is the time of
this version by that of the other, round by round; its range is where the median of such ratios lies with 95%. Where the
two do not compute the same, there is no ratio, only what differs.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from benchmarks.compared import SUBJECTS
from essl_fast.common import commands, files
from essl_fast.common.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(__file__).with_name("compared.py")
LEAST = 6  # rounds: with fewer there is no range of 95%
SOURCES = ("csrc", "setup.py")  # what the compiled module is made of


class Difference(RuntimeError):
    """The two versions do not compute the same."""


class Broken(Difference):
    """A version does not run."""


class Ratio(NamedTuple):
    """Times of this version by times of the other."""

    median: float
    low: float  # of the range in which the median lies with 95%
    high: float
    each: list[float]

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> "Ratio":
        """From the seconds of both, round by round."""
        each = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        ordered, outside = sorted(each), 0
        # Of n values, more than n - k lie on one side of the true median with a chance of sum(C(n, i), i < k) / 2^n.
        while sum(math.comb(len(each), i) for i in range(outside + 1)) / 2 ** len(each) <= 0.025:
            outside += 1
        outside = max(0, outside - 1)
        return cls(statistics.median(ordered), ordered[outside], ordered[-1 - outside], each)


class Side:
    """A version's process, which runs one subject."""

    def __init__(self, folder: Path, name: str, data: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        words = [sys.executable, "-P", str(PROGRAM), name, str(data)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            words, cwd=folder, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        try:
            self.facts = self._answer()
        except BaseException:
            self.close()
            raise
        with np.load(self.facts.pop("results"), allow_pickle=False) as held:
            self.results = dict(held)

    def seconds(self, runs: int) -> float:
        """Of so many runs."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{runs}\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None and self._process.stderr is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        said = self._process.stderr.read().strip().splitlines() or ["it ended"]
        raise Broken(f"it does not run there: {said[-1]}")


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], most: float) -> None:
    """Difference unless both results are equal; numbers that are not whole may be apart by `most` of the largest."""
    if not ours:
        raise Difference("there is no result to compare")
    if ours.keys() != theirs.keys():
        raise Difference(f"one gives {', '.join(ours)}, the other {', '.join(theirs)}")
    for name, mine in ours.items():
        other = theirs[name]
        if mine.shape != other.shape or mine.dtype.kind != other.dtype.kind:
            raise Difference(f"{name}: {mine.dtype} {mine.shape} is not {other.dtype} {other.shape}")
        if mine.dtype.kind == "f":
            limit = most * float(np.nanmax(np.abs(other), initial=0.0))
            if not np.allclose(mine, other, rtol=0, atol=limit, equal_nan=True):
                apart = float(np.nanmax(np.abs(mine - other)))
                raise Difference(f"{name} is apart by {apart:.2g}, allowed {limit:.2g}")
        elif not np.array_equal(mine, other):
            raise Difference(f"{name} is another")


def compare(name: str, ours: Path, theirs: Path, data: Path, options: argparse.Namespace) -> tuple[Ratio, int]:
    """Run one subject in both versions, in turn: the ratio of their times, and the runs of a round. Difference if the
    results differ."""
    with contextlib.ExitStack() as stack:
        sides = []
        for folder, which in ((ours, "here"), (theirs, options.rev)):
            try:
                sides.append(Side(folder, name, data))
            except Broken as error:
                raise (Broken if folder == ours else Difference)(f"{which}: {error}") from None
            stack.callback(sides[-1].close)
        if sides[0].facts != sides[1].facts:
            raise Difference(f"one is {sides[0].facts}, the other {sides[1].facts}")
        same(sides[0].results, sides[1].results, options.apart)
        first = max(side.seconds(1) for side in sides)
        runs = max(1, math.ceil(options.seconds / max(first, 1e-6)))
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(options.rounds):
            for at in (0, 1) if number % 2 == 0 else (1, 0):
                times[at].append(sides[at].seconds(runs) / runs)
    return Ratio.of(*times), runs


def git(*words: str) -> str:
    """What a git command prints. InputError if it fails."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"git {words[0]}: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")
    return done.stdout.strip()


@contextlib.contextmanager
def checked_out(rev: str, place: Path) -> Iterator[tuple[Path, Path]]:
    """Folders of this version, with its uncommitted changes, and of `rev`, with their compiled modules.

    InputError if there is no such version, or one of two modules that differ cannot be built. Where both have the same
    sources and none can be built, both versions run without.
    """
    here = git("stash", "create") or git("rev-parse", "HEAD")
    there = git("rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}") if _is_known(rev) else ""
    if not there:
        raise InputError(
            f"REV: there is no version {rev} in this clone; git tag lists the releases, git log the others"
        )
    folders = place / "here", place / "there"
    try:
        for folder, commit in zip(folders, (here, there), strict=True):
            git("worktree", "add", "--quiet", "--detach", str(folder), commit)
        alike = git("diff", "--name-only", here, there, "--", *SOURCES) == ""
        built = next(iter(ROOT.glob("_essl_fast_native*.so")), None)
        if not alike:
            for folder, which in zip(folders, ("here", rev), strict=True):
                _, why = build(folder)
                if why:
                    raise InputError(
                        f"{which}: the compiled module cannot be built ({why}), and the other version has another one: "
                        "see that its setup.py runs here, or name another REV"
                    )
        elif built is None:
            built, _ = build(folders[0])
        for folder in folders:
            if alike and built is not None and not (folder / built.name).exists():
                shutil.copy2(built, folder)
        yield folders
    finally:
        for folder in folders:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(folder)], capture_output=True)


def _is_known(rev: str) -> bool:
    words = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}"]
    return not rev.startswith("-") and subprocess.run(words, capture_output=True).returncode == 0


def build(folder: Path) -> tuple[Path | None, str]:
    """Compile a version's module for CPUs in its folder: (the module, ""), or (None, why there is none).

    A version without setup.py has no module: (None, "").
    """
    if not (folder / "setup.py").exists():
        return None, ""
    words = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = {**os.environ, "ESSL_CUDA": "0"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode == 0 and (made := next(iter(folder.glob("_essl_fast_native*.so")), None)):
        return made, ""
    lines = done.stderr.strip().splitlines() or ["nothing came of it"]
    return None, next((line for line in lines if "error:" in line), lines[-1])


def make_data(place: Path) -> Path:
    """A small demo world: its videos, annotations, and what this version's prepare makes of them."""
    from essl_fast.data.synthetic import make_world
    from essl_fast.prepare import prepare

    world = make_world(place / "world", train_videos=12, test_videos=4, seed=0, workers=1, progress=False)
    (place / "videos").symlink_to(world.videos)
    (place / "annotations").symlink_to(world.annotations)
    prepare(world.videos, world.annotations, place / "prepared", visual="jpeg", workers=1, progress=False)
    return place


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.split("\n\n")[0])
    parser.add_argument("rev", metavar="REV", help="the other version: a tag, a branch, a commit")
    parser.add_argument("--benchmark", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS), help="default: all")
    parser.add_argument("--rounds", type=int, default=12, help="in each, both versions run (default: 12)")
    parser.add_argument("--seconds", type=float, default=0.3, help="of a version in a round, at least (default: 0.3)")
    parser.add_argument("--apart", type=float, default=1e-5, help="how far results may be apart (default: 1e-5)")
    parser.add_argument(
        "--fail-at",
        type=float,
        metavar="RATIO",
        help="exit code 1 if a ratio's whole range is above, or this version does not run",
    )
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args(arguments)
    if options.rounds < LEAST:
        parser.error(f"--rounds: at least {LEAST}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    table = Table(title=f"time here by time of {options.rev}", caption="range: of the median, with 95%")
    for column in ("benchmark", "ratio", "range", "rounds"):
        table.add_column(column, justify="left" if column == "benchmark" else "right", no_wrap=True)
    record, failed, refused = dict[str, Any](), list[str](), list[str]()
    with tempfile.TemporaryDirectory(prefix="compare-") as place, checked_out(options.rev, Path(place)) as folders:
        (data := Path(place) / "data").mkdir()
        if {"epoch", "loader", "prepare"} & set(options.benchmark):
            make_data(data)
        for name in options.benchmark:
            try:
                ratio, runs = compare(name, *folders, data, options)
            except Difference as error:
                refused.append(f"{name}: no ratio: {error}")
                if options.fail_at is not None and isinstance(error, Broken):
                    failed.append(f"{name} cannot be timed here any more")
                continue
            record[name] = ratio._asdict() | {"runs": runs}
            if options.fail_at is not None and ratio.low > options.fail_at:
                failed.append(f"{name} is slower than {options.rev} by more than {options.fail_at:g}, beyond the noise")
            spread = f"{ratio.low:.3f}-{ratio.high:.3f}"
            table.add_row(name, f"{ratio.median:.3f}", spread, f"{options.rounds} of {runs}")
    console = commands.console()
    console.print(table)
    for line in (*refused, *failed):
        console.print(line)
    if options.json:
        values = {"rev": options.rev, "commit": git("rev-parse", options.rev), "refused": refused, "ratios": record}
        files.write_json(options.json, values)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(commands.command(main, "python -m benchmarks.compare"))
