"""What is optional does not end a run: pictures, the report, loggers. What is not optional does."""

import io
import json
import os
import shutil
import subprocess
import sys

import pytest

from essl_fast import config, train
from essl_fast.common.commands import command
from essl_fast.common.errors import InputError, reason
from essl_fast.models import heads
from essl_fast.report import figures, gallery
from essl_fast.runtime.runlog import read_log
from essl_fast.train import Observer, results
from essl_fast.train import __main__ as train_door
from essl_fast.train.observers import LOGGERS, Observers

WORDS = "--config demo --data.batch_size 5 --device cpu --epochs 1 --overlays 2 --baselines false".split()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A small head: the same code in a fraction of the time."""
    head = heads.SimSiamHead
    monkeypatch.setattr(heads, "SimSiamHead", lambda channels: head(channels, 64, 16))


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.slow
def test_a_run_ends_well_without_its_pictures(tiny, tmp_path, monkeypatch, capsys):
    """Each optional file fails in another way; so does the log of their failures. The results are there."""
    monkeypatch.setattr(figures, "curves", raising(OSError(28, "No space left on device", "curves.png")))
    monkeypatch.setattr(figures, "overlays", raising(ImportError("no matplotlib")))
    monkeypatch.setattr(gallery, "write", raising(MemoryError()))
    monkeypatch.setattr(results, "write_report", raising(UnicodeEncodeError("utf-8", "\udcc3", 0, 1, "surrogate")))
    out = tmp_path / "run"
    words = [*WORDS, "--data.root", str(tiny[1]), "--out", str(out)]
    assert command(lambda: train_door.main(words), train_door.PROG) == 0
    said = capsys.readouterr().out
    assert "warning: curves.png could not be written (curves.png: No space left on device); the results are" in said
    assert "warning: overlays.png could not be written (ImportError: no matplotlib)" in said
    assert "warning: test_pairs.jsonl or gallery.npz could not be written (MemoryError)" in said
    assert "warning: report.html could not be written (UnicodeEncodeError: " in said
    assert json.loads((out / "summary.json").read_bytes())["test"]["pairs"] and "results, checkpoints" in said
    events = [event["event"] for event in read_log(out / "log.jsonl")]
    assert events[-5:] == ["end", "warning", "warning", "warning", "warning"]


EVENTS = {
    "on_start": (False, {}),
    "on_message": ("text",),
    "on_train_start": (1, 2, 0),
    "on_step": (0, None),
    "on_prepared": (None, 1, {}),
    "on_skipped": ("key", "why", 1),
    "on_not_finite": (None, None, True),
    "on_evaluation": ("val", 10, 4),
    "on_baseline": ("untrained", {}),
    "on_epoch": ({"epoch": 1},),
    "on_warning": (1, "text"),
    "on_stop": ("SIGTERM", 1, 2, None),
    "on_train_end": (),
    "on_end": ({},),
    "close": (),
}


@pytest.mark.parametrize("event", EVENTS)
def test_a_logger_that_fails_is_left_out(event):
    class Keeps(Observer):
        def __init__(self):
            self.seen = []

    class Bad(Keeps):
        closed = 0

    def note(self, name, *values):
        self.seen.append((name, values))

    for name in EVENTS:
        setattr(Keeps, name, lambda self, *values, name=name: note(self, name, *values))
    setattr(Bad, event, raising(ZeroDivisionError("division by zero")))
    keeps, bad = Keeps(), Bad()
    observers = Observers(keeps)
    observers.add_logger("bad", lambda: bad, 0)
    for _ in range(2):
        getattr(observers, event)(*EVENTS[event])
    warned = [
        values[1] for name, values in keeps.seen if name == "on_warning" and len(values) == 2 and "logger" in values[1]
    ]
    assert warned == ["logger bad: ZeroDivisionError: division by zero; the run goes on without it"]
    assert sum(name == event and values == EVENTS[event] for name, values in keeps.seen) == 2
    assert observers.observers == [keeps]
    assert event == "close" or ("close", ()) in bad.seen


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("x"), InputError("y"), KeyError("z")]
)
def test_a_logger_that_cannot_be_made_is_left_out(error):
    said = []

    class Keeps(Observer):
        def on_warning(self, epoch, text):
            said.append((epoch, text))

    observers = Observers(Keeps())
    observers.add_logger("bad", raising(error), 3)
    assert said == [(3, f"logger bad: {reason(error)}; the run goes on without it")] and len(observers.observers) == 1


def test_an_observer_that_the_run_needs_ends_it():
    class Log(Observer):
        on_epoch = raising(OSError(28, "No space left on device"))

    observers = Observers()
    observers.add(Log())
    with pytest.raises(OSError, match="No space"):
        observers.on_epoch({"epoch": 1})


@pytest.mark.slow
def test_a_run_goes_on_without_a_logger_of_the_users(tiny, tmp_path):
    @LOGGERS.register("fails")
    class Fails(Observer):
        def __init__(self, settings, folder, epoch):
            pass

        def on_epoch(self, entry):
            raise ConnectionError("the server is gone")

    try:
        words = ["--data.root", str(tiny[1]), "--out", str(tmp_path / "run"), "--loggers", "[fails]"]
        settings = config.load("demo", [*WORDS[2:], *words])
        assert train.fit(settings, quiet=True)["test"]["pairs"]
    finally:
        LOGGERS.remove("fails")
    warned = [event["text"] for event in read_log(tmp_path / "run" / "log.jsonl") if event["event"] == "warning"]
    assert warned == ["logger fails: ConnectionError: the server is gone; the run goes on without it"]


OPTIONAL = ("curves.png", "overlays.png", "report.html", "gallery.npz", "test_pairs.jsonl")


def ended_well(tiny, out, capsys, *more):
    """Run the command; its warnings. It has its results, and exit code 0."""
    words = [*WORDS, "--data.root", str(tiny[1]), "--out", str(out), *more]
    assert command(lambda: train_door.main(words), train_door.PROG) == 0
    assert json.loads((out / "summary.json").read_bytes())["test"]["pairs"]
    assert read_log(out / "log.jsonl")[-1]["event"] in ("end", "warning") and (out / "best.pt").is_file()
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]


@pytest.mark.slow
@pytest.mark.parametrize("names", [("report.html",), OPTIONAL], ids=["the report", "all of them"])
def test_a_full_disk_under_an_optional_file_is_one_warning(tiny, tmp_path, capsys, names):
    """Not pretended: what is written to /dev/full meets ENOSPC."""
    out = tmp_path / "run"
    out.mkdir()
    for name in names:
        (out / name).symlink_to("/dev/full")
    said = ended_well(tiny, out, capsys)
    expected = {"gallery.npz": "test_pairs.jsonl or gallery.npz"}  # written together
    for name in set(names) - {"test_pairs.jsonl"}:
        (line,) = [line for line in said if f"warning: {expected.get(name, name)} could not be written" in line]
        assert "No space left on device" in line
    assert len(said) == len(set(names) - {"test_pairs.jsonl"})
    assert all((out / name).is_char_device() for name in names)


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a folder a disk of 4 KB, which only root may."""
    mounted = []

    def mount(folder):
        folder.mkdir(parents=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("a small disk needs the right to mount one")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("mount") or os.getuid(), reason="a small disk needs the right to mount one")
