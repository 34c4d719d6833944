"""Settings and checkpoints, as targets of `tests.fuzz.targets`."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from essl_fast import config
from tests.fuzz.target import Parts


def configs(place: Path) -> Parts:
    return {path.name: path.read_bytes() for path in sorted(config.configs_folder().glob("*.yaml"))}


def read_config(place: Path, name: str, data: bytes) -> None:
    path = place / "config" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    _check_config(config.load(str(path)))


def _check_config(settings: config.Config) -> None:
    assert config.from_dict(json.loads(json.dumps(config.to_dict(settings)))) == settings


def some_settings(place: Path) -> Parts:
    return {"settings.json": json.dumps(config.to_dict(config.Config())).encode()}


def read_settings(place: Path, name: str, data: bytes) -> None:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return
    _check_config(config.from_dict(values))


@cache
def _network():
    import torch
    from torch import nn

    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def some_checkpoints(place: Path) -> Parts:
    from essl_fast import checkpoints

    network = _network()
    state = {
        "config": config.to_dict(config.load("demo")),
        "model": checkpoints.trained_state(network),
        "epoch": 3,
        "data_root": "x",
        "best": 0.5,
        "history": [{"epoch": 1, "loss": 0.1}],
    }
    checkpoints.save(place / "seed.pt", state)
    shapes = {key: {"shape": list(value.shape)} for key, value in state["model"].items()}
    return {"seed.pt": (place / "seed.pt").read_bytes(), "state.json": json.dumps(state | {"model": shapes}).encode()}


def _tensors(values):
    """Values of JSON with tensors for the shapes in them, which share one number however large they are."""
    import torch

    if isinstance(values, dict) and values.keys() == {"shape"}:
        return torch.zeros(1).expand(values["shape"])
    return {key: _tensors(value) for key, value in values.items()} if isinstance(values, dict) else values


def read_checkpoint(place: Path, name: str, data: bytes) -> None:
    from essl_fast import checkpoints

    path = place / "last.pt"
    path.write_bytes(data)
    if name == "state.json":  # its values are what is damaged; the file is sound
        try:
            checkpoints.save(path, _tensors(json.loads(data)))
        except (ValueError, TypeError, RecursionError, RuntimeError, OverflowError):
            return
    state = checkpoints.load(path)
    checkpoints.settings_of(state)
    before = {key: value.clone() for key, value in _network().state_dict().items()}
    try:
        checkpoints.load_trained(_network(), state["model"])
    finally:
        _network().load_state_dict(before)
