"""Long work says a line every 30 s where there is no terminal, also while a single step of it takes minutes."""

import io
import sys
import threading
import time

import pytest

from essl_fast.common import commands, pulse
from essl_fast.common.progress import PassProgress
from essl_fast.common.pulse import Heartbeat, Pulse
from essl_fast.evaluate import command as evaluate_command
from essl_fast.prepare import reporting
from essl_fast.reproduce import command as reproduce_command
from essl_fast.reproduce import runs
from essl_fast.train.events import Reading
from essl_fast.train.progress import TerminalProgress


@pytest.fixture
def quick(monkeypatch):
    """A line every 0.05 s."""
    monkeypatch.setattr(pulse, "EVERY", 0.05)


def wait_for(condition, seconds=120.0):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def test_a_step_that_takes_long_is_told_by_a_thread(quick):
    said, doing = [], ["", "reading", "writing"]
    with Heartbeat(said.append, lambda: doing[0]):
        time.sleep(0.2)
        assert said == []  # there is nothing to say
        doing.pop(0)
        wait_for(lambda: said.count("reading") > 1)
        doing.pop(0)
        wait_for(lambda: "writing" in said)
    count = len(said)
    time.sleep(0.2)
    assert len(said) == count and not [t for t in threading.enumerate() if t.name == "heartbeat"]


def test_what_was_said_otherwise_puts_the_next_line_off(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pulse.time, "monotonic", lambda: now[0])
    beat = Heartbeat(print, lambda: "")
    for seconds, due in ((29, False), (1, True), (29, False), (1, True)):
        now[0] += seconds
        assert beat.due() is due
    now[0] += 29
    beat.heard()
    now[0] += 29
    assert not beat.due()


def test_progress_says_how_much_is_left(monkeypatch):
    now, said = [0.0], []
    monkeypatch.setattr(pulse.time, "monotonic", lambda: now[0])
    work = Pulse(said.append, "drawing", 100, "frames")
    assert work.line() == "drawing: 0 of 100 frames (0%)"
    for _ in range(4):
        now[0] += 15
        work.step(10)
    assert said == [
        "drawing: 20 of 100 frames (20%), about 120 s left",
        "drawing: 40 of 100 frames (40%), about 90 s left",
    ]


def test_a_stream_that_is_gone_ends_the_lines_and_not_the_work(quick):
    def gone(line):
        raise BrokenPipeError

    with Heartbeat(gone, lambda: "at work") as beat:
        wait_for(lambda: not beat._thread.is_alive())


def told(monkeypatch, work):
    """What some work prints on a console that is no terminal."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    work(commands.console(), lambda text: wait_for(lambda: text in out.getvalue()))
    return out.getvalue()


def test_passes_over_things(quick, monkeypatch):
    def work(console, wait):
        with PassProgress(console) as progress:
            step = progress.over("localizing", 7)
            step(2)
            wait("localizing: 2 of 7 (28%)")
            progress.finish("localized 7 moments")
            progress.over("drawing", 9)
            wait("drawing: 0 of 9 (0%)")

    assert "localized 7 moments in " in told(monkeypatch, work)


def test_training_says_what_goes_on(quick, monkeypatch):
    """Before the first step, within an epoch, in an evaluation, and at the end."""

    def work(console, wait):
        progress = TerminalProgress(console, "val")
        with progress.heartbeat():
            wait("opening the data and the model")
            progress.on_train_start(3, 5, 0)
            wait("waiting for the first step")
            progress.on_step(0, Reading(1.25, 30.0, 0.0))
            wait("epoch   1, step 1 of 5: loss 1.2500, 30.0 pairs/s")
            progress.on_evaluation("val", 10, 3)
            progress.on_evaluation("val", 10, 1)
            wait("evaluating val: 4 of 10 pairs")
            progress.on_train_end()
            progress.on_evaluation("test", 10, 9)
            wait("evaluating test: 9 of 10 pairs")
            progress.on_end({})
            wait("drawing the pictures and the report")

    told(monkeypatch, work)


def test_prepare_says_how_far_it_is(quick, monkeypatch):
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    with reporting.reporter(True).bar("videos", 40) as step:
        step(3)
        wait_for(lambda: "prepare: videos: 3 of 40 (7%)" in err.getvalue())
        step(1)
    assert "prepare: 4/40 videos (10%)" in err.getvalue()


def test_reproduce_repeats_the_last_line_of_a_training(quick, monkeypatch, tmp_path):
    log = tmp_path / "row" / "seed-0.log"
    assert runs.last_line(log) == "it has printed nothing yet"
    log.parent.mkdir()
    log.write_bytes(b"epoch   1: loss 3\n" * 1000 + b"epoch   2: \x1b[31mloss 2\xff\n\n")
    assert runs.last_line(log) == "epoch 2: \\x1b[31mloss 2\ufffd"

    class Results:
        failed: dict = {}

        class plan:
            folder = staticmethod(lambda row, seed: tmp_path / "row" / "seed-0")
            arguments = staticmethod(lambda row, seed: [])

    class Row:
        run = "row"

    def work(console, wait):
        def train(folder, arguments):
            wait("[1/2] SSPL, seed 0: epoch 2: ")
            raise RuntimeError("exit code 2: no")

        monkeypatch.setattr(runs, "finished", lambda folder, arguments: None)
        monkeypatch.setattr(runs, "train", train)
        reproduce_command._run_row(Results, Row, 0, "[1/2] SSPL, seed 0", console)

    assert "failed, exit code 2: no" in told(monkeypatch, work)


def test_evaluate_says_how_far_it_is(quick, monkeypatch):
    class Manifest:
        pairs = staticmethod(lambda split: 12)

    class Found:
        result = staticmethod(lambda manifest: {})
        trusted_from = staticmethod(lambda manifest: None)
        each = staticmethod(lambda manifest: [])

    def work(console, wait):
        def evaluate(*_, on_batch, **__):
            on_batch(8)
            wait("evaluating test: 8 of 12 (66%)")
            return Found

        monkeypatch.setattr(evaluate_command, "evaluate", evaluate)
        monkeypatch.setattr(evaluate_command, "warn_of_consensus", lambda *_: None)
        monkeypatch.setattr(evaluate_command, "pick_precision", lambda *_: None)
        evaluate_command._evaluate("x", None, None, Manifest, "test", None, "auto", False, console)

    told(monkeypatch, work)
