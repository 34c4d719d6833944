"""Puts each fault of mutants.toml into a copy of the sources, and runs the tests named for it, which must fail.

    python -m tests.mutants                   all of them, about 10 minutes on two cores
    python -m tests.mutants --only fsync      those with the word in their name, or in their file's

A mutant that lives shows what no test sees: write that test. A mutant of csrc/ needs a C++ compiler, which compiles the
host part again; without one it is "not tried". The exit code is 1 if a mutant lives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT

LIST = Path(__file__).with_suffix(".toml")
LIMIT = 600  # seconds for the tests of a mutant; one that makes them wait for ever is killed, too
KILLED, LIVES, NOT_TRIED = "killed", "LIVES", "not tried"


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: what is wrong, in a few words.
        file: where, relative to the repository.
        old, new: the text that is there, exactly once, and the one that takes its place.
        tests: files or folders of tests, one of which must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, root: Path) -> str:
        """The text of its file with the fault. ValueError if `old` is not there exactly once."""
        text = (root / self.file).read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: {self.file} has the text to be replaced {count} times: {self.old!r}")
        return text.replace(self.old, self.new)


def mutants() -> list[Mutant]:
    """The list of mutants.toml."""
    held = tomllib.loads(LIST.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**{**one, "tests": tuple(one["tests"])}) for one in held]


def copy_sources(to: Path) -> Path:
    """A copy of the checkout, with its compiled module and without what commands left there."""
    left = shutil.ignore_patterns(".git", "build", "dist", "runs", "__pycache__", ".*_cache", ".bundle", "*.egg-info")
    copied = shutil.copytree(ROOT, to / "copy", ignore=left)
    shared = ROOT.parent / "shared"  # golden cases, where they are at hand
    if shared.is_dir():
        (to / "shared").symlink_to(shared)
    return copied


def run(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Run a command in a copy, with one thread."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        words, cwd=folder, env={**environment, "ESSL_CUDA": "0"}, capture_output=True, text=True, timeout=LIMIT
    )


def build(folder: Path) -> str:
    """Compile the host part of csrc in a copy. "" or why that failed."""
    for old in folder.glob("_essl_fast_native*.so"):
        old.unlink()
    done = run(folder, sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
    made = list(folder.glob("_essl_fast_native*.so"))
    return "" if done.returncode == 0 and made else (done.stderr.strip().splitlines() or ["it was not built"])[-1]


def verdict(mutant: Mutant, work: Path) -> tuple[str, str]:
    """KILLED, LIVES or NOT_TRIED, and how or why."""
    with tempfile.TemporaryDirectory(dir=work) as place:
        folder = copy_sources(Path(place))
        (folder / mutant.file).write_text(mutant.applied(folder), encoding="utf-8")
        if mutant.file.startswith("csrc/") and (why := build(folder)):
            return NOT_TRIED, why
        options = ["-x", "-q", "-n0", "-m", "not nightly", "-p", "no:cacheprovider", "--basetemp", f"{place}/tests"]
        try:
            done = run(folder, sys.executable, "-m", "pytest", *options, *mutant.tests)
        except subprocess.TimeoutExpired:
            return KILLED, f"no end within {LIMIT} s"
    lines = done.stdout.strip().splitlines() or [""]
    failed = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1])
    if done.returncode == 1:
        return KILLED, failed.split(" - ")[0]
    if done.returncode == 0:
        return LIVES, lines[-1]
    return NOT_TRIED, f"pytest ended with {done.returncode}: {failed}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="a part of a mutant's name or of its file's")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="how many at once")
    options = parser.parse_args()
    chosen = [one for one in mutants() if options.only in one.name or options.only in one.file]
    found: dict[str, int] = {KILLED: 0, LIVES: 0, NOT_TRIED: 0}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as work, ThreadPoolExecutor(options.jobs) as pool:
        for mutant, (what, how) in zip(chosen, pool.map(lambda one: verdict(one, Path(work)), chosen), strict=True):
            found[what] += 1
            print(f"{what:<9}  {mutant.name}  [{how}]", flush=True)
    tried = found[KILLED] + found[LIVES]
    print(f"{found[KILLED]} of {tried} killed, {found[NOT_TRIED]} not tried, {time.monotonic() - begun:.0f} s")
    return int(found[LIVES] > 0)


if __name__ == "__main__":
    sys.exit(main())
