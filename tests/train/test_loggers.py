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


class Recorded:
    """Stands for a package that is not installed: what is called on it, in order, with its arguments."""

    def __init__(self, calls: list, name: str = "", **values: object) -> None:
        self._calls, self._name = calls, name
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> "Recorded":
        return Recorded(self._calls, f"{self._name}.{name}".lstrip("."))

    def __call__(self, *given: object, **named: object) -> "Recorded":
        self._calls.append((self._name, given, named))
        return Recorded(self._calls, self._name.lower())

    def named(self, name: str) -> list[tuple]:
        """The arguments of each call of a name."""
        return [(*given, named) if named else given for called, given, named in self._calls if called == name]


@pytest.mark.parametrize("key", [None, "secret"])
def test_what_wandb_is_told(tmp_path, monkeypatch, key):
    """Without an account it stays offline; a resumed run has the same id."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    wandb = Recorded([])
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    settings = config.load("demo")
    loggers.WandbLog.check()
    whole_run(loggers.WandbLog(settings, tmp_path))
    loggers.WandbLog(settings, tmp_path, epoch=3).close()
    (first,), (second,) = wandb.named("init")
    assert first["id"] == second["id"] == (tmp_path / "wandb_run.txt").read_text().strip() and len(first["id"]) == 16
    assert first["mode"] == ("online" if key else "offline") and first["resume"] == ("allow" if key else None)
    assert (first["project"], first["name"], first["dir"]) == ("essl_fast", tmp_path.name, str(tmp_path))
    assert first["config"]["objective"]["method"] == "semipl"
    logged = [one for (one,) in wandb.named("init.log")]
    assert [one["epoch"] for one in logged] == [1, 2, 3, 3] and logged[2]["selection/auc"] == 0.5
    assert len(logged[3]["val/localized"]) == 2
    images = wandb.named("Image")
    assert images[0][0].ndim == 3 and images[0][0].shape[2] == 3 and images[0][1] == {"caption": SAMPLE["title"]}
    assert wandb.named("init.summary.update")[0][0]["test/auc"] == 0.25 and len(wandb.named("init.finish")) == 2


@pytest.mark.parametrize("known", [False, True])
def test_what_mlflow_is_told(tmp_path, monkeypatch, known):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    calls = []
    ids = Recorded(calls, info=Recorded(calls, run_id="7f"))
    client = Recorded(
        calls,
        get_experiment_by_name=lambda name: Recorded(calls, experiment_id="5") if known else None,
        create_experiment=lambda *given: calls.append(("create_experiment", given, {})) or "6",
        create_run=lambda *given, **named: calls.append(("create_run", given, named)) or ids,
    )
    package = Recorded(calls, MlflowClient=lambda uri: calls.append(("MlflowClient", (uri,), {})) or client)
    monkeypatch.setitem(sys.modules, "mlflow", package)
    run, settings = tmp_path / "run", config.load("demo")
    run.mkdir()
    loggers.MlflowLog.check()
    whole_run(loggers.MlflowLog(settings, run))
    assert client.named("MlflowClient") == [(f"sqlite:///{tmp_path}/mlflow.db",)]
    made = [] if known else [("essl_fast", (tmp_path / "mlartifacts").as_uri())]
    assert client.named("create_experiment") == made
    assert client.named("create_run") == [("5" if known else "6", {"run_name": "run"})]
    assert ("7f", "objective.method", "semipl") in client.named("log_param")
    metrics = {(name, more["step"]): value for _, name, value, more in client.named("log_metric")}
    assert metrics["loss/loss", 1] == metrics["loss/loss", 3] == 0.5 and metrics["test/auc", 3] == 0.25
    ((_, strip, named),) = client.named("log_image")
    assert strip.shape[1] == 2 * strip.shape[0] and named == {"key": "val_localized", "step": 3}
    assert client.named("set_terminated") == [("7f",)]

    calls.clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    loggers.MlflowLog(settings, run, epoch=3).on_epoch(ENTRY | {"epoch": 4})  # a resumed run goes on in its own
    assert client.named("MlflowClient") == [("http://127.0.0.1:1",)]
    assert client.named("update_run") == [("7f", "RUNNING")] and not client.named("create_run")
    assert all(one[0] == "7f" and one[-1] == {"step": 4} for one in client.named("log_metric"))


def test_the_settings_as_texts():
    texts = flattened(json.loads(json.dumps(config.to_dict(config.load("demo")))))
    assert texts["optim.lr_head"] == "0.001" and texts["model.trunk"] == "small" and texts["loggers"] == "[]"
