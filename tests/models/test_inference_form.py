"""VGG-16's form for inference, and the predictive coding module that computes its cycles twice: the same numbers."""

import pytest
import torch

from essl_fast import kernels, models
from essl_fast.kernels import convolution, fp8
from essl_fast.models.norm import ViewBatchNorm, untracked


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    return models.VGG16Trunk().requires_grad_(False).to(memory_format=torch.channels_last)


def run(trunk, images, dtype):
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return trunk(images.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_form_for_inference_computes_what_the_plain_one_does(trunk, dtype):
    side = 48 if dtype == torch.float32 else 16  # most CPUs convolve bf16 a hundred times as slowly
    images = torch.randn(2, 3, side, 32).to(memory_format=torch.channels_last)
    trunk._ready = None
    names, plain = list(trunk.state_dict()), run(trunk, images, dtype)
    trunk.prepare(dtype)
    assert torch.equal(run(trunk, images, dtype), plain) and list(trunk.state_dict()) == names
    assert all(t.dtype == dtype for t in trunk._ready.tensors)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in trunk._ready.tensors if t.ndim == 4)
    # Images of another type, or a gradient that is asked for, take the plain form.
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    assert run(trunk, images, other).dtype == other
    asked = images.clone().requires_grad_()
    trunk(asked).sum().backward()
    assert asked.grad.abs().sum() > 0
    # The fused operator, as a graph holds it; on a CPU it is the same convolution.
    trunk._ready = trunk._ready._replace(fused=[True] * 12)
    compiled = torch.compile(trunk, fullgraph=True, dynamic=False, backend="aot_eager")
    assert torch.equal(run(compiled, images, dtype), plain)


def test_loaded_weights_reach_the_form_for_inference_in_its_place(trunk):
    images = torch.randn(1, 3, 16, 16)
    trunk.prepare(torch.bfloat16)
    places, before = [t.data_ptr() for t in trunk._ready.tensors], run(trunk, images, torch.bfloat16)
    state = {name: value.clone() for name, value in trunk.state_dict().items()}
    trunk.load_state_dict({name: 1.1 * value for name, value in state.items()})
    changed = run(trunk, images, torch.bfloat16)
    assert not torch.equal(changed, before) and [t.data_ptr() for t in trunk._ready.tensors] == places
    trunk._ready = None
    assert torch.equal(run(trunk, images, torch.bfloat16), changed)
    trunk.load_state_dict(state)


