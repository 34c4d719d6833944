"""Two products equal the resize and the convolution after it, forward and backward, and are rounded no more often."""

import pytest
import torch

from essl_fast.kernels import doubled_convolution, doubling_taps, reference
from essl_fast.kernels.upsampling import ALIGN, by_products

SIZES = [(7, 7), (1, 1), (1, 5), (3, 2), (8, 9)]


def both_ways(function, x, weight, gradient):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    out = function(x, weight)
    return out.detach(), *torch.autograd.grad(out, (x, weight), gradient)


def random(*shape, dtype=torch.float64, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def inputs(height, width, dtype=torch.float64):
    """x, weight, and a gradient of the result; 6 channels to 5."""
    shapes = ((3, 6, height, width), (6, 5, 3, 3), (3, 5, 2 * height, 2 * width))
    return [random(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_products_are_the_convolution(size):
    """In float64, to rounding, in every layout; and results and gradients are channels_last if the inputs are."""
    taps, positions = doubling_taps(*size), size[0] * size[1]
    assert torch.equal(taps, taps.round()) and taps.min() >= 0 and taps.shape[1] % ALIGN == 0
    middle = taps[:, : 9 * positions].unflatten(1, (positions, 9))[:, :, 4]
    assert torch.equal(middle.sum(1), torch.full((4 * positions,), (2.0 * size[0] - 1) * (2 * size[1] - 1)))
    for form in (torch.channels_last, torch.contiguous_format):
        given = [t.contiguous(memory_format=form) for t in inputs(*size)]
        found = both_ways(lambda x, weight: by_products(x, weight, taps), *given)
        expected = both_ways(reference.doubled_convolution, *given)
        for have, want in zip(found, expected, strict=True):
            torch.testing.assert_close(have, want, rtol=0, atol=1e-12)
        if form == torch.channels_last:
            assert all(t.is_contiguous(memory_format=form) for t in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_products_are_rounded_no_more_often(dtype):
    """Their errors against float64 are at most twice those of the resize and the convolution in the same dtype."""
    taps = doubling_taps(7, 7)
    rows = taps[:, :441].to(dtype)
    assert torch.equal(rows.float(), taps[:, :441])
    given = inputs(7, 7, dtype)
    exact = both_ways(reference.doubled_convolution, *(t.double() for t in given))
    found = both_ways(lambda x, weight: by_products(x, weight, taps), *given)
    plain = both_ways(reference.doubled_convolution, *given)
    for have, other, want in zip(found, plain, exact, strict=True):
        assert have.dtype == dtype
        assert 0 < (have.double() - want).norm() <= 2 * (other.double() - want).norm() + 1e-7


def test_their_gradients():
    taps, (x, weight, _) = doubling_taps(3, 2), inputs(3, 2)
    x, weight = x[:2, :2].requires_grad_(), weight[:2, :2].requires_grad_()
    assert torch.autograd.gradcheck(lambda x, weight: by_products(x, weight, taps), (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, weight: by_products(x, weight, taps), (x, weight))


def test_they_are_part_of_a_graph():
    taps, given = doubling_taps(7, 7), inputs(7, 7, torch.float32)
    graph = torch.compile(lambda x, weight: by_products(x, weight, taps), fullgraph=True, backend="aot_eager")
    expected = both_ways(reference.doubled_convolution, *given)
    for have, want in zip(both_ways(graph, *given), expected, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


def test_autocast_decides_their_dtype():
    taps, (x, weight, _) = doubling_taps(7, 7), inputs(7, 7, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert by_products(x.bfloat16(), weight, taps).dtype == torch.bfloat16
        assert by_products(x, weight, taps).dtype == torch.bfloat16


def test_a_cpu_resizes_and_convolves():
    """To the bit, so that runs that began with earlier versions go on to the same weights."""
    x, weight, _ = inputs(7, 7, torch.float32)
    expected = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    expected = torch.nn.functional.conv_transpose2d(expected, weight, padding=1)
    assert torch.equal(doubled_convolution(x, weight, doubling_taps(7, 7)), expected)
    with pytest.raises(ValueError, match=r"x is \(3, 6, 7, 7\), but the taps are \(36, 88\)"):
        doubled_convolution(x, weight, doubling_taps(3, 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu_two_runs_give_the_same_bits(dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    shapes = ((64, 512, 7, 7), (512, 512, 3, 3), (64, 512, 14, 14))
    given = [random(*shape, dtype=dtype, seed=seed).cuda() for seed, shape in enumerate(shapes)]
    taps = doubling_taps(7, 7).cuda()
    first, second = (both_ways(lambda x, weight: doubled_convolution(x, weight, taps), *given) for _ in range(2))
    exact = both_ways(reference.doubled_convolution, *(t.double() for t in given))
    for one, other, right in zip(first, second, exact, strict=True):
        assert torch.equal(one, other)
        assert (one.double() - right).norm() <= right.norm() * torch.finfo(dtype).eps * 4
