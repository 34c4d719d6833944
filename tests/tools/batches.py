"""Batches of a loader by value, to compare loaders with each other."""

import itertools
import threading

import torch

from essl_fast.data.loading import Loader, RawBatch


def plain(batch: RawBatch) -> tuple[torch.Tensor, ...]:
    """A batch by value, wherever its frames are: index, frames, sound."""
    return batch.index.cpu(), batch.frames[batch.rows].cpu(), batch.sound.cpu()


def batches(loader: Loader, count: int) -> list[tuple[torch.Tensor, ...]]:
    """The next batches by value, over as many epochs as that takes."""

    def forever():
        while True:
            yield from loader

    return [plain(batch) for batch in itertools.islice(forever(), count)]


def assert_equal(ours: list, theirs: list) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


def decoding_threads() -> list[threading.Thread]:
    """The threads that decode for any loader."""
    return [thread for thread in threading.enumerate() if thread.name == "essl_fast-loader"]
