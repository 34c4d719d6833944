"""What the benchmarks of training measure: methods, data, batches, and the arithmetic that a step cannot avoid."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from essl_fast import config, kernels, models
from essl_fast.data.loading import RawBatch
from essl_fast.data.shards import SAMPLES, Manifest
from essl_fast.models import objectives

# method -> (shipped config, overrides, GFLOP a pair and step by the design: VGG-16 twice, PCM three times twice).
METHODS = {
    "sspl": ("sspl", (), 61.0),
    "sspl_pcm": ("sspl_pcm", (), 125.0),
    "semipl": ("semipl", (), 125.0),
    "supervised": ("semipl", ("--objective.method", "supervised"), 125.0),
}
EPOCHS = {"sspl": 40, "sspl_pcm": 350, "semipl": 350}  # of the paper's tables, each over 1,595 pairs
PAPER_PAIRS = 1595


def settings_of(method: str, model: str, manifest: Manifest, batch: int, *overrides: str) -> config.Config:
    """The config of a method: of the paper's networks ("full", random weights) or of the demo's ("small").

    ``batch`` pairs a step; the last, smaller batch of an epoch is kept unless it is a single pair, which batch norm
    cannot take; more ``overrides`` as on the command line. ValueError for an unknown method, and for sspl_pcm with
    the small networks, which are used without a PCM.
    """
    if method not in METHODS:
        raise ValueError(f"{method!r} is none of the methods {', '.join(METHODS)}")
    shipped, more, _ = METHODS[method]
    if model == "small":
        if method == "sspl_pcm":
            raise ValueError("sspl_pcm needs --model full: the demo's networks are used without a PCM")
        shipped, more = "demo", ("--objective.method", method)
    random = ("--model.vgg16_weights", "none", "--model.vggish_weights", "none")
    last = "drop" if manifest.pairs("train") % batch == 1 else "keep"
    data = ("--data.root", str(manifest.root), "--data.batch_size", str(batch), "--data.last_batch", last)
    return config.load(shipped, (*more, *random, *data, *overrides))


def has_pcm(method: str, model: str) -> bool:
    """Whether these networks hold a predictive coding module."""
    return model == "full" and METHODS[method][2] > METHODS["sspl"][2]


def methods_for(model: str) -> list[str]:
    """The methods that these networks can train with."""
    return [method for method in METHODS if model == "full" or method != "sspl_pcm"]


def prepared_world(folder: Path, videos: int, test_videos: int) -> Manifest:
    """The synthetic world of this size, made and prepared in ``folder`` unless it is there: about 1.3 pairs a video."""
    from essl_fast.data.synthetic import make_world
    from essl_fast.prepare import prepare

    place = Path(folder) / f"world-{videos}-{test_videos}"
    world = make_world(place / "world", train_videos=videos, test_videos=test_videos, seed=0, progress=False)
    prepare(world.videos, world.annotations, place / "prepared", progress=False)
    return Manifest.load(place / "prepared")


def synthetic_batch(manifest: Manifest, size: int, device: torch.device, seed: int = 0) -> RawBatch:
    """A RawBatch of noise on the device; its boxes and labels are those of random training pairs."""
    generator = torch.Generator().manual_seed(seed)
    side = config.STORED_SIDE
    rows = torch.from_numpy(np.array(manifest.rows("train")))
    pcm = torch.randint(-20_000, 20_000, (size, SAMPLES), dtype=torch.int16, generator=generator)
    makers = {
        "frames": lambda: torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, generator=generator),
        "rows": lambda: torch.arange(size),
        "sound": lambda: kernels.log_mel(pcm),
        "index": lambda: rows[torch.randint(len(rows), (size,), generator=generator)],
    }
    if unknown := [name for name in RawBatch._fields if name not in makers]:
        raise RuntimeError(f"RawBatch has {unknown[0]}, which benchmarks/subjects.py does not know how to fill")
    return RawBatch(**{name: makers[name]().to(device) for name in RawBatch._fields})


def counted_gflop(settings: config.Config) -> float:
    """GFLOP a pair of matrix products and convolutions in one training step, forward and backward, as PyTorch counts.

    Only shapes are computed. Element-wise work, batch norms and what our own kernels do are not in it.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    batch = 2
    with FakeTensorMode():
        model = models.build(settings.model)
        views, log_mel = torch.empty(2, batch, 3, config.SIZE, config.SIZE), torch.empty(batch, 3, 96, 64)
        boxes, labelled = torch.zeros(batch, 1, 4, dtype=torch.int32), torch.ones(batch, dtype=torch.bool)
        with FlopCounterMode(display=False) as counter:
            objectives.build(settings.objective)(model(views, log_mel), boxes, labelled)["loss"].backward()
    return counter.get_total_flops() / batch / 1e9


def step_gflop(method: str, model: str, settings: config.Config) -> tuple[float, str]:
    """GFLOP a pair that rates are computed from, and who counted them: the design, or for small networks PyTorch."""
    if model == "full":
        return METHODS[method][2], "design"
    return counted_gflop(settings), "PyTorch"
