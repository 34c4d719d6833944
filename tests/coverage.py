"""How much of essl_fast/ the tests run: lines and branches, with and without those that only a GPU takes.

    python -m tests.coverage                           measure all tests but nightly ones, and the pretended GPU
    python -m tests.coverage --plain                   the same without the tests marked slow
    python -m tests.coverage --add -m slow tests/data  add what these tests run to the measurement before
    python -m tests.coverage --report --misses         say it again, with what was missed in each file

gpu_only.toml lists what only a GPU takes, by the name of its function. An entry is `at`, the first lines of the blocks
in question (none: the whole function), and `how` a machine without a GPU covers it:

    phantom            the pretended GPU (python -m tests.phantom) runs it, as its measurement must show
    emulation: WHAT    a test runs the same with something else than a GPU
    not: WHY           nothing does

Without `how`, it is what phantom/branches.json says of the function. A name that is gone is an error, and so is a block
that a test runs on a CPU. What no list excuses counts, and is compared with LIMITS. Processes that a test ends with
SIGKILL write no data; their lines count as missed if nothing else runs them. The exit code is 1 under a limit, 2 if the
list is wrong.

Under coverage this file is also a plugin of pytest: prepare kills its workers when all is made, so they write their
data after each video.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests import ROOT
from tests.phantom.branches import PHANTOM, TABLE

LIST = Path(__file__).with_name("gpu_only.toml")
DATA = ROOT / "build" / "coverage"
LIMITS = {"lines": 95.0, "branches": 90.0}  # percent, without what only a GPU takes
SAVING = """
import sys
from pathlib import Path

from coverage import Coverage

from essl_fast.prepare import workers

answer, measured = workers._answer, Coverage.current()


def answered(*given):
    try:
        return answer(*given)
    finally:
        measured and measured.save()


workers._answer = answered
workers.serve(Path(sys.argv[1]), int(sys.argv[2]))
"""  # the program of a worker
HOWS = (PHANTOM, "emulation", "not")
ALL, PLAIN = ("-m", "not nightly"), ("-m", "not slow and not nightly")
# Not under a tracer, each for a reason.
LEFT_OUT = (
    "tests/phantom/test_phantom.py::test_every_fault_is_found",  # it pretends a GPU: measured by itself
)

Branch = tuple[int, int]  # from a line to a line; negative: out of the function


class Measured(NamedTuple):
    """What of a file ran and what did not: lines, and branches by both their ends."""

    ran: set[int]
    missed: set[int]
    taken: set[Branch]
    untaken: set[Branch]


class Only(NamedTuple):
    """What only a GPU takes, in one function: the place as in branches.json, the first lines of blocks, how covered."""

    place: str
    at: tuple[str, ...]
    how: str

    @property
    def kind(self) -> str:
        """The first word of `how`."""
        return self.how.partition(":")[0]


class Tally(NamedTuple):
    """Lines that ran, all lines, branches that were taken, all branches."""

    ran: int = 0
    lines: int = 0
    taken: int = 0
    branches: int = 0

    def __add__(self, other: tuple[int, ...]) -> "Tally":  # type: ignore[override]
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def percent(self) -> dict[str, float]:
        return {"lines": 100 * self.ran / max(1, self.lines), "branches": 100 * self.taken / max(1, self.branches)}


def listed() -> list[Only]:
    """The entries of gpu_only.toml."""
    held = tomllib.loads(LIST.read_text(encoding="utf-8"))
    return [Only(place, tuple(one.get("at", ())), one.get("how") or _known(place)) for place, one in held.items()]


def _known(place: str) -> str:
    """How branches.json says that a place is covered, in the words of gpu_only.toml. "" if it says nothing."""
    evidence = TABLE.get(place, [0, ""])[1]
    if evidence.startswith("GPU: "):
        return f"not: {evidence.removeprefix('GPU: ')}"
    return f"emulation: {evidence}" if "::" in evidence else evidence


def function(source: str, name: str) -> ast.FunctionDef | None:
    """The function of a qualified name, as A.f.<locals>.g."""
    found: ast.AST | None = ast.parse(source)
    for part in name.replace("<locals>.", "").split("."):
        inner = [node for node in _outside(found) if getattr(node, "name", "") == part] if found else []
        found = inner[-1] if inner else None
    return found if isinstance(found, ast.FunctionDef) else None


def _outside(node: ast.AST) -> Iterator[ast.AST]:
    """The definitions within a node that are not in another one's."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield child
        else:
            yield from _outside(child)


