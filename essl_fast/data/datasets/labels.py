"""Which training pairs keep their labels if only a share of them may be used; and boxes class by class."""

import hashlib
from collections.abc import Sequence

import numpy as np

from essl_fast.data.shards import Manifest


def labelled(manifest: Manifest, splits: Sequence[str], fraction: float = 1.0) -> np.ndarray:
    """Choose the pairs whose boxes may be used in training.

    Of the n labelled pairs of each class, the first fraction * n (rounded, halves up) keep their labels, in the order
    of the SHA-256 of their keys. So the choice depends neither on seeds nor on the order of the pairs, a larger
    fraction keeps all labels that a smaller one keeps, and 1 keeps all.

    Args:
        manifest: of the prepared folder.
        splits: those that are trained on. Other splits keep all labels.
        fraction: 0 to 1.

    Returns:
        (N,) bool, for each row of the manifest.
    """
    keep = np.array(manifest.labelled)
    rows = np.concatenate([manifest.rows(split) for split in splits])
    rows = rows[keep[rows]]
    if fraction >= 1 or not len(rows):
        return keep
    classes = np.asarray(manifest.class_id[rows])
    digests = b"".join(hashlib.sha256(key).digest()[:8] for key in manifest.keys[rows])
    order = np.lexsort((np.frombuffer(digests, ">u8"), classes))  # by class, then by hash
    rows, classes = rows[order], classes[order]
    counts = np.bincount(classes)
    first = np.cumsum(counts) - counts
    place = np.arange(len(rows)) - first[classes]  # within its class
    keep[rows[place >= np.floor(fraction * counts + 0.5)[classes]]] = False
    return keep


def boxes_by_class(manifest: Manifest, rows: np.ndarray | None = None) -> np.ndarray:
    """The boxes of some pairs (by default of all), class after class: (N, classes, M, 4) int32, padded with zeros.

    M is the largest number of boxes that a pair has of one class, among these pairs. Where the data set does not say
    which box is of which class, all boxes of a pair are of the pair's class.
    """
    rows = np.arange(len(manifest)) if rows is None else rows
    boxes = np.asarray(manifest.boxes[rows])
    kinds = np.asarray(manifest.class_id[rows])[:, None] if manifest.box_class is None else manifest.box_class[rows]
    kinds = np.where((boxes[..., 2:] > boxes[..., :2]).all(axis=2), kinds, -1)
    row, place = np.nonzero(kinds >= 0)
    kind = kinds[row, place]
    earlier = (kinds[row] == kind[:, None]) & (np.arange(kinds.shape[1]) < place[:, None])  # boxes of the same class
    number = earlier.sum(axis=1)
    found = np.zeros((len(rows), len(manifest.classes), int(number.max(initial=0)) + 1, 4), np.int32)
    found[row, kind, number] = boxes[row, place]
    return found
