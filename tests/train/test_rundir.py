"""Which run directory a command means, and that a run directory has one owner at a time."""

import errno
import fcntl
import os

import pytest

from essl_fast import config
from essl_fast.common.errors import InputError
from essl_fast.runtime import distributed
from essl_fast.train import rundir
from essl_fast.train.rundir import find_run


def test_a_run_directory_has_one_owner(tmp_path, monkeypatch):
    with rundir.owned(tmp_path):
        with pytest.raises(InputError, match=rf"another training is at work in .* \(process {os.getpid()} on "):
            with rundir.owned(tmp_path):
                pass
        assert (tmp_path / rundir.LOCK).exists()
    assert not list(tmp_path.iterdir())
    (tmp_path / rundir.LOCK).write_text("process 1 on a machine that lost power\n")  # nobody holds it
    with rundir.owned(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / rundir.LOCK).read_text()

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    said = []
    with rundir.owned(tmp_path, said.append):
        assert "has no locks (No locks available)" in said[0]


def test_a_restart_by_torchrun_goes_on_with_the_run_in_out(tmp_path):
    settings = config.load("demo", ["--out", str(tmp_path)])
    again = distributed.World(0, 1, 0, restarts=1)
    assert find_run(settings, "", again) == (tmp_path, None)  # it ended before its first checkpoint
    (tmp_path / "last.pt").touch()
    assert find_run(settings, "", again) == (tmp_path, tmp_path / "last.pt")
    with pytest.raises(InputError, match="holds a run already"):
        find_run(settings, "", distributed.ALONE)
    with pytest.raises(InputError, match="give --out DIR"):
        find_run(config.load("demo"), "", again)
