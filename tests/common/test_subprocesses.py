"""A child process finds the same modules as its parent."""

import os
import subprocess
import sys

from essl_fast.common.files import PACKAGE
from essl_fast.common.subprocesses import with_package

SHOW = "import essl_fast, essl_fast_twice as twice; print(essl_fast.__path__[0], twice.__file__, sep='\\n')"


def child(code, cwd):
    """What a child prints, line by line."""
    command = [sys.executable, "-c", code]  # as -m, it puts its current folder first, unless it is told not to
    done = subprocess.run(command, cwd=cwd, env=with_package(), capture_output=True, text=True, check=True)
    return done.stdout.split("\n")


def test_the_parents_order_decides_which_of_two_versions_is_imported(tmp_path, monkeypatch):
    """In whatever folder the child starts, and wherever essl_fast itself lies."""
    for place in ("first", "second", "cwd"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "essl_fast_twice.py").write_text("")
    for order in (("first", "second"), ("second", "first")):
        paths = [str(tmp_path / place) for place in order]
        monkeypatch.setattr(sys, "path", [*paths, *sys.path, str(tmp_path / "cwd")])
        package, twice = child(SHOW, tmp_path / "cwd")[:2]
        assert package == str(PACKAGE) and twice == str(tmp_path / order[0] / "essl_fast_twice.py")


def test_the_current_folder_comes_where_the_parent_has_it(tmp_path, monkeypatch):
    (tmp_path / "parent").mkdir()
    (tmp_path / "child").mkdir()
    for place in ("parent", "child"):
        (tmp_path / place / "essl_fast_twice.py").write_text("")
    monkeypatch.chdir(tmp_path / "parent")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert child(SHOW, tmp_path / "child")[1] == str(tmp_path / "parent" / "essl_fast_twice.py")


def test_a_package_that_the_path_does_not_show_is_found_too(tmp_path, monkeypatch):
    rest = [path for path in sys.path if os.path.abspath(path) != str(PACKAGE.parent)]
    monkeypatch.setattr(sys, "path", rest)
    monkeypatch.setenv("PYTHONPATH", "")
    assert child("import essl_fast; print(essl_fast.__path__[0])", tmp_path)[0] == str(PACKAGE)
    assert with_package({"A": "b"})["A"] == "b"
