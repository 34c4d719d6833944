"""Users without a name or a home: caches have a place all the same."""

import getpass
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from essl_fast.common import places
from tests import ROOT

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A user that /etc/passwd does not list, without variables."""
    for name in (*NAMES, "HOME", "XDG_CACHE_HOME", places.INDUCTOR, places.TRITON):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(places.pwd, "getpwuid", unknown)
    monkeypatch.setattr(places, "_named", {})
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: _no_home()))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield tmp_path
    for name in ("LNAME", places.INDUCTOR, places.TRITON):
        os.environ.pop(name, None)


def _no_home():
    raise RuntimeError("Could not determine home directory.")


def test_a_user_without_a_name_gets_folders_for_compiled_code(nobody):
    assert not places.has_a_name() and places.cache_folder() is None
    places.name_user()
    folder = nobody / f"essl_fast-{os.getuid()}" / "compile"
    assert os.environ[places.INDUCTOR] == str(folder / "inductor") and os.environ[places.TRITON] == str(
        folder / "triton"
    )
    assert not places.set_by_user(places.INDUCTOR) and not places.has_a_name()
    assert getpass.getuser() == f"uid-{os.getuid()}"


def test_a_user_without_a_name_keeps_the_folders_that_he_names(nobody, monkeypatch):
    for name in (places.INDUCTOR, places.TRITON):
        monkeypatch.setenv(name, "/theirs")
    places.name_user()
    assert getpass.getuser() and os.environ[places.INDUCTOR] == os.environ[places.TRITON] == "/theirs"
    assert places.set_by_user(places.INDUCTOR)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_variable_is_enough(nobody, monkeypatch, name):
    monkeypatch.setenv(name, "me")
    places.name_user()
    assert places.has_a_name() and places.INDUCTOR not in os.environ
    monkeypatch.setenv(name, "")
    assert not places.has_a_name()


@pytest.mark.parametrize("given", ["", "cache", "~/cache", "./x", "$HOME/cache"])
def test_a_cache_folder_that_is_relative_is_passed_over(monkeypatch, tmp_path, given):
    """A container's ENV expands no ~ : else a folder of that name came into being in the current one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert places.cache_folder() == tmp_path / ".cache" / "essl_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert places.cache_folder() == Path("/elsewhere/essl_fast")


@pytest.mark.parametrize("home", ["", "relative", "/proc/nowhere", "/proc", "/dev/null"])
def test_a_home_that_cannot_be_written(nobody, monkeypatch, home):
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: Path(home)))
    found = places.compile_folder()
    assert found == nobody / f"essl_fast-{os.getuid()}" / "compile" and places.writable(found)


@pytest.mark.slow
def test_pytorch_makes_an_optimizer_and_compiles_for_a_user_without_a_name(tmp_path):
    code = (
        "import os, pwd\n"
        "def unknown(uid): raise KeyError('uid not found')\n"
        "pwd.getpwuid = unknown\n"
        "import essl_fast, torch\n"
        "from torch._inductor.runtime.cache_dir_utils import cache_dir\n"
        "import torch._inductor.codecache\n"  # as compiling does
        "torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])\n"
        "print(cache_dir())\n"
    )
    environment = {
        key: value for key, value in os.environ.items() if key not in (*NAMES, places.INDUCTOR, places.TRITON)
    }
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / ".cache" / "essl_fast" / "compile" / "inductor")
