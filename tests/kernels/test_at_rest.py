"""The kernels of a network at rest against float64 and PyTorch's pool: interpreted on a CPU, compiled on a GPU."""

import pytest
import torch
import torch.nn.functional as F

from essl_fast import kernels
from essl_fast.kernels import at_rest, blend_norm_gelu_at_rest, reference
from essl_fast.models import PCM

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
EPS = 1e-5


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def device(request, monkeypatch):
    """Where kernels run; all their outputs start as NaN."""
    empty = at_rest._empty
    monkeypatch.setattr(at_rest, "_empty", lambda *given: empty(*given).fill_(torch.nan))
    if request.param == "cpu":
        request.getfixturevalue("triton_on_cpu")
        for name, value in {"ROWS": 8, "FEWER": 8, "WIDTH": 32}.items():  # small programs for the interpreter
            monkeypatch.setattr(at_rest, name, value)
    return request.param


def inputs(device, dtype=torch.float32, shape=(3, 20, 3, 2), shared=False, seed=0):
    """x, y, rate, mean, variance, weight, bias; top, top_rate, less."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.float64 if dtype == torch.float64 else torch.float32

    def made(*size, kind=dtype, shift=0.0):
        value = (torch.randn(size, generator=generator, dtype=torch.float64) + shift).to(device, kind)
        return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value

    def channels():
        return made(shape[1], kind=own)

    y = made(*shape[:2], 1, 1) if shared else made(*shape)
    chain = made(*shape, shift=2), y, channels(), channels(), channels().square() + 0.5, channels(), channels()
    return chain, (made(*shape), channels(), made(*shape))


def wide(values):
    return [None if x is None else x.double() for x in values]


CHAINS = {  # y, rate, top, less, two readers
    "first prediction": (0, 0, 0, 0, False),
    "mix below": (1, 1, 0, 0, True),
    "sum": (1, 0, 0, 0, False),
    "sum with its error": (1, 0, 0, 1, True),
    "the error alone": (1, 0, 0, 1, False),
    "sum with the next mix": (1, 0, 1, 0, True),
}


def chosen(arguments, name):
    """The arguments of a chain: without what it does not have."""
    (x, y, rate, *tables), (top, top_rate, less) = arguments
    has_y, has_rate, has_top, has_less, twice = CHAINS[name]
    first = [x, y if has_y else None, rate if has_rate else None, *tables]
    return first, [*((top, top_rate) if has_top else (None, None)), less if has_less else None], twice


@torch.no_grad()
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("shared", [False, True], ids=["maps", "one y a sample"])
def test_it_is_the_chain(device, name, shared):
    """20 channels and 18 rows fill no block."""
    first, last, twice = chosen(inputs(device, shared=shared), name)
    exact = reference.blend_norm_gelu_at_rest(*wide(first), EPS, *wide(last), twice)
    found = blend_norm_gelu_at_rest(*first, EPS, *last, twice)
    assert (found[0] is found[1]) == (not twice or name in ("mix below", "sum with the next mix"))
    for have, want in zip(found, exact, strict=True):
        assert have.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(have.double(), want, rtol=1e-5, atol=5e-6)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str)
def test_its_error_is_that_of_eager_code(device, dtype):
    """In 16 bits: against float64, at most twice what the plain version has, whose maps are rounded alike."""
    if dtype == torch.bfloat16 and device == "cpu":
        pytest.skip("the interpreter cuts bfloat16 off; a GPU rounds it")
    arguments = inputs(device, dtype)
    for name in CHAINS:
        first, last, twice = chosen(arguments, name)
        exact = reference.blend_norm_gelu_at_rest(*wide(first), EPS, *wide(last), twice)
        found = blend_norm_gelu_at_rest(*first, EPS, *last, twice)
        plain = reference.blend_norm_gelu_at_rest(*first, EPS, *last, twice)
        for have, its, want in zip(found, plain, exact, strict=True):
            assert have.dtype == dtype
            assert (have.double() - want).norm() <= 2 * (its.double() - want).norm() + 1e-5 * want.norm()


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 33, 5, 4), (1, 64, 2, 8)], ids=str)
def test_odd_sizes_and_layouts(device, shape):
    first, last, twice = chosen(inputs(device, shape=shape), "sum with the next mix")
    first[1] = first[1].contiguous()
    exact = reference.blend_norm_gelu_at_rest(*wide(first), EPS, *wide(last), twice)
    found = blend_norm_gelu_at_rest(*first, EPS, *last, twice)
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-5, atol=5e-6)


def test_it_is_what_pytorch_computes():
    """The plain form against PyTorch's own batch norm in evaluation, GELU and operators, in float64."""
    (x, y, rate, mean, variance, weight, bias), (top, top_rate, less) = inputs("cpu", torch.float64)
    r, t = (each.relu()[:, None, None] for each in (rate, top_rate))
    found = reference.blend_norm_gelu_at_rest(x, y, rate, mean, variance, weight, bias, EPS, top, top_rate, less, True)
    normal = F.batch_norm((1 - r) * x + r * y, mean, variance, weight, bias, False, 0.0, EPS)
    out = F.gelu((1 - t) * F.gelu(normal) + t * top)
    torch.testing.assert_close(found, (out - less, out))


