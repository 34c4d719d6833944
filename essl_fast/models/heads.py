"""The SimSiam head (Chen & He, 2021) that SSPL puts on the pooled features."""

import torch
from torch import Tensor, nn


class SimSiamHead(nn.Module):
    """Projector in_dim -> 2048 -> 2048 -> 2048 and predictor 2048 -> 512 -> 2048.

    forward: pooled features (V, B, in_dim) -> p, z (V, B, 2048). In training each view is normalised by its own
    batch statistics, and the running statistics are updated view by view. z carries no gradient.
    """

    def __init__(self, in_dim: int = 512, dim: int = 2048, hidden: int = 512) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(in_dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True),
            nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True),
            nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim, affine=False),
        )  # fmt: skip
        self.predictor = nn.Sequential(
            nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True),
            nn.Linear(hidden, dim),
        )  # fmt: skip

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        # As in the published code all views pass the projector and predictor one after the other, projector first:
        # the order in which the running statistics see them does not depend on it.
        z = torch.stack([self.projector(view) for view in pooled])
        p = torch.stack([self.predictor(view) for view in z])
        return p, z.detach()
