"""Two versions in turn: a ratio with its range, exit code 1 beyond the noise, and no ratio where results differ."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from benchmarks import compare, compared
from essl_fast.common.errors import InputError
from tests import ROOT

PROGRAM = f"""
import sys, types
sys.path.append({str(ROOT)!r})
import numpy as np
import thing
from benchmarks import compared

now = [0.0]
compared.time = types.SimpleNamespace(perf_counter=lambda: now[0])  # else others on the machine made the noise

def run():
    now[0] += thing.SECONDS
    return {{"x": np.array(thing.VALUE), "name": "n"}}

compared.serve(run, {{"compiled": False}})
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Versions slow, quick and wrong of a program; the folder holds quick."""
    folder = tmp_path / "repository"
    folder.mkdir()

    def git(*words):
        person = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *person, *words], cwd=folder, check=True, capture_output=True)

    git("init", "--quiet")
    for name, seconds, value in (("slow", 0.03, 1.0), ("wrong", 0.01, 1.1), ("quick", 0.01, 1.0)):
        (folder / "thing.py").write_text(f"SECONDS, VALUE = {seconds}, {value}\n")
        git("add", "thing.py")
        git("commit", "--quiet", "-m", name)
        git("tag", name)
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setattr(compare, "ROOT", folder)
    monkeypatch.setattr(compare, "PROGRAM", tmp_path / "program.py")
    return folder


OPTIONS = ["--benchmark", "views", "--rounds", "6", "--seconds", "0.01"]


def test_a_version_that_is_slower_beyond_the_noise_is_an_error(repository, tmp_path, capsys):
    (repository / "thing.py").write_text("SECONDS, VALUE = 0.03, 1.0\n")  # not committed
    assert compare.main(["quick", *OPTIONS, "--fail-at", "1.5", "--json", str(tmp_path / "x.json")]) == 1
    assert "views is slower than quick by more than 1.5, beyond the noise" in capsys.readouterr().out
    ratio = json.loads((tmp_path / "x.json").read_text())["ratios"]["views"]
    assert ratio["each"] == pytest.approx([3.0] * 6) and 2.9 < ratio["low"] <= ratio["median"] <= ratio["high"] < 3.1
    assert compare.main(["slow", *OPTIONS, "--fail-at", "1.5"]) == 0
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=repository, capture_output=True, text=True).stdout
    assert len(worktrees.splitlines()) == 1  # its own


def test_where_results_differ_there_is_no_ratio(repository, capsys):
    assert compare.main(["wrong", *OPTIONS, "--fail-at", "0.01"]) == 0
    said = capsys.readouterr().out
    assert "views: no ratio: x is apart by 0.1, allowed 1.1e-05" in said and "views is slower" not in said
    assert compare.main(["wrong", *OPTIONS, "--apart", "0.2"]) == 0
    assert "no ratio" not in capsys.readouterr().out


def test_a_version_that_does_not_run_is_named(repository, capsys):
    (repository / "thing.py").write_text("raise ImportError('gone')\n")
    assert compare.main(["quick", *OPTIONS]) == 0
    assert "views: no ratio: here: it does not run there: ImportError: gone" in capsys.readouterr().out
    assert compare.main(["quick", *OPTIONS, "--fail-at", "1.5"]) == 1, "a benchmark that ended is no speed that is kept"
    assert "views cannot be timed here any more" in capsys.readouterr().out


def test_an_older_version_that_does_not_run_is_no_failure(repository, capsys):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(repository)]
    (repository / "thing.py").write_text("raise ImportError('gone')\n")
    subprocess.run([*git, "commit", "--quiet", "-am", "gone"], check=True)
    subprocess.run([*git, "tag", "gone"], check=True)
    (repository / "thing.py").write_text("SECONDS, VALUE = 0.01, 1.0\n")
    assert compare.main(["gone", *OPTIONS, "--fail-at", "1.5"]) == 0
    assert "views: no ratio: gone: it does not run there: ImportError: gone" in capsys.readouterr().out


SETUP = """
import pathlib, sys
if "{0}":
    sys.exit("csrc/x.cpp:1: error: {0}")
