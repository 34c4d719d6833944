"""Files that commands write: streams are written to as they are, links are followed, faults are told first."""

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from essl_fast.common import files, outputs
from essl_fast.common.errors import InputError
from essl_fast.common.files import PACKAGE
from tests.tools.processes import open_files

DATA = b"what was written"


def write(path, data=DATA):
    with files.atomic_file(path) as file:
        file.write(data)


def write_by_name(path, data=DATA):
    with files.atomic_path(path) as partial:
        partial.write_bytes(data)


WRITERS = pytest.mark.parametrize("write", [write, write_by_name])


@WRITERS
def test_a_fifo_gets_the_bytes_and_stays(tmp_path, write):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        got = []
        reader = threading.Thread(target=lambda got=got: got.append((tmp_path / "pipe").read_bytes()))
        reader.start()
        write(tmp_path / name)
        reader.join()
        assert got == [DATA] and stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"] and (tmp_path / "link").is_symlink()


@WRITERS
def test_a_socket_gets_the_bytes_and_stays(tmp_path, write):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        write(tmp_path / "socket")
        with server.accept()[0] as got:
            assert got.recv(100) == DATA
    assert stat.S_ISSOCK(os.stat(tmp_path / "socket").st_mode)


@WRITERS
def test_a_device_stays(tmp_path, write):
    (tmp_path / "null").symlink_to(os.devnull)
    before = os.stat(os.devnull)
    write(tmp_path / "null")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode) and os.path.samestat(before, os.stat(os.devnull))
    with pytest.raises(OSError) as full:
        write(Path("/dev/full"))
    assert full.value.filename == "/dev/full"


@WRITERS
@pytest.mark.parametrize("link", ["real", "../folder/real", "second"])
def test_a_link_stays_and_what_it_names_is_new(tmp_path, write, link):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "second").symlink_to(folder / "real")
    (folder / "link").symlink_to(link)
    for data in (b"first", b"second"):  # into nothing, then over the file
        write(folder / "link", data)
        assert (folder / "real").read_bytes() == data
    assert (folder / "link").is_symlink() and (folder / "second").is_symlink()
    assert sorted(path.name for path in folder.iterdir()) == ["link", "real", "second"]


@WRITERS
def test_a_file_keeps_its_permissions_and_a_failure_leaves_it_alone(tmp_path, write):
    file = tmp_path / "file"
    file.write_bytes(b"before")
    file.chmod(0o640)
    write(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640 and file.read_bytes() == DATA
    with pytest.raises(TypeError):
        write(file, None)
    assert file.read_bytes() == DATA and list(tmp_path.iterdir()) == [file]


@WRITERS
@pytest.mark.parametrize("name", ["nowhere/x.json", "file/x.json", ".", "x" * 256, "loop"])
def test_an_error_names_the_file_that_was_asked_for(tmp_path, write, name):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError) as error:
        write(tmp_path / name)
    assert error.value.filename == str(tmp_path / name)
    assert str(error.value).endswith(repr(str(tmp_path / name)))  # and no other one


@pytest.mark.parametrize("names", [("x", "x"), ("x", "link"), ("link", "link")])
@pytest.mark.parametrize("first_ends", [True, False])
def test_two_that_write_one_file_at_once_do_not_mix(tmp_path, names, first_ends):
    """Each writes a file that is whole; the one that ends last has written it."""
    (tmp_path / "link").symlink_to("x")
    one, two = (files.atomic_file(tmp_path / name) for name in names)
    first, second = one.__enter__(), two.__enter__()
    for _ in range(100):
        first.write(b"1" * 1000)
        second.write(b"2" * 1000)
    for ends, holds in ((one, b"1"), (two, b"2")) if first_ends else ((two, b"2"), (one, b"1")):
        ends.__exit__(None, None, None)
        assert (tmp_path / "x").read_bytes() == holds * 100_000
    write(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "x"]


