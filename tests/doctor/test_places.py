"""The doctor's checks of the user's folders and of files, and the remedies of errors that no check foresaw."""

import errno
import os
import pwd

import pytest

from essl_fast import config
from essl_fast.common import places as user_places
from essl_fast.doctor import places
from essl_fast.doctor.findings import INSTALL, NOTE, OK, STOPS, Case, remedy_of


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "let this user read and write /data/x"),
        (PermissionError(errno.EPERM, "Operation not permitted"), "let this user read and write what it names"),
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "free some space"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (OSError(errno.EIO, "Input/output error", "/data/y"), "mend /data/y"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/z"), "mend /z"),
        (MemoryError(), "--data.batch_size"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "--data.batch_size"),
        (KeyError("getpwuid(): uid not found: 12345"), "set USER and HOME"),
        (RuntimeError("Could not determine home directory."), "set USER and HOME"),
        (ImportError("libcudart.so.13"), INSTALL),
        (AttributeError("module 'av' has no attribute 'x'"), INSTALL),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_remedy_fits_its_error(error, remedy):
    assert remedy in remedy_of(error) and (remedy == INSTALL) == (INSTALL in remedy_of(error))


def test_the_users_folders(tmp_path, monkeypatch):
    case = Case(settings=config.load("demo"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (found,) = places.check_user(case)
    assert found.status == OK and str(tmp_path / "cache" / "essl_fast") in found.what
    assert not (tmp_path / "cache").exists()  # it changes nothing
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    (found,) = places.check_user(case)
    assert found.status == STOPS and found.remedy == "give --demo.cache DIR"
    for words in (["demo.cache=/x"], ["data.root=/data"]):
        (found,) = places.check_user(Case(settings=config.load("demo", words)))
        assert found.status == NOTE
    monkeypatch.setattr(user_places, "cache_folder", lambda: None)
    monkeypatch.setattr(user_places, "has_a_name", lambda: False)
    (found,) = places.check_user(case)
    assert found.status == STOPS and "has no name; there is no home folder" in found.what


def test_a_file_of_each_kind_is_opened(monkeypatch):
    (found,) = places.check_files(Case())
    assert found.status == OK and {"sound", "JPEG", "checkpoint"} <= set(found.values["kinds"])

    def fails(folder):
        raise ImportError("libnvjpeg.so")

    monkeypatch.setattr(places, "_open_jpeg", fails)
    (found,) = places.check_files(Case())
    assert (found.status, found.remedy) == (STOPS, INSTALL) and "a JPEG cannot be made and opened" in found.what


USERS = {  # variables; whether /etc/passwd knows the user -> is there a home folder that can be written?
    "all there": ({"HOME": "TMP"}, True, True),
    "no passwd entry": ({"HOME": "TMP"}, False, True),
    "no passwd entry, USER": ({"HOME": "TMP", "USER": "me"}, False, True),
    "no HOME": ({}, False, False),
    "HOME is relative": ({"HOME": "here"}, False, False),
    "HOME is a file": ({"HOME": "/dev/null"}, False, False),
    "read-only home": ({"HOME": "/proc"}, False, False),
    "home that is not there": ({"HOME": "/proc/nowhere/home"}, True, False),
    "cache elsewhere": ({"HOME": "/proc", "XDG_CACHE_HOME": "TMP"}, False, True),
    "cache that is read-only": ({"HOME": "TMP", "XDG_CACHE_HOME": "/proc/x"}, True, False),
}


@pytest.mark.parametrize("who", USERS)
def test_a_user_of_a_container_gets_the_true_remedy(tmp_path, monkeypatch, who):
    variables, known, usable = USERS[who]
    if not os.getuid() and any(value.startswith("/proc") for value in variables.values()) and not usable:
        pytest.skip("root may write everywhere, as far as access tells")
    for name in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path) if value == "TMP" else value)

    def entry(*_):
        if not known:
            raise KeyError("getpwuid(): uid not found: 12345")
        return pwd.struct_passwd(("me", "x", os.getuid(), os.getgid(), "", "/nowhere", "/bin/sh"))

    monkeypatch.setattr(pwd, "getpwuid", entry)
    (found,) = places.check_user(Case(settings=config.load("demo")))
    assert (found.status == STOPS) is not usable
    assert (found.remedy == "give --demo.cache DIR") is not usable
    assert ("has no name" in found.what) is not (known or "USER" in variables)
    for words in (["--demo.cache", str(tmp_path)], ["--data.root", str(tmp_path)]):  # what the remedy says works
        (found,) = places.check_user(Case(settings=config.load("demo", words)))
        assert found.status != STOPS and not found.remedy
    assert sorted(tmp_path.iterdir()) == []  # it changes nothing
