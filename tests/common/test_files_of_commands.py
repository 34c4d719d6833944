"""Every command that writes a file of the user's choice writes to a device, a FIFO or a socket, and follows a link."""

import contextlib
import errno
import io
import json
import os
import socket
import stat
import sys
import threading
from pathlib import Path

import pytest
import torch

from essl_fast import checkpoints, config, models
from essl_fast.common.commands import command
from essl_fast.data.shards import Manifest
from tests.report.test_report import make_run
from tests.tools.doors import door
from tests.tools.media import clicks, make_video

SIZE = 160, 90


@pytest.fixture(scope="module")
def things(tiny, tmp_path_factory):
    """A run with an untrained model and a log, and a video."""
    place = tmp_path_factory.mktemp("things")
    run = make_run(place / "run")
    settings = config.load("demo", ["--data.root", str(tiny[1]), "--data.threads", "1"])
    torch.manual_seed(0)
    state = {"config": config.to_dict(settings), "data_root": str(tiny[1]), "data": Manifest.load(tiny[1]).header}
    checkpoints.save(run / "best.pt", state | {"model": models.build(settings.model).state_dict()})
    return run, make_video(place / "film.mp4", seconds=4, sound=clicks(4, 16_000, at=(2.0,)))


def evaluated(things, file: Path) -> list:
    return ["evaluate", things[0], "--device", "cpu", "--json", file]


def reported(things, file: Path) -> list:
    return ["report", things[0], "--out", file]


def localized(things, file: Path) -> list:
    return ["localize", things[1], "--checkpoint", things[0], "--device", "cpu", "--rate", 1, "--out", file.parent]


def is_json(data: bytes) -> bool:
    return isinstance(json.loads(data), dict)


WRITES = {  # a file that a command writes -> its command line, its name (None: the user's), whether bytes are of it
    "evaluate --json": (evaluated, None, is_json),
    "report --out": (reported, None, lambda data: data.startswith(b"<!doctype html>")),
    "localize's moments": (localized, "film.moments.json", is_json),
    "localize's sheet": (localized, "film.sheet.png", lambda data: data.startswith(b"\x89PNG")),
    "localize's overlay": (localized, "film.overlay.mp4", lambda data: data[4:8] == b"ftyp"),
}


def run_command(words: list) -> None:
    name, *arguments = map(str, words)
    module = door(f"essl_fast.{name}")
    with contextlib.redirect_stdout(io.StringIO()):
        assert command(lambda: module.main(arguments), module.PROG) == 0


def through_fifo(path: Path, write) -> bytes:
    os.mkfifo(path)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()), daemon=True)
    reader.start()
    write()
    reader.join(60)
    assert stat.S_ISFIFO(path.stat().st_mode)
    return got[0]


def through_socket(path: Path, write) -> bytes:
    got: list[bytes] = []

    def read(server):
        with server.accept()[0] as connection:
            got.append(b"".join(iter(lambda: connection.recv(1 << 16), b"")))

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        reader = threading.Thread(target=read, args=(server,), daemon=True)
        reader.start()
        write()
        reader.join(60)
    assert stat.S_ISSOCK(path.stat().st_mode)
    return got[0]


def through_device(path: Path, write) -> bytes:
    """Of the terminal's kind: what is written to it can be read."""
    master, slave = os.openpty()
    import tty

    tty.setraw(slave)
    path.symlink_to(os.ttyname(slave))
    got: list[bytes] = []

    def read():
        with contextlib.suppress(OSError):  # the end, when nobody has the other side open and all has come
            while True:
                got.append(os.read(master, 1 << 16))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    write()
    assert path.is_symlink() and stat.S_ISCHR(path.stat().st_mode)
    os.close(slave)
    reader.join(60)
    os.close(master)
    return b"".join(got)


def through_link(path: Path, write) -> bytes:
    real = path.with_name("real")
    real.write_bytes(b"of before")
    path.symlink_to("real")
    write()
    assert path.is_symlink() and stat.S_ISREG(real.stat().st_mode)
    return real.read_bytes()


def through_dangling_link(path: Path, write) -> bytes:
    path.symlink_to("later")
    write()
    assert path.is_symlink()
    return path.with_name("later").read_bytes()


WAYS = [through_fifo, through_socket, through_device, through_link, through_dangling_link]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.removeprefix("through_"))
@pytest.mark.parametrize("what", WRITES)
def test_what_is_no_regular_file_gets_the_bytes_and_stays(things, tmp_path, what, way):
    words, name, fits = WRITES[what]
    path = tmp_path / (name or "given")
    assert fits(way(path, lambda: run_command(words(things, path))))


class Gone(io.StringIO):
    def write(self, text):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def exported(things, file: Path) -> list:
    return ["export", things[0], "--to", "safetensors", "--out", file.parent]


@pytest.mark.parametrize("what", ["evaluate --json", "report --out", "localize's moments", "export"])
def test_a_closed_terminal_does_not_cost_the_file(things, tmp_path, monkeypatch, what):
    words, name, fits = WRITES.get(what) or (exported, "model.safetensors", lambda data: len(data) > 1000)
    path = tmp_path / (name or "given")
    name, *arguments = map(str, words(things, path))
    module = door(f"essl_fast.{name}")
    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "stderr", Gone())
    code = command(lambda: module.main(arguments), module.PROG)
    monkeypatch.undo()
    assert code == 0 and fits(path.read_bytes())


@pytest.mark.parametrize("what", WRITES)
def test_null_and_a_full_device_stay(things, tmp_path, what, capsys):
    words, name, _ = WRITES[what]
    path = tmp_path / (name or "given")
    for device in ("null", "full"):
        before = os.stat(f"/dev/{device}")
        path.unlink(missing_ok=True)
        path.symlink_to(f"/dev/{device}")
        line = list(map(str, words(things, path)))
        module = door(f"essl_fast.{line[0]}")
        code = command(lambda: module.main(line[1:]), module.PROG)  # noqa: B023
        after = os.stat(f"/dev/{device}")
        assert stat.S_ISCHR(after.st_mode) and os.path.samestat(before, after)
        said = capsys.readouterr().err
        if device == "null":
            assert code == 0 and not said
        else:
            assert code == 2 and "No space left on device" in said and said.count("\n") == 1
            assert path.name in said
