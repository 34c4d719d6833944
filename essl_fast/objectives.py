"""What a method minimises: SSPL's L_U, SemiPL's L_U + lambda L_S, and L_S alone.

    L_U = -(cos(p1, z2) + cos(p2, z1)) / 2      attraction of two views of one frame under one sound; no negatives
    L_S = cross-entropy of the attention map with the box map, where there are boxes

An objective is called as ``objective(forward, boxes, labelled)`` with a :class:`~essl_fast.models.Forward`, boxes
(B, K, 4) as both views see them or (V, B, K, 4) view by view, and labelled (B,) bool. It gives a dict of scalars:
"loss", to minimise, and its parts.

Several processes hold different numbers of pairs, and of labelled ones. So that the mean over the ranks' losses is the
loss of all pairs together, each part is scaled by the rank's ``shares`` (the fourth argument): its samples times ranks
over all samples.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from essl_fast import kernels

Objective = Callable[..., dict[str, Tensor]]


class Shares(NamedTuple):
    """What this rank's part of a mean weighs in the mean over ranks: 1 where all have the same number of samples."""

    unsupervised: Tensor | float = 1.0
    supervised: Tensor | float = 1.0

    @classmethod
    def of(cls, counts: Tensor, totals: Tensor, ranks: int) -> "Shares":
        """``counts`` (2,): pairs and labelled pairs of this rank; ``totals`` (2,): of all ranks."""
        return cls(*(counts * ranks / totals.clamp(min=1)))


WHOLE = Shares()  # of one process


def unsupervised(forward) -> Tensor:
    """L_U of the two views."""
    if len(forward.p) != 2:
        raise ValueError(f"L_U compares two views, got {len(forward.p)}")
    return kernels.negative_cosine_similarity(forward.p[0], forward.p[1], forward.z[0], forward.z[1])


def supervised(forward, boxes: Tensor, labelled: Tensor, consensus: int) -> Tensor:
    """L_S: mean over the labelled samples of every view."""
    views = len(forward.attention)
    if boxes.ndim == 3:
        boxes = boxes.expand(views, *boxes.shape)
    return kernels.pixel_bce(forward.attention.flatten(0, 1), boxes.flatten(0, 1), labelled.repeat(views), consensus)


def build(config) -> Objective:
    """The objective that ``config`` (an ObjectiveConfig: method, supervised_weight, consensus) names."""

    def sspl(forward, boxes, labelled, shares=WHOLE):
        return {"loss": unsupervised(forward) * shares.unsupervised}

    def semipl(forward, boxes, labelled, shares=WHOLE):
        l_u = unsupervised(forward) * shares.unsupervised
        l_s = supervised(forward, boxes, labelled, config.consensus) * shares.supervised
        return {"loss": l_u + config.supervised_weight * l_s, "unsupervised": l_u, "supervised": l_s}

    def supervised_only(forward, boxes, labelled, shares=WHOLE):
        return {"loss": supervised(forward, boxes, labelled, config.consensus) * shares.supervised}

    methods = {"sspl": sspl, "semipl": semipl, "supervised": supervised_only}
    if config.method not in methods:
        raise ValueError(f"objective.method: {config.method!r} is none of {', '.join(methods)}")
    return methods[config.method]