def test_gradients_and_other_types_take_pytorch(device):
    first, last, twice = chosen(inputs(device), "sum with its error")
    assert not kernels.rests(first[0])
    assert blend_norm_gelu_at_rest(first[0].requires_grad_(), *first[1:], EPS, *last, twice)[0].requires_grad
    with torch.no_grad():
        assert kernels.rests(first[0]) and not kernels.rests(first[0].double()) and not kernels.rests(first[0][:0])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 20, 6, 4), (1, 40, 7, 5), (3, 3, 3, 2), (1, 1, 2, 2)], ids=str)
def test_the_pool_is_pytorchs(device, shape, dtype):
    """The same bits; odd sides, equal values, NaN and infinities."""
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randint(-3, 3, shape, generator=generator).to(device, dtype)
    x.view(-1)[:: max(2, x.numel() // 3)] = torch.nan
    x.view(-1)[1 :: max(2, x.numel() // 2)] = -torch.inf
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        found = kernels.halved(given)
        assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, F.max_pool2d(x, 2), rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_schemas_and_fakes(device):
    checks = ("test_schema", "test_faketensor")
    with torch.no_grad():
        arguments = inputs(device)
        for name in CHAINS:
            first, last, twice = chosen(arguments, name)
            for stores in {True, twice}:
                given = *first, EPS, *last, stores
                torch.library.opcheck(torch.ops.essl_fast.chain_at_rest.default, given, test_utils=checks)
        torch.library.opcheck(torch.ops.essl_fast.pool_at_rest.default, (arguments[0][0],), test_utils=checks)


@pytest.mark.slow  # the interpreter runs a dozen launches over maps of 14 x 14
@torch.no_grad()
def test_the_pcm_computes_the_same_with_it(device, monkeypatch):
    """In evaluation, by kernels and without them; and it leaves the running statistics alone."""
    monkeypatch.setattr(at_rest, "ROWS", 128)  # few turns for the interpreter
    monkeypatch.setattr(at_rest, "FEWER", 128)
    torch.manual_seed(0)
    module = PCM(cycles=2, audio_dim=4, out_dim=8, width=8).to(device).eval()
    for each in module.modules():
        if hasattr(each, "running_mean"):
            each.running_mean.normal_()
            each.running_var.uniform_(0.5, 2)
            each.weight.normal_()
            each.bias.normal_()
    for rate in module.rates():
        rate.normal_(0.5)
    visual, audio = torch.randn(2, 8, 14, 14, device=device), torch.randn(2, 4, device=device)
    before = {name: value.clone() for name, value in module.named_buffers()}
    fused = module(visual, audio)
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())
    with torch.enable_grad():
        exact = module.double()(visual.double(), audio.double())
    torch.testing.assert_close(fused.double(), exact, rtol=1e-3, atol=1e-4)
