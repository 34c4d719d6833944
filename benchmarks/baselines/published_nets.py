"""The networks and losses of the published recipe in plain PyTorch, one view at a time; published_style.py runs them.

Modules carry the published names, so that the published code's state dicts load as they are. What the published
code lacks is written in plain PyTorch: SemiPL's supervised term, from full-size target maps, and the demo's small
networks (batch norm needs more than one sample, so their sound goes through as one batch).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from essl_fast import checkpoints, config, models


def conv_stack(widths: tuple, channels: int, last_pool: bool) -> nn.Sequential:
    """3x3 convolutions with ReLU, and pools where a width is 0."""
    layers: list[nn.Module] = []
    for width in widths:
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*(layers if last_pool else layers[:-1]))


class FrameNet(nn.Module):
    """VGG-16 to conv5_3 before its ReLU: (B, 3, 224, 224) -> (B, 512, 14, 14); frozen."""

    def __init__(self) -> None:
        super().__init__()
        widths = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
        self.feat_extractor = conv_stack(widths, 3, last_pool=False)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.feat_extractor(images)


class SoundNet(nn.Module):
    """VGGish with a trained projection: (E, 1, 96, 64) of one clip -> (E, 128), (E, out_dim)."""

    def __init__(self, out_dim: int) -> None:
        super().__init__()
        self.features = conv_stack((64, 0, 128, 0, 256, 256, 0, 512, 512, 0), 1, last_pool=True)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 24, 4096),
            nn.ReLU(True),
            nn.Linear(4096, 4096),
            nn.ReLU(True),
            nn.Linear(4096, 128),
            nn.ReLU(True),
        )
        self.requires_grad_(False)
        self.fc = nn.Sequential(nn.Linear(128, 512), nn.ReLU(True), nn.Linear(512, out_dim))

    def forward(self, examples: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.features(examples).permute(0, 2, 3, 1).contiguous()
        embedding = self.embeddings(maps.view(maps.size(0), -1))
        return embedding, self.fc(embedding)


class ConvThenPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv2d = nn.Conv2d(512, 512, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv2d(x), 2)


class UpThenConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convtrans2d = nn.ConvTranspose2d(512, 512, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.convtrans2d(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))


class PCNet(nn.Module):
    """The predictive coding module of one view: (B, 512, 14, 14), (B, dim_audio) -> (B, out_dim, 14, 14)."""

    def __init__(self, cycles: int, dim_audio: int, out_dim: int) -> None:
        super().__init__()
        self.cycles = cycles
        self.PredProcess = nn.ModuleList([nn.Conv2d(512, dim_audio, 1), ConvThenPool(), ConvThenPool()])
        self.ErrorProcess = nn.ModuleList(
            [
                nn.ConvTranspose2d(dim_audio, 512, 1, bias=False),
                nn.ConvTranspose2d(512, 512, 3, stride=2, bias=False),
                UpThenConv(),
                nn.ConvTranspose2d(512, out_dim, 1),
            ]
        )
        self.b0 = nn.ParameterList([nn.Parameter(torch.full((1, 512, 1, 1), 0.5)) for _ in range(3)])
        self.a0 = nn.ParameterList([nn.Parameter(torch.ones(1, 512, 1, 1)) for _ in range(3)])
        self.BNPred = nn.ModuleList([nn.BatchNorm2d(512) for _ in range(2)])
        self.BNError = nn.ModuleList([nn.BatchNorm2d(512) for _ in range(3)])
        self.BNPred_step = nn.ModuleList([nn.BatchNorm2d(512) for _ in range(2 * cycles)])
        self.BNError_step = nn.ModuleList([nn.BatchNorm2d(512) for _ in range(3 * cycles)])

    def _correct(self, r: list[Tensor], audio: Tensor, prediction: list[Tensor], norms) -> list[Tensor]:
        """Bottom-up: every level by the error of the prediction of the one below it, the lowest by the sound's."""
        error = audio - F.gelu(self.PredProcess[0](r[0])).mean(dim=(2, 3))
        error = error[:, :, None, None].expand(-1, -1, 3, 3)
        out: list[Tensor] = []
        for level in range(3):
            if level:
                error = out[level - 1] - prediction[level - 1]
            step = F.relu(self.a0[level]) * self.ErrorProcess[level](error)
            out.append(F.gelu(norms[level](r[level] + step)))
        return out

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        r = [visual, visual, visual]
        for level in (1, 0):
            r[level] = F.gelu(self.BNPred[level](self.PredProcess[level + 1](r[level + 1])))
        r = self._correct(r, audio, r, self.BNError)
        for cycle in range(self.cycles):
            mix = [F.relu(rate) for rate in self.b0]
            prediction: list[Tensor] = [visual, visual]
            r[2] = F.gelu((1 - mix[2]) * r[2] + mix[2] * visual)
            for level in (1, 0):
                prediction[level] = self.PredProcess[level + 1](r[level + 1])
                blended = (1 - mix[level]) * r[level] + mix[level] * prediction[level]
                r[level] = F.gelu(self.BNPred_step[2 * cycle + level](blended))
            r = self._correct(r, audio, prediction, self.BNError_step[3 * cycle : 3 * cycle + 3])
        return self.ErrorProcess[3](r[2])


