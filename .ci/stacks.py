"""Installs and tries essl_fast on other Pythons and with other versions of what it needs than the machine's own.

A job is a Python and a stack of versions: `constraints` (constraints.txt), `lowest` (the lowest that pyproject.toml
admits and that have a wheel for this Python) or `newest`. It makes a virtual environment, installs an sdist, which was
unpacked into a folder with spaces and other letters than ASCII, trains the demo for 2 epochs on 12 videos, asks doctor,
and runs the tests of media, audio, config and checkpoints out of the sdist. At the end stands a table.

    python .ci/stacks.py                    the lowest on the oldest Python found, the newest on the newest, and
                                            constraints.txt on the others
    python .ci/stacks.py --all              every Python found with every stack
    python .ci/stacks.py 3.12:newest ...    these

A Python that is not on this machine, and a registry that cannot be reached, are said in a line and are no failures. It
needs uv (PyPI), whose cache and hard links make a further environment cost seconds and little disk.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
STACKS = {
    "constraints": ["-c", str(ROOT / "constraints.txt")],
    "lowest": ["--resolution", "lowest-direct"],
    "newest": [],
}
TELLING = ("torch", "triton", "nvidia-dali-cuda130", "numpy", "av", "soxr", "pillow", "h5py", "opencv-python-headless")
TESTS = ("tests/data/media", "tests/config", "tests/checkpoints")
# Of these the longest, which hardly depend on versions: csrc reads JPEG headers, prepare for a GPU, copied weights.
LEFT_OUT = (
    "tests/data/media/test_jpeg.py::test_damaged_files_do_not_end_the_process",
    "tests/data/media/test_hardware.py::test_prepare_with_a_gpus_decoder",
    "tests/checkpoints/test_sspl.py::test_exported_again_they_are_what_they_were",
)
DEMO = ("--epochs", "2", "--demo.train_videos", "10", "--demo.test_videos", "2", "--device", "cpu")
NO_NETWORK = ("error sending request", "Failed to fetch", "dns error", "Connection refused", "Network is unreachable")
OK, FAILED, NOT_HAD = "ok", "FAILED", "not had"


class Failed(Exception):
    """A step of a job failed; the text says which."""


class NotHad(Exception):
    """A job cannot be tried here; the text says what is missing."""


@dataclass
class Job:
    """One Python with one stack, and how far it came.

    Attributes:
        python: "3.11" to "3.14".
        stack: a key of STACKS.
        ran_on: the exact versions.
        steps: name -> OK, FAILED or NOT_HAD.
        seconds: name -> wall time.
        why: why a step failed, or could not be tried.
    """

    python: str
    stack: str
    ran_on: str = ""
    steps: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    why: str = ""

    @property
    def failed(self) -> bool:
        return FAILED in self.steps.values()


def find_python(version: str) -> str | None:
    """The interpreter of a version such as "3.12": on PATH (a shim may be of none), or pyenv's newest."""
    candidates = [shutil.which(f"python{version}")]
    candidates += [
        str(path) for path in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True)
    ]
    for path in filter(None, candidates):
        ask = [path, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2]); print(sys.executable)"]
        done = subprocess.run(ask, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.split("\n")[0] == version:
            return done.stdout.split("\n")[1]
    return None


def default_jobs(found: list[str]) -> list[Job]:
    """The lowest on the oldest Python, the newest on the newest, constraints.txt on those between."""
    middle = [Job(python, "constraints") for python in found[1:-1]]
    return [Job(found[0], "lowest"), *middle, Job(found[-1], "newest")] if found else []


class Trial:
    """Runs jobs in a folder of its own."""

    def __init__(self, work: Path, uv: str, cuda: bool, keep: bool, workers: str):
        self.work, self.uv, self.cuda, self.keep, self.workers = work, uv, cuda, keep, workers
        self.source = work / "a folder für essl_fast"

    def run(self, *command: object, cwd: Path | None = None, **more: str) -> str:
        """Runs a command; what it printed. Failed with its last lines if it failed, NotHad if there is no network."""
        environment = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1", **more}
        words = [str(word) for word in command]
        done = subprocess.run(
            words, cwd=cwd or self.work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode == 0:
            return done.stdout
        if words[0] == self.uv and any(sign in done.stdout for sign in NO_NETWORK):
            raise NotHad(f"no network: {done.stdout.strip().splitlines()[-1]}")
        raise Failed(f"{' '.join(words[:6])} … (exit status {done.returncode})\n{done.stdout[-6000:]}")

    def unpack_sdist(self) -> None:
        """Makes the sdist out of this checkout, and unpacks it."""
        shutil.rmtree(self.source, ignore_errors=True)
        shutil.rmtree(self.work / "dist", ignore_errors=True)
        self.run(self.uv, "build", "--quiet", "--sdist", "--out-dir", self.work / "dist", ROOT, ESSL_CUDA="0")
        (archive,) = (self.work / "dist").glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(self.work, filter="data")
        (self.work / archive.name.removesuffix(".tar.gz")).rename(self.source)

    def install(self, job: Job, interpreter: str, python: Path) -> None:
        """Resolves the stack, installs it and essl_fast's sdist, and notes the versions."""
        pins = self.work / f"{job.python}-{job.stack}.txt"
        pins.unlink(missing_ok=True)  # uv keeps to the versions of a file that is there
        extras = ["--extra", "test"]
        resolve = [*STACKS[job.stack], "--only-binary", ":all:", "--no-annotate", "--no-header", "--quiet"]
        self.run(
            self.uv, "pip", "compile", self.source / "pyproject.toml", *extras, *resolve, "-p", interpreter, "-o", pins
        )
        lines = dict(line.split("==") for line in pins.read_text().split() if "==" in line)
        job.ran_on = ", ".join(f"{name} {lines[name]}" for name in TELLING if name in lines)
        self.run(self.uv, "venv", "--quiet", "--clear", "-p", interpreter, python.parent.parent)
        self.run(self.uv, "pip", "install", "--quiet", "-p", python, "-r", pins)
        install = [self.uv, "pip", "install", "--quiet", "--no-deps", "--reinstall-package", "essl_fast", "-p", python]
        self.run(*install, self.source, ESSL_CUDA="1" if self.cuda else "0")

    def try_job(self, job: Job) -> None:
        """Every step of a job, until one fails."""
        name = f"{job.python}-{job.stack}"
        python = self.work / name / "bin" / "python"
        here = self.work / f"{name} runs"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()

        def installed() -> None:
            interpreter = find_python(job.python)
            if interpreter is None:
                raise NotHad(f"Python {job.python} is not on PATH, nor in ~/.pyenv/versions")
            self.install(job, interpreter, python)
            print(f"    on {self.run(python, '--version').strip()}, {job.ran_on}", flush=True)

        def demo() -> None:
            run = here / "run"
            self.run(python, "-m", "essl_fast.train", *DEMO, "--out", run, cwd=here, XDG_CACHE_HOME=str(here))
            if not (run / "report.html").is_file():
                raise Failed("the demo wrote no report.html")
            self.run(python, "-m", "essl_fast.doctor", "--device", "cpu", "--config", "demo", cwd=here)

        def tests() -> None:
            options = ["-q", "-n", self.workers, "--dist", "loadfile", "-p", "no:cacheprovider"]
            options += [f"--deselect={name}" for name in LEFT_OUT]
            said = self.run(python, "-m", "pytest", *options, "--basetemp", here / "tests", *TESTS, cwd=self.source)
            print(f"    {said.strip().splitlines()[-1].strip('= ')}", flush=True)

        for step in (installed, demo, tests):
            begin = time.monotonic()
            try:
                step()
                job.steps[step.__name__] = OK
            except (Failed, NotHad) as error:
                job.steps[step.__name__] = FAILED if isinstance(error, Failed) else NOT_HAD
                job.why = str(error)
                print(f"    {step.__name__}: {error}", flush=True)
            job.seconds[step.__name__] = time.monotonic() - begin
            if job.steps[step.__name__] != OK:
                break
        shutil.rmtree(here, ignore_errors=True)
        if not self.keep:
            shutil.rmtree(self.work / name, ignore_errors=True)


def table(jobs: list[Job]) -> str:
    """One row a job."""
    heads = ("installed", "demo", "tests")
    lines = [f"{'Python':<7} {'stack':<12} " + " ".join(f"{head:>16}" for head in heads) + f" {'in all':>7}"]
    for job in jobs:
        cells = [f"{job.steps[h]} ({job.seconds[h]:.0f} s)" if h in job.steps else "-" for h in heads]
        total = sum(job.seconds.values())
        lines.append(
            f"{job.python:<7} {job.stack:<12} " + " ".join(f"{cell:>16}" for cell in cells) + f" {total:5.0f} s"
        )
    return "\n".join(lines)


def place(keep: str | None) -> AbstractContextManager[str]:
    """The folder for all that is made: a temporary one, or the one to keep."""
    if keep is None:
        return tempfile.TemporaryDirectory(prefix="essl_fast-stacks-")
    Path(keep).mkdir(parents=True, exist_ok=True)
    return nullcontext(keep)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("jobs", nargs="*", metavar="PYTHON:STACK", help=f"stacks: {', '.join(STACKS)}")
    parser.add_argument("--all", action="store_true", help="every Python found, with every stack")
    parser.add_argument("--cuda", action="store_true", help="build the CUDA part, too, which takes minutes")
    parser.add_argument("--workers", default="auto", metavar="N", help="pytest's -n: processes (default: auto)")
    parser.add_argument(
        "--keep", metavar="FOLDER", help="make the environments there, and leave them: PYTHON-STACK/bin"
    )
    parser.add_argument("--uv", default=shutil.which("uv") or "uv", help="uv's path")
    options = parser.parse_args()
    for job in options.jobs:
        if job.partition(":")[0] not in PYTHONS or job.partition(":")[2] not in STACKS:
            parser.error(
                f"{job!r} is no job: a Python of {', '.join(PYTHONS)}, a colon, a stack of {', '.join(STACKS)}"
            )
    found = [version for version in PYTHONS if find_python(version)]
    for version in PYTHONS:
        if version not in found:
            print(f"stacks: Python {version} is not on this machine (PATH, ~/.pyenv/versions): not tried", flush=True)
    jobs = [Job(*job.split(":")) for job in options.jobs]
    if not jobs:
        jobs = [Job(p, s) for p in found for s in STACKS] if options.all else default_jobs(found)
    with place(options.keep) as folder:
        keep = options.keep is not None
        trial = Trial(Path(folder).resolve(), options.uv, options.cuda, keep, options.workers)
        try:
            trial.unpack_sdist()
        except NotHad as error:
            print(f"stacks: nothing could be tried: {error}")
            return 0
        except Failed as error:
            print(f"stacks: the sdist: {error}")
            return 1
        for job in jobs:
            print(f"\n--- Python {job.python}, {job.stack}", flush=True)
            trial.try_job(job)
    print("\n" + table(jobs))
    return int(any(job.failed for job in jobs))


if __name__ == "__main__":
    sys.exit(main())
