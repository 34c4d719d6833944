"""The constant matrix product equals F.interpolate, forward and backward, and is rounded no more often."""

import pytest
import torch

from essl_fast.kernels import doubling_weights, reference, upsample_by_two
from essl_fast.kernels.upsampling import by_product

SIZES = [(7, 7), (1, 1), (1, 5), (3, 2), (8, 9)]


def both_ways(upsample, x, gradient):
    x = x.detach().requires_grad_()
    out = upsample(x)
    return out.detach(), *torch.autograd.grad(out, x, gradient)


def features(height, width, dtype=torch.float64, seed=0):
    x = torch.randn(3, 6, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_product_is_the_interpolation(size):
    """In float64, to rounding; the weights of an output position add up to 1."""
    weights = doubling_weights(*size)
    assert torch.equal(weights, weights.round()) and weights.min() >= 0
    assert torch.equal(weights.sum(1), torch.full((4 * size[0] * size[1],), (2.0 * size[0] - 1) * (2 * size[1] - 1)))
    x, gradient = features(*size), features(2 * size[0], 2 * size[1], seed=1)
    for x_form, gradient_form in ((x, gradient), (x.contiguous(), gradient.contiguous())):
        out, to_x = both_ways(lambda x: by_product(x, weights), x_form, gradient_form)
        expected = both_ways(reference.upsample_by_two, x_form, gradient_form)
        torch.testing.assert_close(out, expected[0], rtol=0, atol=1e-13)
        torch.testing.assert_close(to_x, expected[1], rtol=0, atol=1e-12)
        assert out.is_contiguous(memory_format=torch.channels_last)
    assert to_x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_product_is_rounded_once(dtype):
    """Its error against float64 is that of F.interpolate: half a unit in the last place."""
    weights = doubling_weights(7, 7)
    assert torch.equal(weights.to(dtype).float(), weights)
    x = features(7, 7).to(dtype)
    exact = reference.upsample_by_two(x.double())
    for out in (by_product(x, weights), reference.upsample_by_two(x)):
        assert out.dtype == dtype
        error = (out.double() - exact).abs()
        assert (error <= exact.abs() * torch.finfo(dtype).eps * 0.51 + 1e-7).all()
    _, to_x = both_ways(lambda x: by_product(x, weights), x, features(14, 14, seed=1).to(dtype))
    assert to_x.dtype == dtype


def test_its_gradients():
    weights, x = doubling_weights(3, 4), features(3, 4)[:2, :2].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: by_product(x, weights), (x,))
    assert torch.autograd.gradgradcheck(lambda x: by_product(x, weights), (x,))


def test_it_is_part_of_a_graph():
    weights, x = doubling_weights(7, 7), features(7, 7, torch.float32)
    graph = torch.compile(lambda x: by_product(x, weights), fullgraph=True, backend="aot_eager")
    gradient = features(14, 14, torch.float32, seed=1)
    expected = both_ways(reference.upsample_by_two, x, gradient)
    for have, want in zip(both_ways(graph, x, gradient), expected, strict=True):
        torch.testing.assert_close(have, want)


def test_a_cpu_interpolates():
    """To the bit, so that runs that began with earlier versions go on to the same weights."""
    x = features(7, 7, torch.float32)
    assert torch.equal(upsample_by_two(x, doubling_weights(7, 7)), reference.upsample_by_two(x))
    with pytest.raises(ValueError, match=r"x is \(3, 6, 7, 7\), but the weights are \(36, 9\)"):
        upsample_by_two(x, doubling_weights(3, 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu_two_runs_give_the_same_bits(dtype):
    x = torch.randn(64, 512, 7, 7, device="cuda", dtype=dtype).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(64, 512, 14, 14, device="cuda", dtype=dtype).contiguous(memory_format=torch.channels_last)
    weights = doubling_weights(7, 7).cuda()
    first, second = (both_ways(lambda x: upsample_by_two(x, weights), x, gradient) for _ in range(2))
    exact = both_ways(reference.upsample_by_two, x.double(), gradient.double())
    for one, other, right in zip(first, second, exact, strict=True):
        assert torch.equal(one, other)
        assert (one.double() - right).abs().max() <= right.abs().max() * torch.finfo(dtype).eps * 4
