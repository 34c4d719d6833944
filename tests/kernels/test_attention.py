"""The fused attention against the reference in float64: interpreted on a CPU, compiled and at real sizes on a GPU."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from essl_fast.kernels import attention, attention_backward, reference, tuning
from essl_fast.kernels import attention_tiles as tiles
from essl_fast.kernels.attention import audio_guided_attention

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
LAST, FIRST = torch.channels_last, torch.contiguous_format
# NumPy, which interprets the kernels, warns where a GPU just computes an infinity or a NaN.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def device(request, monkeypatch):
    """Where kernels run. All that they are to write starts as NaN."""
    if request.param == "cpu":
        request.getfixturevalue("triton_on_cpu")
        round_to_nearest(monkeypatch)
        count_to_a_tensor(monkeypatch)
    empty, like = tiles.empty, tiles.like
    monkeypatch.setattr(tiles, "empty", lambda *args: empty(*args).fill_(float("nan")))
    monkeypatch.setattr(tiles, "like", lambda features: like(features).fill_(float("nan")))
    return request.param


def round_to_nearest(monkeypatch):
    """Triton's interpreter cuts float32 down to bfloat16; a GPU rounds it."""
    from triton.runtime import interpreter

    plain = interpreter._convert_float

    def convert(values, source, target, mode):
        if (source.name, target.name) == ("fp32", "bf16"):
            return torch.from_numpy(np.ascontiguousarray(values)).to(BF16).view(torch.int16).numpy().view(np.uint16)
        return plain(values, source, target, mode)

    monkeypatch.setattr(interpreter, "_convert_float", convert)


def count_to_a_tensor(monkeypatch):
    """A range in Triton's interpreter ends at an array of one value, of which NumPy 2.4 makes no number."""
    from triton.runtime import interpreter

    def counted(*bounds):
        return range(*(bound if isinstance(bound, int) else bound.handle.data.item() for bound in bounds))

    monkeypatch.setattr(interpreter, "range", counted, raising=False)


def inputs_of(shape, kind=F32, layout=LAST, audio_kind=None, device="cpu", seed=0):
    """Features (B, C, H, W) with a common direction, as a network's have, and audio (B, C)."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(shape, generator=generator) + torch.randn(1, shape[1], 1, 1, generator=generator)
    audio = torch.randn(shape[:2], generator=generator)
    return features.to(device, kind, memory_format=layout), audio.to(device, audio_kind or kind)


def weights_of(features, parts, seed=1):
    """What pooled, similarity and attention are multiplied by in the loss; None for those not in parts."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, height, width = features.shape
    shapes = {"pooled": (batch, channels), "similarity": (batch, height, width), "attention": (batch, height, width)}
    drawn = {name: torch.randn(shape, generator=generator).to(features.device) for name, shape in shapes.items()}
    return [drawn[name] if name in parts else None for name in shapes]


def run(op, features, audio, weights, kind=None, wanted=(True, True)):
    """The three outputs, then the gradients of features and audio, of an op on the inputs' values in a type."""
    features = features.detach() if kind is None else features.detach().to(kind)
    audio = audio.detach() if kind is None else audio.detach().to(kind)
    features.requires_grad_(wanted[0])
    audio.requires_grad_(wanted[1])
    out = op(features, audio)
    loss = sum((part * weight).sum() for part, weight in zip(out, weights, strict=True) if weight is not None)
    loss.backward()
    return [*(part.detach() for part in out), features.grad, audio.grad]


def check(features, audio, parts=("pooled", "similarity", "attention"), wanted=(True, True), floor=2.0**-20):
    """Ours is at most twice as far from float64 as eager PyTorch in the inputs' types, or floor of the largest value.

    The error is the largest of all values, relative to the largest value. The floor is 8 units in the last place: on a
    CPU without FMA each product is rounded, too, and PyTorch's own error may be small by luck.
    """
    weights = weights_of(features, parts)
    ours = run(audio_guided_attention, features, audio, weights, wanted=wanted)
    eager = run(reference.audio_guided_attention, features, audio, weights, wanted=wanted)
    truth = run(reference.audio_guided_attention, features, audio, weights, F64, wanted)
    for name, mine, theirs, exact in zip(
        ("pooled", "similarity", "attention", "d features", "d audio"), ours, eager, truth, strict=True
    ):
        if theirs is None:
            assert mine is None, name
            continue
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape, name
        size = exact.abs().amax()
        error, allowed = (mine - exact).abs().amax(), 2 * (theirs - exact).abs().amax() + floor * size
        assert error <= allowed, f"{name}: {error:.2e} off, {allowed:.2e} allowed, the largest value is {size:.2e}"
    return ours


