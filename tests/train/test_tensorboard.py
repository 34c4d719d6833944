"""Epochs for TensorBoard, where it is installed; one clear line where it is not."""

import sys

import pytest

from essl_fast.common.errors import InputError
from essl_fast.train import tensorboard

ENTRY = {
    "epoch": 3,
    "losses": {"loss": 0.5, "supervised": 0.25},
    "pairs_per_second": 100.0,
    "waiting": 0.01,
    "selection": {"success_at_half": 0.75, "auc": 0.5},
}


def test_the_numbers_of_an_epoch():
    assert tensorboard.scalars(ENTRY) == {
        "loss/loss": 0.5,
        "loss/supervised": 0.25,
        "selection/success_at_half": 0.75,
        "selection/auc": 0.5,
        "speed/pairs_per_second": 100.0,
        "speed/waiting": 0.01,
    }


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"tensorboard: .*pip install tensorboard"):
        tensorboard.TensorBoardLog("nowhere")


def test_both_logs_get_everything(tmp_path):
    heard = []

    class Log:
        def write(self, event, **values):
            heard.append((event, values))

        def close(self):
            heard.append("closed")

    both = tensorboard.Both(Log(), Log())
    both.write("epoch", epoch=1)
    both.close()
    assert heard == [("epoch", {"epoch": 1})] * 2 + ["closed"] * 2


def test_event_files(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = tensorboard.TensorBoardLog(tmp_path)
    log.write("start", step=0)
    log.write("epoch", **ENTRY)
    log.write("end", test={"success_at_half": 0.5, "auc": 0.25}, selected={"epoch": 3})
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["loss/loss"] == [(3, 0.5)] and found["test/auc"] == [(3, 0.25)] and len(found) == 8
