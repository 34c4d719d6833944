"""What `make.py` (at an earlier commit) and `test_earlier.py` (at this one) have in common.

Nothing here imports essl_fast at the top: the two run with different versions of it.
"""

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

WIDTHS = {"SmallTrunk": {"width": 3}, "SmallAudioNet": {"width": 1}, "SimSiamHead": {"dim": 16, "hidden": 8}}
LOADED = {"batch_size": 3, "side": 246, "shuffle": True, "seed": 5, "threads": 1}  # of the loader that is recorded


def narrow() -> Iterator[tuple[type, Callable]]:
    """Each network's class and the `__init__` that makes it narrow, so that a checkpoint has some 100 KB."""
    from essl_fast import models

    for name, widths in WIDTHS.items():
        network = getattr(models, name)

        def init(self, channels: int, *, wide: Callable = network.__init__, widths: dict = widths) -> None:
            wide(self, channels, **widths)

        yield network, init


def digest(*tensors: torch.Tensor) -> str:
    """SHA-256 of the tensors' types, shapes and bytes."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def weights(state: dict) -> dict:
    """What a checkpoint's weights are: their SHA-256, and the mean of their magnitudes by name."""
    model = state["model"]
    sizes = {name: value.double().abs().mean().item() for name, value in sorted(model.items())}
    return {"sha256": digest(*(model[name] for name in sorted(model))), "magnitudes": sizes}


def history(state: dict) -> list[dict]:
    """The epochs of a checkpoint: losses, and the figures of the selection split."""
    return [{"losses": epoch["losses"], "selection": epoch.get("selection")} for epoch in state["history"]]


def batches(loader, epochs: int = 2) -> list[dict]:
    """Every batch of so many epochs: which pairs, the SHA-256 of frames and of samples, and means of both."""
    found = []
    with loader:
        for _ in range(epochs):
            for raw in loader:
                frames = raw.frames[raw.rows]
                found.append(
                    {
                        "index": raw.index.tolist(),
                        "frames": digest(frames),
                        "means": frames.double().mean(dim=(1, 2, 3)).tolist(),
                        "sound": digest(raw.sound),
                    }
                )
    return found


def probe() -> dict:
    """How this machine computes: PyTorch, the CPU's vector instructions, and what a small network gives to the bit.

    oneDNN and MKL choose their code by the CPU's type, which the name of the vector instructions does not tell alone:
    so convolutions, products and sums of the sizes of the recorded runs are computed, forward and backward, by PyTorch
    alone, without anything of essl_fast.
    """
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    images = numbers(6, 3, 224, 224).detach().to(memory_format=torch.channels_last)
    filters = [numbers(4, 3, 4, 4), numbers(8, 4, 3, 3), numbers(16, 8, 3, 3), numbers(16, 16, 3, 3)]
    value = F.conv2d(images, filters[0], stride=4)
    for filter in filters[1:]:
        value = F.relu(F.batch_norm(F.conv2d(value, filter, stride=2, padding=1), None, None, training=True))
    dense = [numbers(32, 16), numbers(32, 32), numbers(8, 32)]
    value = value.mean(dim=(2, 3))
    for matrix in dense:
        value = F.normalize(F.linear(value, matrix))
    gradients = torch.autograd.grad(value.square().sum(dim=0).std(), [*filters, *dense])
    return {
        "torch": torch.__version__.split("+")[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "sha256": digest(value, *gradients),
    }