def test_a_logger_whose_disk_is_full_is_one_warning(tiny, tmp_path, capsys, small_disk):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    out = tmp_path / "run"
    small_disk(out / "tensorboard")
    (out / "tensorboard" / "taken").write_bytes(bytes(4096))
    said = ended_well(tiny, out, capsys, "--loggers", "[tensorboard]", "--epochs", "2")
    (line,) = [line for line in said if "logger tensorboard: " in line]
    assert "No space left on device" in line and "the run goes on without it" in line


class Gone(io.StringIO):
    def write(self, text):
        raise OSError(5, "Input/output error")


STREAMS = {
    "none": (None, None),
    "closed": (io.StringIO(), io.StringIO()),
    "terminal gone": (Gone(), Gone()),
    "stdout alone": (Gone(), io.StringIO()),
}


@pytest.mark.slow
@pytest.mark.parametrize("streams", STREAMS)
def test_a_run_needs_no_output(tiny, tmp_path, capsys, monkeypatch, streams):
    out = tmp_path / "run"
    for name, stream in zip(("stdout", "stderr"), STREAMS[streams], strict=True):
        if streams == "closed":
            stream.close()
        monkeypatch.setattr(sys, name, stream)
    words = [*WORDS, "--data.root", str(tiny[1]), "--out", str(out)]
    code = command(lambda: train_door.main(words), train_door.PROG)
    monkeypatch.undo()
    assert code == 0 and json.loads((out / "summary.json").read_bytes())["test"]["pairs"]
    assert (out / "report.html").is_file()
