"""A run's numbers and pictures in the forms that loggers take."""

from __future__ import annotations

import numpy as np

from essl_fast import config


def scalars(entry: dict) -> dict[str, float]:
    """The numbers of an epoch's entry of the history, by group and name: loss/…, selection/…, rate/…, speed/…."""
    found = {f"loss/{name}": value for name, value in entry["losses"].items()}
    found |= {f"selection/{key}": value for key, value in entry.get("selection", {}).items()}
    found |= {f"rate/{name}": value for name, value in entry.get("rates", {}).items()}
    return found | {f"speed/{key}": entry[key] for key in ("pairs_per_second", "waiting")}


def final_scalars(summary: dict) -> dict[str, float]:
    """The result of the test split, from what summary.json holds."""
    return {f"test/{key}": summary["test"][key] for key in ("success_at_half", "auc")}


def blended(sample: dict) -> np.ndarray:
    """A pair under its heat with the outline at 0.5 and its boxes, uint8 (S, S, 3).

    sample: one of `evaluate.Evaluation.samples`.
    """
    from essl_fast.report import figures

    frame = sample["frame"]
    picture, heat = figures.overlay(frame, sample["similarity"])
    inside = heat >= 0.5
    edge = np.zeros_like(inside)
    edge[1:] |= inside[1:] != inside[:-1]
    edge[:, 1:] |= inside[:, 1:] != inside[:, :-1]
    picture[edge] = 255
    for box in np.asarray(sample["boxes"]) * len(frame) // config.SIZE:
        x1, y1, x2, y2 = box.tolist()
        if x2 > x1 and y2 > y1:
            part = picture[y1:y2, x1:x2]
            part[:2], part[-2:], part[:, :2], part[:, -2:] = ((64, 255, 64),) * 4
    return picture
