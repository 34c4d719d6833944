"""Objectives, the losses that a method minimises: SSPL's, SemiPL's, the supervised ones, and LSS's.

    L_U = -(cos(p1, z2) + cos(p2, z1)) / 2      attraction of two views of one frame under one sound; no negatives
    L_S = cross-entropy of the attention map with the box map, for labelled pairs
    L_T = (d+)^2 + (1 - d-)^2                   LSS: a frame is nearer to its own sound than to another clip's
    L_A = cross-entropy of LSS's attention with the normalised box map, for labelled pairs
    L_M = L_S of each sounding class's map with that class's boxes, summed over the classes, for labelled pairs
    L_C = cross-entropy of the classes that sound, for labelled pairs

| method      | minimises          |
| ----------- | ------------------ |
| sspl        | L_U                |
| semipl      | L_U + lambda L_S   |
| supervised  | L_S                |
| lss         | L_T                |
| lss_semi    | L_T + lambda L_A   |
| multisource | L_M + L_C          |

An objective is called as ``objective(forward, boxes, labelled, shares)``:

    forward    :class:`~essl_fast.models.Forward`
    boxes      (B, K, 4) int32, the same for all views, or (V, B, K, 4), view by view
    labelled   (B,) bool
    shares     :class:`Shares`, by default those of one process

It returns a dict of 0-d tensors: "loss", which is minimised, and its parts.

Several processes hold different numbers of pairs and of labelled pairs. Each part of the loss is therefore scaled by
the rank's share, (its samples) * (number of ranks) / (all samples): then the mean of the ranks' losses is the loss of
all pairs together.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from essl_fast import kernels
from essl_fast.models.registry import OBJECTIVES, ObjectiveFacts, objective_facts, register_objective

Objective = Callable[..., dict[str, Tensor]]


class Shares(NamedTuple):
    """The weight of this rank's means in the mean over ranks: 1 if all ranks have the same number of samples."""

    unsupervised: Tensor | float = 1.0
    supervised: Tensor | float = 1.0

    @classmethod
    def of(cls, counts: Tensor, totals: Tensor, ranks: int) -> "Shares":
        """From counts (2,), this rank's pairs and labelled pairs, and totals (2,), those of all ranks."""
        return cls(*(counts * ranks / totals.clamp(min=1)))


WHOLE = Shares()  # of one process


def unsupervised(forward) -> Tensor:
    """L_U of the two views."""
    if len(forward.p) != 2:
        raise ValueError(f"L_U compares two views, got {len(forward.p)}")
    return kernels.negative_cosine_similarity(forward.p[0], forward.p[1], forward.z[0], forward.z[1])


def supervised(forward, boxes: Tensor, labelled: Tensor, consensus: int, scale: float | None = None) -> Tensor:
    """L_S: mean over the labelled samples of every view; all boxes (..., K, 4) of a frame count as sounding.

    The map is the min-max attention (SemiPL) or, with a ``scale``, the sigmoid of scale times the similarity.
    """
    maps = forward.attention if scale is None else _wide(forward.similarity).mul(scale).sigmoid()
    boxes, labelled = _per_view(forward, boxes, labelled)
    return kernels.pixel_bce(maps.flatten(0, 1), boxes, labelled, consensus)


def triplet(forward) -> Tensor:
    """L_T of LSS (Senocak et al., CVPR 2018): mean over the samples of every view.

    forward.p (V, B, D) are the embeddings of the pooled features, forward.z (V, B, D) those of the pairs' sounds. Each
    view of a pair is a sample. Its negative is the sound of the pair before it in the batch (for the first pair: the
    last one), which is another clip, because batches are shuffled. With near and far, the Euclidean distances to its
    own sound and to the negative, (d+, d-) = softmax(near, far), and the loss is the squared distance of (d+, d-) to
    (0, 1). Because d- = 1 - d+ and d+ = sigmoid(near - far), this is 2 sigmoid(near - far)^2.

    A rank takes negatives from its own part of the batch. If that is a single pair, it is its own negative: its loss is
    1/2 and has no gradient.
    """
    p, z = _wide(forward.p), _wide(forward.z)
    near = torch.linalg.vector_norm(p - z, dim=-1)
    far = torch.linalg.vector_norm(p - z.roll(1, dims=1), dim=-1)
    return 2 * torch.sigmoid(near - far).square().mean()


def attention_cross_entropy(forward, boxes: Tensor, labelled: Tensor, consensus: int, size: int = 224) -> Tensor:
    """L_A of LSS: -sum_i t_i log w_i, mean over the labelled samples of every view; 0 if none is labelled.

    w = softmax(relu(similarity)) is the attention. Its target t are the pixel weights of the boxes on the size x size
    grid, averaged over each position's cell and divided by their sum. A view without a box, because the crop has cut
    all of them off, has no target and adds 0.
    """
    boxes, labelled = _per_view(forward, boxes, labelled)
    similarity = _wide(forward.similarity).flatten(0, 1)
    weights = kernels.box_weights(boxes, size, consensus).to(similarity.dtype)
    cells = F.adaptive_avg_pool2d(weights, (similarity.shape[1], similarity.shape[2])).flatten(1)
    target = cells / cells.sum(dim=1, keepdim=True).clamp(min=1e-6)  # a single pixel gives 4e-3 at 14 x 14
    per_sample = -(target * similarity.relu().flatten(1).log_softmax(dim=1)).sum(dim=1)
    # where, not a product: a NaN of an unlabelled sample must stay out of the sum.
    return torch.where(labelled, per_sample, 0).sum() / labelled.sum().clamp(min=1)


