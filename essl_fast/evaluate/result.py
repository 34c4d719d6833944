"""The result of an evaluation, pair by pair, and the figures computed from it."""

from typing import Any, NamedTuple

import numpy as np
import torch

from essl_fast.data.shards import Manifest
from essl_fast.evaluate import class_aware, guidance, masks, metrics, scenes, universal


class Evaluation(NamedTuple):
    """A split, pair by pair, in the manifest's order."""

    rows: np.ndarray  # (N,) int64 manifest rows
    ciou: np.ndarray  # (N,) float64; NaN counts as a miss
    similarity: np.ndarray  # (N, h, w) float32 cosine maps
    samples: list[dict]  # pairs to draw, see samples.py
    foreign: dict[str, np.ndarray] = {}  # maps (N, h, w) float32 under each foreign sound, if asked for
    objects: np.ndarray | None = None  # object maps (N, h, w) float32, if asked for
    heard: np.ndarray | None = None  # (N,) manifest rows of the pairs whose sound was the mismatched one
    by_class: np.ndarray | None = None  # (N, K) float64 of every class, NaN where it does not sound, if asked for

    def result(self, manifest: Manifest) -> dict:
        """Plain values: success_at_half, auc, the 21-point curve, pairs, and the same per class.

        Pairs whose sound has no source in the frame are not in them; their number is then "negatives".
        """
        own = self._positive(manifest)
        summary = metrics.summarize(self.ciou[own])
        classes = metrics.per_class(self.ciou[own], manifest.class_id[self.rows[own]], manifest.classes)
        return {
            "pairs": int(own.sum()),
            "success_at_half": summary.success_at_half,
            "auc": summary.auc,
            "curve": summary.curve.tolist(),
            "per_class": classes,
        } | ({"negatives": int((~own).sum())} if not own.all() else {})

    def extra(self, manifest: Manifest, consensus: int, threshold: float | None = None) -> dict:
        """Plain values of the further metrics. docs/metrics.md has their formulas.

        Args:
            manifest: of the pairs.
            consensus: annotators that must agree for a pixel to count fully.
            threshold: the universal threshold, chosen on validation pairs; None leaves out what needs it.

        Returns:
            ciou_adaptive: pairs, success_at_half, auc with an adaptive threshold.
            loc_acc: share of pairs with cIoU >= 0.5 where the upper half of each map is inferred.
            per_size: pairs, success_at_half, auc of each size of object.
            foreign: for each kind of foreign sound average_precision, max_f1, and the threshold of that; it is None
                where there is none, because the maps are NaN. deaf and perfect: average_precision and max_f1 of a
                model that finds the same objects and has one confidence whatever it hears, and of one that finds every
                object and takes another sound for the frame's own only where it is of the same class.
            universal: `universal.at_threshold`, if there are foreign sounds or negatives.
            negatives: average_precision, max_f1 and threshold against the data set's own negatives, if it has some.
            masks: `masks.against_masks`, if the data set has masks.
            interactive: frames, iiou, iauc, and adaptive likewise, if frames have several sources.
            class_aware: `class_aware.class_aware`, if every class was scored by itself.
            guidance: `guidance.guided`, if the object maps were kept.
        """
        own = self._positive(manifest)
        rows, ciou, similarity = self.rows[own], self.ciou[own], self.similarity[own]
        maps, boxes = torch.from_numpy(similarity), torch.from_numpy(np.array(manifest.boxes[rows]))
        chunks = list(zip(maps.split(64), boxes.split(64), strict=True))
        adaptive = torch.cat([metrics.ciou_adaptive(m, b, consensus) for m, b in chunks]).numpy()
        upper = torch.cat([metrics.ciou_upper_half(m, b, consensus) for m, b in chunks]).numpy()
        area = torch.cat([metrics.areas(b, consensus) for _, b in chunks]).numpy()
        summary = metrics.summarize(adaptive)
        found: dict[str, Any] = {
            "ciou_adaptive": {"pairs": len(area), "success_at_half": summary.success_at_half, "auc": summary.auc},
            "loc_acc": metrics.summarize(upper).success_at_half,
            "per_size": metrics.per_size(ciou, area),
            "foreign": {
                kind: _against(similarity, ciou, other[own]) | _bounds(ciou, self._alike(kind, manifest)[own])
                for kind, other in self.foreign.items()
            },
        }
        negatives = {kind: other[own] for kind, other in self.foreign.items()}
        if not own.all():
            negatives["own negatives"] = self.similarity[~own]
            found["negatives"] = _against(similarity, ciou, self.similarity[~own])
        if threshold is not None and negatives:
            found["universal"] = universal.at_threshold(similarity, boxes.numpy(), negatives, threshold, consensus)
        if manifest.mask is not None:
            found["masks"] = masks.against_masks(self.similarity, manifest.mask[self.rows])
        if manifest.scene is not None and _share_frames(manifest.scene[rows]):
            found["interactive"] = _interactive(ciou, adaptive, manifest.scene[rows])
        if self.by_class is not None and (scores := class_aware.class_aware(self.by_class[own])):
            found["class_aware"] = scores
        if self.objects is not None:
            found["guidance"] = guidance.guided(similarity, self.objects[own], boxes.numpy(), consensus)
        return found

    def universal_threshold(self, manifest: Manifest) -> float | None:
        """The universal threshold that this split, the validation split, gives; None without foreign sounds."""
        own = self._positive(manifest)
        return universal.universal_threshold({kind: maps[own].max(axis=(1, 2)) for kind, maps in self.foreign.items()})

    def trusted_from(self, manifest: Manifest) -> float | None:
        """The largest similarity of a map from which on the model is right more often than wrong; None if it never is.

        Right is a cIoU of at least 0.5. See :func:`metrics.trusted_from`.
        """
        own = self._positive(manifest)
        with np.errstate(invalid="ignore"):
            return metrics.trusted_from(self.similarity[own].max(axis=(1, 2)), self.ciou[own] >= 0.5)

    def _alike(self, kind: str, manifest: Manifest) -> np.ndarray:
        """(N,) bool: the foreign sound is of the class of the frame's own, so that no listener can tell them apart."""
        if kind != "mismatched" or self.heard is None:
            return np.zeros(len(self.rows), bool)
        return manifest.class_id[self.heard] == manifest.class_id[self.rows]

    def each(self, manifest: Manifest) -> list[dict]:
        """Key and cIoU of every pair, as plain values; None where the cIoU is NaN, and where the pair is a negative."""
        pairs = zip(self.rows.tolist(), self.ciou, self._positive(manifest), strict=True)
        return [
            {"key": manifest.key(row), "ciou": None if np.isnan(ciou) or not positive else float(ciou)}
            for row, ciou, positive in pairs
        ]

    def _positive(self, manifest: Manifest) -> np.ndarray:
        """(N,) bool: the sound has a source in the frame."""
        if manifest.negative is None:
            return np.ones(len(self.rows), bool)
        return ~np.asarray(manifest.negative[self.rows], bool)