def test_conv_relu_is_for_inference():
    x, weight, bias = torch.randn(2, 3, 5, 7), torch.randn(4, 3, 3, 3), torch.randn(4)
    expected = torch.nn.functional.conv2d(x, weight, bias, padding=1).clamp(min=0)
    for fused in (False, True):
        torch.testing.assert_close(kernels.conv_relu(x, weight, bias, fused), expected)
    torch.library.opcheck(torch.ops.essl_fast.conv_relu.default, (x, weight, bias))
    with pytest.raises(RuntimeError, match="no gradient"):
        kernels.conv_relu(x, weight.requires_grad_(), bias, False)
    assert not kernels.conv_relu_fuses(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("side", [8, 7], ids=["even", "odd"])
def test_the_pool_may_come_before_bias_and_relu(side):
    """The same bits, if the bias is added to what was stored, as it is where no engine has bias and ReLU."""
    shapes = (2, 5, side, 6), (16, 5, 3, 3), (16,)
    exact = [torch.randint(-9, 9, shape).double() for shape in shapes]
    exact[2] -= 150  # so that some places are 0
    expected = torch.nn.functional.max_pool2d(kernels.reference.conv_relu(*exact), 2)
    assert 0.05 < (expected == 0).double().mean() < 0.95
    assert torch.equal(convolution.pooled_first(*exact), expected)
    assert torch.equal(kernels.conv_relu_pool(*exact, False), expected)

    half = [torch.randn(shape).bfloat16() for shape in shapes]  # rounding keeps the order, too
    sums = torch.nn.functional.conv2d(*half[:2], padding=1) + half[2][:, None, None]
    assert torch.equal(convolution.pooled_first(*half), torch.nn.functional.max_pool2d(sums.relu(), 2))
    half[0][0, 0, 2, 2] = float("nan")  # it is not lost on the way
    assert convolution.pooled_first(*half)[0].isnan().any() and not convolution.pooled_first(*half)[1].isnan().any()


def test_deterministic_algorithms_keep_the_own_kernel_only(monkeypatch):
    """It has one order of sums. cuDNN's engines have not promised one."""
    monkeypatch.setattr(kernels, "conv_relu_fuses", lambda *given: True)
    trunk = models.VGG16Trunk()
    before = torch.are_deterministic_algorithms_enabled()
    try:
        for wanted, fused in ((False, [True] * 13), (True, [True] + [False] * 12)):
            torch.use_deterministic_algorithms(wanted)
            trunk._ready = None
            trunk.prepare(torch.bfloat16)
            assert trunk._ready.fused == fused
    finally:
        torch.use_deterministic_algorithms(before)


def test_the_trunk_takes_each_layer_before_a_pool_with_its_pool(trunk, monkeypatch):
    images, widths = torch.randn(1, 3, 32, 32), []
    trunk._ready = None
    plain = run(trunk, images, torch.float32)
    trunk.prepare(torch.float32)

    def pooled_first(x, weight, bias, fused):
        widths.append(len(weight))
        return convolution.pooled_first(x, weight, bias)

    monkeypatch.setattr(kernels, "conv_relu_pool", pooled_first)
    torch.testing.assert_close(run(trunk, images, torch.float32), plain, rtol=1e-4, atol=1e-4)
    assert widths == [64, 128, 256, 512]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_cudnns_fused_convolution(dtype, monkeypatch):
    """Held to twice the error of PyTorch's own two passes in that type, against float64."""
    device = torch.device("cuda")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    shapes = (4, 64, 28, 28), (128, 64, 3, 3), (128,)
    x, weight, bias = (torch.randn(shape, device=device, dtype=torch.float64) for shape in shapes)
    weight = weight / 24
    expected = kernels.reference.conv_relu(*(t.to(dtype).double() for t in (x, weight, bias)))
    given = [
        t.to(dtype).contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t.to(dtype)
        for t in (x, weight, bias)
    ]
    if not kernels.conv_relu_fuses(torch.device("cuda", 0), dtype):
        pytest.skip("cuDNN has no fused engine here that computes what it should: PyTorch's two passes run")
    own = (kernels.conv_relu(*given, fused=False).double() - expected).abs().max().item()
    ours = (kernels.conv_relu(*given, fused=True).double() - expected).abs().max().item()
    assert ours <= 2 * own + 1e-6


def test_eight_bits_and_their_error():
    """The emulated experiment against float32: each rounding is within 1/16, layers average most of that out."""
    torch.manual_seed(0)
    values, scale = fp8.quantize(torch.tensor([0.0, 1.0, -3.0, 448.0, 1e-9]))
    assert (values.float() * scale).tolist() == [0, 1, -3, 448, 0]
    assert fp8.quantize(torch.zeros(3))[0].float().tolist() == [0, 0, 0]

    x, weight, bias = torch.randn(3, 16, 5, 7), torch.randn(32, 16, 3, 3) / 12, torch.randn(32)
    quantized, scale = fp8.quantize(weight)
    expected = torch.nn.functional.conv2d(x, weight, bias, padding=1)
    found = fp8.conv(x, quantized, scale, bias)
    assert 1e-3 < (found - expected).norm() / (expected - bias.view(-1, 1, 1)).norm() < 0.05
    # The product's operands hold the windows in the weights' order; a CPU multiplies them in float32.
    values, own = fp8.quantize(x)
    rows, columns = fp8._nine(values).float(), quantized.permute(0, 2, 3, 1).reshape(32, -1).t().float()
    product = (rows @ columns * own * scale + bias).view(3, 5, 7, 32).permute(0, 3, 1, 2)
    torch.testing.assert_close(product, found, rtol=1e-5, atol=1e-5)

    plain, eight = models.VGG16Trunk(), models.VGG16Trunk(fp8=True)
    eight.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    eight.prepare(torch.float32)
    with torch.no_grad():
        want, have = plain(images), eight(images)
        sound = torch.randn(2, 512)
        maps = [kernels.audio_guided_attention(each, sound).similarity for each in (want, have)]
    assert list(eight.state_dict()) == list(plain.state_dict())
    error = ((have - want).norm() / want.norm()).item()
    assert 0.01 < error < 0.15, error
    assert (maps[0] - maps[1]).abs().max() < 0.03


def both(cycles=2, width=32):
    """A PCM that keeps its activations, and the same one that does not."""
    torch.manual_seed(0)
    kept = models.PCM(cycles, 16, 24, width)
    again = models.PCM(cycles, 16, 24, width, checkpoint=True)
    again.load_state_dict(kept.state_dict())
    return kept, again


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_checkpointed_pcm_is_the_same_for_less_memory(compiled):
    inputs = torch.randn(4, 32, 14, 14), torch.randn(4, 16)
    weights, found, saved = torch.randn(4, 24, 14, 14), [], []

    def keep(tensor):
        saved[-1] += tensor.nbytes
        return tensor

    for pcm in both(cycles=1 if compiled else 2):
        step = torch.compile(pcm, fullgraph=True, dynamic=False, backend="aot_eager") if compiled else pcm
        given = [t.clone().requires_grad_() for t in inputs]
        saved.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = step(*given, 2)
        (out * weights).sum().backward()
        found.append([out, *(t.grad for t in given), *(p.grad for p in pcm.parameters()), *pcm.buffers()])
        assert pcm.correct_norm[0].num_batches_tracked == 2 and pcm.cycle_correct_norm[0].num_batches_tracked == 2
        assert all(norm.tracking for norm in pcm.modules() if isinstance(norm, ViewBatchNorm))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    if not compiled:  # the compiler's partitioner hides what it saves
        assert saved[1] < 0.6 * saved[0]


def test_a_checkpointed_pcm_evaluates_without_a_second_pass():
    kept, again = (pcm.eval() for pcm in both())
    with torch.no_grad():
        out = [pcm(torch.ones(1, 32, 14, 14), torch.ones(1, 16)) for pcm in (kept, again)]
    assert torch.equal(*out)


def test_untracked_norms_move_nothing():
    for synced in (False, True):  # the two ways a norm is computed
        norm, x = ViewBatchNorm(3), torch.randn(4, 3)
        before = [buffer.clone() for buffer in norm.buffers()]
        with untracked(norm):
            inside = norm._in_one(x, 2, 2, None) if synced else norm(x, 2)
        assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), before, strict=True))
        torch.testing.assert_close(inside, norm(x, 2))
        assert not torch.equal(norm.running_mean, before[0])
