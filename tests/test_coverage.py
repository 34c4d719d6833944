"""The list of what only a GPU takes fits the sources, and what it excuses is only that."""

import ast

import pytest

from tests import ROOT, coverage
from tests.coverage import Measured, Only, Tally

SOURCE = '''\
class A:
    def f(self, x):
        """What it does."""
        if x.is_cuda:
            stream()
            wait()
        else:
            y = 1
        if x.is_cuda:
            y = 2
        return y

    def g(self):
        def h():
            return 3

        return h()
'''
NOTHING = Measured(set(), set(), set(), set())
ON_A_CPU = Measured({1, 2, 4, 8, 9, 11, 13}, {5, 6, 10, 14, 15, 17}, {(4, 8), (9, 11)}, {(4, 5), (9, 10)})
PRETENDED = Measured({1, 2, 4, 5, 6, 9, 10, 11}, set(), {(4, 5), (9, 10)}, set())
NOT = "not: needs a real driver"


@pytest.mark.parametrize("only", coverage.listed(), ids=lambda only: only.place)
def test_the_list_fits_the_sources(only):
    assert only.kind in coverage.HOWS and (only.kind == coverage.PHANTOM or len(only.how) > 12), only.how
    file = only.place.partition("::")[0]
    assert len(coverage.blocks((ROOT / file).read_text(encoding="utf-8"), only)) == max(1, len(only.at))


def test_a_block_is_excused_up_to_its_end_with_the_branch_to_it():
    only = Only("a.py::A.f", ("stream()",), "phantom")
    assert coverage.excused(only, SOURCE, ON_A_CPU, PRETENDED) == ({5, 6}, {(4, 5)})
    only = Only("a.py::A.f", ("stream()", "y = 2"), NOT)
    assert coverage.excused(only, SOURCE, ON_A_CPU, NOTHING) == ({5, 6, 10}, {(4, 5), (9, 10)})


def test_of_a_condition_the_branches_are_excused():
    only = Only("a.py::A.f", ("if x.is_cuda:\ny = 2",), NOT)
    assert coverage.excused(only, SOURCE, ON_A_CPU, NOTHING) == (set(), {(9, 10)})


def test_a_whole_function_is_excused():
    assert coverage.excused(Only("a.py::A.g", (), NOT), SOURCE, ON_A_CPU, NOTHING) == ({14, 15, 17}, set())
    assert coverage.blocks(SOURCE, Only("a.py::A.g.<locals>.h", (), NOT)) == [(15, 15)]
    assert coverage.blocks(SOURCE, Only("a.py::A.f", (), NOT)) == [(4, 11)]


@pytest.mark.parametrize(
    ("only", "phantom", "said"),
    [
        (Only("a.py::A.gone", (), NOT), NOTHING, "gone is gone"),
        (Only("a.py::A", (), NOT), NOTHING, "A is gone"),
        (Only("a.py::A.f", ("nowhere()",), NOT), NOTHING, r"'nowhere\(\)' 0 times"),
        (Only("a.py::A.f", ("if x.is_cuda:",), NOT), NOTHING, "2 times"),
        (Only("a.py::A.f", ("y = 1",), NOT), NOTHING, "a test runs it on a CPU"),
        (Only("a.py::A.f", ("stream()",), "phantom"), NOTHING, "the pretended GPU does not run it"),
        (Only("a.py::A.f", ("stream()",), NOT), PRETENDED, "the pretended GPU runs it"),
        (Only("a.py::A.f", ("stream()",), "not: why"), NOTHING, "with a reason"),
        (Only("a.py::A.f", ("stream()",), ""), NOTHING, "is none of"),
    ],
)
def test_a_list_that_is_wrong_is_an_error(only, phantom, said):
    with pytest.raises(ValueError, match=said):
        coverage.excused(only, SOURCE, ON_A_CPU, phantom)


