"""How good a localization is: cIoU, success rate and AUC, and the metrics of later work.

The latter are the cIoU with an adaptive threshold, success by object size, and average precision and max-F1 of telling
the frame's own sound from silence or another sound, which show whether the model listens at all.
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
    """How well a model tells the sounds of its frames from other sounds."""

    average_precision: float
    max_f1: float
    threshold: float  # the confidence at which F1 is largest


# The least area of each size, in pixels of the 224 x 224 grid (Mo & Morgado, NeurIPS 2022). As shares of the frame they
# are 0, 2.0%, 18.4% and 41.3%.
SIZES = {"small": 0, "medium": 32**2, "large": 96**2, "huge": 144**2}


def ciou(similarity: Tensor, boxes: Tensor, consensus: int = 1, size: int = 224, threshold: float = 0.5) -> Tensor:
    """Consensus IoU of similarity maps with boxes (Senocak et al., CVPR 2018).

    Args:
        similarity: (B, h, w) maps.
        boxes: (B, K, 4) int32 xyxy on the size x size grid.
        consensus: annotators that must agree for a pixel to count fully.
        size: side of the grid.
        threshold: of the map, resized to the grid and scaled to 0..1.

    Returns:
        (B,) float64; NaN where neither the map nor the boxes cover anything (0 / 0).
    """
    intersection, union = kernels.localization_counts(similarity, boxes, consensus, size, threshold)
    return intersection / union


def summarize(ciou) -> Summary:
    """Success rate at 0.5, AUC and the 21-point curve of cIoU scores (N,). NaN is a miss, also at threshold 0.

    Raises:
        ValueError: there are no scores.
    """
    scores = np.asarray(ciou.cpu() if isinstance(ciou, torch.Tensor) else ciou, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"summarize: expected (N,) scores with N >= 1, got shape {scores.shape}")
    with np.errstate(invalid="ignore"):
        curve = (scores[None, :] >= THRESHOLDS[:, None]).mean(axis=1)
        half = float((scores >= 0.5).mean())
    return Summary(half, float(np.trapezoid(curve, THRESHOLDS)), curve)


def per_class(ciou, class_id, classes) -> dict[str, dict]:
    """Pairs, success rate at 0.5 and AUC of each class that occurs.

    Args:
        ciou: (N,) scores.
        class_id: (N,) indices into ``classes``; others are ignored.
        classes: names.
    """
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
    """Consensus IoU with a threshold for each map that gives it the area of its boxes: where matters, not how large.

    With n the number of pixels that any box covers, the threshold is the n-th largest value of the map resized to size
    x size; the pixels with this value or a larger one are inferred (more than n if values are equal). For a frame
    without boxes n is half the grid, and the cIoU is 0. A map with a NaN infers nothing. This is "cIoU Adap." of
    Senocak et al., Sound Source Localization is All about Cross-Modal Alignment, ICCV 2023, except that their code
    leaves out the n-th value itself.

    Args:
        similarity: (B, h, w) maps.
        boxes: (B, K, 4) int32 xyxy on the size x size grid.
        consensus, size: as in :func:`ciou`.

    Returns:
        (B,) float64.
    """
    weights = kernels.box_weights(boxes, size, consensus).double()
    covered = (weights > 0).sum(dim=(1, 2))
    return _ciou_of_largest(similarity, weights, torch.where(covered > 0, covered, size * size // 2), size)


def ciou_upper_half(similarity: Tensor, boxes: Tensor, consensus: int = 1, size: int = 224) -> Tensor:
    """Consensus IoU where the upper half of each map is inferred: the pixels whose value is at least the median.

    The prediction of LVS (Chen et al., CVPR 2021), EZ-VSL and SLAVC (``--relative_prediction``, size 0.5), whose share
    of pairs with a cIoU of 0.5 or more is the localization accuracy, LocAcc (Mo & Morgado, NeurIPS 2022).

    Args, returns: as :func:`ciou_adaptive`.
    """
    weights = kernels.box_weights(boxes, size, consensus).double()
    return _ciou_of_largest(similarity, weights, torch.full((len(weights),), size * size // 2), size)


def _ciou_of_largest(similarity: Tensor, weights: Tensor, count: Tensor, size: int) -> Tensor:
    """Consensus IoU (B,), with weights (B, size, size), of each map's count (B,) largest values and their equals."""
    heat = heat_maps(similarity, size)
    ranks = (size * size - count + 1).tolist()
    # Selecting one value per map takes 0.5 ms each on a CPU; sorting a map takes 6 ms.
    flat = heat.flatten(1)
    pairs = zip(flat, ranks, strict=True)
    least = torch.stack([row.kthvalue(rank).values for row, rank in pairs]) if len(flat) else flat.new_empty(0)
    missing = heat.isnan().any(dim=2).any(dim=1)[:, None, None]
    infer = (heat >= least[:, None, None]) & ~missing
    intersection = torch.where(infer, weights, 0).sum(dim=(1, 2))
    return intersection / (weights.sum(dim=(1, 2)) + (infer & (weights == 0)).sum(dim=(1, 2)))


