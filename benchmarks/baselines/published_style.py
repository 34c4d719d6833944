"""An eager float32 implementation of the published SSPL recipe, which our speed is compared with.

It computes what essl_fast computes, from the same weights (:func:`check` shows it: loss and gradients), in the way
of the published code: two passes through trunk, PCM, attention and head, one for each view; VGGish sample by sample
in a Python loop; plain PyTorch operators, float32, no compiler; AdamW as PyTorch gives it; DataLoader workers with
h5py and PIL (published_data.py); evaluation with both views forward, then image by image in OpenCV and NumPy.

The comparison is fair: PyTorch's defaults stay (on a GPU cuDNN convolves in TF32 unless `tf32=False` is given);
mistakes of the published code that only cost time are left out (published_data.py lists them, and evaluation draws no
pictures); and the loss goes to the host every 20 steps, as there.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.baselines.published_data import target_map
from benchmarks.baselines.published_nets import NetWrapper, pixel_loss, similarity_loss
from benchmarks.stages import StageClock
from essl_fast import config, models
from essl_fast.config import SIZE
from essl_fast.models import objectives

try:
    import cv2
except ModuleNotFoundError:
    cv2 = None


@contextlib.contextmanager
def pytorch_defaults(tf32: bool | None = None) -> Iterator[None]:
    """PyTorch's own settings of the float32 arithmetic, whatever the process has set; put back after the block.

    ``tf32``: None keeps PyTorch's defaults (cuDNN yes, matrix products no), else both are set.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        convolutions = tf32 is not False
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=convolutions):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class PublishedStyle:
    """A training run of the recipe: the networks, the optimizer, a step, an epoch, an evaluation."""

    def __init__(self, settings: config.Config, device: torch.device, start: models.Localizer | None = None) -> None:
        self.settings, self.device = settings, device
        torch.manual_seed(settings.seed)
        self.net = NetWrapper(settings.model)
        if start is not None:
            self.net.load_ours(start)
        self.net.to(device)
        groups = self.net.parameter_groups(settings.optim)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)

    @property
    def supervised(self) -> bool:
        """Whether a sample needs its target maps."""
        return self.settings.objective.method != "sspl"

    def to_device(self, sample: dict) -> dict:
        """The sample's tensors on the device; what was pinned is copied asynchronously."""
        return {name: value.to(self.device, non_blocking=True) for name, value in sample.items()}

    def losses_of(self, sample: dict) -> dict[str, Tensor]:
        """{"loss": ...} and its parts of one batch that is on the device."""
        out = self.net(sample["view1"], sample["view2"], sample["spect"])
        method, weight = self.settings.objective.method, self.settings.objective.supervised_weight
        if method == "sspl":
            return {"loss": similarity_loss(out["p"], out["z"])}
        targets = (sample["target1"], sample["target2"])
        l_s = pixel_loss(out["attention"], targets, sample["labelled"])
        if method == "supervised":
            return {"loss": l_s}
        l_u = similarity_loss(out["p"], out["z"])
        return {"loss": l_u + weight * l_s, "unsupervised": l_u, "supervised": l_s}

    def train_step(self, sample: dict, clock: StageClock | None = None) -> Tensor:
        """Forward, backward and update of one batch; the loss, on the device."""
        clock = clock or StageClock()
        with clock.stage("to device"):
            sample = self.to_device(sample)
        with clock.stage("optimizer"):
            self.optimizer.zero_grad()
        with clock.stage("forward"):
            loss = self.losses_of(sample)["loss"]
        with clock.stage("backward"):
            loss.backward()
        with clock.stage("optimizer"):
            self.optimizer.step()
        return loss.detach()

    def train_epoch(self, loader, clock: StageClock | None = None) -> list[float]:
        """One epoch over :func:`~benchmarks.baselines.published_data.data_loader`; the losses that reached the host."""
        clock = clock or StageClock()
        self.net.train()
        shown, batches = [], iter(loader)
        for step in itertools.count():
            with clock.stage("data"):
                sample = next(batches, None)
            if sample is None:
                return shown
            loss = self.train_step(sample, clock)
            if step % 20 == 0:
                shown.append(loss.item())

    @torch.no_grad()
    def evaluate(self, loader, boxes: np.ndarray, clock: StageClock | None = None) -> tuple[np.ndarray, float]:
        """cIoU (N,) of the test pairs, one by one as the published code does it, and the mean of the batches' L_U.

        ``loader`` gives them in order; ``boxes`` (N, K, 4) on the 224 grid.
        """
        clock = clock or StageClock()
        self.net.eval()
        scores, losses = [], []
        consensus = self.settings.objective.consensus or 1
        with clock.stage("evaluation"):
            for sample in loader:
                sample = self.to_device(sample)
                out = self.net(sample["view1"], sample["view2"], sample["spect"])
                maps = out["similarity"][0].cpu().numpy()
                for heat, index in zip(maps, sample["index"].tolist(), strict=True):
                    scores.append(ciou_of(heat, target_map(boxes[index], consensus)))
                losses.append(similarity_loss(out["p"], out["z"]).item())
        return np.array(scores), float(np.mean(losses))


