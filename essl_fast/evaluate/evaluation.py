"""python -m essl_fast.evaluate CHECKPOINT: how well a checkpoint localizes on a split, as a table and JSON."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from essl_fast import config, kernels, models
from essl_fast.common.errors import InputError
from essl_fast.data.loading.loader import Loader, RawBatch
from essl_fast.data.loading.pool import Pools
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import metrics
from essl_fast.evaluate.loaders import _part, evaluation_loader
from essl_fast.evaluate.protocol import consensus_of
from essl_fast.runtime import distributed
from essl_fast.runtime.distributed import ALONE, World

FOREIGN = {  # sounds that are not the frame's, in words
    "silent": "silence",
    "mismatched": "another pair's sound",
}


class Evaluation(NamedTuple):
    """A split, pair by pair, in the manifest's order."""

    rows: np.ndarray  # (N,) int64 manifest rows
    ciou: np.ndarray  # (N,) float64; NaN counts as a miss
    similarity: np.ndarray  # (N, h, w) float32 cosine maps
    samples: list[dict]  # of the rows asked for: frame (224, 224, 3) uint8, similarity, boxes, key, ciou, title
    foreign: dict[str, np.ndarray] = {}  # the largest similarity (N,) float32 under each of FOREIGN, if asked for

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
        """Plain values of the further metrics: ciou_adaptive (pairs, success_at_half, auc), per_size (the same by
        size), and for each kind of foreign sound average_precision, max_f1, and the threshold of that (None: there is
        none, as the maps are NaN)."""
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


def centre_view(frames: torch.Tensor, dtype: torch.dtype, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Stored frames (N, 224, 224, 3) uint8, or rows (B,) of them, as the one view (1, B, 3, 224, 224) of evaluation."""
    rows = torch.arange(len(frames), device=frames.device) if rows is None else rows
    zero = torch.zeros((1, len(rows)), dtype=torch.int32, device=frames.device)
    return kernels.two_views(frames, rows, zero, zero, zero.bool(), config.SIZE, dtype)


@torch.inference_mode()
def evaluate(
    model: models.Localizer,
    manifest: Manifest,
    split: str,
    settings: config.Config,
    device: torch.device,
    dtype: torch.dtype,
    show: int = 0,
    pools: Pools | None = None,
    on_fault: Callable[[int, str], None] | None = None,
    world: World = ALONE,
    foreign: bool = False,
) -> Evaluation:
    """Localize every pair of a split; results leave the device once, at the end. ``show`` pairs are kept to draw.

    ``foreign``: also meet each frame with silence, and with the sound of the pair half a split further on (the same
    pair whatever the batches or ranks; no frame is decoded twice for it).

    ``pools`` may keep what is decoded for the next time. A pair that settings.data leaves out or lets skip is not in
    the result; ``on_fault`` hears of those skipped.
    """
    loader = evaluation_loader(manifest, split, settings, model, device, dtype, pools, on_fault, world)
    rows_wanted = manifest.rows(split)
    shown = set(rows_wanted[np.linspace(0, len(rows_wanted) - 1, min(show, len(rows_wanted))).astype(int)].tolist())
    boxes = torch.from_numpy(np.array(manifest.boxes)).to(device)
    rows, scores, maps, frames = [], [], [], {}
    others = {kind: [] for kind in FOREIGN if foreign and (kind == "silent" or loader.pairs > 1)}
    silence = loader.silence() if foreign else None
    was_training = model.training
    model.eval()
    model.prepare(dtype)
    try:
        for raw in loader:
            views = centre_view(raw.frames, dtype, raw.rows)
            sounds = _foreign(loader, raw, silence) if foreign else {}
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                seen = model.see(views)
                similarity = model.meet(seen, raw.sound)[0].similarity[0]
                for kind, sound in sounds.items():
                    others[kind].append(model.meet(seen, sound)[0].similarity[0].amax(dim=(1, 2)))
            rows.append(raw.index)
            maps.append(similarity)
            scores.append(metrics.ciou(similarity, boxes[raw.index], consensus_of(settings, manifest)))
            for at, row in enumerate(raw.index.tolist() if shown else ()):
                if row in shown:
                    frames[row] = raw.frames[raw.rows[at]].cpu().numpy()
    finally:
        loader.close()
        model.train(was_training)
    columns = (rows, scores, maps, *others.values())
    found = [torch.cat(parts).cpu().numpy() for parts in columns] if rows else None
    expected = loader.pairs - loader.lost
    if _part(manifest, split, settings, world):
        everything = distributed.gather((found, frames, loader.lost), world)
        parts = [part for part, _, _ in everything if part is not None]
        found = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)] if parts else None
        frames = {row: frame for _, some, _ in everything for row, frame in some.items()}
        expected = loader.pairs - sum(lost for *_, lost in everything)
    if found is None:
        raise InputError(f"{manifest.root}: no pair of the {split} split decodes; run prepare again")
    order = np.argsort(found[0])
    rows, scores, maps, *others_found = (column[order] for column in found)
    maps = maps.astype(np.float32)
    if len(np.unique(rows)) != len(rows) or len(rows) != expected or not np.isin(rows, rows_wanted).all():
        raise RuntimeError(f"evaluation of {split} saw {len(rows)} pairs, expected each of {expected} once")
    samples = []
    for at, row in enumerate(rows.tolist()):
        if row in frames:
            name = manifest.classes[manifest.class_id[row]]
            title = f"{name}: cIoU {scores[at]:.2f}\n{manifest.key(row)}"
            score = float(np.nan_to_num(scores[at]))  # NaN counts as a miss
            told = {"key": manifest.key(row), "ciou": score, "title": title}
            samples.append({"frame": frames[row], "similarity": maps[at], "boxes": manifest.boxes[row], **told})
    return Evaluation(rows, scores, maps, samples, dict(zip(others, others_found, strict=True)))


def _foreign(loader: Loader, raw: RawBatch, silence: torch.Tensor) -> dict[str, torch.Tensor]:
    """FOREIGN's sounds for a batch's frames, each as the batch carries its own."""
    sounds = {"silent": silence.expand_as(raw.sound)}
    if loader.pairs > 1:
        at = np.searchsorted(loader.rows, raw.index.cpu().numpy())
        sounds["mismatched"] = loader.sound_of(loader.rows[(at + loader.pairs // 2) % loader.pairs])
    return sounds
