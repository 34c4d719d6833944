"""One threshold for every sound: what a model marks when nothing that it hears is in the frame.

The usual metrics scale every map to 0..1 first, so that something is found under any sound, silence included. Here the
similarity itself is compared with one threshold, which is chosen on validation pairs and then fixed:

    threshold   for each kind of negative sound (silence, noise, another pair's sound) the third quartile of the largest
                similarity of each frame; the largest of these quartiles
    pIA         share of the frame's pixels whose similarity is at least the threshold under a negative sound; 0 is best
    AOC         area under the curve of the share of frames with pIA <= t, for t = 0, 0.05, ..., 1; 1 is best
    F_LOC       harmonic mean of the mean cIoU (own sound) and 1 - pIA (mean over the kinds)
    F_AUC       harmonic mean of the AUC (own sound) and the AOC (mean over the kinds)

Juanola, Haro & Fuentes, A Critical Assessment of Visual Sound Source Localization Models Including Negative Audio,
ICASSP 2025 (arXiv 2410.01020), who call this threshold MaxQ3, and give it for each model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from essl_fast import kernels
from essl_fast.evaluate.metrics import THRESHOLDS, summarize
from essl_fast.kernels.reference import heat_maps


def universal_threshold(largest: Mapping[str, np.ndarray]) -> float | None:
    """The threshold of the module's docstring; None if no map is finite, as those of a model that diverged.

    Args:
        largest: kind of negative sound -> (N,) the largest similarity of each frame's map under it.
    """
    finite = (np.asarray(values, np.float64)[np.isfinite(values)] for values in largest.values())
    return max((float(np.quantile(values, 0.75)) for values in finite if len(values)), default=None)


def image_area(similarity: Tensor, threshold: float, size: int = 224) -> Tensor:
    """pIA: the share of the pixels of each map (B, h, w), resized to size x size, that are >= threshold: (B,)."""
    return (heat_maps(similarity, size) >= threshold).double().mean(dim=(1, 2))


def ciou_at(similarity: Tensor, boxes: Tensor, threshold: float, consensus: int = 1, size: int = 224) -> Tensor:
    """Consensus IoU of maps (B, h, w), resized but not scaled, that are >= threshold with boxes (B, K, 4): (B,).

    NaN where neither the map nor the boxes cover anything.
    """
    infer = heat_maps(similarity, size) >= threshold
    weights = kernels.box_weights(boxes, size, consensus).double()
    intersection = torch.where(infer, weights, 0).sum(dim=(1, 2))
    return intersection / (weights.sum(dim=(1, 2)) + (infer & (weights == 0)).sum(dim=(1, 2)))


def area_over_curve(areas) -> float:
    """AOC of pIA values (N,): the trapezoid over the share of frames with pIA <= 0, 0.05, ..., 1."""
    shares = (np.asarray(areas, np.float64)[None, :] <= THRESHOLDS[:, None]).mean(axis=1)
    return float(np.trapezoid(shares, THRESHOLDS))


def harmonic(first: float, second: float) -> float:
    """The harmonic mean of two shares; 0 if one of them is."""
    return 0.0 if first <= 0 or second <= 0 else 2 * first * second / (first + second)


def at_threshold(
    similarity: np.ndarray, boxes: np.ndarray, negatives: Mapping[str, np.ndarray], threshold: float, consensus: int
) -> dict:
    """All of it at one threshold, as plain values.

    Args:
        similarity: (N, h, w) maps of the frames under their own sound.
        boxes: (N, K, 4) int32.
        negatives: kind -> (M, h, w) maps under a negative sound.
        threshold: of the similarity.
        consensus: annotators that must agree for a pixel to count fully.

    Returns:
        threshold; own: pairs, mean_ciou, success_at_half, auc; negatives: kind -> pairs, pia, aoc; f_loc, f_auc.
    """
    parts = zip(torch.from_numpy(similarity).split(64), torch.from_numpy(boxes).split(64), strict=True)
    ciou = torch.cat([ciou_at(maps, each, threshold, consensus) for maps, each in parts]).numpy()
    own = summarize(ciou)
    found = {}
    for kind, maps in negatives.items():
        areas = torch.cat([image_area(part, threshold) for part in torch.from_numpy(maps).split(64)]).numpy()
        found[kind] = {"pairs": len(areas), "pia": float(areas.mean()), "aoc": area_over_curve(areas)}
    mean_ciou = float(np.nan_to_num(ciou).mean())
    return {
        "threshold": threshold,
        "own": {"pairs": len(ciou), "mean_ciou": mean_ciou, "success_at_half": own.success_at_half, "auc": own.auc},
        "negatives": found,
        "f_loc": harmonic(mean_ciou, 1 - float(np.mean([each["pia"] for each in found.values()]))),
        "f_auc": harmonic(own.auc, float(np.mean([each["aoc"] for each in found.values()]))),
    }
