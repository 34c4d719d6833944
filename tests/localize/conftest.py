"""What the tests of `localize` share: an untrained run, and noise to localize."""

import numpy as np
import pytest
import torch

from essl_fast import checkpoints, config, models


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run directory with a checkpoint of the demo's network, untrained."""
    place = tmp_path_factory.mktemp("run")
    settings = config.load("demo")
    torch.manual_seed(0)
    state = {"model": checkpoints.trained_state(models.build(settings.model)), "config": config.to_dict(settings)}
    checkpoints.save(place / "best.pt", state)
    return place


def noise(seconds: float, rate: int = 16_000) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (1, round(seconds * rate))).astype(np.float32)
