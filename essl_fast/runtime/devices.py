"""The device and the dtype that a setting means on this machine."""

import contextlib
from collections.abc import Iterator

import torch

from essl_fast import config
from essl_fast.common.errors import InputError


def pick_device(name: str) -> torch.device:
    """The torch device of the setting auto, cpu, cuda or cuda:N.

    Raises:
        InputError: the name is no device, or there is no such GPU.
    """
    config.check_device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    if name.startswith("cuda") and not count:
        raise InputError(
            f"device: {name} was asked for, but PyTorch sees no GPU; use --device cpu, or check the driver"
        )
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(f"device: {name} was asked for, but there are {count} GPUs, counted from 0")
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast for the setting auto (bf16 on a GPU, float32 on a CPU), bf16, fp16, fp32 or tf32.

    It also tells PyTorch whether float32 products may round their factors to TF32: only for "tf32". (PyTorch's own
    default allows that for convolutions.)

    Raises:
        InputError: fp16 on a CPU.
    """
    if name == "auto":
        name = "bf16" if device.type == "cuda" else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise InputError("precision: fp16 needs a GPU; use fp32 or bf16 on a CPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)


@contextlib.contextmanager
def timed_engines(wanted: bool) -> Iterator[None]:
    """Within the context cuDNN, if ``wanted``, times its engines for each convolution and keeps the fastest.

    It does so at the first call of each shape, which takes up to some seconds for a network. So it pays for the batches
    of a training run, which all have one size, and not for batches whose size changes. In two runs another engine may
    win, whose sums have other last bits: deterministic runs take cuDNN's first guess.
    """
    before = torch.backends.cudnn.benchmark
    allowed = not torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.benchmark = allowed and (before or wanted)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
