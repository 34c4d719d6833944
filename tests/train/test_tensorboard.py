"""Epochs for TensorBoard, where it is installed; one clear line where it is not."""

import sys

import numpy as np
import pytest

from essl_fast import config
from essl_fast.common.errors import InputError
from essl_fast.train import Observer, Observers, pictures, tensorboard
from essl_fast.train.observers import LOGGERS, logger_names
from essl_fast.train.run import check

ENTRY = {
    "epoch": 3,
    "losses": {"loss": 0.5, "supervised": 0.25},
    "pairs_per_second": 100.0,
    "waiting": 0.01,
    "selection": {"success_at_half": 0.75, "auc": 0.5},
    "rates": {"head": 5e-5},
}
SAMPLE = {
    "frame": np.full((224, 224, 3), 90, np.uint8),
    "similarity": np.pad(np.ones((2, 2)), ((3, 9), (3, 9))),
    "boxes": np.array([[10, 20, 60, 70], [0, 0, 0, 0]]),
    "key": "a_000001",
    "ciou": 0.8,
    "title": "bell: cIoU 0.80",
}


def test_the_numbers_of_an_epoch():
    assert pictures.scalars(ENTRY) == {
        "loss/loss": 0.5,
        "loss/supervised": 0.25,
        "selection/success_at_half": 0.75,
        "selection/auc": 0.5,
        "rate/head": 5e-5,
        "speed/pairs_per_second": 100.0,
        "speed/waiting": 0.01,
    }


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"tensorboard: .*pip install tensorboard"):
        check(config.load("demo", ["--tensorboard", "true"]))


def test_all_observers_get_every_event():
    class Log(Observer):
        def on_epoch(self, entry):
            told.append(("epoch", entry))

        def close(self):
            told.append("closed")

    told, both = [], Observers(Log())
    both.add(Log())
    both.on_epoch({"epoch": 1})
    both.on_message("nobody prints it")
    both.close()
    assert told == [("epoch", {"epoch": 1})] * 2 + ["closed"] * 2


def test_loggers_are_found_by_name():
    settings = config.load("demo", ["--tensorboard", "true"])
    assert logger_names(settings) == ["tensorboard"] and LOGGERS.get("tensorboard") is tensorboard.TensorBoardLog
    assert logger_names(config.load("demo", ["--loggers", "[tensorboard]", "--tensorboard", "true"])) == ["tensorboard"]
    with pytest.raises(InputError, match="loggers: there is no logger 'mine'.*tensorboard.*--import"):
        check(config.load("demo", ["--loggers", "[mine]"]))


def test_event_files(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = tensorboard.TensorBoardLog(None, tmp_path)
    log.on_start(False, {"step": 0})
    log.on_epoch(ENTRY)
    log.on_pictures("val", 3, [SAMPLE] * 2)
    log.on_end({"test": {"success_at_half": 0.5, "auc": 0.25}, "selected": {"epoch": 3}})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["loss/loss"] == [(3, 0.5)] and found["test/auc"] == [(3, 0.25)] and len(found) == 9
    assert found["rate/head"] == [(3, pytest.approx(5e-5))]
    images = {tag: events.Images(tag) for tag in events.Tags()["images"]}
    assert {tag: [(e.step, e.width, e.height) for e in each] for tag, each in images.items()} == {
        "val/1": [(3, 224, 224)],
        "val/2": [(3, 224, 224)],
    }


def test_epochs_that_are_trained_again_replace_what_was_written_of_them(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last, loss in ((0, 3, 0.5), (1, 2, 0.25)):
        log = tensorboard.TensorBoardLog(None, tmp_path, first)
        for epoch in range(first + 1, last + 1):
            log.on_epoch({**ENTRY, "epoch": epoch, "losses": {"loss": loss}})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss/loss")] == [(1, 0.5), (2, 0.25)]


def test_a_picture_has_heat_outline_and_boxes():
    drawn = pictures.blended(SAMPLE)
    assert drawn.shape == (224, 224, 3) and not np.array_equal(drawn, SAMPLE["frame"])
    assert (drawn[20:22, 10:60] == (64, 255, 64)).all() and (drawn == 255).all(-1).any()
    assert (SAMPLE["frame"] == 90).all()
