"""Loggers that need no code: `--loggers '[csv]'`, `wandb` and `mlflow`, alone or several at once.

    csv       metrics.csv in the run directory, a row an epoch
    wandb     Weights & Biases. Without an account the run is kept in the run directory, for `wandb sync`
    mlflow    MLflow, in the store that MLFLOW_TRACKING_URI names, or in mlflow.db beside the run directory

Each package is imported when a run asks for it. If it is missing, one line says so before anything is trained.
"""

from __future__ import annotations

import csv
import importlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from essl_fast import config
from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_file
from essl_fast.common.values import flattened
from essl_fast.train.observers import Observer, register_logger
from essl_fast.train.pictures import blended, final_scalars, scalars

EXPERIMENT = "essl_fast"  # what the runs of all data sets are filed under


def package(name: str) -> Any:
    """An optional package, imported. InputError if it is missing or cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"loggers: {name} cannot be imported ({error}); run `pip install {name}` (or `pip install '.[{name}]'` in "
            f"the source folder), or leave {name} out: log.jsonl holds the same"
        ) from error


@register_logger("csv")
class CsvLog(Observer):
    """metrics.csv: the numbers of each epoch in columns; an epoch that was not evaluated leaves its cells empty."""

    def __init__(self, settings: config.Config, folder: Path, epoch: int = 0) -> None:
        self._path, self._rows = Path(folder) / "metrics.csv", []
        if epoch and self._path.is_file():
            with open(self._path, newline="", encoding="utf-8") as file:
                self._rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= epoch]

    def on_epoch(self, entry: dict) -> None:
        self._rows.append({"epoch": entry["epoch"], **scalars(entry)})
        text = io.StringIO()
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        with atomic_file(self._path) as file:
            file.write(text.getvalue().encode())


@register_logger("wandb")
class WandbLog(Observer):
    """A run of Weights & Biases; a resumed run goes on in it.

    It goes online if WANDB_API_KEY is set, or where WANDB_MODE says so. Otherwise it is kept in ``folder``/wandb.
    """

    pictures = 4

    def __init__(self, settings: config.Config, folder: Path, epoch: int = 0) -> None:
        wandb = self._wandb = package("wandb")
        folder = Path(folder)
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", EXPERIMENT),
            name=folder.name,
            id=_run_id(folder),
            resume="allow" if mode == "online" else None,
            dir=str(folder),
            mode=mode,
            config=config.to_dict(settings),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    @classmethod
    def check(cls) -> None:
        package("wandb")

    def on_epoch(self, entry: dict) -> None:
        self._run.log({"epoch": entry["epoch"], **scalars(entry)})

    def on_pictures(self, split: str, epoch: int, samples: list[dict]) -> None:
        images = [self._wandb.Image(blended(sample), caption=sample["title"]) for sample in samples]
        self._run.log({"epoch": epoch, f"{split}/localized": images})

    def on_end(self, summary: dict) -> None:
        self._run.summary.update(final_scalars(summary))

    def close(self) -> None:
        self._run.finish()


@register_logger("mlflow")
class MlflowLog(Observer):
    """A run of MLflow; a resumed run goes on in it."""

    pictures = 4

    def __init__(self, settings: config.Config, folder: Path, epoch: int = 0) -> None:
        folder = Path(folder).resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = package("mlflow").MlflowClient(uri or f"sqlite:///{folder.parent / 'mlflow.db'}")
        found = self._client.get_experiment_by_name(EXPERIMENT)
        place = None if uri else (folder.parent / "mlartifacts").as_uri()
        experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT, place)
        note = folder / "mlflow_run.txt"
        if epoch and note.is_file():
            self._run = note.read_text().strip()
            self._client.update_run(self._run, "RUNNING")
            return
        self._run = self._client.create_run(experiment, run_name=folder.name).info.run_id
        with atomic_file(note) as file:
            file.write(f"{self._run}\n".encode())
        for name, value in flattened(config.to_dict(settings)).items():
            self._client.log_param(self._run, name, value)

    @classmethod
    def check(cls) -> None:
        package("mlflow")

    def on_epoch(self, entry: dict) -> None:
        self._log(scalars(entry), entry["epoch"])

    def on_pictures(self, split: str, epoch: int, samples: list[dict]) -> None:
        strip = np.concatenate([blended(sample) for sample in samples], axis=1)
        self._client.log_image(self._run, strip, key=f"{split}_localized", step=epoch)

    def on_end(self, summary: dict) -> None:
        self._log(final_scalars(summary), summary["selected"]["epoch"])
        self._client.set_terminated(self._run)

    def _log(self, values: dict[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=epoch)


def _run_id(folder: Path) -> str:
    """The id of a run directory's run at Weights & Biases, kept in it, so that a resumed run goes on there."""
    note = folder / "wandb_run.txt"
    if not note.is_file():
        with atomic_file(note) as file:
            file.write(f"{os.urandom(8).hex()}\n".encode())
    return note.read_text().strip()
