"""Puts each fault of mutants.toml into a copy of the sources, and runs the tests named for it, which must fail.

    python -m tests.mutants                   all of them
    python -m tests.mutants --only fsync      those with the word in their name, or in their file's

First the tests run once without a fault: they must pass, else their failing shows nothing. Then a process with PyTorch
and pytest in it forks for each mutant, so that one costs little more than its tests. A mutant that lives shows what no
test sees: write that test. A mutant of csrc/ needs a C++ compiler; without one it is "not tried". The exit code is 1 if
a mutant lives, 2 if the list is wrong.
"""

import argparse
import importlib
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests import ROOT

LIST = Path(__file__).with_suffix(".toml")
LIMIT = 600  # seconds for the tests of a mutant; one that makes them wait for ever is killed, too
KILLED, LIVES, NOT_TRIED = "killed", "LIVES", "not tried"
NOT_BUILT = 99  # exit code of a process whose csrc/ does not compile
OPTIONS = ("-q", "-n0", "-m", "not nightly", "-p", "no:cacheprovider")
WARM = ("numpy", "torch", "torch.utils.data", "torch.distributed", "pytest", "PIL.Image", "av")  # none of ours
LEFT = (".git", "build", "dist", "runs", "__pycache__", ".*_cache", ".bundle", "*.egg-info")


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: what is wrong, in a few words.
        file: where, relative to the repository.
        old, new: the text that is there, exactly once, and the one that takes its place.
        tests: tests, or files or folders of them, one of which must fail.
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

    def missing(self, root: Path) -> list[str]:
        """The tests that are not there."""
        return [test for test in self.tests if not _is_there(root, test)]


class Equivalent(NamedTuple):
    """A change that no test can see, and why."""

    name: str
    why: str


class Running(NamedTuple):
    """A forked process. said: the file that has what it printed; begun: when, by the monotonic clock."""

    mutant: Mutant | None
    folder: Path
    said: Path
    begun: float


def _is_there(root: Path, test: str) -> bool:
    """Whether a file or folder, or FILE::FUNCTION (with or without [PARAMETERS]) is there."""
    path, _, name = test.partition("::")
    function = re.escape(name.partition("[")[0])
    if not (root / path).exists():
        return False
    return not name or bool(re.search(rf"^def {function}\(", (root / path).read_text(encoding="utf-8"), re.MULTILINE))


def mutants() -> list[Mutant]:
    """The list of mutants.toml."""
    held = tomllib.loads(LIST.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**{**one, "tests": tuple(one["tests"])}) for one in held]


def equivalents() -> list[Equivalent]:
    """The changes of mutants.toml that change nothing."""
    return [Equivalent(**one) for one in tomllib.loads(LIST.read_text(encoding="utf-8")).get("equivalent", [])]


def copy_sources(to: Path) -> Path:
    """A copy of the checkout, with its compiled module and without what commands left there."""
    copied = shutil.copytree(ROOT, to / "copy", ignore=shutil.ignore_patterns(*LEFT))
    shared = ROOT.parent / "shared"  # golden cases, where they are at hand
    if shared.is_dir():
        (to / "shared").symlink_to(shared)
    return copied


def build(folder: Path) -> str:
    """Compile the host part of csrc in a copy. "" or why that failed."""
    for old in folder.glob("_essl_fast_native*.so"):
        old.unlink()
    words = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(words, cwd=folder, env={**os.environ, "ESSL_CUDA": "0"}, capture_output=True, text=True)
    made = list(folder.glob("_essl_fast_native*.so"))
    return "" if done.returncode == 0 and made else (done.stderr.strip().splitlines() or ["it was not built"])[-1]


def become(folder: Path, said: Path) -> None:
    """This process, just forked, belongs to a copy from now on, and prints into `said`."""
    os.setsid()
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "essl_fast")]:
        del sys.modules[name]
    importlib.invalidate_caches()


class Shared:
    """A plugin of pytest: the world of the fixture `tiny` is made once, by the code without a fault."""

    def __init__(self, place: Path, makes: bool) -> None:
        """place: where it is kept; makes: this run keeps it, others take it."""
        self._held, self._makes = place / "tiny.pickle", makes

    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        if fixturedef.argname != "tiny" or self._makes or not self._held.exists():
            return None  # as usual
        value = pickle.loads(self._held.read_bytes())
        fixturedef.cached_result = (value, fixturedef.cache_key(request), None)
        return value

    def pytest_fixture_post_finalizer(self, fixturedef: Any) -> None:
        if fixturedef.argname == "tiny" and self._makes and (made := fixturedef.cached_result) and not made[2]:
            self._held.write_bytes(pickle.dumps(made[0]))


def fork(mutant: Mutant | None, tests: Sequence[str], folder: Path, place: Path) -> tuple[int, Running]:
    """Run tests in a process of their own, stopping at the first that fails if there is a mutant."""
    said, begun = place / "said.txt", time.monotonic()
    if (pid := os.fork()) == 0:
        code = 98
        try:
            become(folder, said)
            if mutant is not None and mutant.file.startswith("csrc/") and (why := build(folder)):
                print(why)
                code = NOT_BUILT
            else:
                import pytest

                sys.dont_write_bytecode = mutant is not None
                stop = [] if mutant is None else ["-x"]
                words = [*OPTIONS, *stop, "--basetemp", str(place / "tests"), *tests]
                code = int(pytest.main(words, plugins=[Shared(folder.parents[1], mutant is None)]))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pid, Running(mutant, folder, said, begun)


