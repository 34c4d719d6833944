"""Object guidance (OGL): the map of a model, mixed with a map of where the frozen trunk sees any object at all.

Mo & Morgado, Localizing Visual Sounds the Easy Way, ECCV 2022 (EZ-VSL). The object map does not hear: it is the mean
over channels of the absolute values of the trunk's features. Both maps are resized to 224 x 224 and scaled to 0..1, and
alpha * map + (1 - alpha) * object map is scored as a map of its own, with alpha = 0.4 as published. It helps where the
sounding object is the only one, and hides whether a model listens. So it is an extra of the evaluation, is reported
beside the result without it, and is never used in training.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from essl_fast.evaluate import metrics
from essl_fast.evaluate.masks import scaled_maps

ALPHA = 0.4


def object_map(features: Tensor) -> Tensor:
    """The object map (B, h, w) float32 of a trunk's features (B, C, h, w)."""
    return features.float().abs().mean(dim=1)


def guided_map(similarity: Tensor, objects: Tensor, alpha: float = ALPHA) -> Tensor:
    """The mix of maps (B, h, w) with object maps (B, h, w): (B, 224, 224) float64. A constant map counts as 0."""
    parts = (torch.nan_to_num(scaled_maps(each)) for each in (similarity, objects))
    own, seen = parts
    return alpha * own + (1 - alpha) * seen


def guided(
    similarity: np.ndarray, objects: np.ndarray, boxes: np.ndarray, consensus: int, alpha: float = ALPHA
) -> dict[str, dict]:
    """pairs, success_at_half and auc of the mix ("guided") and of the object map alone ("object_map").

    Args:
        similarity, objects: (N, h, w) maps.
        boxes: (N, K, 4) int32.
        consensus: annotators that must agree for a pixel to count fully.
        alpha: weight of the model's own map, 0 to 1.
    """
    scores: dict[str, list[Tensor]] = {"guided": [], "object_map": []}
    for maps, seen, each in zip(*(torch.from_numpy(x).split(32) for x in (similarity, objects, boxes)), strict=True):
        scores["guided"].append(metrics.ciou(guided_map(maps, seen, alpha), each, consensus))
        scores["object_map"].append(metrics.ciou(seen, each, consensus))
    found = {}
    for name, parts in scores.items():
        summary = metrics.summarize(torch.cat(parts))
        found[name] = {"pairs": len(boxes), "success_at_half": summary.success_at_half, "auc": summary.auc}
    return found
