"""The pool by two against PyTorch's: the same bits, forward and backward, with odd sides, equal values and NaN."""

import pytest
import torch
import torch.nn.functional as F

from essl_fast import kernels
from essl_fast.kernels.pooling import _Pool


def both_ways(pool, x, gradient):
    leaf = x.detach().clone().requires_grad_()
    out = pool(leaf)
    return out.detach(), torch.autograd.grad(out, leaf, gradient.to(out.dtype))[0]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 14, 14), (2, 3, 7, 7), (1, 2, 3, 4), (1, 1, 2, 2)], ids=str)
def test_it_is_the_max_pool(shape, dtype, layout):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randint(-3, 3, shape, generator=generator).to(dtype).contiguous(memory_format=layout)
    gradient = torch.randn(shape[0], shape[1], shape[2] // 2, shape[3] // 2, generator=generator)
    expected = both_ways(lambda leaf: F.max_pool2d(leaf, 2), x, gradient)
    found = both_ways(_Pool.apply, x, gradient)
    assert all(torch.equal(have, want) for have, want in zip(found, expected, strict=True))
    if x[:, :, :2, :2].unique().numel() > 1:
        assert found[0].dtype == dtype and found[1].is_contiguous(memory_format=torch.channels_last)


def test_a_nan_is_the_largest():
    x = torch.tensor([[1.0, 2.0, float("nan"), 0.0], [3.0, float("nan"), 5.0, float("nan")]])[None, None]
    gradient = torch.tensor([[[[1.0, 2.0]]]])
    expected = both_ways(lambda leaf: F.max_pool2d(leaf, 2), x, gradient)
    found = both_ways(_Pool.apply, x, gradient)
    assert found[0].isnan().all() and expected[0].isnan().all() and torch.equal(found[1], expected[1])


def test_gradcheck():
    x = torch.randperm(2 * 3 * 5 * 4).double().view(2, 3, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(_Pool.apply, x)


def test_a_cpu_takes_pytorchs():
    x = torch.randn(1, 2, 5, 4)
    assert torch.equal(kernels.halved(x), F.max_pool2d(x, 2))