def ended(running: dict[int, Running]) -> tuple[Running, int | None]:
    """Wait for one of the processes: (which, its exit code, or None if it took too long and was ended)."""
    while True:
        for pid, one in running.items():
            code: int | None
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found and (one.mutant is None or time.monotonic() - one.begun < LIMIT):
                continue
            code = os.waitstatus_to_exitcode(status) if found else None
            try:
                os.killpg(pid, signal.SIGKILL)  # also what its tests started and left
            except ProcessLookupError:
                pass
            if not found:
                os.waitpid(pid, 0)
            del running[pid]
            return one, code
        time.sleep(0.02)


def verdict(one: Running, code: int | None) -> tuple[str, str]:
    """KILLED, LIVES or NOT_TRIED, and how or why."""
    if code is None:
        return KILLED, f"no end within {LIMIT} s"
    lines = one.said.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    failed = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1])
    if code == 1 or code < 0:  # a signal: the fault ended the process itself
        return KILLED, failed.split(" - ")[0] if code == 1 else signal.Signals(-code).name
    if code == 0:
        return LIVES, lines[-1]
    return NOT_TRIED, f"it ended with {code}: {failed}"


class Copies:
    """Copies of the sources, one for each process at once; mutants of csrc/ get one of their own."""

    def __init__(self, work: Path, sources: Path) -> None:
        self._work, self._sources, self._made = work, sources, 0
        self._free: list[Path] = []

    def take(self, mutant: Mutant) -> tuple[Path, Path]:
        """(the copy with the fault in it, a folder for what the tests write)."""
        if not self._free or mutant.file.startswith("csrc/"):
            self._made += 1
            place = self._work / f"{self._made}"
            shutil.copytree(self._sources.parent, place, symlinks=True, ignore=shutil.ignore_patterns("tests-*"))
        else:
            place = self._free.pop()
        folder = place / "copy"
        path, text = folder / mutant.file, mutant.applied(folder)
        path.write_text(text, encoding="utf-8")
        later = time.time() + 1000  # another time and size than the bytecode is of
        os.utime(path, (later, later))
        return folder, place

    def give_back(self, mutant: Mutant, folder: Path) -> None:
        """Take the fault out again."""
        if mutant.file.startswith("csrc/"):
            shutil.rmtree(folder.parent)
            return
        shutil.copy2(self._sources / mutant.file, folder / mutant.file)
        self._free.append(folder.parent)


def sound(chosen: Sequence[Mutant], place: Path) -> str:
    """Run all the tests without a fault, and keep their bytecode: "" if they pass, or what fails."""
    tests = sorted({test for mutant in chosen for test in mutant.tests})
    whole = [test for test in tests if test.partition("::")[0] not in tests or "::" not in test]
    running = dict([fork(None, whole, place / "copy", place)])
    one, code = ended(running)
    lines = one.said.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    if code == 0:
        return ""
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "\n".join(failed or [*lines[-20:], f"pytest ended with {code}"])


def tried(chosen: Sequence[Mutant], work: Path, jobs: int) -> Iterator[tuple[Mutant, str, str, float]]:
    """Each mutant as it ends: (it, what, how, seconds). ValueError if the tests fail without a fault."""
    sources = copy_sources(work / "0")
    if wrong := sound(chosen, sources.parent):
        raise ValueError(f"these tests fail without a fault:\n{wrong}")
    copies, waiting, running = Copies(work, sources), list(reversed(chosen)), dict[int, Running]()
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            folder, place = copies.take(mutant)
            running.update([fork(mutant, mutant.tests, folder, place)])
        one, code = ended(running)
        assert one.mutant is not None
        yield one.mutant, *verdict(one, code), time.monotonic() - one.begun
        copies.give_back(one.mutant, one.folder)


def warm() -> None:
    """Import what every child needs and no mutant changes."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    for name in WARM:
        importlib.import_module(name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="a part of a mutant's name or of its file's")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="how many at once")
    options = parser.parse_args()
    chosen = [one for one in mutants() if options.only in one.name or options.only in one.file]
    found: dict[str, int] = {KILLED: 0, LIVES: 0, NOT_TRIED: 0}
    begun = time.monotonic()
    try:
        if not chosen:
            raise ValueError(f"--only: no mutant has {options.only!r} in its name or in its file's")
        for mutant in chosen:
            mutant.applied(ROOT)
            if missing := mutant.missing(ROOT):
                raise ValueError(f"{mutant.name}: there is no test {missing[0]}")
        warm()
        with tempfile.TemporaryDirectory(prefix="mutants-") as work:
            for mutant, what, how, seconds in tried(chosen, Path(work), options.jobs):
                found[what] += 1
                print(f"{what:<9} {seconds:5.1f} s  {mutant.name}  [{how}]", flush=True)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for same in equivalents() if not options.only else ():
        print(f"changes nothing: {same.name}, since {same.why}")
    count = found[KILLED] + found[LIVES]
    print(f"killed {found[KILLED]} of {count}, {found[NOT_TRIED]} not tried, {time.monotonic() - begun:.0f} s")
    return int(found[LIVES] > 0)


if __name__ == "__main__":
    sys.exit(main())