def areas(boxes: Tensor, consensus: int = 1, size: int = 224) -> Tensor:
    """The area that the boxes (B, K, 4) of each frame cover together, as the sum of pixel weights: (B,) float64."""
    return kernels.box_weights(boxes, size, consensus).double().sum(dim=(1, 2))


def per_size(ciou, area) -> dict[str, dict]:
    """Pairs, success rate at 0.5 and AUC of each size that occurs, see SIZES.

    Args:
        ciou: (N,) scores.
        area: (N,) from :func:`areas`; pairs without a box (area 0) are left out.
    """
    area = np.asarray(area, dtype=np.float64)
    size = np.searchsorted(list(SIZES.values()), area, side="right") - 1
    return per_class(ciou, np.where(area > 0, size, -1), list(SIZES))


def trusted_from(confidence, found) -> float | None:
    """The confidence below which a model is wrong more often than right, and from which on it is right more often.

    Of all thresholds t it is the one with the most pairs that are judged rightly: wrong pairs below t, right ones from
    t on; of several, the lowest. This is where the isotonic (rising) fit of right to confidence crosses one half.

    Args:
        confidence: (N,) the largest similarity of each pair's map; NaN is the smallest confidence.
        found: (N,) bool, the pair was localized rightly.

    Returns:
        A confidence that occurs, the smallest one if the model is nowhere wrong more often; None if it is wrong more
        often at every confidence, or there is no pair.
    """
    confidence, found = np.asarray(confidence, np.float64), np.asarray(found, bool)
    known = ~np.isnan(confidence)
    order = np.argsort(confidence[known], kind="stable")
    scores, wrong = confidence[known][order], np.where(found[known][order], -1, 1)
    first = np.append(True, scores[1:] != scores[:-1])[: len(scores)]  # equal confidences stand on one side
    surplus = np.append(0, wrong.cumsum())  # of wrong pairs over right ones, below each place
    places = np.append(np.flatnonzero(first), len(scores))
    best = int(places[surplus[places].argmax()])
    return None if best == len(scores) else float(scores[best])


def detection(confidence, found, negative) -> Detection:
    """Average precision and max-F1 of telling N pairs with their own sound from M with another sound.

    At a threshold t every frame with a confidence of at least t is detected. TP are the detected pairs whose object was
    found, FP are all other detections (negatives, and pairs localized in the wrong place), and N - TP are missed:

        precision = TP / (TP + FP)     recall = TP / N     F1 = 2 TP / (2 TP + FP + (N - TP))
        AP = sum over thresholds t, falling, of (recall_t - recall before) * best precision from t down

    Every confidence that occurs is a threshold. A model that does not listen has the same confidence for a negative,
    and half the precision. After Mo & Morgado, A Closer Look at Weakly-Supervised Audio-Visual Source Localization,
    NeurIPS 2022. Their code differs in details: it uses about 200 thresholds, the mean of the map's upper quarter as
    confidence, and a recall that does not count pairs detected in the wrong place.

    Args:
        confidence: (N,) the largest similarity of each pair's map; NaN is the smallest confidence.
        found: (N,) bool, the pair's cIoU is at least 0.5.
        negative: (M,) the confidence of frames under silence, or under another pair's sound.

    Raises:
        ValueError: the shapes do not fit, or N is 0.
    """
    confidence, negative = (np.asarray(x, dtype=np.float64) for x in (confidence, negative))
    found = np.asarray(found, dtype=bool)
    if confidence.ndim != 1 or not len(confidence) or found.shape != confidence.shape or negative.ndim != 1:
        shapes = f"{confidence.shape}, {found.shape} and {negative.shape}"
        raise ValueError(f"detection: expected confidence and found (N,) with N >= 1 and negative (M,), got {shapes}")
    scores = np.nan_to_num(np.concatenate([confidence, negative]), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    order = np.argsort(-scores, kind="stable")
    last = np.append(scores[order][1:] != scores[order][:-1], True)  # the last one of equal confidences
    true = np.concatenate([found, np.zeros(len(negative), bool)])[order].cumsum()[last]
    detected = np.arange(1, len(scores) + 1)[last]
    recall = true / len(confidence)
    best = np.maximum.accumulate((true / detected)[::-1])[::-1]
    f1 = 2 * true / (detected + len(confidence))
    at = int(f1.argmax())
    return Detection(float((np.diff(recall, prepend=0.0) * best).sum()), float(f1[at]), float(scores[order][last][at]))
