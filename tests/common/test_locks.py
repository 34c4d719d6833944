"""A lock: what is said where there are none, and that nobody is left with it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from essl_fast.common import locks
from tests import ROOT
from tests.tools.processes import open_files


def nobody(who):
    raise AssertionError(f"it is held by {who}")


def test_it_is_held_and_gone_afterwards(tmp_path):
    path, told = tmp_path / "lock", []
    with locks.locked(path, nobody):
        assert path.read_text().startswith(f"process {os.getpid()} on ")
        with open(path) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

        def busy(who):
            told.append(who)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), locks.locked(path, busy):
            raise AssertionError("two hold it")
    assert told == [f"process {os.getpid()} on {os.uname().nodename}"] and not path.exists()


@pytest.mark.parametrize("number", locks.NO_LOCKS, ids=os.strerror)
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, number):
    def refuses(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuses)
    said = []
    with locks.locked(tmp_path / "lock", nobody, said.append):
        pass
    assert said == [
        f"warning: the file system of {tmp_path} has no locks ({os.strerror(number)}): let no other process work there"
    ]
    assert not open_files(tmp_path)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_another_error_leaves_no_file_open(tmp_path, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(locks.fcntl, "flock", fails)
    with pytest.raises(type(error)), locks.locked(tmp_path / "lock", nobody):
        raise AssertionError("it is not held")
    assert not open_files(tmp_path)


@pytest.mark.parametrize("look", [1, 2])
def test_the_file_goes_whenever_one_looks_at_it(tmp_path, monkeypatch, look):
    """One who waited holds a file that is gone; the next owner makes the path anew, and removes it at any moment."""
    path, looks, real = tmp_path / "lock", [], os.stat

    def gone(file, *words, **options):
        if file == path:
            looks.append(file)
            if len(looks) == look:
                path.unlink()
        return real(file, *words, **options)

    monkeypatch.setattr(os, "stat", gone)
    with locks.locked(path, nobody):
        assert path.read_text().startswith(f"process {os.getpid()} on ")
    assert not path.exists()


def test_many_at_once_hold_it_one_by_one(tmp_path):
    inside, held, failed = [], [], []

    def contends():
        try:
            for _ in range(60):
                with locks.locked(tmp_path / "lock", lambda who: None):
                    inside.append(None)
                    held.append(len(inside))
                    inside.pop()
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=contends) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and held == [1] * 240 and not (tmp_path / "lock").exists()


WAITS = """
import sys
from pathlib import Path
from essl_fast.common.locks import locked
with locked(Path(sys.argv[1]), lambda who: print(who, flush=True)):
    print("held", flush=True)
"""


def test_one_who_waits_gets_it_when_the_other_has_ended(tmp_path):
    """Its owner removes the file while the other waits on it: then that one is no lock any more."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with locks.locked(tmp_path / "lock", nobody):
        words = [sys.executable, "-c", WAITS, str(tmp_path / "lock")]
        other = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        assert other.stdout.readline().startswith(f"process {os.getpid()} on ")
    assert other.communicate(timeout=120)[0] == "held\n" and other.returncode == 0
    assert not (tmp_path / "lock").exists()


def test_ctrl_c_while_it_waits(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with locks.locked(tmp_path / "lock", nobody):
        words = [sys.executable, "-c", WAITS, str(tmp_path / "lock")]
        other = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        other.stdout.readline()
        # Until it sleeps in flock: a signal that comes just before the call is seen only after it, as in any program.
        while Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            time.sleep(0.01)
        other.send_signal(signal.SIGINT)
        said = other.communicate(timeout=120)[1]
        assert said.rstrip().endswith("KeyboardInterrupt") and (tmp_path / "lock").exists()
