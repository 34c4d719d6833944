"""What the commands have in common: a quiet end by Ctrl-C from the first import on, one form of errors, exit codes."""

import ast
import io
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from essl_fast import models
from essl_fast.common import commands, errors
from essl_fast.common.errors import InputError
from essl_fast.common.files import PACKAGE
from essl_fast.runtime import stopping
from tests.tools.doors import door

COMMANDS = (
    *("app", "doctor", "evaluate", "export", "localize", "prepare", "pretrain", "replay", "report", "reproduce"),
    "train",
)
SLOW = ("numpy", "torch")  # what takes long to import: each command begins its work with one
RIGHT = {  # arguments that are right, as far as the command can tell before it imports anything heavy
    "app": ["--checkpoint", "nothing"],
    "doctor": [],
    "evaluate": ["nothing.pt"],
    "export": ["nothing", "--to", "sspl", "--out", "files"],
    "localize": ["film.mp4", "--checkpoint", "nothing"],
    "prepare": ["--verify", "--out", "nothing"],
    "pretrain": [],
    "replay": ["nothing.pt"],
    "report": ["nothing"],
    "reproduce": ["table1"],
    "train": [],
}
PROGRAMS = ("__main__.py", "workers.py")  # of data/synthetic: run as programs, too, but no commands of the package
WRONG = {  # arguments that a command's parser takes, and which are wrong all the same
    "app": ["--checkpoint", "nothing"],
    "doctor": ["--config", "nonsense"],
    "evaluate": ["--device", "cpu"],
    "export": ["nothing", "--to", "sspl", "--out", "files"],
    "localize": ["--checkpoint", "nothing"],
    "prepare": ["--verify", "--out", "nothing"],
    "pretrain": ["--seed", "none"],
    "replay": ["nothing.pt"],
    "report": ["nothing"],
    "reproduce": ["table1", "--data", "nothing"],
    "train": ["--config", "nonsense"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_errors_have_one_form(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = door(f"essl_fast.{name}")
    for arguments in (WRONG[name], [*WRONG[name], "--nonsense", "1"], [*WRONG[name], "--out"]):
        try:
            code = commands.command(lambda given=arguments: module.main(given), module.PROG)
        except SystemExit as error:  # of argparse
            code = error.code
        said = capsys.readouterr()
        assert code == 2 and said.out == "" and said.err.count("\n") == 1
        assert said.err.startswith(f"python -m essl_fast.{name}: error: ")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("wrong"), 2, "python -m x: error: wrong"),
        (models.WeightsError("no file"), 2, "python -m x: error: no file"),
        (
            OSError(28, "No space left", "f.pt"),
            2,
            "python -m x: error: cannot write or read f.pt: No space left; free some space, then run it again",
        ),
        (
            OSError(5, "Input/output error", "f.pt"),
            2,
            "python -m x: error: cannot write or read f.pt: Input/output error; mend that, then run it again",
        ),
        (
            OSError(24, "Too many open files", "f.pt"),
            2,
            "python -m x: error: cannot write or read f.pt: Too many open files; raise the limit with ulimit -n",
        ),
        (BlockingIOError(11, "Resource temporarily unavailable"), 2, f"python -m x: error: {commands.NO_MORE}"),
        (RuntimeError("can't start new thread"), 2, f"python -m x: error: {commands.NO_MORE}"),
        (MemoryError(), 2, "python -m x: error: the memory of this machine is not enough"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            2,
            "python -m x: error: the memory of this machine is not enough (DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 9 bytes.)",
        ),
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.12 "
                "GiB is free. Including non-PyTorch memory, this process has 22.51 GiB memory in use. If reserved but"
            ),
            2,
            "python -m x: error: the memory of the GPU is not enough (CUDA out of memory. Tried to allocate 2.00 GiB. "
            "GPU 0 has a total capacity of 23.64 GiB of which 1.12 GiB is free); take fewer pairs at a time (train: "
            "--data.batch_size), or end other programs on it",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            2,
            "python -m x: error: the memory of the GPU is not enough (CUDA error: CUBLAS_STATUS_ALLOC_FAILED when "
            "calling `cublasCreate(handle)`); take fewer pairs at a time (train: --data.batch_size), or end other "
            "programs on it",
        ),
        (FloatingPointError("nan"), 1, "python -m x: stopped: nan"),
        (KeyboardInterrupt(), 130, "python -m x: stopped"),
        (stopping.Stopped(15), 143, "python -m x: stopped"),
    ],
)
def test_how_a_command_ends(capsys, error, code, line):
    def main():
        raise error

    assert commands.command(main, "python -m x") == code
    assert capsys.readouterr().err == f"{line}\n"
    assert commands.command(lambda: 1, "python -m x") == 1


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("I/O operation on closed file.")])
def test_an_error_that_nobody_can_read_has_its_exit_code(monkeypatch, error):
    class Gone(io.StringIO):
        def write(self, text):
            raise error

    def main():
        raise InputError("wrong")

    monkeypatch.setattr(sys, "stderr", Gone())
    assert commands.command(main, "python -m x") == 2


