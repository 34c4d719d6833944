"""The PCM's fused chains against the reference in float64: interpreted on a CPU, compiled on a GPU."""

from unittest import mock

import pytest
import torch

from essl_fast import kernels
from essl_fast.kernels import blend_norm_gelu, norm_gelu, reference, runs_chain
from essl_fast.models import PCM

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
EPS = 1e-5
BLENDS = {"x": 0, "sum": 1, "mix": 2}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def device(request, monkeypatch):
    """Where kernels run; all their outputs and workspaces start as NaN."""

    def poisoned(x):
        return torch.full_like(x, float("nan"), memory_format=torch.channels_last)

    monkeypatch.setattr(norm_gelu, "_like", poisoned)
    monkeypatch.setattr(norm_gelu, "_table", lambda x, *shape: x.new_full(shape, float("nan"), dtype=torch.float32))
    if request.param == "cpu":
        request.getfixturevalue("triton_on_cpu")
        for name, value in {"ROWS": 8, "WIDTH": 32, "CHUNKS": (2, 2)}.items():  # few programs for the interpreter
            monkeypatch.setattr(norm_gelu, name, value)
    return request.param


def inputs(blend, top, dtype=torch.float32, device="cpu", shape=(6, 20, 3, 2), seed=0, less=False):
    """Arguments of the op, and a gradient for each of its two readers."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.float64 if dtype == torch.float64 else torch.float32

    def made(*size, kind=dtype, shift=0.0):
        return (torch.randn(size, generator=generator, dtype=torch.float64) + shift).to(device, kind)

    x, y, above = made(*shape, shift=2), made(*shape), made(*shape)
    gradients = made(*shape), made(*shape)
    rate, weight, bias, top_rate = (made(shape[1], kind=own) for _ in range(4))
    given = [x, y if blend else None, rate if blend == 2 else None, weight, bias]
    tops = [above, top_rate] if top else [None, None]
    return given, [*tops, made(*shape) if less else None], gradients


def both_ways(function, given, tops, gradients, dtype=None, views=2, layout=torch.channels_last, twice=False):
    """The result, the moments, and every gradient, by an op on the inputs' values in dtype.

    twice: the result has two readers, each with a gradient of its own.
    """

    def leaf(x):
        if x is None:
            return None
        x = x.detach().to(dtype or x.dtype)
        return (x.contiguous(memory_format=layout) if x.ndim == 4 else x).requires_grad_()

    given, tops = [leaf(x) for x in given], [leaf(x) for x in tops]
    *readers, moments = function(*given, views, EPS, *tops, twice)
    assert not moments.requires_grad and (twice or readers[0] is readers[1])
    readers = readers[: 1 + twice]
    gradients = [each.to(readers[0].dtype) for each in gradients][: len(readers)]
    leaves = [x for x in (*given, *tops) if x is not None]
    return [*(x.detach() for x in readers), moments, *torch.autograd.grad(readers, leaves, gradients)]


def error(found, exact):
    return [((a.double() - b).norm() / b.norm().clamp(min=1e-9)).item() for a, b in zip(found, exact, strict=True)]


CHAINS = [(blend, readers) for blend in BLENDS for readers in ("one", "top two")] + [
    ("sum", "less"),
    ("sum", "less two"),
]


@pytest.mark.parametrize("blend, readers", CHAINS)
def test_it_is_the_chain(device, blend, readers):
    """Results, moments and every gradient, to float32's rounding; 20 channels and 18 rows fill no block."""
    top, less, twice = (word in readers.split() for word in ("top", "less", "two"))
    arguments = inputs(BLENDS[blend], top, device=device, less=less)
    exact = both_ways(reference.blend_norm_gelu, *arguments, dtype=torch.float64, twice=twice)
    found = both_ways(blend_norm_gelu, *arguments, twice=twice)
    assert max(error(found, exact)) < 5e-6
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in found[: 1 + twice])


