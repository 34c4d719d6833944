"""Which training pairs keep their labels when only a share of them may."""

import hashlib
from collections.abc import Sequence

import numpy as np

from essl_fast.data.shards import Manifest


def labelled(manifest: Manifest, splits: Sequence[str], fraction: float = 1.0) -> np.ndarray:
    """(N,) bool by row of the manifest: whether a pair's boxes may be used in training.

    Of each class's n labelled pairs in the training ``splits``, the first fraction * n (rounded, a half up) keep their
    labels, in the order of the SHA-256 of their keys. So neither seeds nor the order of the pairs changes which, a
    smaller fraction's labels are among those of a larger one, and 1 keeps all. Other splits keep theirs.
    """
    keep = np.array(manifest.labelled)
    rows = np.concatenate([manifest.rows(split) for split in splits])
    rows = rows[keep[rows]]
    if fraction >= 1 or not len(rows):
        return keep
    classes = np.asarray(manifest.class_id[rows])
    digests = b"".join(hashlib.sha256(key).digest()[:8] for key in manifest.keys[rows])
    order = np.lexsort((np.frombuffer(digests, ">u8"), classes))  # class by class, within each by the hash
    rows, classes = rows[order], classes[order]
    counts = np.bincount(classes)
    first = np.cumsum(counts) - counts
    place = np.arange(len(rows)) - first[classes]  # within its class
    keep[rows[place >= np.floor(fraction * counts + 0.5)[classes]]] = False
    return keep
