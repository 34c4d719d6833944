"""The public names choose an implementation; whichever it is, the result is the reference's."""

import pytest
import torch

from essl_fast import kernels
from essl_fast.kernels import native, reference


def batch_of(integer=torch.int64):
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8)
    rows = torch.tensor([2, 0, 2, 1], dtype=integer)
    top, left = (torch.randint(0, 9, (2, 4), dtype=integer) for _ in range(2))
    return frames, rows, top, left, torch.rand(2, 4) < 0.5


@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
@pytest.mark.parametrize("compiled", [True, False])
def test_two_views_with_and_without_the_compiled_module(monkeypatch, integer, compiled):
    if not compiled:
        monkeypatch.setattr(native, "available", lambda: False)
    elif not native.available():
        pytest.skip(native.why_unavailable())
    arguments = batch_of(integer)
    out = kernels.two_views(*arguments, size=32)
    assert torch.equal(out, reference.two_views(*arguments, size=32))
    assert out.dtype == torch.float32 and out[0].is_contiguous(memory_format=torch.channels_last)
    half = kernels.two_views(*arguments, size=32, dtype=torch.bfloat16)
    assert torch.equal(half, out.bfloat16())


def test_the_centre_view_is_the_whole_frame():
    frames = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows, zero = torch.tensor([2, 0]), torch.zeros(1, 2, dtype=torch.int32)
    expected = reference.two_views(frames, rows, zero, zero, zero.bool(), 32, torch.float32)
    assert torch.equal(kernels.centre_view(frames, torch.float32, rows, 32), expected)
    every = kernels.centre_view(frames, torch.float32, size=32)
    assert every.shape == (1, 3, 3, 32, 32) and torch.equal(every[:, rows], expected)