def test_one_map_in_several_places(device):
    """As the PCM's first pass has it. A compiler may refuse a Function that is given one tensor twice: it is not."""
    (x, _, rate, weight, bias), (_, top_rate, _), (gradient, _) = inputs(2, True, device=device)

    def gradients(function, *, dtype):
        leaf = x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        error, *_ = function(leaf, leaf, rate, weight, bias, 2, EPS, leaf, top_rate, leaf)
        return torch.autograd.grad(error, leaf, gradient.to(dtype))

    given = []
    apply = norm_gelu._Chain.apply
    with mock.patch.object(norm_gelu._Chain, "apply", lambda *each: given.extend(each) or apply(*each)):
        found = gradients(blend_norm_gelu, dtype=torch.float32)
    assert len({id(each) for each in given if isinstance(each, torch.Tensor)}) == 8
    assert max(error(found, gradients(reference.blend_norm_gelu, dtype=torch.float64))) < 5e-6


def test_any_layout(device):
    arguments = inputs(2, True, device=device)
    found, expected = (
        both_ways(blend_norm_gelu, *arguments, layout=layout)
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    assert all(torch.equal(have, want) for have, want in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str)
def test_its_error_is_that_of_eager_code(device, dtype):
    """In 16 bits: against float64, at most twice what the plain version has, whose maps are rounded alike."""
    if dtype == torch.bfloat16 and device == "cpu":
        pytest.skip("the interpreter cuts bfloat16 off; a GPU rounds it")
    arguments = inputs(2, True, dtype, device, less=True)
    exact = both_ways(reference.blend_norm_gelu, *arguments, dtype=torch.float64, twice=True)
    found, plain = (both_ways(op, *arguments, twice=True) for op in (blend_norm_gelu, reference.blend_norm_gelu))
    assert found[0].dtype == dtype
    for mine, its in zip(error(found, exact), error(plain, exact), strict=True):
        assert mine <= 2 * its + 1e-5


@pytest.mark.parametrize("shape, views", [((2, 1, 1, 1), 1), ((3, 33, 5, 4), 1), ((6, 5, 3, 3), 3)], ids=str)
def test_odd_sizes(device, shape, views):
    arguments = inputs(1, True, shape=shape, device=device)
    exact = both_ways(reference.blend_norm_gelu, *arguments, dtype=torch.float64, views=views)
    found = both_ways(blend_norm_gelu, *arguments, views=views)
    for have, want in zip(found, exact, strict=True):
        torch.testing.assert_close(have.double(), want, rtol=1e-4, atol=1e-4)


def test_values_far_from_zero_lose_nothing(device):
    """A mean of 1,000 standard deviations: a sum of squares in float32 would leave no variance."""
    (x, *others), tops, gradients = inputs(0, False, device=device)
    arguments = [x + 1000, *others], tops, gradients
    exact = both_ways(reference.blend_norm_gelu, *arguments, dtype=torch.float64)
    assert max(error(both_ways(blend_norm_gelu, *arguments), exact)) < 1e-3


def test_two_runs_give_the_same_bits(device):
    arguments = inputs(2, True, device=device)
    first, second = (both_ways(blend_norm_gelu, *arguments, twice=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_rates_below_zero_have_no_gradient(device):
    given, tops, gradients = inputs(2, True, device=device)
    given[2], tops[1] = -given[2].abs(), -tops[1].abs()
    found = both_ways(blend_norm_gelu, given, tops, gradients)
    to_y, to_rate, to_top, to_top_rate = found[3], found[4], found[-2], found[-1]
    assert not any(x.any() for x in (to_y, to_rate, to_top, to_top_rate))


@pytest.mark.slow
def test_schemas_and_fakes(device):
    (x, y, rate, weight, bias), (top, top_rate, less), (gradient, again) = inputs(2, True, device=device, less=True)
    ops, checks = torch.ops.essl_fast, ("test_schema", "test_faketensor")
    for given in ((x, y, rate, 2), (x, y, None, 2), (x, None, None, 2)):
        torch.library.opcheck(ops.blend.default, given, test_utils=checks)
    u, partial = ops.blend(x, y, rate, 2)
    for stores in (True, False):
        given = (u, partial, weight, bias, top, top_rate, less, 2, EPS, stores)
        torch.library.opcheck(ops.norm_gelu.default, given, test_utils=checks)
    _, _, moments = ops.norm_gelu(*given)
    given = (gradient, again, u, moments, weight, bias, x, y, top, top_rate, EPS)
    torch.library.opcheck(ops.norm_gelu_sums.default, given, test_utils=checks)
    given = (gradient, again, u, moments, weight, bias, ops.norm_gelu_sums(*given), rate, top, top_rate, EPS, True)
    torch.library.opcheck(ops.norm_gelu_gradients.default, given, test_utils=checks)


def test_the_reference_has_its_gradients():
    given, tops, _ = inputs(2, True, torch.float64, shape=(4, 2, 2, 1), less=True)
    leaves = [x.requires_grad_() for x in (*given, *tops)]
    assert torch.autograd.gradcheck(
        lambda *a: reference.blend_norm_gelu(*a[:5], 2, EPS, *a[5:], twice=True)[:2], leaves
    )


def test_it_is_part_of_a_graph(device):
    arguments = inputs(2, True, shape=(4, 16, 2, 1), device=device)
    compiled = torch.compile(blend_norm_gelu, fullgraph=True, dynamic=False, backend="aot_eager")
    found, expected = (both_ways(op, *arguments, twice=True) for op in (compiled, blend_norm_gelu))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_second_derivative_is_refused(device):
    (x, *others), tops, _ = inputs(0, False, device=device)
    out, _, _ = blend_norm_gelu(x.requires_grad_(), *others, 2, EPS, *tops)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out.sum(), x, create_graph=True)


def test_a_cpu_and_float64_take_the_plain_form():
    given, tops, _ = inputs(1, False, less=True)
    assert not runs_chain(given[0]) and not runs_chain(given[0].double())
    error, out, moments = blend_norm_gelu(*given, 2, EPS, *tops, twice=True)
    alone, same, expected = reference.blend_norm_gelu(*given, 2, EPS, *tops[:2])
    assert alone is same and torch.equal(out, alone) and torch.equal(error, alone - tops[2])
    assert torch.equal(moments, expected)


@pytest.mark.slow  # ten seconds: the interpreter runs forty launches over maps of 14 x 14
def test_the_pcm_computes_the_same_with_it(device, monkeypatch):
    """Output, gradients and running statistics of the whole module, by kernels and without them."""
    monkeypatch.setattr(norm_gelu, "ROWS", 128)  # few turns for the interpreter
    torch.manual_seed(0)
    module = PCM(cycles=1, audio_dim=4, out_dim=8, width=8).to(device)
    visual, audio = torch.randn(2, 8, 14, 14, device=device).requires_grad_(), torch.randn(2, 4, device=device)
    state = {name: value.clone() for name, value in module.state_dict().items()}

    def everything():
        module.load_state_dict(state)
        module.zero_grad()
        visual.grad = None
        out = module(visual, audio, 2)
        (out * torch.arange(out.numel(), device=device).view_as(out).cos()).sum().backward()
        gradients = {name: p.grad for name, p in module.named_parameters()}
        return {"out": out.detach(), "visual": visual.grad, **gradients, **dict(module.named_buffers())}

    fused = {name: value.clone() for name, value in everything().items()}
    monkeypatch.setattr(kernels, "runs_chain", lambda x: False)
    plain = everything()
    assert fused.keys() == plain.keys()
    for name, have in fused.items():
        torch.testing.assert_close(
            have, plain[name], rtol=2e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
