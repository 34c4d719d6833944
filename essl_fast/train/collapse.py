"""Whether the projections of methods that compare two views (SSPL, SemiPL) have collapsed."""

import torch
from torch import Tensor

COLLAPSED_BELOW = 0.1  # projection_std; a healthy run is near 1
RANK_BELOW, RANKED_FROM = 1.5, 8  # projection_rank, and the smallest batch in which it is judged
SPREAD = ("projection_std", "projection_rank")  # what projection_spread measures


def projection_spread(z: Tensor, counts: Tensor | None = None) -> dict[str, Tensor]:
    """How far apart the projections of a batch's pairs are.

    Args:
        z: (V, B, D) projections, the output of the projector's last batch norm, which is not affine.
        counts: (B,) 1 for each pair that counts, 0 for rows of zeros; None: all count.

    Returns:
        Two 0-d float32 tensors without gradient.

        projection_std: the standard deviation over the batch, averaged over channels and views (Chen & He, Exploring
        Simple Siamese Representation Learning, 2021, section 4.1, measure it for z / |z|). Each of the head's three
        batch norms amplifies a small difference up to 316 times (eps is 1e-5). So the value stays near 1 until the
        features are equal to one part in 10^7, and it is 0 if they are the same.

        projection_rank: the number of directions in which they differ, (tr K)^2 / tr(K^2), averaged over views. K is
        the (B, B) matrix of products of the centred projections. The value is 1 if they lie on one line, and B - 1 if
        they differ equally in all directions.
    """
    wide = z.detach().float()
    if counts is None:
        centred = wide - wide.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1)
    else:
        pairs = counts.sum()
        centred = (wide - wide.sum(dim=1, keepdim=True) / pairs) * counts[:, None]
        variance = centred.square().sum(dim=1) / pairs
    with torch.autocast(z.device.type, enabled=False):
        gram = centred @ centred.mT
    total, square = gram.diagonal(dim1=1, dim2=2).sum(dim=1), gram.square().sum(dim=(1, 2))
    return {
        "projection_std": variance.sqrt().mean(),
        "projection_rank": (total.square() / square.clamp(min=torch.finfo(torch.float32).tiny)).mean(),
    }


def _collapsed(entry: dict, batch: int) -> str | None:
    """How an epoch's projections have collapsed, in words."""
    if not entry.get("projection_std", 1.0) >= COLLAPSED_BELOW:
        return f"their spread, projection_std, is {entry['projection_std']:.3f} where a healthy run has about 1"
    if batch >= RANKED_FROM and not entry.get("projection_rank", RANK_BELOW) >= RANK_BELOW:
        return f"they lie on a line: projection_rank is {entry['projection_rank']:.2f}"
    return None


def collapse_warning(history: list[dict], batch: int) -> str | None:
    """A warning if the projections have collapsed in the last epoch, but not yet in the one before; else None.

    Args:
        history: an entry for each complete epoch.
        batch: pairs per step. A few pairs always lie in few directions, so the rank is judged from 8 pairs on.
    """
    found = [_collapsed(entry, batch) for entry in history[-2:]]
    if not found or found[-1] is None or (len(found) == 2 and found[0] is not None):
        return None
    return (
        f"the projections have collapsed, {found[-1]}: pairs look alike to L_U, which then teaches little. Lower "
        "optim.lr_head and optim.lr_sound, use larger batches, or start anew with another seed"
    )
