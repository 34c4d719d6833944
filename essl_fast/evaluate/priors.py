"""Baselines that do not use the sound; a trained model must beat them."""

import numpy as np
import torch

from essl_fast import config, kernels
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import metrics
from essl_fast.evaluate.result import Evaluation


def centre_prior(manifest: Manifest, rows: np.ndarray, consensus: int) -> dict:
    """The result of always answering with the middle of the frame, a box of half its width and height.

    Args:
        manifest: the prepared data.
        rows: (N,) manifest rows.
        consensus: annotators that must agree for a pixel to count fully.
    """
    quarter = config.SIZE // 4
    middle = [quarter, quarter, config.SIZE - quarter, config.SIZE - quarter]
    return boxes_prior(manifest, rows, consensus, {manifest.key(row): middle for row in rows})


def boxes_prior(manifest: Manifest, rows: np.ndarray, consensus: int, guesses: dict[str, list[int]]) -> dict:
    """The result of answering with one given box per pair; ``guesses`` maps each key to xyxy on the 224 x 224 grid."""
    guess = torch.tensor([guesses[manifest.key(row)] for row in rows], dtype=torch.int32)[:, None]
    boxes = torch.from_numpy(np.array(manifest.boxes[rows]))
    chunks = zip(guess.split(64), boxes.split(64), strict=True)
    scores = [metrics.ciou(kernels.box_weights(g, config.SIZE), b, consensus) for g, b in chunks]
    return Evaluation(rows, torch.cat(scores).numpy(), np.empty(0), []).result(manifest)


def object_prior(manifest: Manifest, rows: np.ndarray, consensus: int, objects: np.ndarray) -> dict:
    """The result of answering with the object map of the trunk (see `guidance.py`), which sees the frame alone.

    Args:
        manifest, rows, consensus: as for :func:`centre_prior`.
        objects: (N, h, w) float32 maps.
    """
    boxes = torch.from_numpy(np.array(manifest.boxes[rows]))
    chunks = zip(torch.from_numpy(objects).split(64), boxes.split(64), strict=True)
    scores = [metrics.ciou(maps, each, consensus) for maps, each in chunks]
    return Evaluation(rows, torch.cat(scores).numpy(), np.empty(0), []).result(manifest)
