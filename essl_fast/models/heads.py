"""Heads, which turn the pooled features into what objectives compare: SimSiam's for SSPL and SemiPL, and LSS's."""

from torch import Tensor, nn

from essl_fast.models.norm import Moments, ViewBatchNorm, update_running
from essl_fast.models.registry import register_head

RECIPE = 2048  # width of the projector


def _run(layers: nn.Sequential, x: Tensor, views: int, later: list[Moments]) -> Tensor:
    for layer in layers:
        x = layer(x, views, later) if isinstance(layer, ViewBatchNorm) else layer(x)
    return x


class SimSiamHead(nn.Module):
    """SimSiam's head (Chen & He, 2021): projector in_dim -> 2048 -> 2048 -> 2048, predictor 2048 -> 512 -> 2048.

    forward: pooled features (V, B, in_dim) -> p, z (V, B, 2048). In training each view is normalised by its own
    batch statistics, and the running statistics are updated view by view. z has no gradient.
    """

    attention = "minmax"

    def __init__(self, in_dim: int = 512, dim: int = 2048, hidden: int = 512) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(in_dim, dim, bias=False),
            ViewBatchNorm(dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, dim, bias=False),
            ViewBatchNorm(dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, dim, bias=False),
            ViewBatchNorm(dim, affine=False),
        )
        self.predictor = nn.Sequential(
            nn.Linear(dim, hidden, bias=False),
            ViewBatchNorm(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, dim),
        )

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        views = len(pooled)
        later: list[Moments] = []
        z = _run(self.projector, pooled.flatten(0, 1), views, later)
        p = _run(self.predictor, z, views, later)
        update_running(later)
        return p.unflatten(0, (views, -1)), z.detach().unflatten(0, (views, -1))

    def compare(self, pooled: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions p and projections z (V, B, 2048) of the pooled features; the sound's embedding is not used."""
        return self(pooled)


class LSSHead(nn.Module):
    """LSS's head (Senocak et al., CVPR 2018): it maps pooled features into the space of the sound's embedding.

    forward: pooled features (V, B, in_dim) of rectified maps -> (V, B, out_dim): linear to ``hidden``, ReLU, linear.
    Every sample is treated by itself.
    """

    attention = "softmax"

    def __init__(self, in_dim: int = 512, out_dim: int = 128, hidden: int = 512) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out_dim))

    def forward(self, pooled: Tensor) -> Tensor:
        return self.layers(pooled)

    def compare(self, pooled: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (V, B, out_dim) of the pooled features, and the sound's (B, out_dim), the same for every view."""
        return self(pooled), embedding.expand(len(pooled), -1, -1)


@register_head("simsiam")
def _simsiam(config, channels: int, embedding_dim: int) -> SimSiamHead:
    wide = config.head_dim == RECIPE  # the class has its widths
    return SimSiamHead(channels) if wide else SimSiamHead(channels, config.head_dim, config.head_dim // 4)


@register_head("lss")
def _lss(config, channels: int, embedding_dim: int) -> LSSHead:
    return LSSHead(channels, embedding_dim)
