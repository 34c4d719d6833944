"""The PCM's resize as products, and the dtype in which it keeps its maps."""

import pytest
import torch

from essl_fast import kernels
from essl_fast.kernels.upsampling import by_products
from essl_fast.models import PCM, pcm

VIEWS, BATCH, WIDTH, AUDIO = 2, 3, 24, 16


def run(module, dtype=None, seed=0):
    """The result and every gradient, in float64, of a pass under autocast to the dtype."""
    generator = torch.Generator().manual_seed(seed)
    like = next(module.parameters())
    visual = torch.randn(VIEWS * BATCH, WIDTH, 14, 14, generator=generator, dtype=torch.float64).to(like.dtype)
    audio = torch.randn(VIEWS * BATCH, AUDIO, generator=generator, dtype=torch.float64).to(like.dtype)
    weights = torch.randn(VIEWS * BATCH, WIDTH, 14, 14, generator=generator, dtype=torch.float64)
    visual.requires_grad_()
    module.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        out = module(visual, audio, VIEWS)
    (out.double() * weights).sum().backward()
    gradients = [visual.grad, *(p.grad for p in module.parameters() if p.grad is not None)]
    return [x.detach().double() for x in (out, *gradients)]


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return PCM(cycles=2, audio_dim=AUDIO, out_dim=WIDTH, width=WIDTH).to(dtype)


def test_the_products_do_not_change_the_network(monkeypatch):
    module = network(torch.float64)
    expected = run(module)
    monkeypatch.setattr(kernels, "doubled_convolution", by_products)
    for have, want in zip(run(module), expected, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-10)


def test_the_taps_are_no_part_of_a_checkpoint():
    assert not any("taps" in name for name in network().state_dict())


def test_autocast_keeps_maps_in_its_dtype(monkeypatch):
    """Every representation that goes from one cycle to the next, to two readers, has 16 bits; without autocast none."""
    kinds, cycle = [], PCM._cycle

    def watched(self, number, visual, audio, views, *r, **more):
        kinds.extend(x.dtype for x in r)
        return cycle(self, number, visual, audio, views, *r, **more)

    monkeypatch.setattr(PCM, "_cycle", watched)
    run(network(), torch.bfloat16)
    assert kinds == [torch.bfloat16] * 12
    kinds.clear()
    run(network())
    assert kinds == [torch.float32] * 12


def test_stored_maps_cost_no_more_than_twice_the_error(monkeypatch):
    """Against float64: bfloat16 with maps in 16 bits, and with maps in the dtype that the rates promote them to."""
    exact = run(network(torch.float64))
    stored = run(network(), torch.bfloat16)
    monkeypatch.setattr(pcm, "_stored", lambda x: x)
    promoted = run(network(), torch.bfloat16)

    def error(found):
        return torch.stack([(a - b).norm() / b.norm() for a, b in zip(found, exact, strict=True) if b.norm() > 1e-3])

    ours, theirs = error(stored), error(promoted)
    assert ours[0] <= 2 * theirs[0]
    assert ours.square().mean().sqrt() <= 2 * theirs.square().mean().sqrt()
    assert theirs[0] > 1e-4  # autocast was on


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_two_backward_passes_give_the_same_bits():
    module = network().cuda().to(memory_format=torch.channels_last)
    visual = torch.randn(VIEWS * BATCH, WIDTH, 14, 14, device="cuda", requires_grad=True)
    audio = torch.randn(VIEWS * BATCH, AUDIO, device="cuda")
    first, second = (torch.autograd.grad(module(visual, audio, VIEWS).square().sum(), visual)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "kernels_too", [pytest.param(False, id="eager"), pytest.param(True, id="kernels", marks=pytest.mark.slow)]
)
def test_gradients_have_the_strides_of_their_parameters(kernels_too, request):
    """Also those of axes of one element: where they differ, DDP warns, and copies the gradient in each step."""
    if kernels_too:
        request.getfixturevalue("triton_on_cpu")
    module = PCM(cycles=1, audio_dim=4, out_dim=8, width=8).to(memory_format=torch.channels_last)
    visual = torch.randn(4, 8, 14, 14).to(memory_format=torch.channels_last).requires_grad_()
    module(visual, torch.randn(4, 4, requires_grad=True), views=2).square().sum().backward()
    strides = {name: (each.stride(), each.grad.stride()) for name, each in module.named_parameters()}
    assert all(own == of_gradient for own, of_gradient in strides.values()), strides
    assert module.blend[0].stride() == (8, 1, 1, 1) and module.predict[1].weight.stride() == (72, 1, 24, 8)