def test_what_is_nobodys_fault_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        commands.command(lambda: 1 // 0, "python -m x")


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_while_it_imports_ends_a_command_silently(name, tmp_path):
    """NumPy and PyTorch are stood in for by a module that is sent the signal while it is imported."""
    for module in SLOW:
        text = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(900)\n"
        (tmp_path / f"{module}.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE.parent}"}
    command = [sys.executable, "-m", f"essl_fast.{name}", *RIGHT[name]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    if name == "doctor":  # imports them when it looks at them
        assert (done.returncode, done.stderr) == (130, "python -m essl_fast.doctor: stopped\n")
    else:
        assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
    assert done.stdout == ""


def test_ctrl_c_is_pythons_again_once_the_command_runs():
    def main():
        seen.append(signal.getsignal(signal.SIGINT))
        return 0

    seen, before = [], signal.getsignal(signal.SIGINT)
    try:
        for set_by_the_shell, begun, then in (
            (signal.default_int_handler, signal.SIG_DFL, signal.default_int_handler),
            (signal.SIG_IGN, signal.SIG_IGN, signal.SIG_IGN),
        ):
            signal.signal(signal.SIGINT, set_by_the_shell)
            commands.begin()
            assert signal.getsignal(signal.SIGINT) is begun
            assert commands.command(main, "python -m x") == 0 and seen.pop() is then
    finally:
        signal.signal(signal.SIGINT, before)


def source(name: str) -> Path:
    """The file of a command's door."""
    return PACKAGE / name / "__main__.py" if (PACKAGE / name).is_dir() else PACKAGE / f"{name}.py"


def guards(name: str) -> list[tuple[int, ast.If]]:
    """A module's `if __name__ == "__main__":`, and before how many of its statements each stands."""
    body = ast.parse(source(name).read_text()).body
    conditions = [(at, node) for at, node in enumerate(body) if isinstance(node, ast.If)]
    return [(at, node) for at, node in conditions if ast.unparse(node.test) == "__name__ == '__main__'"]


def test_every_command_is_meant():
    """Each module that ends in `command` is one of those above; `begin` stands first in it, where importing it as a
    library does not meet it, and nowhere else."""
    doors = {file.parent.name: file for file in PACKAGE.glob("*/__main__.py")}
    doors |= {file.stem: file for file in PACKAGE.glob("*.py") if file.stem not in ("__init__", "__main__")}
    ends = {name: guards(name)[-1:] for name in sorted(doors)}
    found = [
        name
        for name, last in ends.items()
        for _, node in last
        if ast.unparse(node.body[-1]) == "sys.exit(command(main, PROG))"
    ]
    assert found == sorted(COMMANDS) == sorted(door("essl_fast").COMMANDS)
    for name in COMMANDS:
        at, first = guards(name)[0]
        assert ast.unparse(first.body) == "from essl_fast.common.commands import begin\nbegin()", name
        before = ast.parse(source(name).read_text()).body[1:at]  # without the docstring
        assert [ast.unparse(node) for node in before] in ([], ["from __future__ import annotations"]), name
    callers = [path for path in PACKAGE.rglob("*.py") if "    begin()" in path.read_text()]
    also = {
        PACKAGE / "common" / "commands.py",
        PACKAGE / "__main__.py",
        *(PACKAGE / "data" / "synthetic" / name for name in PROGRAMS),
    }
    assert set(callers) - also == {source(name) for name in COMMANDS}


def test_importing_a_command_changes_no_signal():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert before[0] is signal.default_int_handler  # also where an earlier test has imported them
    for name in COMMANDS:
        door(f"essl_fast.{name}")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("message", "filename", "shown"),
    [
        (errors.Notice("model.vgg16_weights is none"), str(PACKAGE / "models" / "weights.py"), True),
        (errors.Notice("of a user's module"), "/home/me/mine.py", True),
        (UserWarning("Detected call of `lr_scheduler.step()`"), str(PACKAGE / "train" / "step.py"), False),
        (FutureWarning("torch.load with weights_only=False"), "/home/me/essl_fast/venv/torch/serialization.py", False),
        (DeprecationWarning("ast.Str"), "/usr/lib/python3/ast.py", False),
        (ResourceWarning("unclosed file"), str(PACKAGE / "common" / "files.py"), False),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_only_warnings_for_the_user_are_printed(capsys, monkeypatch, message, filename, shown):
    """Also where a library names one of our files as the place, and where our folder is in the path of a library."""
    monkeypatch.setattr(sys, "warnoptions", [])

    def main():
        warnings.simplefilter("always")
        warnings.warn_explicit(message, None, filename, 7)
        return 0

    assert commands.command(main, "python -m x") == 0
    assert capsys.readouterr().err == (f"python -m x: warning: {message}\n" if shown else "")


@pytest.mark.parametrize("name", ["report", "evaluate", "prepare"])
def test_a_current_folder_that_is_gone_is_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def gone():
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", gone)
    module = door(f"essl_fast.{name}")
    assert commands.command(lambda: module.main(RIGHT[name]), module.PROG) == 2
    assert "the current folder is gone (No such file or directory): change into another one" in capsys.readouterr().err
