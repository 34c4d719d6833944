"""One name for all commands: `python -m essl_fast` and the console script, what they list, and completion of shells."""

import os
import subprocess
import sys

import pytest

import essl_fast
from essl_fast.common import commands
from essl_fast.common.errors import InputError
from tests.common.test_commands import COMMANDS
from tests.tools.doors import door

PROGRAM = door("essl_fast")


@pytest.fixture
def script(monkeypatch):
    """The console script: its exit code for some arguments."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["essl-fast", *words])
        monkeypatch.setattr(PROGRAM, "begin", lambda: None)  # it would change this process's signals
        try:
            return PROGRAM.script()
        except SystemExit as ended:
            return ended.code
        finally:
            PROGRAM.PROG = "python -m essl_fast"
            for name in COMMANDS:
                PROGRAM.door(name).PROG = f"python -m essl_fast.{name}"

    return run


def test_the_commands_are_listed_with_a_sentence_each(script, capsys):
    for words in ((), ("--help",)):
        assert script(*words) == 0
        said = capsys.readouterr().out
        assert all(f"  {name:<9}  {text}\n" in said for name, text in PROGRAM.COMMANDS.items())
        assert "essl-fast COMMAND ..." in said
    assert script("--version") == 0 and capsys.readouterr().out == f"essl_fast {essl_fast.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_script_runs_every_command_under_its_name(script, capsys, name):
    assert script(name, "--version") == 0 and capsys.readouterr().out == f"essl_fast {essl_fast.__version__}\n"
    assert script(name, "--nonsense") == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"essl-fast {name}: error: ") and said.err.count("\n") == 1 and said.out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "there is no command 'trian'; did you mean train?; essl-fast lists them"),
        (["eval"], "there is no command 'eval'"),
        (["--verson"], "there is no option --verson; did you mean --version?"),
        (["--print-completion", "bsh"], "--print-completion: must be bash, zsh or tcsh, got 'bsh'; did you mean bash?"),
        (["--print-completion"], "--print-completion: needs a value"),
        (["train", "--lr", "1"], "did you mean --optim.lr_"),
        (["evaluate", "x", "--splt", "val"], "there is no option --splt; did you mean --split?"),
        (["evaluate", "x", "--split", "tset"], "--split: must be train, val or test, got 'tset'; did you mean test?"),
        (["localize", "x", "--chekpoint", "y"], "there is no option --chekpoint; did you mean --checkpoint?"),
        (["evaluate", "x", "--ex"], "there is no option --ex"),
        (["evaluate", "x", "y"], "there is no place for 'y'"),
        (["localize", "x", "--checkpoint", "y", "--rate", "nan"], "--rate: must be from 0.01 to 1,000, got 'nan'"),
        (["localize", "x", "--checkpoint", "y", "--batch", "010"], "--batch: must be a whole number without leading"),
        (["prepare", "--out", "x", "--workers", "0"], "--workers: must be from 1 to 1,024, got '0'"),
        (["prepare", "--out", "x", "--validation", "1,5"], "--validation: must be a number such as 0.5"),
        (
            ["reproduce", "tabel1"],
            "must be table1, table2, figures, fractions, all or worlds, got 'tabel1'; did you mean table1",
        ),
        (["reproduce", "--versoin"], "there is no option --versoin; did you mean --version?"),
        (["reproduce", "table1", "--protcol", "x"], "there is no option --protcol; did you mean --protocol?"),
        (["doctor", "--prbe"], "there is no option --prbe; did you mean --probe?"),
        (["report", ""], "must be a path, got ''"),
        (["replay", "~nobody-of-this-name/x.pt"], "no home folder is known for it"),
        (["export", "x", "--to", "sspl", "--out", "a\nb"], "without control characters, got 'a\\nb'"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_nearest_name(script, capsys, words, said):
    assert script(*words) == 2
    told = capsys.readouterr()
    assert said in told.err and told.err.count("\n") == 1 and told.out == ""
    assert not any(word in told.err for word in ("Parser key", "Literal", "Optional", "argument "))


def test_help_shows_the_settings_that_people_change_and_help_all_shows_all(script, capsys, monkeypatch):
    from essl_fast import config
    from essl_fast.config import helping

    assert len(helping.OFTEN) == 20 and set(helping.OFTEN) <= config.leaves().keys()
    numbers = {name for name, kind in config.leaves().items() if kind in (int, float)}
    assert helping.UNITS.keys() == numbers and all(helping.texts().values())
    for columns in ("80", "132"):
        monkeypatch.setenv("COLUMNS", columns)
        for flag, names in (("--help", set(helping.OFTEN)), ("--help-all", config.leaves().keys())):
            assert script("train", flag) == 0
            said = capsys.readouterr().out
            assert {name for name in config.leaves() if f"  --{name} " in said} == names
            assert all(len(line) <= int(columns) for line in said.splitlines())
    line = next(line for line in said.splitlines() if line.startswith("  --data.batch_size "))
    assert line.split()[:3] == ["--data.batch_size", "pairs", "128"]


def test_without_shtab_completion_says_what_is_missing(script, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert script("--print-completion", "bash") == 2
    assert "needs the package shtab: pip install shtab" in capsys.readouterr().err


COMPLETE = """
source ./bash
try() {
    COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
    $(complete -p essl-fast | sed 's/.*-F \\([^ ]*\\).*/\\1/') essl-fast "${COMP_WORDS[-1]}" ""
    echo "${COMPREPLY[*]}"
}
try essl-fast tra
try essl-fast train --optim.lr_h
try essl-fast train --compile ''
try essl-fast evaluate --split te
try essl-fast train --config semi
try essl-fast train --data.root some
try essl-fast export --to onnx some
"""


def test_bash_completes_commands_options_and_choices(script, capsys, tmp_path):
    pytest.importorskip("shtab")
    for shell in PROGRAM.SHELLS:
        assert script("--print-completion", shell) == 0
        (tmp_path / shell).write_text(capsys.readouterr().out)
    (tmp_path / "some_folder").mkdir()
    done = subprocess.run(["bash", "-c", COMPLETE], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    found = ["train", "--optim.lr_head", "auto on off", "test", "semipl", "some_folder", "some_folder"]
    assert done.stdout.splitlines() == found, done.stderr


STREAMS = [  # a shell's redirections, exit code, what standard error says
    (">&-", 0, ""),
    (">&- 2>&-", 0, ""),
    ("<&-", 0, ""),
    (">&- <&-", 0, ""),
    ("> /dev/full", 2, "error: cannot write or read a file or standard output: No space left on device"),
    ("| true", 141, "stopped: what read the output has ended"),
]


@pytest.mark.parametrize(("redirection", "code", "said"), STREAMS)
def test_streams_that_are_closed_or_full(redirection, code, said):
    """Help is 8 kB; here it is 80 times that, which no pipe holds."""
    text = (
        "import sys; from essl_fast.common.commands import begin, command; begin()\n"
        "def main():\n    print('x' * 640000)\n    return 0\nsys.exit(command(main, 'prog'))"
    )
    line = f"'{sys.executable}' -c \"$TEXT\" {redirection}; echo ${{PIPESTATUS[0]}} >&3"
    environment = {**os.environ, "TEXT": text}
    ends, begins = os.pipe()
    command = ["bash", "-c", line.replace(">&3", f">&{begins}")]
    done = subprocess.run(command, env=environment, pass_fds=[begins], capture_output=True, text=True, timeout=300)
    os.close(begins)
    with os.fdopen(ends) as told:
        assert told.read() == f"{code}\n"
    assert said in done.stderr and done.stderr.count("\n") == bool(said)


@pytest.mark.parametrize("text", ["two\nlines", "a\x1b[31mb", "x" * 5000, "\u202e", "\udcff"])
def test_a_message_is_one_line_whatever_it_quotes(capsys, text):
    def main():
        raise InputError(text)

    assert commands.command(main, "prog") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said[:-1].isprintable() and len(said) < 2100
