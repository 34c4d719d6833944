"""Which device and precision a setting means, and which of cuDNN's engines convolutions take."""

import pytest
import torch

from essl_fast.common.errors import InputError
from essl_fast.runtime.devices import pick_device, pick_precision, timed_engines


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_engines_are_timed_where_shapes_stay_and_bits_may_differ(before, deterministic, wanted):
    """What the user has switched on stays on, but for deterministic runs; afterwards all is as it was."""
    found = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    try:
        torch.backends.cudnn.benchmark = before
        torch.use_deterministic_algorithms(deterministic)
        with pytest.raises(KeyError), timed_engines(wanted):
            assert torch.backends.cudnn.benchmark == (not deterministic and (before or wanted))
            raise KeyError
        assert torch.backends.cudnn.benchmark == before
    finally:
        torch.backends.cudnn.benchmark = found[0]
        torch.use_deterministic_algorithms(found[1])


@pytest.mark.parametrize(
    ("name", "gpus", "device"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_the_device_of_a_setting(monkeypatch, name, gpus, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert pick_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("name", "gpus", "said"),
    [
        ("cuda", 0, "device: cuda was asked for, but PyTorch sees no GPU; use --device cpu"),
        ("cuda:0", 0, "device: cuda:0 was asked for, but PyTorch sees no GPU"),
        ("cuda:2", 2, "device: cuda:2 was asked for, but there are 2 GPUs, counted from 0"),
    ],
)
def test_a_gpu_that_is_not_there(monkeypatch, name, gpus, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(InputError, match=said):
        pick_device(name)


@pytest.fixture
def tf32():
    """What PyTorch is told stays in the test."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_the_precision_of_a_setting(tf32):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert pick_precision("auto", cpu) == torch.float32 and pick_precision("auto", gpu) == torch.bfloat16
    assert pick_precision("fp16", gpu) == torch.float16 and pick_precision("bf16", cpu) == torch.bfloat16
    with pytest.raises(InputError, match="precision: fp16 needs a GPU"):
        pick_precision("fp16", cpu)
    for name in ("tf32", "fp32"):
        assert pick_precision(name, gpu) == torch.float32
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (name == "tf32")
