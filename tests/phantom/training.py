"""A Trainer on the pretended GPU. Everything is the project's own, but for the loader and the data set."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from essl_fast import config, kernels, models
from essl_fast.data.loading import RawBatch
from essl_fast.runtime import distributed
from essl_fast.runtime.devices import pick_device
from essl_fast.runtime.distributed import ALONE, World
from essl_fast.train import Trainer
from essl_fast.train import data as training_data
from essl_fast.train import step as training_step
from tests.phantom.chip import GPU

PAIRS, BOXES, CLASSES = 1595, 4, ["a", "b", "c"]  # of the training split of Chaotic World


class Manifest:
    """Training pairs that all have boxes, without files."""

    root, consensus, classes, header = Path("/phantom"), 1, CLASSES, {"phantom": True}
    labelled = np.ones(PAIRS, bool)
    boxes = np.tile(np.array([[[10, 10, 100, 100]] * BOXES], np.int32), (PAIRS, 1, 1))
    class_id = np.zeros(PAIRS, np.int32)

    def pairs(self, split: str) -> int:
        return PAIRS if split == "train" else 0

    def rows(self, split: str) -> np.ndarray:
        return np.arange(self.pairs(split))


class Loader:
    """What a Trainer asks its loader for."""

    pairs, excluded, waited, step, held = PAIRS, 0, 0.0, 0, False

    def __init__(self, manifest: Manifest, splits: Any, *, batch_size: int, **_: Any) -> None:
        self._batch = batch_size

    def __len__(self) -> int:
        return self.pairs // self._batch


class Parallel(nn.Module):
    """Stands for DistributedDataParallel, whose C++ needs tensors with contents: the module's own forward pass."""

    def __init__(self, module: nn.Module, **_: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *given: Tensor) -> Any:
        return self.module(*given)

    def _remove_autograd_hooks(self) -> None:
        pass


def sound_of(model: models.Localizer, size: int, dtype: torch.dtype, embedded: bool) -> Tensor:
    """What a batch carries of its sound: VGGish's embeddings, or log-mel spectrograms."""
    if embedded:
        return torch.empty(size, 3, model.audio.embedding_dim, device=GPU, dtype=dtype)
    return torch.empty(size, 3, 96, 64, device=GPU)


def batch_for(trainer: Trainer, size: int) -> RawBatch:
    """A batch as the resident loader gives it: a pool of frames, and rows of it."""
    side = config.STORED_SIDE
    return RawBatch(
        frames=torch.empty(PAIRS, side, side, 3, dtype=torch.uint8, device=GPU),
        rows=torch.empty(size, dtype=torch.int64, device=GPU),
        sound=sound_of(trainer.model, size, trainer.dtype, trainer.settings.model.audio == "vggish"),
        index=torch.empty(size, dtype=torch.int64, device=GPU),
    )


@contextmanager
def ranks(count: int) -> Iterator[World]:
    """A group of processes of which this is the first; messages to the others are not sent.

    What the ranks tell each other on the host is the same for all of them.
    """
    if count == 1:
        yield ALONE
        return
    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        with mock.patch.object(distributed, "gather", lambda value, world: [value] * world.size):
            yield World(0, count)
    finally:
        dist.destroy_process_group()


@contextmanager
def fused_convolutions() -> Iterator[None]:
    """cuDNN's fused convolutions are tried out on a GPU. Here there are some in half precision."""

    def fuses(device: torch.device, dtype: torch.dtype, channels: int = 64, outputs: int = 64) -> bool:
        return dtype != torch.float32

    with mock.patch.object(kernels, "conv_relu_fuses", fuses):
        yield


def make_trainer(name: str, precision: str, *overrides: str, world: World = ALONE) -> Trainer:
    """The Trainer of a configuration of configs/, with random weights, in training mode.

    Args:
        name: of the configuration.
        precision: bf16, fp16, fp32 or tf32.
        overrides: words of the command line.
        world: with more than one process, each part is compiled by itself and batch statistics are gathered.
    """
    words = "--model.vgg16_weights none --model.vggish_weights none --data.root /phantom --data.resident_shared never"
    words += f" --device cuda --precision {precision}"
    settings = config.load(name, [*words.split(), *overrides])
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=".*random weights.*")
        enter(mock.patch.object(training_data, "Loader", Loader))
        enter(mock.patch.object(training_step, "DistributedDataParallel", Parallel))
        enter(fused_convolutions())
        made = Trainer(settings, Manifest(), pick_device("cuda"), world)
    made.model.train()
    return made
