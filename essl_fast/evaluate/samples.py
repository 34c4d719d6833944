"""A few pairs of a split, kept with their frames to be drawn."""

import numpy as np

from essl_fast.data.loading import RawBatch
from essl_fast.data.shards import Manifest


def rows_to_draw(rows: np.ndarray, count: int) -> set[int]:
    """``count`` of the rows (N,), evenly spread; all of them if there are fewer."""
    return set(rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)].tolist())


def frames_of(raw: RawBatch, wanted: set[int]) -> dict[int, np.ndarray]:
    """The frames (S, S, 3) uint8 of a batch's wanted pairs, by their manifest row."""
    if not wanted:
        return {}  # without reading the batch's rows from the device
    places = {row: at for at, row in enumerate(raw.index.tolist()) if row in wanted}
    return {row: raw.frames[raw.rows[at]].cpu().numpy() for row, at in places.items()}


def samples(
    manifest: Manifest, rows: np.ndarray, ciou: np.ndarray, similarity: np.ndarray, frames: dict[int, np.ndarray]
) -> list[dict]:
    """Everything that is needed to draw the pairs of ``frames``.

    Args:
        manifest: of the pairs.
        rows, ciou, similarity: (N,), (N,), (N, h, w) of all pairs, in the same order.
        frames: (S, S, 3) uint8 by manifest row.

    Returns:
        For each pair frame, similarity (h, w), boxes (K, 4), key, ciou (0 for NaN), title.
    """
    found = []
    for at, row in enumerate(rows.tolist()):
        if row in frames:
            name = manifest.classes[manifest.class_id[row]]
            found.append(
                {
                    "frame": frames[row],
                    "similarity": similarity[at],
                    "boxes": manifest.boxes[row],
                    "key": manifest.key(row),
                    "ciou": float(np.nan_to_num(ciou[at])),  # NaN counts as a miss
                    "title": f"{name}: cIoU {ciou[at]:.2f}\n{manifest.key(row)}",
                }
            )
    return found