def blocks(source: str, only: Only) -> list[tuple[int, int]]:
    """The first and last line of each block of an entry. ValueError if one is not there, exactly once."""
    name = only.place.partition("::")[2]
    if (node := function(source, name)) is None:
        raise ValueError(f"{only.place} is gone")
    if not only.at:
        said = ast.get_docstring(node) is not None and len(node.body) > 1
        return [(node.body[int(said)].lineno, node.end_lineno or 0)]
    lines, found = source.splitlines(), []
    for text in only.at:
        wanted = text.splitlines()
        here = [
            (statement.lineno, suite[-1].end_lineno or 0)
            for suite in _suites(node)
            for statement in suite
            if [line.strip() for line in lines[statement.lineno - 1 :][: len(wanted)]] == wanted
        ]
        if len(here) != 1:
            raise ValueError(f"{only.place} has {text!r} {len(here)} times")
        found += here
    return found


def _suites(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """Every list of statements within a function."""
    for each in ast.walk(node):
        for name in ("body", "orelse", "finalbody"):
            suite = getattr(each, name, None)
            if isinstance(suite, list) and suite and isinstance(suite[0], ast.stmt):
                yield suite


def excused(only: Only, source: str, tests: Measured, phantom: Measured) -> tuple[set[int], set[Branch]]:
    """The lines and branches of an entry. ValueError if it does not say the truth.

    A block that begins with a line that ran on a CPU is a condition: the branches of it that were not taken count.
    """
    if only.kind not in HOWS or (only.kind != PHANTOM and len(only.how) < 12):
        raise ValueError(f"{only.place}: {only.how!r} is none of {', '.join(HOWS)} with a reason")
    lines: set[int] = set()
    branches: set[Branch] = set()
    for first, last in blocks(source, only):
        inside = range(first, last + 1)
        if first in tests.ran:
            found = {branch for branch in tests.untaken if branch[0] == first}
            seen = bool(found & phantom.taken)
        else:
            lines |= {line for line in tests.missed if line in inside}
            found = {b for b in tests.untaken if b[0] in inside or b[1] == first}
            seen = first in phantom.ran
        where = f"{only.place}, line {first}"
        if not found and not lines & set(inside):
            raise ValueError(f"{where}: a test runs it on a CPU: take it from {LIST.name}")
        if seen != (only.kind == PHANTOM):
            raise ValueError(f"{where}: {only.how!r}, but the pretended GPU {'runs' if seen else 'does not run'} it")
        branches |= found
    return lines, branches


def measure(name: str, words: Sequence[str], fresh: bool = True) -> int:
    """Run a command of Python under coverage; its data are kept by name. The command's exit code."""
    folder = DATA / name
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "COVERAGE_FILE": str(folder / "data")}
    return subprocess.run([sys.executable, "-m", "coverage", "run", "-m", *words], cwd=ROOT, env=environment).returncode


def read(name: str) -> dict[str, Measured]:
    """What was measured under a name, by file: essl_fast/…"""
    folder = DATA / name
    environment = {**os.environ, "COVERAGE_FILE": str(folder / "data")}
    coverage = [sys.executable, "-m", "coverage"]
    if list(folder.glob("data.*")):  # one of each process
        subprocess.run([*coverage, "combine", "--quiet", "--append", folder], cwd=ROOT, env=environment, check=True)
    if not (folder / "data").exists():
        return {}  # it was not measured
    only = ["--include", "essl_fast/*", "--quiet", "-o", folder / "report.json"]
    subprocess.run([*coverage, "json", *only], cwd=ROOT, env=environment, check=True)
    held: dict[str, Any] = json.loads((folder / "report.json").read_text())["files"]
    return {
        file: Measured(
            set(one["executed_lines"]),
            set(one["missing_lines"]),
            {(a, b) for a, b in one["executed_branches"]},
            {(a, b) for a, b in one["missing_branches"]},
        )
        for file, one in held.items()
    }


def pytest_configure() -> None:
    """Let prepare's workers write their data after each video (see above)."""
    from essl_fast.prepare import workers

    workers.WORKER = ("-c", SAVING)


def folder_of(file: str) -> str:
    """essl_fast/data/media/clock.py counts for essl_fast/data."""
    return "/".join(file.split("/")[: min(2, file.count("/"))])