def split_into(monkeypatch, splits):
    monkeypatch.setattr(tiles, "splits_of", lambda *_: splits)


SHAPES = [(2, 24, 5, 7), (1, 64, 4, 4), (3, 17, 3, 5), (1, 520, 2, 3), (2, 8, 1, 1), (2, 2, 3, 4), (1, 36, 1, 9)]


@pytest.mark.parametrize("kind", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("layout", [LAST, FIRST], ids=["last", "first"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients(device, shape, layout, kind):
    features, audio = inputs_of(shape, kind, layout, device=device)
    ours = check(features, audio)
    assert ours[3].stride() == features.stride()
    assert all(part.dtype == F32 for part in ours[:3])


@pytest.mark.parametrize("layout", [LAST, FIRST], ids=["last", "first"])
def test_one_channel(device, layout):
    """Every cosine is 1 or -1, so nothing reaches a feature but through the pooled vector, and nothing the audio."""
    features, audio = inputs_of((2, 1, 3, 4), layout=layout, device=device)
    weights = weights_of(features, ("pooled", "similarity", "attention"))
    ours = run(audio_guided_attention, features, audio, weights)
    truth = run(reference.audio_guided_attention, features, audio, weights, F64)
    for mine, exact in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind, layout", [(BF16, LAST), (F32, FIRST)], ids=["bf16-last", "fp32-first"])
def test_training_shape(device, kind, layout):
    check(*inputs_of((2, 512, 14, 14), kind, layout, device=device))


@pytest.mark.slow
@pytest.mark.parametrize("layout", [LAST, FIRST], ids=["last", "first"])
@pytest.mark.parametrize("splits", [1, 2, 3])
def test_any_number_of_programs_a_sample(device, monkeypatch, splits, layout):
    """Each number gives the same but for rounding, and each run the same to the bit."""
    features, audio = inputs_of((2, 272, 7, 9), BF16, layout, device=device)
    split_into(monkeypatch, splits)
    first = check(features, audio)
    weights = weights_of(features, ("pooled", "similarity", "attention"))
    again = run(audio_guided_attention, features, audio, weights)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    split_into(monkeypatch, 1)
    for one, other in zip(run(audio_guided_attention, features, audio, weights), first, strict=True):
        close = 2.0**-7 if one.dtype == BF16 else 2.0**-20
        assert (one.float() - other.float()).abs().amax() <= close * one.abs().amax()


@pytest.mark.parametrize("batch, kind", [*((batch, F16) for batch in (1, 2, 3, 4, 5, 8, 9)), (7, F32)], ids=str)
def test_several_samples_a_program(device, monkeypatch, batch, kind):
    """On a chip that holds four programs: batches below, at and above that, and such as do not fill the last turn.

    A sample's bits do not depend on the program that takes it, and on its turn.
    """
    features, audio = inputs_of((batch, 256, 3, 5), kind, device=device)
    split_into(monkeypatch, 1)
    monkeypatch.setattr(tuning, "processors_of", lambda device: 1)
    monkeypatch.setattr(tiles, "registers", lambda warps: 128)
    bits, vector = (16, 8) if kind == F16 else (32, 4)
    config = tiles.config_of(f"c256-p15-{bits}bit-last{vector}-split1", 64, True, warps=4)
    programs, count = [], attention.programs_of
    monkeypatch.setattr(attention, "programs_of", lambda *given: programs.append(count(*given)) or programs[-1])
    with tuning.forced("attention_forward", tiles.shape_class(features), config):
        shared = check(features, audio)[:3]
        assert programs == [{1: 1, 2: 2, 3: 3, 4: 4, 5: 3, 7: 4, 8: 4, 9: 3}[batch]]
        monkeypatch.setattr(attention, "programs_of", lambda features, *_: len(features))
        for one, other in zip(audio_guided_attention(features, audio), shared, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("which", ["attention_forward", "attention_backward"])
@pytest.mark.parametrize("layout", [LAST, FIRST], ids=["last", "first"])
def test_every_candidate(device, which, layout):
    features, audio = inputs_of((1, 40, 6, 6), BF16, layout, device=device)
    shape_class = tiles.shape_class(features)
    module = {"attention_forward": attention, "attention_backward": attention_backward}[which]
    assert module._default(shape_class) == module.candidates(shape_class)[0]
    for config in module.candidates(shape_class):
        with tuning.forced(which, shape_class, config):
            check(features, audio)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["features", "audio"])
@pytest.mark.parametrize("splits", [1, 2])
def test_gradient_of_one_input(device, monkeypatch, wanted, splits):
    split_into(monkeypatch, splits)
    check(*inputs_of((2, 136, 5, 7), device=device), wanted=wanted)


@pytest.mark.parametrize(
    "parts",
    [("pooled",), ("similarity",), ("attention",), ("pooled", "attention"), ("similarity", "attention")],
    ids="+".join,
)
def test_gradient_through_some_outputs(device, monkeypatch, parts):
    """The kernel does no work for the others: it gets no gradient of theirs."""
    given, backward = [], attention_backward.backward
    monkeypatch.setattr(attention_backward, "backward", lambda *args: given.extend(args[6:9]) or backward(*args))
    check(*inputs_of((2, 24, 5, 7), device=device), parts)
    assert [gradient is not None for gradient in given] == [
        name in parts for name in ("pooled", "similarity", "attention")
    ]


@pytest.mark.parametrize("kind, audio_kind", [(BF16, F32), (F32, BF16), (F16, BF16)], ids=str)
def test_types_of_their_own(device, kind, audio_kind):
    features, audio = inputs_of((2, 24, 3, 5), kind, audio_kind=audio_kind, device=device)
    ours = check(features, audio)
    assert (ours[3].dtype, ours[4].dtype) == (kind, audio_kind)


@pytest.mark.parametrize("kind", [F32, BF16], ids=str)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::2],
        lambda x: x[:, 4:20],
        lambda x: x[:, 1:18],
        lambda x: x[:, ::2],
        lambda x: x[:, :, 1:, :3],
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: x.permute(0, 2, 1, 3),
        lambda x: x[:, :, :1, :1].expand(-1, -1, 3, 4),
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: (x - x.mean((2, 3), keepdim=True))[:, :1].expand(-1, 5, -1, -1),  # of both signs: no constant map
    ],
    ids=[
        *("batch", "channels", "odd channels", "other channels", "crop", "rotated", "mixed"),
        *("one position", "one sample", "one channel"),
    ],
)
@pytest.mark.parametrize("layout", [LAST, FIRST], ids=["last", "first"])
def test_strides(device, layout, view, kind):
    features, _ = inputs_of((4, 24, 4, 6), kind, layout, device=device)
    features = view(features)
    audio = inputs_of(features.shape, seed=2, device=device)[1].T.contiguous().T
    if features.stride(2) == features.stride(3) == 0:  # a constant map: its gradient is rounding over 1e-10
        ours = audio_guided_attention(features, audio)
        assert not ours.attention.any() and not ours.pooled.any()
        return
    # Where all channels are one, there are two cosines, and which of the equal ones is the first is rounding's choice.
    parts = ("similarity",) if features.stride(1) == 0 else ("pooled", "similarity", "attention")
    gradient = check(features, audio, parts)[3]
    dense = features.is_contiguous() or features.is_contiguous(memory_format=LAST)
    assert not dense or gradient.stride() == features.stride()


