"""What the terminal and the log are told of each event of a run."""

import errno
import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from essl_fast.runtime import runlog
from essl_fast.runtime.runlog import read_log
from essl_fast.train.events import Fault, Preparation, Reading
from essl_fast.train.logfile import LogFile
from essl_fast.train.progress import TerminalProgress

FAULT = Fault(1, 4, [3], ["a_000003"], {"loss": 1.0}, 0, 1)
ENTRY = {"epoch": 1, "losses": {"loss": 0.5}, "pairs_per_second": 12.34, "waiting": 0.25}
SELECTION = {"selection": {"success_at_half": 0.5, "auc": 0.25}}
SUMMARY = {"test": {"auc": 0.5}, "selected": {"epoch": 1}, "seconds": 3.0, "pairs_per_second": 12.0, "more": "left out"}
GRAPHS = {"hits": 2, "misses": 1}


def whole_run(observer) -> None:
    """Every event, once."""
    observer.on_prepared(
        Preparation(
            "compile",
            128,
            9.87,
        ),
        0,
        GRAPHS,
    )
    observer.on_prepared(Preparation("warm-up", 128, 1.0), 1, {"hits": 0, "misses": 0})
    observer.on_prepared(Preparation("capture", 128, 0.5), 4, GRAPHS)
    observer.on_skipped("a_000003", "frame damaged", 1)
    observer.on_not_finite(FAULT, Path("runs/a/nonfinite-2-5.pt"), True)
    observer.on_not_finite(FAULT, None, False)
    observer.on_baseline("untrained", {"auc": 0.1})
    observer.on_epoch(ENTRY)
    observer.on_epoch(ENTRY | SELECTION | {"epoch": 2})
    observer.on_warning(2, "the maps are all alike")
    observer.on_stop("SIGTERM", 1, 7, Path("runs/a/last.pt"))
    observer.on_end(SUMMARY)


def test_lines_of_a_run():
    stream = io.StringIO()
    progress = TerminalProgress(Console(file=stream, width=200))
    with progress.heartbeat():
        whole_run(progress)
    assert stream.getvalue().splitlines() == [
        "step of 128 pairs compiled in 9.9 s (2 of 3 graphs from the cache), which is not in the pairs/s",
        "step of 128 pairs captured as a CUDA graph in 0.5 s, which is not in the pairs/s",
        "skipped a_000003, which does not decode: frame damaged",
        "passed over step 5 of epoch 2, which was not finite",
        "epoch   1: loss 0.5000, 12.3 pairs/s, 25% waiting for data",
        "epoch   2: loss 0.5000, 12.3 pairs/s, 25% waiting for data; val: success 50.0%, AUC 25.0%",
        "warning: the maps are all alike",
        "stopped after step 7, which runs/a/last.pt holds",
    ]


def test_the_bar_of_a_terminal():
    stream = io.StringIO()
    progress = TerminalProgress(Console(file=stream, width=160, force_terminal=True, color_system=None))
    progress.on_step(0, None)  # before the bar
    progress.on_train_start(2, 10, 10)
    progress.on_step(1, Reading(0.25, 100.0, 0.5))
    progress.on_step(1, None)
    progress.on_train_end()
    progress.on_train_end()  # an error may end it twice
    last = stream.getvalue().rsplit("\r", 1)[-1]
    assert "epoch 2/2" in last and "12/20" in last and "loss 0.2500, 100.0 pairs/s, 50% waiting for data" in last


def test_what_goes_on_without_a_terminal():
    progress = TerminalProgress(Console(file=io.StringIO()))
    assert progress._doing == "opening the data and the model"
    progress.on_train_start(2, 10, 0)
    progress.on_step(0, None)
    assert progress._doing == "epoch   1, step 1 of 10: no loss was read yet"
    progress.on_step(0, Reading(0.25, 100.0, 0.5))
    assert progress._doing == "epoch   1, step 2 of 10: loss 0.2500, 100.0 pairs/s, 50% waiting for data"
    for count, done in ((4, 4), (4, 8), (4, 4)):  # the second pass over the split begins again
        progress.on_evaluation("val", 8, count)
        assert progress._doing == f"evaluating val: {done} of 8 pairs"
    progress.on_evaluation("test", 8, 3)
    assert progress._doing == "evaluating test: 3 of 8 pairs"
    progress.on_end(SUMMARY)
    assert progress._doing == "drawing the pictures and the report"


def test_the_log_has_every_event(tmp_path):
    log = LogFile(tmp_path / "log.jsonl")
    log.on_start(False, {"step": 0})
    whole_run(log)
    log.close()
    again = LogFile(tmp_path / "log.jsonl")
    again.on_start(True, {"step": 7})
    again.close()
    found = read_log(tmp_path / "log.jsonl")
    assert [entry.pop("event") for entry in found] == [
        *("start", "compiled", "compiled", "compiled", "skipped", "not_finite", "not_finite", "baseline"),
        *("epoch", "epoch", "warning", "stop", "end", "resume"),
    ]
    assert all(entry.pop("time") > 1e9 for entry in found)
    assert found[1] == {"phase": "compile", "batch": 128, "seconds": 9.87, "step": 0, "graphs": GRAPHS}
    assert found[4] == {"key": "a_000003", "reason": "frame damaged", "epoch": 1}
    assert (found[5]["file"], found[6]["file"], found[5]["rows"]) == ("nonfinite-2-5.pt", None, [3])
    assert found[10:12] == [
        {"epoch": 2, "text": "the maps are all alike"},
        {"signal": "SIGTERM", "epoch": 1, "step": 7},
    ]
    assert found[12] == {key: SUMMARY[key] for key in ("test", "selected", "seconds", "pairs_per_second")}


def test_a_full_disk_ends_a_run_but_not_at_a_warning(tmp_path, monkeypatch):
    log = LogFile(tmp_path / "log.jsonl")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runlog.RunLog, "write", full)
    log.on_warning(1, "the disk is full")
    with pytest.raises(OSError, match="No space left"):
        log.on_epoch(ENTRY)


def test_a_line_that_the_disk_does_not_take_whole_is_not_there(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    log = runlog.RunLog(path)
    log.write("start", step=0)
    real = log._file

    class Full:
        """Takes a part of a line, then nothing."""

        def __init__(self):
            self.taken = 0

        def fileno(self):
            return real.fileno()

        def write(self, data):
            if self.taken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.taken = real.write(data[:10])
            return self.taken

    log._file = Full()
    with pytest.raises(OSError, match="No space left") as raised:
        log.write("epoch", epoch=1)
    assert raised.value.filename == str(path) and log._file.taken == 10
    assert [entry["event"] for entry in read_log(path)] == ["start"] and path.read_bytes().endswith(b"}\n")
