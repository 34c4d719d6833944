"""Which run directory a command means, and that a run directory has one owner at a time."""

import errno
import fcntl
import os
import threading

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


@pytest.mark.parametrize("stamp", ["20261129-120000"])
def test_runs_of_one_second_get_directories_of_their_own(tmp_path, monkeypatch, stamp):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rundir.time, "strftime", lambda *_: stamp)
    settings, found = config.load("demo"), []
    threads = [
        threading.Thread(target=lambda: found.append(find_run(settings, "", distributed.ALONE))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {str(out) for out, checkpoint in found if checkpoint is None}
    assert names == {f"runs/demo-{stamp}{more}" for more in ("", "-2", "-3", "-4", "-5", "-6", "-7", "-8")}
    assert all((tmp_path / name).is_dir() for name in names)


def test_resume_auto_goes_on_if_there_is_a_checkpoint_and_begins_if_not(tmp_path):
    settings = config.load("demo", ["--out", str(tmp_path / "run")])
    assert find_run(settings, "auto", distributed.ALONE) == (tmp_path / "run", None)
    (tmp_path / "run").mkdir()
    assert find_run(settings, "auto", distributed.ALONE) == (tmp_path / "run", None)
    for name in ("last-1.pt", "last.pt"):  # a crash may have left the older one alone
        (tmp_path / "run" / name).touch()
        assert find_run(settings, "auto", distributed.ALONE) == (tmp_path / "run", tmp_path / "run" / "last.pt")
    with pytest.raises(InputError, match="--resume auto cannot tell which run.* give --out DIR"):
        find_run(config.load("demo"), "auto", distributed.ALONE)


def test_a_lock_on_a_file_that_its_owner_has_removed_is_none(tmp_path, monkeypatch):
    """Else two trainings could own one directory: one through the removed file, one through the next file."""
    real, removed = fcntl.flock, []

    def flock(*given):
        if not removed:
            removed.append((tmp_path / rundir.LOCK).unlink())
        return real(*given)

    monkeypatch.setattr(fcntl, "flock", flock)
    with rundir.owned(tmp_path):
        assert removed and (tmp_path / rundir.LOCK).exists()