def test_a_gradient_that_is_not_contiguous(device):
    features, audio = inputs_of((2, 24, 3, 5), device=device)
    features.requires_grad_()
    audio_guided_attention(features, audio).pooled.sum().backward()  # expanded from a scalar
    ones = run(reference.audio_guided_attention, features, audio, [torch.ones(2, 24, device=device), None, None])[3]
    torch.testing.assert_close(features.grad, ones)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("layout", [LAST, FIRST], ids=["last", "first"])
def test_constant_maps_are_exactly_zero(device, monkeypatch, layout, splits):
    """A constant feature, zero features, zero audio: where a plain difference of sums is rounding over 1e-10."""
    split_into(monkeypatch, splits)
    features, audio = inputs_of((3, 45, 5, 7), layout=layout, device=device)
    features[0] = features[0, :, :1, :1]
    features[1] = 0
    audio[2] = 0
    out = audio_guided_attention(features, audio)
    assert not out.attention.any() and not out.pooled.any()
    assert not out.similarity[1:].any()
    expected = F.cosine_similarity(features[0, :, 0, 0], audio[0], dim=0)
    torch.testing.assert_close(out.similarity[0], expected.expand(5, 7))


@pytest.mark.parametrize("splits", [1, 2])
def test_gradient_of_a_constant_map(device, monkeypatch, splits):
    """All positions tie for both extremes, and the first has the gradient of both. Powers of two: no rounding in s."""
    split_into(monkeypatch, splits)
    features = torch.zeros(1, 16, 5, 5, device=device)
    features[:, 3] = 2.0
    audio = torch.zeros(1, 16, device=device)
    audio[:, 3:7] = 4.0
    check(features, audio, floor=2.0**-18)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("sign", [1, -1], ids=["maximum", "minimum"])
