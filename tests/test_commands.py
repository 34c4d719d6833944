"""What the commands have in common: one form of errors, and their exit codes."""

import ast
import importlib
from pathlib import Path

import pytest

from essl_fast import commands, models, stopping
from essl_fast.config import InputError

PACKAGE = Path(commands.__file__).parent
COMMANDS = ("doctor", "evaluate", "export", "localize", "prepare", "replay", "report", "reproduce", "train")
WRONG = {  # arguments that a command's parser takes, and which are wrong all the same
    "doctor": ["--config", "nonsense"],
    "evaluate": ["--device", "cpu"],
    "export": ["nothing", "--to", "sspl", "--out", "files"],
    "localize": ["--checkpoint", "nothing"],
    "prepare": ["--verify", "--out", "nothing"],
    "replay": ["nothing.pt"],
    "report": ["nothing"],
    "reproduce": ["table1", "--data", "nothing"],
    "train": ["--config", "nonsense"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_errors_have_one_form(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"essl_fast.{name}")
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
        (OSError(28, "No space left", "f.pt"), 2, "python -m x: error: cannot write or read f.pt: No space left"),
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


def test_what_is_nobodys_fault_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        commands.command(lambda: 1 // 0, "python -m x")


def guards(tree: ast.Module) -> list[ast.If]:
    """A module's `if __name__ == "__main__":`."""
    conditions = [node for node in tree.body if isinstance(node, ast.If)]
    return [node for node in conditions if ast.unparse(node.test) == "__name__ == '__main__'"]


def test_every_command_is_meant():
    """Each module that ends in `command` is one of those above."""
    found = set()
    for path in PACKAGE.glob("*.py"):
        last = guards(ast.parse(path.read_text()))[-1:]
        found |= {path.stem for guard in last if ast.unparse(guard.body[-1]) == "sys.exit(command(main, PROG))"}
    assert found == set(COMMANDS)
