"""One pass over all views equals a pass a view: outputs, gradients, running statistics; eager and as one graph."""

import copy

import pytest
import torch
from torch import nn

from essl_fast.models import PCM, SimSiamHead
from essl_fast.models.norm import ViewBatchNorm
from essl_fast.models.trunks import SmallTrunk


def in_one_graph(module):
    """The module as the compiled step runs it."""
    torch.compiler.reset()  # each test compiles the same code for other shapes; there is a limit to that
    return torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=False)


def everything(module, call, inputs, weights):
    """Outputs of two training steps' forward passes, gradients of the second, and the buffers after both."""
    call(*inputs)
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = call(*inputs)
    (out * weights).sum().backward()
    gradients = [x.grad for x in inputs] + [p.grad for p in module.parameters() if p.grad is not None]
    return [out.detach(), *gradients, *(b for _, b in module.named_buffers())]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (3, 6, 4, 5)], ids=str)
@pytest.mark.parametrize("views", [1, 2, 3])
def test_norm_equals_pytorchs_on_each_view(views, shape, affine, compiled):
    torch.manual_seed(0)
    theirs = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(shape[1], affine=affine)
    if affine:
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
    ours = ViewBatchNorm(shape[1], affine=affine)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(views * shape[0], *shape[1:]) * 3 + torch.arange(views).repeat_interleave(shape[0]).view(
        -1, *[1] * (len(shape) - 1)
    )
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    weights = torch.randn_like(x)
    want = everything(theirs, lambda x: torch.cat([theirs(part) for part in x.chunk(views)]), [x], weights)
    run = in_one_graph(ours) if compiled else ours
    have = everything(ours, lambda x: run(x, views), [x], weights)
    assert len(have) == len(want)
    for mine, expected in zip(have, want, strict=True):
        if compiled:
            torch.testing.assert_close(mine, expected, rtol=2e-5, atol=2e-5)
        else:
            assert torch.equal(mine, expected)
    x = torch.randn_like(x)
    torch.testing.assert_close(ours.eval()(x, views), theirs.eval()(x), rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_pcm_in_one_pass(compiled):
    torch.manual_seed(0)
    theirs = PCM(cycles=1, audio_dim=8, out_dim=6)
    ours = copy.deepcopy(theirs)
    maps, audio = torch.randn(4, 512, 14, 14), torch.randn(4, 8).relu()
    weights = torch.randn(4, 6, 14, 14)

    def in_turn(maps, audio):
        return torch.cat([theirs(*parts) for parts in zip(maps.chunk(2), audio.chunk(2), strict=True)])

    want = everything(theirs, in_turn, [maps, audio], weights)
    run = in_one_graph(ours) if compiled else ours
    have = everything(ours, lambda maps, audio: run(maps, audio, 2), [maps, audio], weights)
    assert len(have) == len(want)
    for mine, expected in zip(have, want, strict=True):
        distance = (mine.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12)
        assert distance < 5e-4  # a near-tie of a max pool may move single entries of a gradient


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_head_and_trunk_in_one_pass(compiled):
    torch.manual_seed(0)
    head, trunk = SimSiamHead(12, dim=16, hidden=8), SmallTrunk(channels=6, width=4)
    for ours, x, weights, split in (
        (head, torch.randn(2, 5, 12), torch.randn(2, 5, 16), lambda m, x: torch.cat([m(v[None])[0] for v in x])),
        (trunk, torch.randn(6, 3, 32, 48), torch.randn(6, 6, 2, 3), lambda m, x: torch.cat([m(v) for v in x.chunk(2)])),
    ):
        theirs = copy.deepcopy(ours)
        run = in_one_graph(ours) if compiled else ours
        one = (lambda x, run=run: run(x)[0]) if ours is head else (lambda x, run=run: run(x, 2))
        want = everything(theirs, lambda x, t=theirs, s=split, w=weights: s(t, x).view_as(w), [x], weights)
        have = everything(ours, one, [x], weights)
        for mine, expected in zip(have, want, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_normalised_is_refused():
    norm = ViewBatchNorm(3)
    with pytest.raises(ValueError, match=r"\(2, 3\) holds 1 values a channel and view for 2 views"):
        norm(torch.randn(2, 3), 2)
    with pytest.raises(ValueError, match="as many samples of each view"):
        norm(torch.randn(5, 3, 2, 2), 2)
    with pytest.raises(ValueError, match=r"takes \(V \* B, C\)"):
        norm(torch.randn(5, 3, 2))
    norm.eval()(torch.randn(2, 3), 2)  # no statistics are taken