def class_maps(forward, boxes: Tensor, labelled: Tensor, consensus: int) -> Tensor:
    """L_M: a pair's loss is the sum of L_S over its sounding classes; mean over the labelled samples of every view.

    forward.attention is (V, B, K, h, w), a map for each class, and boxes are grouped by class (see
    :func:`essl_fast.models.register_objective`). A class without a box in the view has no loss there.
    """
    maps = forward.attention.flatten(0, 2)
    boxes, labelled = _per_view(forward, boxes, labelled)
    boxes = _by_class(boxes, forward.attention.shape[2])
    counted, boxes = (_covers(boxes).any(dim=2) & labelled[:, None]).flatten(), boxes.flatten(0, 1)
    count, chosen = counted.sum(), counted
    if maps.device.type == "cpu" and not torch.compiler.is_compiling() and counted.any():
        # A CPU computes all maps that it is given.
        maps, boxes, chosen = maps[counted], boxes[counted], counted[counted]
    mean = kernels.pixel_bce(maps, boxes, chosen, consensus)
    return mean * count / labelled.sum().clamp(min=1)


def sounding_classes(forward, boxes: Tensor, labelled: Tensor) -> Tensor:
    """L_C: binary cross-entropy of forward.p (V, B, K), mean over the classes and the labelled samples of every view.

    A class sounds if it has a box in any view: a crop cuts off what is seen, not what is heard.
    """
    logits, views = _wide(forward.p), len(forward.p)
    boxes, labelled = _per_view(forward, boxes, labelled)
    here = _covers(_by_class(boxes, logits.shape[2])).any(dim=2)
    truth = here.unflatten(0, (views, -1)).any(dim=0).expand(views, -1, -1).flatten(0, 1)
    each = F.binary_cross_entropy_with_logits(logits.flatten(0, 1), truth.to(logits.dtype), reduction="none")
    return torch.where(labelled, each.mean(dim=1), 0).sum() / labelled.sum().clamp(min=1)


def _by_class(boxes: Tensor, classes: int) -> Tensor:
    """Boxes (N, K * M, 4), class after class, as (N, K, M, 4)."""
    return boxes.unflatten(1, (classes, -1))


def _covers(boxes: Tensor) -> Tensor:
    """Which boxes (..., 4) have an area."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def _wide(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def _per_view(forward, boxes: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (V * B, K, 4) and labelled (V * B,), view after view."""
    views = len(forward.similarity)
    if boxes.ndim == 3:
        boxes = boxes.expand(views, *boxes.shape)
    return boxes.flatten(0, 1), labelled.repeat(views)


@register_objective("sspl", compares_views=True)
def _sspl(config) -> Objective:
    def objective(forward, boxes, labelled, shares=WHOLE):
        return {"loss": unsupervised(forward) * shares.unsupervised}

    return objective


@register_objective("semipl", compares_views=True, uses_boxes=True, supervised_map=True)
def _semipl(config) -> Objective:
    from_boxes = _supervised_part(config)

    def objective(forward, boxes, labelled, shares=WHOLE):
        return _sum(config, unsupervised(forward) * shares.unsupervised, from_boxes(forward, boxes, labelled, shares))

    return objective


@register_objective("supervised", trains_head=False, needs_labels=True, uses_boxes=True, supervised_map=True)
def _supervised(config) -> Objective:
    from_boxes = _supervised_part(config)

    def objective(forward, boxes, labelled, shares=WHOLE):
        return {"loss": from_boxes(forward, boxes, labelled, shares)}

    return objective


@register_objective("lss", head="lss", compares_pairs=True)
def _lss(config) -> Objective:
    def objective(forward, boxes, labelled, shares=WHOLE):
        return {"loss": triplet(forward) * shares.unsupervised}

    return objective


@register_objective("lss_semi", head="lss", compares_pairs=True, uses_boxes=True)
def _lss_semi(config) -> Objective:
    consensus = _consensus(config)

    def objective(forward, boxes, labelled, shares=WHOLE):
        l_a = attention_cross_entropy(forward, boxes, labelled, consensus) * shares.supervised
        return _sum(config, triplet(forward) * shares.unsupervised, l_a)

    return objective


@register_objective("multisource", head="classes", needs_labels=True, uses_boxes=True, per_class=True)
def _multisource(config) -> Objective:
    consensus = _consensus(config)

    def objective(forward, boxes, labelled, shares=WHOLE):
        maps = class_maps(forward, boxes, labelled, consensus) * shares.supervised
        heard = sounding_classes(forward, boxes, labelled) * shares.supervised
        return {"loss": maps + heard, "maps": maps, "classes": heard}

    return objective


def _consensus(config) -> int:
    """Objectives know no data set, so a consensus of 0 is 1 here."""
    return getattr(config, "consensus", 0) or 1


def _supervised_part(config) -> Callable[..., Tensor]:
    """L_S as the settings want it, scaled by the rank's share."""
    scale = config.supervised_scale if config.supervised_map == "sigmoid" else None
    consensus = _consensus(config)

    def part(forward, boxes, labelled, shares):
        return supervised(forward, boxes, labelled, consensus, scale) * shares.supervised

    return part


def _sum(config, without_boxes: Tensor, from_boxes: Tensor) -> dict[str, Tensor]:
    """The loss of two parts, and both of them to log."""
    loss = without_boxes + config.supervised_weight * from_boxes
    return {"loss": loss, "unsupervised": without_boxes, "supervised": from_boxes}


def build(config) -> Objective:
    """The objective that ``config`` (an ObjectiveConfig) names. InputError if nothing is registered under the name."""
    return OBJECTIVES.get(config.method)(config)


def facts(method: str) -> ObjectiveFacts:
    """The facts of a registered objective. InputError if the name is unknown."""
    return objective_facts(method)
