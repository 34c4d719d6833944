"""Which training pairs keep their labels if only a share of them may be used."""

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