def test_a_tie_sends_the_gradient_to_the_first_position(device, monkeypatch, sign, splits):
    split_into(monkeypatch, splits)
    features, audio = inputs_of((1, 9, 6, 6), layout=FIRST, device=device)
    order = (sign * audio_guided_attention(features, audio).similarity.flatten()).argsort(descending=True)
    best, other = order[0].item(), order[-1].item()
    # In different tiles, and in different programs where there are two.
    first, second = next((i, 29 + i) for i in range(1, 7) if not {best, other} & {i, 29 + i})
    flat = features.view(1, 9, 36)
    moved = flat[:, :, first].clone()
    flat[:, :, first] = flat[:, :, second] = flat[:, :, best]
    flat[:, :, best] = moved
    features.requires_grad_()
    out = audio_guided_attention(features, audio)
    similarity = sign * out.similarity.flatten()
    assert similarity[first] == similarity[second] == similarity.max()
    out.attention.flatten()[best].backward()  # between the extremes: it depends on both
    size = features.grad.flatten(2).norm(dim=1)[0]
    assert size[second] == 0 and (size[[first, best, other]] > 1e-3).all()


@pytest.mark.parametrize("layout", [LAST, FIRST], ids=["last", "first"])
def test_zero_vectors(device, layout):
    """F.normalize divides vectors shorter than 1e-12 by 1e-12, and so does the gradient."""
    features, audio = inputs_of((4, 24, 3, 5), layout=layout, device=device)
    features[0, :, 1, 2] = 0
    features[1, :, 0, 0] = features[1, :, 0, 0].sign() * 2e-14
    features[2] *= 1e-11  # short, but not that short
    audio[3] *= 7e-13 / audio[3].norm()
    weights = weights_of(features, ("pooled", "similarity", "attention"))
    ours = run(audio_guided_attention, features, audio, weights)
    truth = run(reference.audio_guided_attention, features, audio, weights, F64)
    for mine, exact in zip(ours, truth, strict=True):
        assert mine.isfinite().all()
        for row, exact_row in zip(mine, exact, strict=True):  # by the sample: their gradients differ by 1e12
            assert (row - exact_row).abs().amax() <= 1e-5 * exact_row.abs().amax()
    long, short = ours[3][0, :, 0, 0], ours[3][0, :, 1, 2]
    assert short.norm() > 1e9 * long.norm()


@pytest.mark.parametrize("splits", [1, 2])
def test_a_nan_is_not_hidden_and_stays_in_its_sample(device, monkeypatch, splits):
    split_into(monkeypatch, splits)
    features, audio = inputs_of((2, 24, 5, 7), device=device)
    weights = weights_of(features, ("pooled", "similarity", "attention"))
    clean = run(audio_guided_attention, features, audio, weights)
    features[0, 5, 4, 3] = float("nan")
    ours = run(audio_guided_attention, features, audio, weights)
    eager = run(reference.audio_guided_attention, features, audio, weights)
    for mine, theirs, before in zip(ours, eager, clean, strict=True):
        assert torch.equal(mine[0].isnan(), theirs[0].isnan())
        assert torch.equal(mine[1], before[1])
    assert ours[0][0].isnan().all() and ours[1][0].isnan().sum() == 1


def test_no_samples(device):
    features, audio = (torch.empty(0, 24, 3, 5, device=device), torch.empty(0, 24, device=device, requires_grad=True))
    out = audio_guided_attention(features, audio)
    assert [tuple(part.shape) for part in out] == [(0, 24), (0, 3, 5), (0, 3, 5)]
    out.pooled.sum().backward()
    assert audio.grad.shape == (0, 24)


