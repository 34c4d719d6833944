"""PNG files with matplotlib: curves by epoch, success against threshold, heatmap overlays."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from essl_fast.evaluate.metrics import THRESHOLDS
from essl_fast.report import plotting


@plotting.drawing()
def curves(path: Path, history: list[dict], results: dict[str, dict]) -> None:
    """Write a PNG: losses by epoch, scores of the selection split by epoch, success against threshold.

    Args:
        path: the file.
        history: entries of the epochs as in the run's log.
        results: name -> {"curve": (21,) shares of pairs at `evaluate.metrics.THRESHOLDS`, "auc": ...}.
    """
    figure, axes = plotting.figure(1, 3, (15, 4.2))
    left, middle, right = axes[0]
    epochs = [entry["epoch"] for entry in history]
    for part in history[-1]["losses"] if history else ():
        left.plot(epochs, [entry["losses"][part] for entry in history], label=plotting.shown(part))
    left.set(xlabel="epoch", title="training loss")
    evaluated = [entry for entry in history if "selection" in entry]
    for key, label in (("success_at_half", "success at cIoU 0.5"), ("auc", "AUC")):
        middle.plot(
            [e["epoch"] for e in evaluated], [100 * e["selection"][key] for e in evaluated], "o-", ms=3, label=label
        )
    middle.set(xlabel="epoch", ylabel="%", ylim=(0, 100), title="selection split")
    for name, result in results.items():
        label = f"{plotting.shown(name)} ({100 * result['auc']:.1f})"
        right.plot(THRESHOLDS, 100 * np.asarray(result["curve"]), label=label)
    right.set(
        xlabel="cIoU threshold", ylabel="pairs, %", xlim=(0, 1), ylim=(0, 100), title="success against threshold (AUC)"
    )
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    plotting.save(figure, path, 110)


def _frame(axis, box: tuple[int, int, int, int], width: float) -> None:
    """Draw a box of the ground truth, xyxy."""
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = box
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec="lime", lw=width))


def overlay(frame: np.ndarray, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A frame (S, S, 3) uint8 under the heat of a similarity map (h, w), and that heat, (S, S) float64 in [0, 1]."""
    wide = F.interpolate(torch.from_numpy(similarity)[None, None].double(), frame.shape[:2], mode="bilinear")
    heat = wide[0, 0].numpy()
    heat = (heat - heat.min()) / max(heat.max() - heat.min(), 1e-12)
    colour = plotting.load().colormaps["jet"](heat)[..., :3] * 255
    return (0.55 * frame + 0.45 * colour).astype(np.uint8), heat


@plotting.drawing()
def overlays(path: Path, samples: list[dict]) -> None:
    """Write a contact sheet as a PNG; nothing if there is no sample.

    samples: {"frame": (S, S, 3) uint8, "similarity": (h, w), "boxes": (K, 4), "title"} each.
    """
    if not samples:
        return
    columns = 4
    rows = -(-len(samples) // columns)
    figure, axes = plotting.figure(rows, columns, (3 * columns, 3.2 * rows))
    for axis in axes.flat:
        axis.axis("off")
    for axis, sample in zip(axes.flat, samples, strict=False):
        picture, heat = overlay(sample["frame"], sample["similarity"])
        axis.imshow(picture)
        if heat.max() > 0:
            axis.contour(heat, levels=[0.5], colors="white", linewidths=1)
        for x1, y1, x2, y2 in sample["boxes"]:
            if x2 > x1 and y2 > y1:
                _frame(axis, (x1, y1, x2, y2), 2)
        words, _, key = sample["title"].partition("\n")  # which shown would not let pass
        axis.set_title(f"{plotting.shown(words)}\n{plotting.shown(key)}", fontsize=9)
    figure.suptitle("heat: similarity with the sound; white: threshold 0.5; green: ground truth")
    plotting.save(figure, path, 90)


@plotting.drawing()
def side_by_side(path: Path, samples: dict[str, list[dict]]) -> None:
    """Write a PNG of the same frames under several methods: columns are frames, rows are methods.

    samples: by method, what :func:`overlays` takes with "ciou" and "key"; the same frames in the same order.
    """
    shown = next(iter(samples.values()))
    count = len(shown)
    figure, axes = plotting.figure(len(samples) + 1, count, (2 * count + 1, 2 * len(samples) + 2.4))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, sample in zip(axes[0], shown, strict=True):
        axis.imshow(sample["frame"])
        axis.set_title(plotting.shown(sample["key"]), fontsize=6)
    axes[0, 0].set_ylabel("frame", fontsize=8)
    for line, (label, found) in zip(axes[1:], samples.items(), strict=True):
        line[0].set_ylabel(plotting.shown(label), fontsize=8)
        for axis, sample in zip(line, found, strict=True):
            picture, heat = overlay(sample["frame"], sample["similarity"])
            axis.imshow(picture)
            if heat.max() > 0:
                axis.contour(heat, levels=[0.5], colors="white", linewidths=0.8)
            axis.set_xlabel(f"cIoU {sample['ciou']:.2f}", fontsize=7)
    for line in axes:
        for axis, sample in zip(line, shown, strict=True):
            for x1, y1, x2, y2 in sample["boxes"]:
                if x2 > x1 and y2 > y1:
                    _frame(axis, (x1, y1, x2, y2), 1.2)
    plotting.save(figure, path, 110)


@plotting.drawing()
def success_by_epoch(path: Path, histories: dict[str, list[tuple[int, float]]], split: str) -> None:
    """Write a PNG of success at cIoU 0.5 on a split by epoch: a line for each of ``histories``, (epoch, share)."""
    figure, ((axis,),) = plotting.figure(1, 1, (7, 4))
    for label, points in histories.items():
        axis.plot(
            [epoch for epoch, _ in points],
            [100 * share for _, share in points],
            "o-",
            ms=3,
            label=plotting.shown(label),
        )
    axis.set(xlabel="epoch", ylabel="success at cIoU 0.5, %", title=f"{split} split")
    axis.grid(alpha=0.3)
    axis.legend()
    plotting.save(figure, path, 110)


@plotting.drawing()
def success_by_labels(path: Path, points: list[tuple[float, float, float | None]]) -> None:
    """Write a PNG of success by share of labels.

    points: (share of labels, mean in per cent, standard deviation or None for a single seed).
    """
    figure, ((axis,),) = plotting.figure(1, 1, (6, 4))
    axis.errorbar(
        [100 * share for share, _, _ in points],
        [middle for _, middle, _ in points],
        yerr=[spread or 0.0 for *_, spread in points],
        fmt="o-",
        capsize=4,
    )
    axis.set(xlabel="labels used, %", ylabel="success at cIoU 0.5, %", ylim=(0, 100))
    axis.grid(alpha=0.3)
    plotting.save(figure, path, 110)
