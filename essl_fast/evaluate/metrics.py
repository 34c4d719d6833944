"""How good a localization is: cIoU, success rate, AUC; and what later work asks as well.

The cIoU with an adaptive threshold, success by the size of what sounds, and whether the model listens at all: average
precision and max-F1 where silent or foreign sound must be told from the frame's own.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from essl_fast import kernels
from essl_fast.kernels.reference import heat_maps

THRESHOLDS = np.array([0.05 * i for i in range(21)])  # 0.15000000000000002 and the like are the published values


class Summary(NamedTuple):
    """Success over a set of pairs."""

    success_at_half: float  # share of pairs with cIoU >= 0.5
    auc: float  # trapezoid over the curve
    curve: np.ndarray  # (21,) success rate at cIoU >= 0, 0.05, ..., 1


class Detection(NamedTuple):
    """How well confidence and cIoU together tell what sounds in a frame from what does not."""

    average_precision: float
    max_f1: float
    threshold: float  # the confidence at which F1 is largest


# Pixels of the 224 x 224 grid from which on an object is called so (Mo & Morgado, NeurIPS 2022); as shares of the frame
# 0, 2.0%, 18.4% and 41.3%.
SIZES = {"small": 0, "medium": 32**2, "large": 96**2, "huge": 144**2}


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


def ciou_adaptive(similarity: Tensor, boxes: Tensor, consensus: int = 1, size: int = 224) -> Tensor:
    """Consensus IoU (B,) float64 where the threshold gives each map (B, h, w) the area of its boxes (B, K, 4).

    The model has to say where, not how far. With n the pixels that any box covers, the threshold is the n-th largest
    value of the map resized to size x size, and all values from it on are inferred (more than n where values tie). For
    a frame without boxes n is half the grid, and the cIoU 0. A map with a NaN infers nothing. The definition of "cIoU
    Adap." in Senocak et al., Sound Source Localization is All about Cross-Modal Alignment, ICCV 2023, whose code leaves
    the n-th value itself out.
    """
    heat = heat_maps(similarity, size)
    weights = kernels.box_weights(boxes, size, consensus).double()
    covered = (weights > 0).sum(dim=(1, 2))
    ranks = (size * size - torch.where(covered > 0, covered, size * size // 2) + 1).tolist()
    # One selection a map: on a CPU 0.5 ms each, where sorting all of them takes 6 ms.
    flat = heat.flatten(1)
    pairs = zip(flat, ranks, strict=True)
    least = torch.stack([row.kthvalue(rank).values for row, rank in pairs]) if len(flat) else flat.new_empty(0)
    missing = heat.isnan().any(dim=2).any(dim=1)[:, None, None]
    infer = (heat >= least[:, None, None]) & ~missing
    intersection = torch.where(infer, weights, 0).sum(dim=(1, 2))
    return intersection / (weights.sum(dim=(1, 2)) + (infer & (weights == 0)).sum(dim=(1, 2)))


def areas(boxes: Tensor, consensus: int = 1, size: int = 224) -> Tensor:
    """What the boxes (B, K, 4) cover of the size x size grid together, (B,) float64 pixels, by their weights."""
    return kernels.box_weights(boxes, size, consensus).double().sum(dim=(1, 2))


def per_size(ciou, area) -> dict[str, dict]:
    """Pairs, success rate at 0.5 and AUC by size (see SIZES), of those that occur; ``area`` (N,) from :func:`areas`.

    Pairs without a box have no size and are in none.
    """
    area = np.asarray(area, dtype=np.float64)
    size = np.searchsorted(list(SIZES.values()), area, side="right") - 1
    return per_class(ciou, np.where(area > 0, size, -1), list(SIZES))


def detection(confidence, found, negative) -> Detection:
    """Average precision and max-F1 of N pairs with their own sound, among M with a sound that is not the frame's.

    confidence (N,) is the largest similarity of each pair's map, found (N,) bool whether its cIoU is at least 0.5;
    negative (M,) the confidence of frames under silence, or under another pair's sound. At a threshold t, what is as
    confident as t is detected: TP are detected pairs that were found, FP all other detections, whether negatives or
    pairs looked for in the wrong place, and N - TP are missed.

        precision = TP / (TP + FP)     recall = TP / N     F1 = 2 TP / (2 TP + FP + (N - TP))
        AP = sum over thresholds t, falling, of (recall_t - recall before) * best precision from t down

    every confidence that occurs being a threshold. A model that does not listen is as confident of a negative, and has
    half the precision. After Mo & Morgado, A Closer Look at Weakly-Supervised Audio-Visual Source Localization, NeurIPS
    2022. Their code differs in details: about 200 thresholds; as confidence the mean of the map's upper quarter; and
    its recall does not count pairs that were detected in the wrong place. NaN is the least of all confidences.
    """
    confidence, negative = (np.asarray(x, dtype=np.float64) for x in (confidence, negative))
    found = np.asarray(found, dtype=bool)
    if confidence.ndim != 1 or not len(confidence) or found.shape != confidence.shape or negative.ndim != 1:
        shapes = f"{confidence.shape}, {found.shape} and {negative.shape}"
        raise ValueError(f"detection: expected confidence and found (N,) with N >= 1 and negative (M,), got {shapes}")
    scores = np.nan_to_num(np.concatenate([confidence, negative]), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    order = np.argsort(-scores, kind="stable")
    last = np.append(scores[order][1:] != scores[order][:-1], True)  # of those with equal confidence
    true = np.concatenate([found, np.zeros(len(negative), bool)])[order].cumsum()[last]
    detected = np.arange(1, len(scores) + 1)[last]
    recall = true / len(confidence)
    best = np.maximum.accumulate((true / detected)[::-1])[::-1]
    f1 = 2 * true / (detected + len(confidence))
    at = int(f1.argmax())
    return Detection(float((np.diff(recall, prepend=0.0) * best).sum()), float(f1[at]), float(scores[order][last][at]))