def resize(heat: np.ndarray, size: int) -> np.ndarray:
    """A map (h, w) float32 at size x size: bilinear, half-pixel centres."""
    if cv2 is not None:
        return cv2.resize(heat, (size, size), interpolation=cv2.INTER_LINEAR)
    for axis in (0, 1):
        length = heat.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(at).astype(int)
        part = (at - low).astype(np.float32)[:, None] if axis == 0 else (at - low).astype(np.float32)
        high = np.minimum(low + 1, length - 1)
        heat = heat.take(low, axis) * (1 - part) + heat.take(high, axis) * part
    return heat


def ciou_of(heat: np.ndarray, target: np.ndarray) -> float:
    """cIoU of one cosine map (h, w) with a weight map (224, 224); NaN where neither covers anything."""
    heat = resize(heat, len(target))
    span = np.ptp(heat)
    inferred = (heat - heat.min()) / span >= 0.5 if span > 0 else np.zeros(target.shape, bool)
    union = target.sum() + np.sum(inferred * (target == 0))
    return float(np.sum(inferred * target) / union) if union else float("nan")


def box_targets(boxes: Tensor, consensus: int) -> Tensor:
    """Weight maps (B, 224, 224) of boxes (B, K, 4) as one view shows them, box by box."""
    return torch.stack([torch.from_numpy(target_map(each, consensus)) for each in boxes.cpu().numpy()])


class Check(NamedTuple):
    """How far the baseline is from essl_fast on the same weights and views, in float32 with TF32 off."""

    loss: float  # ours
    loss_error: float  # |difference|
    gradient_error: float  # relative L2 over all gradients together
    ok: bool


# What float32 leaves of one step, see the tolerances of tests/golden/test_e2e_golden.py: the loss relative to
# max(1, |loss|); the gradients relative L2, where a near-tie in a max-pool may move single entries.
TOLERANCE = {"loss": 2e-5, "gradient": 2e-3}


def check(settings: config.Config, device: torch.device, batch: int = 6, seed: int = 0) -> Check:
    """Loss and gradients of both, on the same weights and random views; what is timed must compute the same.

    ``batch``: batch norm in the head needs about 6 samples, or the step itself is ill-conditioned.
    """
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(2, batch, 3, SIZE, SIZE, generator=generator)
    log_mel = torch.randn(batch, 3, 96, 64, generator=generator)
    corner = torch.randint(0, SIZE // 2, (2, batch, 1, 2), generator=generator)
    boxes = torch.cat([corner, corner + torch.randint(20, SIZE // 2, (2, batch, 1, 2), generator=generator)], -1).int()
    labelled = torch.arange(batch) % 3 != 2
    torch.manual_seed(seed)
    ours = models.build(settings.model).to(device).train()
    baseline = PublishedStyle(settings, device, ours)
    objective = objectives.build(settings.objective)
    with pytorch_defaults(tf32=False):
        expected = objective(ours(views.to(device), log_mel.to(device)), boxes.to(device), labelled.to(device))["loss"]
        expected.backward()
        sample = {"view1": views[0], "view2": views[1], "spect": log_mel[:, :, None], "labelled": labelled}
        sample |= {f"target{v + 1}": box_targets(boxes[v], settings.objective.consensus or 1) for v in range(2)}
        baseline.net.train()
        found = baseline.losses_of(baseline.to_device(sample))["loss"]
        found.backward()
    shadow = NetWrapper(settings.model)
    shadow.load_ours(_gradients_as_weights(ours))
    pairs = zip(baseline.net.named_parameters(), shadow.named_parameters(), strict=True)
    apart = total = 0.0
    for (_, mine), (_, theirs) in pairs:
        if mine.requires_grad:
            gradient = torch.zeros_like(mine) if mine.grad is None else mine.grad
            apart += (gradient.cpu().double() - theirs.detach().double()).square().sum().item()
            total += theirs.detach().double().square().sum().item()
    loss_error = abs(found.item() - expected.item())
    gradient_error = (apart / total) ** 0.5 if total else float("nan")
    near = loss_error < TOLERANCE["loss"] * max(1.0, abs(expected.item()))
    ok = near and gradient_error < TOLERANCE["gradient"]
    return Check(expected.item(), loss_error, gradient_error, ok)


def _gradients_as_weights(model: models.Localizer) -> models.Localizer:
    """The model with each parameter replaced by its gradient, so that a name map for weights maps gradients."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    return model
