"""The result of an evaluation, pair by pair, and the figures computed from it."""

from typing import NamedTuple

import numpy as np
import torch

from essl_fast.data.shards import Manifest
from essl_fast.evaluate import metrics


class Evaluation(NamedTuple):
    """A split, pair by pair, in the manifest's order."""

    rows: np.ndarray  # (N,) int64 manifest rows
    ciou: np.ndarray  # (N,) float64; NaN counts as a miss
    similarity: np.ndarray  # (N, h, w) float32 cosine maps
    samples: list[dict]  # pairs to draw, see samples.py
    foreign: dict[str, np.ndarray] = {}  # the largest similarity (N,) float32 under each foreign sound, if asked for

    def result(self, manifest: Manifest) -> dict:
        """Plain values: success_at_half, auc, the 21-point curve, pairs, and the same per class."""
        summary = metrics.summarize(self.ciou)
        classes = metrics.per_class(self.ciou, manifest.class_id[self.rows], manifest.classes)
        return {
            "pairs": len(self.rows),
            "success_at_half": summary.success_at_half,
            "auc": summary.auc,
            "curve": summary.curve.tolist(),
            "per_class": classes,
        }

    def extra(self, manifest: Manifest, consensus: int) -> dict:
        """Plain values of the further metrics.

        Returns:
            ciou_adaptive: pairs, success_at_half, auc with an adaptive threshold.
            per_size: pairs, success_at_half, auc of each size of object.
            foreign: for each kind of foreign sound average_precision, max_f1, and the threshold of that; it is None
                where there is none, because the maps are NaN.
        """
        maps, boxes = torch.from_numpy(self.similarity), torch.from_numpy(np.array(manifest.boxes[self.rows]))
        chunks = list(zip(maps.split(64), boxes.split(64), strict=True))
        adaptive = torch.cat([metrics.ciou_adaptive(m, b, consensus) for m, b in chunks]).numpy()
        area = torch.cat([metrics.areas(b, consensus) for _, b in chunks]).numpy()
        summary = metrics.summarize(adaptive)
        with np.errstate(invalid="ignore"):
            found = self.ciou >= 0.5
        confidence = self.similarity.max(axis=(1, 2))
        foreign = {kind: metrics.detection(confidence, found, other) for kind, other in self.foreign.items()}
        return {
            "ciou_adaptive": {"pairs": len(area), "success_at_half": summary.success_at_half, "auc": summary.auc},
            "per_size": metrics.per_size(self.ciou, area),
            "foreign": {
                kind: {**one._asdict(), "threshold": one.threshold if np.isfinite(one.threshold) else None}
                for kind, one in foreign.items()
            },
        }

    def each(self, manifest: Manifest) -> list[dict]:
        """Key and cIoU of every pair, as plain values; None where the cIoU is NaN."""
        pairs = zip(self.rows.tolist(), self.ciou, strict=True)
        return [{"key": manifest.key(row), "ciou": None if np.isnan(ciou) else float(ciou)} for row, ciou in pairs]