class Projector(nn.Module):
    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Linear(in_dim, 2048, bias=False), nn.BatchNorm1d(2048), nn.ReLU(True))
        self.layer2 = nn.Sequential(nn.Linear(2048, 2048, bias=False), nn.BatchNorm1d(2048), nn.ReLU(True))
        self.layer3 = nn.Sequential(nn.Linear(2048, 2048, bias=False), nn.BatchNorm1d(2048, affine=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer3(self.layer2(self.layer1(x)))


class Predictor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Linear(2048, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(True))
        self.layer2 = nn.Linear(512, 2048)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(x))


class SimSiam(nn.Module):
    """Projections and predictions of two views (B, in_dim), one after the other: p1, p2, z1, z2 (B, 2048)."""

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.projector, self.predictor = Projector(in_dim), Predictor()

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z1, z2 = self.projector(x1), self.projector(x2)
        return self.predictor(z1), self.predictor(z2), z1.detach(), z2.detach()


class SmallFrameNet(nn.Module):
    """The demo's trained trunk, in plain modules: (B, 3, 224, 224) -> (B, channels, 14, 14)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = 24
        shapes = ((3, 1, 4, 4, 0), (1, 2, 3, 2, 1), (2, 4, 3, 2, 1), (4, 4, 3, 1, 1), (4, 4, 3, 1, 1))
        self.stages = nn.Sequential()
        for into, out, kernel, stride, padding in shapes:
            conv = nn.Conv2d(into if into == 3 else into * width, out * width, kernel, stride, padding, bias=False)
            self.stages.append(nn.Sequential(conv, nn.BatchNorm2d(out * width)))
        self.out = nn.Conv2d(4 * width, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.stages:
            images = F.relu(stage(images))
        return self.out(images)


class SmallSoundNet(nn.Module):
    """The demo's trained audio network: (B, E, 1, 96, 64) -> (B, E, 128), (B, E, out_dim)."""

    def __init__(self, out_dim: int) -> None:
        super().__init__()
        width = 16
        self.features = nn.Sequential()
        for into, out in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
            self.features.append(nn.Conv2d(into, out, 3, 2, 1, bias=False))
            self.features.append(nn.BatchNorm2d(out)).append(nn.ReLU(True))
        self.embedding, self.fc = nn.Linear(32 * width, 128), nn.Linear(128, out_dim)

    def forward(self, examples: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.features(examples.flatten(0, 1)).mean(dim=2).flatten(1)
        embedding = F.relu(self.embedding(maps)).unflatten(0, examples.shape[:2])
        return embedding, self.fc(embedding)


def attention_of(features: Tensor, audio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled (B, C), cosine map and its min-max scaled form (B, H, W) of features (B, C, H, W), audio (B, C)."""
    batch, channels, height, width = features.shape
    unit = F.normalize(features, dim=1).view(batch, channels, -1)
    similarity = torch.bmm(unit.transpose(1, 2), F.normalize(audio, dim=1)[:, :, None])[:, :, 0]
    low = similarity.min(dim=1, keepdim=True).values
    high = similarity.max(dim=1, keepdim=True).values
    attention = (similarity - low) / (high - low + 1e-10)
    pooled = torch.bmm(features.view(batch, channels, -1), attention[:, :, None])[:, :, 0]
    return pooled, similarity.view(batch, height, width), attention.view(batch, height, width)


class NetWrapper(nn.Module):
    """All networks of a config, and the forward of a step: views (B, 3, 224, 224), spect (B, 3, 1, 96, 64)."""

    def __init__(self, model: config.ModelConfig) -> None:
        super().__init__()
        self.vgg, self.vggish = model.trunk == "vgg16", model.audio == "vggish"
        width = model.out_dim
        self.net_frame = FrameNet() if self.vgg else SmallFrameNet(width)
        self.net_sound = SoundNet(width) if self.vggish else SmallSoundNet(width)
        self.net_pc = PCNet(model.pcm_cycles, 128, width) if model.pcm else None
        self.net_ssl_head = SimSiam(width)

    def sound(self, spect: Tensor) -> tuple[Tensor, Tensor]:
        """L2-normalised mean embedding (B, 128) and mean projection (B, out_dim)."""
        if not self.vggish:
            embedding, projection = self.net_sound(spect)
            return F.normalize(embedding.mean(dim=1), dim=1), projection.mean(dim=1)
        clips = [self.net_sound(spect[i]) for i in range(spect.size(0))]
        embedding = torch.stack([clip[0].mean(dim=0) for clip in clips])
        projection = torch.stack([clip[1].mean(dim=0) for clip in clips])
        return F.normalize(embedding, dim=1), projection

    def forward(self, view1: Tensor, view2: Tensor, spect: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """p, z, similarity and attention, each of view 1 and view 2."""
        embedding, projection = self.sound(spect)
        pooled, similarity, attention = [], [], []
        for view in (view1, view2):
            maps = self.net_frame(view)
            if self.net_pc is not None:
                maps = self.net_pc(maps, embedding)
            for into, value in zip((pooled, similarity, attention), attention_of(maps, projection), strict=True):
                into.append(value)
        p1, p2, z1, z2 = self.net_ssl_head(*pooled)
        return {"p": (p1, p2), "z": (z1, z2), "similarity": tuple(similarity), "attention": tuple(attention)}

    def load_ours(self, model: models.Localizer) -> None:
        """Take over the weights and running statistics of one of our models."""
        parts = [("frame", self.net_frame, model.trunk), ("sound", self.net_sound, model.audio)]
        parts += [("pcm", self.net_pc, model.pcm)] if model.pcm is not None else []
        for part, theirs, ours in [*parts, ("ssl_head", self.net_ssl_head, model.head)]:
            state, small = ours.state_dict(), isinstance(theirs, SmallFrameNet | SmallSoundNet)
            names = {name: name if small else checkpoints.from_sspl_name(part, name) for name in theirs.state_dict()}
            if missing := [name for name, own in names.items() if own not in state]:
                raise RuntimeError(f"the baseline's {part} has {missing[0]}, which essl_fast does not name")
            theirs.load_state_dict({name: state[own] for name, own in names.items()})

    def parameter_groups(self, optim: config.OptimConfig) -> list[dict]:
        """The published groups; a trained trunk, which the published code lacks, comes last."""
        decay = optim.weight_decay
        sound = self.net_sound.fc if self.vggish else self.net_sound
        groups = [{"params": list(sound.parameters()), "lr": optim.lr_sound, "weight_decay": decay}]
        if self.net_pc is not None:
            rates = [*self.net_pc.b0, *self.net_pc.a0]
            others = [p for name, p in self.net_pc.named_parameters() if name[:3] not in ("b0.", "a0.")]
            groups.append({"params": others, "lr": optim.lr_pcm, "weight_decay": decay})
            groups.append({"params": rates, "lr": optim.lr_pcm, "weight_decay": 0.0})
        head = self.net_ssl_head.parameters()
        groups.append({"params": list(head), "lr": optim.lr_head, "weight_decay": decay})
        if not self.vgg:
            trunk = self.net_frame.parameters()
            groups.append({"params": list(trunk), "lr": optim.lr_trunk, "weight_decay": decay})
        return groups


def similarity_loss(p: tuple[Tensor, Tensor], z: tuple[Tensor, Tensor]) -> Tensor:
    """L_U."""
    first, second = F.cosine_similarity(p[0], z[1]).mean(), F.cosine_similarity(p[1], z[0]).mean()
    return -0.5 * (first + second)


def pixel_loss(attention: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor], labelled: Tensor) -> Tensor:
    """L_S of the labelled samples: maps (B, 14, 14) resized to targets (B, 224, 224), cross-entropy, mean."""
    heat = torch.cat(attention)[:, None]
    heat = F.interpolate(heat, size=targets[0].shape[1:], mode="bilinear", align_corners=False)[:, 0]
    losses = F.binary_cross_entropy(heat.clamp(1e-6, 1 - 1e-6), torch.cat(targets), reduction="none").mean(dim=(1, 2))
    chosen = losses[labelled.repeat(2)]
    return chosen.mean() if len(chosen) else losses.new_zeros(())
