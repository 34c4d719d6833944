"""A command's work does not depend on the streams that it prints on."""

import io
import os
import subprocess
import sys

import pytest

from essl_fast.common import commands, streams
from tests import ROOT

PROGRAM = """
import sys
from essl_fast.common import streams
from essl_fast.common.commands import begin, command, console

begin()


def main():
    with streams.kept():
        out = console(kept=True)
        for number in range(3000):
            out.print(f"line {number} of runs/a[fold1]: \\u97f3\\u697d :dog:", soft_wrap=True)
        print("warning", file=sys.stderr)
        with open(sys.argv[1], "w") as results:
            results.write("all of it")
    return 0


sys.exit(command(main, "program"))
"""


def run(tmp_path, redirect="", **environment):
    """Run the program by a shell; its exit code, stdout and stderr, and the results that it wrote."""
    (tmp_path / "program.py").write_text(PROGRAM)
    results = tmp_path / "results"
    results.unlink(missing_ok=True)
    line = f'"{sys.executable}" "{tmp_path}/program.py" "{results}" {redirect}'
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        timeout=300,
        check=False,
    )
    assert results.read_text() == "all of it", done.stderr
    return done


GONE = b"standard output cannot be written (%b): going on without it"


@pytest.mark.parametrize(
    ("redirect", "said"),
    [
        ("| head -1", GONE % b"Broken pipe"),
        ("| true", GONE % b"Broken pipe"),
        ("> /dev/full", GONE % b"No space left on device"),
        (">&-", b""),
        ("<&- >&-", b""),
        ("<&-", b""),
        ("2>&- > /dev/null", b""),
        ("2> /dev/full | tail -1", b""),
        ("2>&1 | head -1", b""),
        (">&- 2>&- <&-", b""),
        ("> /dev/full 2>&1", b""),
        ("> /dev/null", b""),
    ],
)
def test_results_are_written_wherever_the_output_goes(tmp_path, redirect, said):
    done = run(tmp_path, redirect)
    assert done.returncode == 0 and b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    assert done.stderr.count(said) >= 1 if said else b"cannot be written" not in done.stderr


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, rb"line 7 of runs/a[fold1]: \u97f3\u697d :dog:"),
        ({"PYTHONIOENCODING": "ascii:strict"}, rb"line 7 of runs/a[fold1]: \u97f3\u697d :dog:"),
        ({"PYTHONIOENCODING": "latin-1"}, rb"line 7 of runs/a[fold1]: \u97f3\u697d :dog:"),
        ({"PYTHONIOENCODING": "cp1252"}, rb"line 7 of runs/a[fold1]: \u97f3\u697d :dog:"),
        ({"PYTHONIOENCODING": "gb2312"}, "line 7 of runs/a[fold1]: \u97f3\\u697d :dog:".encode("gb2312", "replace")),
        (
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            rb"line 7 of runs/a[fold1]: \u97f3\u697d :dog:",
        ),
        ({"PYTHONIOENCODING": "utf-8"}, "line 7 of runs/a[fold1]: 音楽 :dog:".encode()),
        ({"LC_ALL": "C", "PYTHONUTF8": "1"}, "line 7 of runs/a[fold1]: 音楽 :dog:".encode()),
    ],
)
def test_a_character_that_the_terminal_lacks_is_an_escape(tmp_path, environment, shown):
    done = run(tmp_path, **environment)
    assert done.returncode == 0 and done.stdout.count(b"\n") == 3000
    if environment.get("PYTHONIOENCODING") != "gb2312":  # which of the two it has is the codec's business
        assert shown in done.stdout.splitlines()


class Broken(io.StringIO):
    """A stream that raises an error on its second write."""

    def __init__(self, error):
        super().__init__()
        self.error, self.writes = error, 0

    def write(self, text):
        self.writes += 1
        if self.writes > 1:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(32, "Broken pipe"),
        OSError(5, "Input/output error"),  # the terminal was closed
        OSError(9, "Bad file descriptor"),
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
        OSError(11, "Resource temporarily unavailable"),
        ConnectionResetError(104, "Connection reset by peer"),
        ValueError("I/O operation on closed file."),
    ],
    ids=str,
)
def test_an_error_of_the_stream_is_one_warning(error):
    stream, other = Broken(error), io.StringIO()
    kept = streams.KeptStream(stream, "standard output", other)
    for line in ("one\n", "two\n", "three\n"):
        print(line, file=kept, end="", flush=True)
    kept.writelines(["four\n"])
    assert stream.getvalue() == "one\n" and stream.writes == 2
    also_gone = streams.KeptStream(Broken(error), "standard output", Broken(error))
    for _ in range(3):
        print("line", file=also_gone, flush=True)
    why = getattr(error, "strerror", None) or str(error)
    assert other.getvalue() == f"standard output cannot be written ({why}): going on without it\n"
    assert kept.lost == why and not kept.isatty()


@pytest.mark.parametrize(
    "text",
    [
        "runs/semipl[fold1]",
        "x[/y]",
        ":dog:",
        "[bold]a[/bold]",
        "[red]",
        ":smile: [/]",
        "a\\[b",
        "[link=http://x]y",
        "[1]",
    ],
)
def test_the_console_prints_text_as_it_is(text, monkeypatch):
    from rich.table import Table

    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    console = commands.console()
    table = Table(title=text)
    table.add_column("")
    table.add_row(text)
    console.print(text, soft_wrap=True)
    console.print(table)
    assert out.getvalue().count(text) == 3


def test_a_stream_that_cannot_be_told_what_to_do_with_a_character():
    """Such as a notebook's: it has an encoding, and raises at what that lacks."""
    raw = io.BytesIO()
    kept = streams.KeptStream(io.TextIOWrapper(raw, "ascii", "strict"), "standard output")
    assert kept.write("5 × 音 – ok\n") == len("5 × 音 – ok\n") and not kept.lost
    kept.writelines(["a\n", "b\n"])
    kept.flush()
    assert raw.getvalue() == b"5 x \\u97f3 - ok\na\nb\n"


def test_a_stream_that_was_closed_is_no_terminal_and_is_flushed_once():
    closed, other = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    kept = streams.KeptStream(closed, "standard output", other)
    closed.close()
    assert not kept.isatty() and not kept.lost
    kept.flush()
    kept.flush()
    assert kept.lost and other.getvalue().count("standard output cannot be written") == 1
    assert kept.write("abc") == 3