def _against(similarity: np.ndarray, ciou: np.ndarray, negative: np.ndarray) -> dict:
    """`metrics.detection` of pairs against negative maps, as plain values."""
    with np.errstate(invalid="ignore"):
        found = ciou >= 0.5
    one = metrics.detection(similarity.max(axis=(1, 2)), found, negative.max(axis=(1, 2)))
    return {**one._asdict(), "threshold": one.threshold if np.isfinite(one.threshold) else None}


def _bounds(ciou: np.ndarray, alike: np.ndarray) -> dict[str, dict]:
    """The listening test of a deaf and of a perfect model. alike (N,): as `Evaluation._alike`."""
    same = np.ones(len(ciou))
    with np.errstate(invalid="ignore"):
        found = ciou >= 0.5
    deaf, perfect = metrics.detection(same, found, same), metrics.detection(same, same > 0, alike.astype(float))
    kept = ("average_precision", "max_f1")
    return {
        "deaf": {name: getattr(deaf, name) for name in kept},
        "perfect": {name: getattr(perfect, name) for name in kept},
    }


def _share_frames(scene: np.ndarray) -> bool:
    return len(np.unique(scene)) < len(scene)


def _interactive(ciou: np.ndarray, adaptive: np.ndarray, scene: np.ndarray) -> dict:
    frames, plain = scenes.interactive(ciou, scene)
    _, with_area = scenes.interactive(adaptive, scene)
    return {
        "frames": frames,
        "iiou": plain.success_at_half,
        "iauc": plain.auc,
        "iiou_adaptive": with_area.success_at_half,
        "iauc_adaptive": with_area.auc,
    }
