"""Heads, which turn features and sound into what objectives compare: for SSPL and SemiPL, for LSS, for many classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from essl_fast import kernels
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


class ClassesHead(nn.Module):
    """A query for each class, out of a sound in which several classes may be mixed, and a map for each query.

    From the sound's projection a (B, channels): queries W_k a + b_k for each of K classes. From its embedding e (B, E):
    logits u (B, K), whether class k sounds. With the features v_i, class k has the similarity s_ki = cos(v_i, query_k),
    and its attention is s_k scaled to 0..1. The map of the pair, for all that takes one map, is the strongest of its
    classes: max_k sigmoid(u_k) s_ki.
    """

    attention = "classes"

    def __init__(self, classes: int, in_dim: int = 512, embedding_dim: int = 128) -> None:
        super().__init__()
        self.queries = nn.Linear(in_dim, classes * in_dim)
        self.sounding = nn.Linear(embedding_dim, classes)

    def attend(self, maps: Tensor, embedding: Tensor, projection: Tensor) -> kernels.Attention:
        """Maps (N, C, h, w), embeddings (N, E), projections (N, C) -> similarity (N, h, w), attention (N, K, h, w)."""
        queries = self.queries(projection).unflatten(1, (-1, maps.shape[1]))
        wide = maps.float() if maps.dtype != torch.float64 else maps
        directions = F.normalize(queries.to(wide.dtype), dim=2)
        with torch.autocast(maps.device.type, enabled=False):  # cosines are summed in float32
            each = torch.einsum("nchw,nkc->nkhw", F.normalize(wide, dim=1), directions)
        least, most = each.amin((2, 3), keepdim=True), each.amax((2, 3), keepdim=True)
        strongest = (self.sounding(embedding).sigmoid()[:, :, None, None] * each).amax(dim=1)
        scaled = (each - least) / (most - least + 1e-10)
        return kernels.Attention(maps.mean((2, 3)), strongest, scaled)

    def compare(self, pooled: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (V, B, K) of the classes that sound, the same for every view; and the pooled features."""
        return self.sounding(embedding).expand(len(pooled), -1, -1), pooled


@register_head("simsiam")
def _simsiam(config, channels: int, embedding_dim: int) -> SimSiamHead:
    wide = config.head_dim == RECIPE  # the class has its widths
    return SimSiamHead(channels) if wide else SimSiamHead(channels, config.head_dim, config.head_dim // 4)


@register_head("lss")
def _lss(config, channels: int, embedding_dim: int) -> LSSHead:
    return LSSHead(channels, embedding_dim)


@register_head("classes")
def _classes(config, channels: int, embedding_dim: int) -> ClassesHead:
    return ClassesHead(config.classes, channels, embedding_dim)
