"""The list of mutants fits the sources, and the script tells a test that sees a fault from one that does not."""

import json
import subprocess
import sys

import pytest

from tests import ROOT, mutants


@pytest.mark.parametrize("mutant", mutants.mutants(), ids=lambda one: one.name)
def test_a_mutant_fits_today_s_sources(mutant):
    assert mutant.applied(ROOT) != (ROOT / mutant.file).read_text(encoding="utf-8")
    assert mutant.tests and not mutant.missing(ROOT)


def test_no_name_is_there_twice():
    names = [one.name for one in (*mutants.mutants(), *mutants.equivalents())]
    assert len(set(names)) == len(names)


PROGRAM = """
import json, sys
from pathlib import Path
from tests import mutants
mutants.ROOT, mutants.LIMIT = Path(sys.argv[1]), int(sys.argv[2])
tried = [mutants.Mutant(new, "one.py", "return 1", new, ("test_one.py::test",)) for new in sys.argv[3:]]
(work := mutants.ROOT.parent / "work").mkdir()
print(json.dumps({mutant.name: found for mutant, *found, _ in mutants.tried(tried, work, 2)}))
"""


def outcomes(place, test, *faults, limit=600):
    """What comes of faults in a repository of one function and one test. The script forks, a test process must not."""
    source = place / "source"
    source.mkdir(parents=True)
    (source / "one.py").write_text("def one():\n    return 1\n")
    (source / "test_one.py").write_text(f"import one\n\n\ndef test():\n    assert {test}\n")
    (source / "pytest.ini").write_text("[pytest]\nmarkers = nightly\n")
    words = [sys.executable, "-c", PROGRAM, str(source), str(limit), *faults]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_killed_and_alive(tmp_path):
    """One copy serves one after the other, so a fault must be gone from it before the next comes."""
    died, waits = "__import__('os').abort()", "__import__('time').sleep(999)"
    done = outcomes(tmp_path, "one.one() == 1", "return 2", "return 1 ", died)
    assert json.loads(done.stdout) == {
        "return 2": ["killed", "FAILED test_one.py::test"],
        "return 1 ": ["LIVES", json.loads(done.stdout)["return 1 "][1]],
        died: ["killed", "SIGABRT"],
    }
    assert (tmp_path / "source" / "one.py").read_text().endswith("return 1\n")
    done = outcomes(tmp_path / "late", "one.one() == 1", waits, limit=3)  # alone: no other one is late, too
    assert json.loads(done.stdout) == {waits: ["killed", "no end within 3 s"]}


def test_a_word_that_no_mutant_has(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mutants", "--only", "no such word"])
    assert mutants.main() == 2
    assert capsys.readouterr().err == "--only: no mutant has 'no such word' in its name or in its file's\n"


def test_tests_that_fail_without_a_fault_show_nothing(tmp_path):
    done = outcomes(tmp_path, "one.one() == 3", "return 2")
    assert done.returncode and "ValueError: these tests fail without a fault:\nFAILED test_one.py::test" in done.stderr


def test_a_text_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="0 times"):
        mutants.Mutant("x", "setup.py", "no such text", "", ()).applied(ROOT)


@pytest.mark.parametrize(
    "test", ["tests/none.py", "tests/test_mutants.py::test_none", "tests/test_mutants.py::outcome"]
)
def test_a_test_that_is_not_there_is_an_error(test):
    assert mutants.Mutant("x", "setup.py", "", "", ("tests/test_mutants.py", test)).missing(ROOT) == [test]
