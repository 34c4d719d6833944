"""Finds the numbers that the published SSPL code computed."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests import ROOT

ONE_ULP = 2.0**-23  # of a float32, relative
PLACES = (ROOT.parent / "shared" / "golden", ROOT / "tests" / "golden" / "data")


def golden(name: str) -> dict[str, np.ndarray]:
    """All arrays of ``name``.npz from $ESSL_GOLDEN, ../shared/golden or tests/golden/data; else the test is skipped."""
    places = (Path(os.environ["ESSL_GOLDEN"]), *PLACES) if os.environ.get("ESSL_GOLDEN") else PLACES
    for place in places:
        file = place / f"{name}.npz"
        if file.is_file():
            with np.load(file, allow_pickle=False) as data:
                return {key: data[key] for key in data.files}
    pytest.skip(f"golden case {name}.npz is in none of {', '.join(map(str, places))}; set ESSL_GOLDEN to its folder")


def recipe(names, shapes, seed: int, gain: float) -> dict[str, np.ndarray]:
    """Weights by the recipe of the golden index: one generator a network, entries in state-dict order, all float32."""
    rng = np.random.default_rng(int(seed))
    state = {}
    for name, text in zip(map(str, names), map(str, shapes), strict=True):
        n = rng.standard_normal(tuple(int(size) for size in text.split("x")), dtype=np.float32)
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "running_mean":
            value = np.float32(0.1) * n
        elif leaf == "running_var":
            value = np.float32(1) + np.float32(0.5) * np.abs(n)
        elif name.startswith("b0."):
            value = np.float32(0.5) + np.float32(0.5) * n
        elif name.startswith("a0."):
            value = np.float32(1) + np.float32(0.7) * n
        elif leaf == "bias":
            value = np.float32(0.05) * n
        elif n.ndim == 1:
            value = np.float32(1) + np.float32(0.1) * n
        else:
            value = np.float32(gain / np.sqrt(n.size / len(n))) * n
        state[name] = value
    return state


def recipe_state(data: dict[str, np.ndarray], prefix: str, seed: int, gain: float) -> dict:
    """A network's recipe-filled state dict as tensors, checked against the stored sums."""
    import torch

    state = recipe(data[f"{prefix}recipe_param_names"], data[f"{prefix}recipe_param_shapes"], seed, gain)
    if f"{prefix}recipe_param_sum" in data:
        sums = np.array([value.astype(np.float64).sum() for value in state.values()])
        # The tails of normal numbers are logarithms, whose last bit is the C library's: a sum may be off by as much as
        # if each number were off by one unit in the last place, 1e-7 of it. Another seed is off a thousand times more.
        sizes = np.array([np.abs(value).sum(dtype=np.float64) for value in state.values()])
        apart = np.abs(sums - data[f"{prefix}recipe_param_sum"])
        assert (apart <= ONE_ULP * sizes).all(), (apart / sizes).max()
    return {name: torch.from_numpy(value) for name, value in state.items()}


def rel_l2(actual, expected) -> float:
    """||actual - expected|| / ||expected|| in float64."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def x_max(actual, expected) -> float:
    """max |actual - expected| / max |expected| in float64."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