def test_one_that_fails_leaves_the_others_file_alone(tmp_path):
    one, two = (files.atomic_file(tmp_path / "x") for _ in range(2))
    one.__enter__().write(DATA)
    two.__enter__().write(b"other")
    assert two.__exit__(KeyError, KeyError(), None) is not True
    one.__exit__(None, None, None)
    assert (tmp_path / "x").read_bytes() == DATA and [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_takes_files(tmp_path, monkeypatch, number):
    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(outputs.fcntl, "flock", none)
    write(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_another_error_of_the_lock_is_told(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(outputs.fcntl, "flock", fails)
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path / "x")
    assert not (tmp_path / "x").exists() and not open_files(tmp_path)


def test_one_who_ends_between_our_two_calls_has_not_locked_us_out(tmp_path, monkeypatch):
    """The partial file is put in its place just before it is looked at: it is made once more."""
    real, looked = os.stat, []

    def gone(path, **more):
        if str(path).endswith(".partial") and not looked:
            looked.append(path)
            os.unlink(path)
        return real(path, **more)

    monkeypatch.setattr(outputs.os, "stat", gone)
    write(tmp_path / "x")
    assert looked and (tmp_path / "x").read_bytes() == DATA and [one.name for one in tmp_path.iterdir()] == ["x"]


def test_a_file_that_a_container_mounts_is_written_in_place(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"before")
    number = (tmp_path / "x").stat().st_ino

    def mounted(*_):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(outputs.os, "replace", mounted)
    write(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA and (tmp_path / "x").stat().st_ino == number
    assert [one.name for one in tmp_path.iterdir()] == ["x"]


def test_a_place_that_refuses_the_file_is_told(tmp_path, monkeypatch):
    def refuses(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    (tmp_path / "x").write_bytes(b"before")
    monkeypatch.setattr(outputs.os, "replace", refuses)
    with pytest.raises(PermissionError):
        write(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"before"


def test_a_file_without_the_right_to_write_is_told_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"before")
    monkeypatch.setattr(outputs.os, "access", lambda path, mode: path != tmp_path / "x")
    with pytest.raises(InputError, match=r"^--json: .*/x cannot be written \(permission denied\)"):
        outputs.output_file(tmp_path / "x", "--json")


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path):
    for length in (240, 250, 255):
        write(tmp_path / ("x" * length))
        assert (tmp_path / ("x" * length)).read_bytes() == DATA
    assert len(list(tmp_path.iterdir())) == 3


REFUSED = [  # option's value, what the message says
    ("", "is no path to write to"),
    ("a\nb", "is no path to write to"),
    ("a\0b", "is no path to write to"),
    ("folder", "is a folder; name a file"),
    ("file/x", "cannot be written (not a directory)"),
    ("file/x/y", "cannot be written (not a directory)"),
    ("x" * 256, "cannot be written (file name too long)"),
    ("x" * 300 + "/x", "cannot be written (file name too long)"),
    ("x/" * 3000 + "x", "cannot be written (file name too long)"),
    ("/proc/nothing/x", "cannot be written"),
    ("/sys/x", "cannot be written"),
    ("loop", "cannot be written"),
    ("/dev/fd/987", "/dev/fd/987 cannot be written (bad file descriptor)"),
    ("/proc/self/fd/987", "cannot be written (bad file descriptor)"),
    ("READS", "cannot be written (it is open for reading alone)"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED, ids=lambda text: repr(text)[:20])
def test_what_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with open(os.devnull) as reads, pytest.raises(InputError) as refused:
        outputs.output_file(given.replace("READS", f"/dev/fd/{reads.fileno()}"), "--json")
    assert str(refused.value).startswith("--json: ") and said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "given", ["x.json", "new/folder/x.json", "link", "dangling", "pipe", "/dev/null", "/dev/stdout", "-", "x" * 255]
)
def test_what_can_be_written_is_left_as_it_is(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").write_bytes(DATA)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("later")
    os.mkfifo("pipe")
    path = outputs.output_file(given, "--json")
    assert path.parent.is_dir() and (tmp_path / "real").read_bytes() == DATA and not path.with_name("later").exists()


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("run/best.pt", True),
        ("run/log.jsonl", True),
        ("run/summary.json", True),
        ("run/../run/last.pt", True),
        ("link", True),
        ("hard", True),
        ("model.pt", True),
        ("run/result.json", False),
        ("run/report.html", False),
        ("other/best.pt", False),
        ("new.json", False),
    ],
)
def test_what_a_command_reads_is_not_overwritten(tmp_path, monkeypatch, given, taken):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "other"):
        (tmp_path / name).mkdir()
        for file in ("best.pt", "last.pt", "log.jsonl", "summary.json", "result.json", "report.html"):
            (tmp_path / name / file).write_bytes(DATA)
    (tmp_path / "model.pt").write_bytes(DATA)
    (tmp_path / "link").symlink_to("run/best.pt")
    (tmp_path / "hard").hardlink_to(tmp_path / "run" / "best.pt")
    if not taken:
        assert outputs.output_file(given, "--json", [Path("run"), Path("model.pt"), Path("gone")]) == Path(given)
        return
    with pytest.raises(InputError, match="is read by this command and would be overwritten"):
        outputs.output_file(given, "--json", [Path("run"), Path("model.pt"), Path("gone")])


@pytest.mark.parametrize("given", ["dangling", "dangling/below", "second"])
def test_a_link_to_a_folder_that_is_gone_is_followed(tmp_path, given):
    """As of a run directory on another disk: the folder is made again, and the link stays."""
    (tmp_path / "dangling").symlink_to("scratch/runs")
    (tmp_path / "second").symlink_to(tmp_path / "dangling")
    assert outputs.output_folder(tmp_path / given, "--out").is_dir()
    assert (tmp_path / "scratch" / "runs").is_dir() and (tmp_path / "dangling").is_symlink()


@pytest.mark.parametrize("given", ["", "file", "file/x", "x" * 256, "/proc/nothing", "loop"])
def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="^--out: "):
        outputs.output_folder(given, "--out")


SCRIPT = """
import sys
from essl_fast.common import files, outputs
print("before")
path = outputs.output_file(sys.argv[1], "--json")
with files.atomic_file(path) as file:
    file.write(b"data\\n")
print(outputs.to_stdout(path))
"""


@pytest.mark.parametrize("given", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_standard_output_that_is_a_file_is_continued(tmp_path, given):
    (tmp_path / "link").symlink_to("/dev/stdout")
    with open(tmp_path / "out", "wb") as out:
        command = [sys.executable, "-c", SCRIPT, given]
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
        subprocess.run(command, stdout=out, cwd=tmp_path, env=environment, check=True, timeout=300)
    assert (tmp_path / "out").read_text() == "before\ndata\nTrue\n"