def test_the_score_with_and_without_what_only_a_gpu_takes(tmp_path, monkeypatch):
    file = "essl_fast/app/one.py"
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(SOURCE)
    monkeypatch.setattr(coverage, "listed", lambda: [Only(f"{file}::gone", (), NOT), Only("no.py::f", (), NOT)])
    found = coverage.Found({file: ON_A_CPU}, {}, tmp_path)
    assert found.wrong == [f"{file}::gone is gone", "no.py::f is gone"]
    assert found.total(with_gpu=True) == found.total(with_gpu=False) == Tally(7, 13, 2, 4)

    monkeypatch.setattr(coverage, "listed", lambda: [Only(f"{file}::A.f", ("stream()",), NOT)])
    found = coverage.Found({file: ON_A_CPU}, {}, tmp_path)
    assert (found.wrong, found.kinds) == ([], {"not": 1})
    assert found.total(with_gpu=True) == Tally(7, 13, 2, 4) and found.total(with_gpu=False) == Tally(7, 11, 2, 3)
    assert found.total(with_gpu=False).percent == {"lines": pytest.approx(700 / 11), "branches": pytest.approx(200 / 3)}
    assert list(found.misses()) == [f"{file}: 10 14 15 17 9->10"]
    assert [line.split()[0] for line in found.table()][1:] == ["essl_fast/app", "essl_fast,"]


@pytest.mark.slow
def test_processes_of_a_test_are_measured_and_triton_kernels_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(coverage, "DATA", tmp_path)
    begins = "import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'essl_fast', '--version'], check=True)\n"
    (tmp_path / "begins.py").write_text(begins)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    assert coverage.measure("tests", ["begins"]) == 0
    found = coverage.read("tests")
    assert len(found["essl_fast/__main__.py"].ran) > 10 and found["essl_fast/__main__.py"].taken
    assert not found["essl_fast/train/run.py"].ran and len(found["essl_fast/train/run.py"].missed) > 50
    kernels = "essl_fast/kernels/norm_gelu_kernels.py"
    triton = [
        range(node.lineno, (node.end_lineno or 0) + 1)
        for node in ast.parse((ROOT / kernels).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    ]
    missed = found[kernels].missed
    assert len(triton) > 3 and len(missed) > 20 and not any(line in lines for line in missed for lines in triton)


def test_the_limits_decide(monkeypatch, capsys):
    monkeypatch.setattr(coverage, "listed", lambda: [])
    monkeypatch.setattr(coverage.sys, "argv", ["coverage", "--report"])
    for missed, code in ((set(), 0), ({1}, 1)):
        half = Measured(set(range(2, 21)), missed, {(2, 3)}, set())
        monkeypatch.setattr(coverage, "read", lambda _, held=half: {"essl_fast/one.py": held})
        monkeypatch.setattr(coverage, "LIMITS", {"lines": 96.0, "branches": 90.0})
        assert coverage.main() == code
    assert "lines: 95.0%, at least 96% wanted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "runs", "fresh"),
    [
        ([], ["-m", "not nightly"], True),
        (["--plain"], ["-m", "not slow and not nightly"], True),
        (["--add", "-m", "slow", "tests/data"], ["-m", "slow", "tests/data"], False),
        (["--report"], None, None),
    ],
)
def test_which_tests_are_measured(monkeypatch, words, runs, fresh):
    ran = []

    def measure(name, words, fresh=True):
        ran.append((name, words, fresh))
        return 3 if name == "tests" else 0

    monkeypatch.setattr(coverage, "listed", lambda: [])
    monkeypatch.setattr(coverage, "measure", measure)
    monkeypatch.setattr(coverage, "read", lambda _: {"essl_fast/one.py": Measured({1}, set(), {(1, 2)}, set())})
    monkeypatch.setattr(coverage.sys, "argv", ["coverage", *words])
    assert coverage.main() == (0 if runs is None else 1)  # a test that fails fails the measurement
    if runs is None:
        assert not ran
        return
    (name, given, anew), *others = ran
    assert (name, given[-len(runs) :], anew) == ("tests", runs, fresh) and given[0] == "pytest"
    assert others == ([("phantom", ["tests.phantom"], True)] if fresh else [])
    assert all(
        test.split("::")[0] in str(given) and (ROOT / test.split("::")[0]).exists() for test in coverage.LEFT_OUT
    )