pathlib.Path("_essl_fast_native.so").touch()
"""


def test_a_version_whose_module_cannot_be_built_is_one_line(repository, capsys):
    """It would take the module that is installed, which is another version's."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(repository)]
    for tag, wrong in (("broken", "no such header"), ("whole", "")):
        (repository / "setup.py").write_text(SETUP.format(wrong))
        subprocess.run([*git, "add", "setup.py"], check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", tag], check=True)
        subprocess.run([*git, "tag", tag], check=True)
    with pytest.raises(InputError, match=r"^broken: the compiled module cannot be built \(.*no such header\), and the"):
        compare.main(["broken", *OPTIONS])
    assert compare.main(["quick", *OPTIONS]) == 0, "a version that has none runs without"
    subprocess.run([*git, "checkout", "--quiet", "broken"], check=True)
    with pytest.raises(InputError, match=r"^here: the compiled module cannot be built"):
        compare.main(["whole", *OPTIONS])
    assert compare.main(["broken", *OPTIONS]) == 0, "of the same sources both run without"
    assert "no ratio" not in capsys.readouterr().out


def test_a_module_of_another_version_is_refused(tmp_path, monkeypatch):
    module = types.ModuleType("_essl_fast_native")
    module.__file__ = str(tmp_path / "installed" / "_essl_fast_native.so")
    monkeypatch.setitem(sys.modules, "_essl_fast_native", module)
    compared.refuse_another_module(tmp_path / "installed")
    with pytest.raises(SystemExit, match="this version has no compiled module, and .*installed.* is of another one"):
        compared.refuse_another_module(tmp_path)
    monkeypatch.delitem(sys.modules, "_essl_fast_native")
    compared.refuse_another_module(tmp_path)  # PyTorch does its work


def test_the_weekly_job_takes_the_release_before_its_commit(repository):
    (line,) = (line for line in (ROOT / ".ci" / "weekly").read_text().splitlines() if line.startswith("release="))

    def release():
        done = subprocess.run(["bash", "-c", f"{line}; echo $release"], cwd=repository, capture_output=True, text=True)
        return done.stdout.strip()

    def tag(name, at):
        subprocess.run(["git", "tag", name, at], cwd=repository, check=True)

    assert release() == ""
    tag("v0.10.0", "HEAD")
    assert release() == "", "it would be compared with itself"
    tag("v0.2.0", "HEAD~2")
    tag("v0.9.0", "HEAD~1")
    assert release() == "v0.9.0"


@pytest.mark.parametrize("rev", ["v99", "--all", ""])
def test_a_version_that_is_unknown_is_one_line(repository, rev):
    with pytest.raises(InputError, match="there is no version .* in this clone"):
        compare.main(["--rounds", "6", "--", rev])


def test_the_range_holds_the_median_with_95_percent():
    """By the binomial distribution: of 6 ratios all, of 12 those from the third on."""
    for count, outside in ((6, 0), (8, 0), (9, 1), (12, 2), (20, 5)):
        ratio = compare.Ratio.of(range(1, count + 1), [1] * count)
        assert (ratio.low, ratio.high) == (1 + outside, count - outside)
    with pytest.raises(SystemExit):
        compare.parse(["x", "--rounds", "5"])


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"b": np.zeros(2)}, "one gives a, the other b"),
        ({"a": np.zeros(3)}, "is not float64"),
        ({"a": np.array([0.0, 1.1])}, "a is apart by 0.1"),
        ({"a": np.array([0.0, np.nan])}, "a is apart"),
    ],
)
def test_what_counts_as_different(theirs, said):
    compare.same({"a": np.array([0, 1.0])}, {"a": np.array([1e-6, 1.0])}, 1e-5)
    with pytest.raises(compare.Difference, match=said):
        compare.same({"a": np.array([0, 1.0])}, theirs, 1e-5)
    with pytest.raises(compare.Difference, match="no result to compare"):
        compare.same({}, {}, 1e-5)
    with pytest.raises(compare.Difference, match="n is another"):
        compare.same({"n": np.array("x")}, {"n": np.array("y")}, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", compared.SUBJECTS)
def test_a_subject_runs_more_than_once(tiny, tmp_path, name):
    world, prepared = tiny
    for link, target in (("videos", world.videos), ("annotations", world.annotations), ("prepared", prepared)):
        (tmp_path / link).symlink_to(target)
    run = compared.SUBJECTS[name](tmp_path)
    first, second = run(), run()
    assert first and first.keys() == second.keys()
    assert all(compared.as_array(value).size for value in first.values())
    if name != "epoch":  # which trains on
        compare.same(*({key: compared.as_array(value) for key, value in each.items()} for each in (first, second)), 0.0)
