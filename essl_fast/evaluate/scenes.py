"""Interactive IoU: whether a model follows the sound when one frame is given the sounds of its several sources.

Senocak et al., Aligning Sight and Sound, arXiv 2407.13676 (IS3). Each source of a frame is a pair of its own: the same
frame, its own sound, its own box. A frame counts at a cIoU threshold only if every one of its pairs reaches it:

    iIoU   share of the frames of which every pair has a cIoU >= 0.5
    iAUC   trapezoid over that share at cIoU >= 0, 0.05, ..., 1
"""

from __future__ import annotations

import numpy as np

from essl_fast.evaluate.metrics import Summary, summarize


def interactive(ciou: np.ndarray, scene: np.ndarray) -> tuple[int, Summary]:
    """The number of frames, and the summary of their worst pairs.

    Args:
        ciou: (N,) float64; NaN is a miss.
        scene: (N,) int, equal for pairs of one frame. Frames with a single pair do not count: they ask nothing.

    Raises:
        ValueError: no frame has two pairs.
    """
    _, of, count = np.unique(np.asarray(scene), return_inverse=True, return_counts=True)
    several = count >= 2
    if not several.any():
        raise ValueError("interactive: no frame has two pairs")
    worst = np.full(len(count), np.inf)
    np.minimum.at(worst, of, np.nan_to_num(np.asarray(ciou, np.float64), nan=-1.0))
    return int(several.sum()), summarize(worst[several])