def arrow(branch: Branch) -> str:
    """A branch as coverage.py writes it."""
    return f"{branch[0]}->{'exit' if branch[1] < 0 else branch[1]}"


class Found:
    """What was measured, with what gpu_only.toml excuses."""

    def __init__(self, tests: dict[str, Measured], phantom: dict[str, Measured], root: Path = ROOT) -> None:
        self._tests, self.wrong = tests, list[str]()
        self.kinds: Counter[str] = Counter()
        self._lines: dict[str, set[int]] = {file: set() for file in tests}
        self._branches: dict[str, set[Branch]] = {file: set() for file in tests}
        nothing = Measured(set(), set(), set(), set())
        for only in listed():
            file = only.place.partition("::")[0]
            try:
                if file not in tests:
                    raise ValueError(f"{only.place} is gone")
                source = (root / file).read_text(encoding="utf-8")
                lines, branches = excused(only, source, tests[file], phantom.get(file, nothing))
            except ValueError as error:
                self.wrong.append(str(error))
                continue
            self._lines[file] |= lines
            self._branches[file] |= branches
            self.kinds[only.kind] += len(branches) or 1

    def tally(self, file: str, with_gpu: bool) -> Tally:
        """The counts of a file, with or without what only a GPU takes."""
        one = self._tests[file]
        lines, branches = len(one.ran) + len(one.missed), len(one.taken) + len(one.untaken)
        if not with_gpu:
            lines -= len(self._lines[file] & one.missed)
            branches -= len(self._branches[file] & one.untaken)
        return Tally(len(one.ran), lines, len(one.taken), branches)

    def total(self, with_gpu: bool, folder: str = "") -> Tally:
        """The counts of a folder's files, or of all."""
        files = [file for file in self._tests if not folder or folder_of(file) == folder]
        return sum((self.tally(file, with_gpu) for file in files), Tally())

    def table(self) -> Iterator[str]:
        """A line for each folder, then all of it."""
        yield f"{'':<24}{'lines':>8}{'':>9}{'branches':>9}{'':>9}   with what only a GPU takes"
        for folder in [*sorted({folder_of(file) for file in self._tests}), ""]:
            cells = []
            for with_gpu in (False, True):
                tally = self.total(with_gpu, folder)
                percent = tally.percent
                cells.append(
                    f"{tally.lines:>8}{percent['lines']:>8.1f}%{tally.branches:>9}{percent['branches']:>8.1f}%"
                )
            yield f"{folder or 'essl_fast, all of it':<24}" + "  ".join(cells)

    def misses(self) -> Iterator[str]:
        """For each file what no test runs, and nothing excuses."""
        for file, one in sorted(self._tests.items()):
            lines = sorted(one.missed - self._lines[file])
            branches = sorted(b for b in one.untaken - self._branches[file] if b[0] in one.ran)
            if lines or branches:
                yield f"{file}: {' '.join([*map(str, lines), *map(arrow, branches)])}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.coverage", description=__doc__.partition("\n")[0])
    parser.add_argument("--report", action="store_true", help="say the measurement before again")
    parser.add_argument(
        "--plain", action="store_true", help="leave out the tests marked slow, as python -m pytest does"
    )
    parser.add_argument("--misses", action="store_true", help="the lines and branches of each file that nothing runs")
    parser.add_argument("--add", nargs=argparse.REMAINDER, default=[], metavar="WORD", help="pytest's words")
    options = parser.parse_args()
    failed = 0
    if not options.report:
        leave = [f"--deselect={test}" for test in LEFT_OUT]
        words = [
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "tests.coverage",
            *leave,
            *(options.add or (PLAIN if options.plain else ALL)),
        ]
        failed = measure("tests", words, fresh=not options.add)
        if not options.add:
            failed |= measure("phantom", ["tests.phantom"])
    found = Found(read("tests"), read("phantom"))
    for line in [*(found.misses() if options.misses else ()), *found.table()]:
        print(line)
    for kind, count in sorted(found.kinds.items()):
        print(f"only on a GPU, {kind}: {count} branches")
    percent = found.total(with_gpu=False).percent
    for name, limit in LIMITS.items():
        print(f"{name}: {percent[name]:.1f}%, at least {limit:.0f}% wanted")
    for wrong in found.wrong:
        print(f"{LIST.name}: {wrong}", file=sys.stderr)
    if found.wrong:
        return 2
    return int(bool(failed) or any(percent[name] < limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
