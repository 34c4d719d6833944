"""How good a localization is: cIoU, success rate, AUC."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from essl_fast import kernels

THRESHOLDS = np.array([0.05 * i for i in range(21)])  # 0.15000000000000002 and the like are the published values


class Summary(NamedTuple):
    """Success over a set of pairs."""

    success_at_half: float  # share of pairs with cIoU >= 0.5
    auc: float  # trapezoid over the curve
    curve: np.ndarray  # (21,) success rate at cIoU >= 0, 0.05, ..., 1


def ciou(similarity: Tensor, boxes: Tensor, consensus: int = 1, size: int = 224, threshold: float = 0.5) -> Tensor:
    """Consensus IoU (B,) float64 of similarity maps (B, h, w) with boxes (B, K, 4) on the size x size grid.

    NaN where neither the map nor the boxes cover anything (0 / 0).
    """
    intersection, union = kernels.localization_counts(similarity, boxes, consensus, size, threshold)
    return intersection / union


def summarize(ciou) -> Summary:
    """Success rate at 0.5, AUC and the 21-point curve of cIoU scores (N,); NaN is a miss, also at threshold 0."""
    scores = np.asarray(ciou.cpu() if isinstance(ciou, torch.Tensor) else ciou, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"summarize: expected (N,) scores with N >= 1, got shape {scores.shape}")
    with np.errstate(invalid="ignore"):
        curve = (scores[None, :] >= THRESHOLDS[:, None]).mean(axis=1)
        half = float((scores >= 0.5).mean())
    return Summary(half, float(np.trapezoid(curve, THRESHOLDS)), curve)


def per_class(ciou, class_id, classes) -> dict[str, dict]:
    """Pairs, success rate at 0.5 and AUC of each class that occurs; ``class_id`` (N,) indexes ``classes``."""
    scores = np.asarray(ciou, dtype=np.float64)
    class_id = np.asarray(class_id)
    table = {}
    for number, name in enumerate(classes):
        chosen = scores[class_id == number]
        if len(chosen):
            summary = summarize(chosen)
            table[name] = {"pairs": len(chosen), "success_at_half": summary.success_at_half, "auc": summary.auc}
    return table
