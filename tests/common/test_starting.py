"""How fast the commands start: PyTorch is not imported for --help, --version and wrong arguments."""

import os
import subprocess
import sys

import pytest

import essl_fast
from essl_fast.common.files import PACKAGE
from tests.common.test_commands import COMMANDS
from tests.tools.processes import measured

HEAVY = ("torch", "nvidia.dali", "av", "triton", "matplotlib")
SCRIPT = """
import runpy, sys

sys.argv = [NAME, *ARGUMENTS]
try:
    runpy.run_module(NAME, run_name="__main__", alter_sys=True)
except SystemExit as error:
    code = error.code
heavy = [name for name in HEAVY if name in sys.modules]
print("ended with", code, heavy, time_of())
"""
TIME = "import resource\ndef time_of():\n    return resource.getrusage(resource.RUSAGE_SELF).ru_utime\n"


def started(name: str, *arguments: str) -> tuple[str, str, int, list[str], float]:
    """A command in a process of its own: its output, errors, exit code, heavy modules, seconds of CPU time."""
    text = f"{TIME}\nNAME, ARGUMENTS, HEAVY = {name!r}, {arguments!r}, {HEAVY!r}\n{SCRIPT}"
    environment = {"PYTHONPATH": str(PACKAGE.parent), **measured()}  # and nothing else: no HOME, no PATH, no locale
    command = [sys.executable, "-c", text]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    said, _, last = done.stdout.rpartition("ended with ")
    assert last, done.stderr
    code, heavy, seconds = last.split(" ", 1)[0], last[last.index("[") + 1 : last.index("]")], last.rsplit(" ", 1)[1]
    return said, done.stderr, int(code), [part.strip(" '") for part in heavy.split(",") if part], float(seconds)


@pytest.mark.parametrize("name", [*(f"essl_fast.{name}" for name in COMMANDS), "essl_fast.data.synthetic"])
def test_help_version_and_wrong_arguments_come_without_torch(name):
    said, _, code, heavy, first = started(name, "--help")
    assert code == 0 and "--version" in said and heavy == []
    said, _, code, heavy, second = started(name, "--version")
    assert code == 0 and said == f"essl_fast {essl_fast.__version__}\n" and heavy == []
    said, errors, code, heavy, third = started(name, "--no-such-option", "1")
    assert code == 2 and said == "" and errors.count("\n") == 1 and heavy == []
    assert min(first, second, third) < 1  # 0.2 s; a machine that is busy takes longer once, not three times


def test_the_package_is_imported_in_no_time():
    code = "import time; begin = time.process_time(); import essl_fast; print(time.process_time() - begin)"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    assert min(float(each.stdout) for each in done) < 0.1
