"""Loggers by name: what each writes, what a resumed run adds, and one line where a package is missing."""

import csv
import json
import sys

import pytest

from essl_fast import config
from essl_fast.common.errors import InputError
from essl_fast.common.values import flattened
from essl_fast.train import loggers
from essl_fast.train.observers import LOGGERS, logger_names, pictures_wanted
from essl_fast.train.run import check
from tests.train.test_tensorboard import ENTRY, SAMPLE

SUMMARY = {"test": {"success_at_half": 0.5, "auc": 0.25}, "selected": {"epoch": 3}}


def whole_run(log) -> None:
    """The events of a run of three epochs, the last of which is evaluated."""
    log.on_start(False, {"step": 0})
    for epoch in (1, 2):
        log.on_epoch({key: value for key, value in ENTRY.items() if key != "selection"} | {"epoch": epoch})
    log.on_epoch(ENTRY)
    log.on_pictures("val", 3, [SAMPLE] * 2)
    log.on_end(SUMMARY)
    log.close()


def test_several_at_once():
    settings = config.load("demo", ["--loggers", "[csv, wandb, mlflow, tensorboard]"])
    assert logger_names(settings) == ["csv", "wandb", "mlflow", "tensorboard"]
    assert all(issubclass(LOGGERS.get(name), loggers.Observer) for name in settings.loggers)
    assert pictures_wanted(settings) == 4
    assert pictures_wanted(config.load("demo", ["--loggers", "[csv]"])) == 0
    assert pictures_wanted(config.load("demo", ["--loggers", "[csv, wandb]", "--overlays", "2"])) == 2


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_told_before_the_training(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        InputError, match=f"loggers: {name} cannot be imported .*pip install {name}`.* leave {name} out"
    ):
        check(config.load("demo", ["--loggers", f"[csv, {name}]"]))


def test_csv(tmp_path):
    settings = config.load("demo")
    whole_run(loggers.CsvLog(settings, tmp_path))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["selection/auc"] for row in rows] == ["", "", "0.5"] and float(rows[0]["rate/head"]) == 5e-5
    again = loggers.CsvLog(settings, tmp_path, epoch=2)  # the third epoch is trained again
    again.on_epoch(ENTRY | {"losses": {"loss": 0.125}})
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [(row["epoch"], row["loss/loss"]) for row in rows] == [("1", "0.5"), ("2", "0.5"), ("3", "0.125")]
    loggers.CsvLog(settings, tmp_path).on_epoch(ENTRY)  # a run that begins
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2


@pytest.mark.slow  # each package takes seconds to begin
def test_wandb_without_an_account(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    run = tmp_path / "run"
    run.mkdir()
    whole_run(loggers.WandbLog(config.load("demo"), run))
    (kept,) = (run / "wandb").glob("offline-run-*")
    assert list(kept.glob("run-*.wandb")) and list(kept.glob("files/media/images/**/*.png"))
    mine = (run / "wandb_run.txt").read_text()
    loggers.WandbLog(config.load("demo"), run, epoch=3).close()
    assert (run / "wandb_run.txt").read_text() == mine


@pytest.mark.slow  # each package takes seconds to begin
def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "run"
    run.mkdir()
    whole_run(loggers.MlflowLog(config.load("demo"), run))
    loggers.MlflowLog(config.load("demo"), run, epoch=3).on_epoch(ENTRY | {"epoch": 4})
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("essl_fast").experiment_id])
    assert found.info.run_name == "run" and found.data.params["objective.method"] == "semipl"
    history = client.get_metric_history(found.info.run_id, "loss/loss")
    assert [(one.step, one.value) for one in history] == [(1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5)]
    assert found.data.metrics["test/auc"] == 0.25
    assert any(path.suffix == ".png" for path in (tmp_path / "mlartifacts").rglob("*"))


def test_the_settings_as_texts():
    texts = flattened(json.loads(json.dumps(config.to_dict(config.load("demo")))))
    assert texts["optim.lr_head"] == "0.001" and texts["model.trunk"] == "small" and texts["loggers"] == "[]"
