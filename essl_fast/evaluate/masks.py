"""How well maps fit masks of the sounding object: mIoU and F, as audio-visual segmentation is scored.

Zhou et al., Audio-Visual Segmentation, ECCV 2022 (AVSBench). A map is resized to 224 x 224 and scaled to 0..1; pixels
that are >= 0.5 are inferred, as for the cIoU. A constant map infers nothing.

    IoU   |infer and mask| / |infer or mask|; for a frame whose mask is empty, the share of pixels that are not inferred
    mIoU  its mean over the frames
    F     at a threshold t of the scaled map: (1 + b2) P R / (b2 P + R), b2 = 0.3, P precision and R recall of pixels;
          0 where P and R are 0. The mean over frames with a mask, at that of 255 thresholds in 0..1 where it is largest
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from essl_fast.kernels.reference import heat_maps

BETA2 = 0.3
LEVELS = np.linspace(0, 1 - 1e-10, 255)  # the thresholds of F, as published


def unpacked(packed: np.ndarray, size: int = 224) -> np.ndarray:
    """Masks as a manifest keeps them, uint8 (N, size * size / 8), as bool (N, size, size)."""
    return np.unpackbits(packed, axis=1).reshape(-1, size, size).astype(bool)


def scaled_maps(similarity: Tensor, size: int = 224) -> Tensor:
    """Maps (B, h, w) as they are scored: (B, size, size) float64 in 0..1; all NaN where a map is constant."""
    heat = heat_maps(similarity, size)
    low, high = heat.amin(dim=(1, 2), keepdim=True), heat.amax(dim=(1, 2), keepdim=True)
    return (heat - low) / (high - low)


def mask_iou(scaled: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """IoU (B,) float64 of scaled maps (B, S, S) with masks (B, S, S) bool, see the module's docstring."""
    infer = scaled >= threshold  # NaN compares false
    inter, union = (infer & masks).sum(dim=(1, 2)), (infer | masks).sum(dim=(1, 2))
    empty = ~masks.flatten(1).any(dim=1)
    nothing = (~infer).double().mean(dim=(1, 2))
    return torch.where(empty, nothing, inter / union.clamp(min=1))


def f_curve(scaled: Tensor, masks: Tensor) -> Tensor:
    """F (B, 255) of each frame at each of LEVELS. Frames must have a mask."""
    found = []
    for heat, mask in zip(scaled.flatten(1).numpy(), masks.flatten(1).numpy(), strict=True):
        # How many thresholds a pixel passes; from there counts at every threshold are sums from above.
        passed = np.searchsorted(LEVELS, np.nan_to_num(heat, nan=-1.0), side="right")
        above = np.bincount(passed, minlength=len(LEVELS) + 1)[::-1].cumsum()[::-1][1:]
        hits = np.bincount(passed[mask], minlength=len(LEVELS) + 1)[::-1].cumsum()[::-1][1:]
        precision, recall = hits / np.maximum(above, 1), hits / mask.sum()
        below = BETA2 * precision + recall
        found.append(np.divide((1 + BETA2) * precision * recall, below, out=np.zeros_like(below), where=below > 0))
    return torch.from_numpy(np.stack(found)) if found else torch.empty(0, len(LEVELS), dtype=torch.float64)


def against_masks(similarity: np.ndarray, packed: np.ndarray) -> dict:
    """pairs, mean_iou, f and the threshold of f, as plain values; f is None if no frame has a mask.

    Args:
        similarity: (N, h, w) maps.
        packed: uint8 (N, 6272), a bit a pixel of the 224 grid.
    """
    ious, curves = [], []
    for begin in range(0, len(similarity), 32):
        scaled = scaled_maps(torch.from_numpy(similarity[begin : begin + 32]))
        masks = torch.from_numpy(unpacked(np.asarray(packed[begin : begin + 32])))
        ious.append(mask_iou(scaled, masks))
        there = masks.flatten(1).any(dim=1)
        curves.append(f_curve(scaled[there], masks[there]))
    curve = torch.cat(curves)
    mean = curve.mean(dim=0) if len(curve) else None
    return {
        "pairs": len(similarity),
        "mean_iou": float(torch.cat(ious).mean()),
        "f": None if mean is None else float(mean.max()),
        "f_threshold": None if mean is None else float(LEVELS[int(mean.argmax())]),
    }