@pytest.mark.slow
def test_opcheck(device):
    features, audio = inputs_of((2, 24, 3, 5), device=device)
    features.requires_grad_()
    audio.requires_grad_()
    torch.library.opcheck(attention._attend, (features, audio), rtol=1e-4, atol=1e-5)
    features, audio = features.detach(), audio.detach()
    pooled, similarity, _, sums, extremes = attention._attend(features, audio)
    saved = (features, audio, similarity, pooled, sums, extremes)
    for given, wanted in (((pooled, None, similarity), (True, True)), ((None, similarity, None), (False, True))):
        torch.library.opcheck(attention._attend_backward, (*saved, *given, *wanted))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(device, dynamic):
    compiled = torch.compile(audio_guided_attention, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for layout, shape in ((LAST, (2, 24, 3, 5)), (FIRST, (3, 24, 3, 5))):
        features, audio = inputs_of(shape, layout=layout, device=device)
        weights = weights_of(features, ("pooled", "attention"))
        for one, two in zip(
            run(compiled, features, audio, weights), run(audio_guided_attention, features, audio, weights), strict=True
        ):
            assert torch.equal(one, two) and one.stride() == two.stride()


def test_autocast_changes_nothing(device):
    features, audio = inputs_of((2, 24, 3, 5), device=device)
    plain = audio_guided_attention(features, audio)
    with torch.autocast(device, dtype=BF16):
        cast = audio_guided_attention(features, audio)
    assert all(torch.equal(one, two) and one.dtype == F32 for one, two in zip(plain, cast, strict=True))


def test_the_reference_takes_what_the_kernels_do_not(monkeypatch):
    features, audio = inputs_of((1, 6, 2, 2))
    monkeypatch.setattr(attention, "_attend", None)
    for pair in ((features, audio), (features.double(), audio.double())):
        for one, two in zip(audio_guided_attention(*pair), reference.audio_guided_attention(*pair), strict=True):
            assert torch.equal(one, two)
    monkeypatch.setattr(tuning, "runs_here", lambda tensor: True)
    for shape in ((1, 2049, 1, 2), (1, 2, 5, 205)):
        assert audio_guided_attention(*inputs_of(shape)).pooled.shape == shape[:2]
    assert audio_guided_attention(features.double(), audio.double()).pooled.dtype == F64


@pytest.mark.parametrize(
    "features, audio, complaint",
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 3), r"\(2, 3, 4\) and \(2, 3\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4), r"\(2, 3, 4, 4\) and \(2, 4\)"),
        (torch.zeros(2, 3, 0, 4), torch.zeros(2, 3), "H and W at least 1"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int32), torch.zeros(2, 3), "features must be floating point"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, dtype=torch.int64), "audio must be floating point"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, dtype=F64), "float64 both or neither"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, device="meta"), "on one device"),
    ],
)
def test_bad_inputs(features, audio, complaint):
    with pytest.raises(ValueError, match=f"audio_guided_attention: .*{complaint}"):
        audio_guided_attention(features, audio)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("kind", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("layout", [LAST, FIRST], ids=["last", "first"])
@pytest.mark.parametrize(
    "shape", [(256, 512, 14, 14), (64, 512, 14, 14), (3, 2048, 7, 7), (33, 385, 32, 32), (1000, 64, 9, 5)], ids=str
)
def test_real_sizes(shape, layout, kind):
    features, audio = inputs_of(shape, kind, layout, device="cuda")
    first = check(features, audio)
    weights = weights_of(features, ("pooled", "similarity", "attention"))
    again = run(audio_guided_attention, features, audio, weights)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))


@needs_gpu
@pytest.mark.gpu
def test_more_than_two_to_the_31_values():
    batch = 2**31 // (512 * 196) + 2
    free, _ = torch.cuda.mem_get_info()
    if free < 5 * batch * 512 * 196:
        pytest.skip(f"needs {5 * batch * 512 * 196 / 2**30:.0f} GiB of free GPU memory, {free / 2**30:.0f} GiB are")
    features = torch.zeros(batch, 14, 14, 512, dtype=BF16, device="cuda").permute(0, 3, 1, 2)
    few, audio = inputs_of((2, 512, 14, 14), BF16, device="cuda")
    features[-2:] = few
    features.requires_grad_()
    weights = weights_of(few, ("pooled", "attention"))
    out = audio_guided_attention(features, audio[:1].expand(batch, -1))
    ((out.pooled[-2:] * weights[0]).sum() + (out.attention[-2:] * weights[2]).sum()).backward()
    alone = run(audio_guided_attention, few, audio[:1].expand(2, -1), weights)
    torch.testing.assert_close(out.pooled[-2:], alone[0])
    torch.testing.assert_close(features.grad[-2:], alone[3])
