"""Class-aware IoU: whether each class that sounds is found in its own place, where several sound at once.

Hu et al., Discriminative Sounding Objects Localization via Self-supervised Audiovisual Matching, NeurIPS 2020. With
d_k = 1 if class k sounds in the frame, else 0, and cIoU_k that of class k's map with class k's boxes:

    CIoU = sum_k d_k cIoU_k / sum_k d_k

A model with one map for all sounds is scored with that map for every class: it cannot say which object is which.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from essl_fast.evaluate import metrics
from essl_fast.kernels import Attention

EARLIER = 0.3  # the threshold of the success that the paper reports


def of_each_class(attention: Attention, boxes: Tensor, consensus: int) -> Tensor:
    """cIoU of every class that sounds: (B, K) float64, NaN for the others.

    Args:
        attention: of a batch of one view, as a localizer attends: similarity (1, B, h, w); its attention is
            (1, B, K, h, w) if the model has a map for each class.
        boxes: (B, K, M, 4) int32, class by class; padding boxes have no area.
        consensus: annotators that must agree for a pixel to count fully.
    """
    found = torch.full(boxes.shape[:2], torch.nan, dtype=torch.float64, device=boxes.device)
    pair, kind = torch.nonzero((boxes[..., 2:] > boxes[..., :2]).all(dim=3).any(dim=2), as_tuple=True)
    if len(pair):
        own = attention.attention.ndim == 5
        maps = attention.attention[0][pair, kind] if own else attention.similarity[0][pair]
        found[pair, kind] = metrics.ciou(maps, boxes[pair, kind], consensus)
    return found


def class_aware(by_class: np.ndarray) -> dict:
    """Plain values of N pairs.

    Args:
        by_class: (N, K), NaN where a class does not sound. Pairs in which none does are left out.

    Returns:
        pairs; of their CIoU mean, success_at_half, success_at_earlier (0.3) and auc; all_found, the share of pairs in
        which every class that sounds has a cIoU >= 0.5. Nothing if no class sounds in any pair.
    """
    each = by_class[~np.isnan(by_class).all(axis=1)]
    if not len(each):
        return {}
    mean = np.nanmean(each, axis=1)
    summary = metrics.summarize(mean)
    return {
        "pairs": len(each),
        "mean": float(mean.mean()),
        "success_at_half": summary.success_at_half,
        "success_at_earlier": float((mean >= EARLIER).mean()),
        "auc": summary.auc,
        "all_found": float((np.nanmin(each, axis=1) >= 0.5).mean()),
    }
