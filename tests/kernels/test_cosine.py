"""The fused L_U against the reference in float64: interpreted on a CPU, compiled and at real sizes on a GPU."""

import numpy as np
import pytest
import torch

from essl_fast.kernels import cosine, reference, tuning
from essl_fast.kernels.cosine import negative_cosine_similarity
from essl_fast.kernels.tuning import Config

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# NumPy, which interprets the kernels, warns where a GPU just computes an infinity or a NaN that is then masked.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def device(request, monkeypatch):
    """Where kernels run; all their outputs and workspaces start as NaN."""

    def poisoned(*shape, dtype, device):
        return torch.full(shape, float("nan"), dtype=dtype, device=device)

    monkeypatch.setattr(cosine, "_empty", poisoned)
    if request.param == "cpu":
        request.getfixturevalue("triton_on_cpu")
        from triton.runtime import interpreter

        truncating = interpreter._convert_float

        def nearest(values, source, target, mode):
            """The interpreter's conversion cuts float32 to bfloat16 off; a GPU rounds it."""
            if (source.name, target.name) != ("fp32", "bf16"):
                return truncating(values, source, target, mode)
            rounded = torch.from_numpy(np.ascontiguousarray(values)).bfloat16()
            return rounded.view(torch.int16).numpy().view(np.uint16)

        monkeypatch.setattr(interpreter, "_convert_float", nearest)
    return request.param


def random_inputs(rows, width, p_type=F32, z_type=F32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(rows, width, generator=generator) for _ in range(4)]
    return [x.to(device, kind) for x, kind in zip(values, (p_type, p_type, z_type, z_type), strict=True)]


def gradients(op, inputs, upstream=1.0, dtype=None):
    """Loss, and gradients of p1 and p2 in float64, of an op on the inputs' values in dtype."""
    p1, p2, z1, z2 = (x.detach().to(dtype or x.dtype) for x in inputs)
    p1.requires_grad_()
    p2.requires_grad_()
    loss = op(p1, p2, z1, z2)
    (loss * upstream).backward()
    return loss.detach(), p1.grad, p2.grad


def worst_row(gradient, truth):
    """The largest relative error of a row's gradient. A row whose true gradient is zero must have none."""
    gradient, truth = gradient.double(), truth.double()
    size, error = truth.norm(dim=1), (gradient - truth).norm(dim=1)
    assert not error[size == 0].any()
    return (error / size)[size > 0].amax().item() if size.any() else 0.0


def check(inputs, upstream=1.0):
    """Ours is at most twice as far from float64 as eager PyTorch in the inputs' types."""
    ours = gradients(negative_cosine_similarity, inputs, upstream)
    eager = gradients(reference.negative_cosine_similarity, inputs, upstream)
    truth = gradients(reference.negative_cosine_similarity, inputs, upstream, torch.float64)
    assert ours[0].dtype == F32 and ours[0].shape == ()
    assert (ours[0] - truth[0]).abs() <= 2 * (eager[0] - truth[0]).abs() + 2.0**-23
    for mine, theirs, exact in zip(ours[1:], eager[1:], truth[1:], strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        assert worst_row(mine, exact) <= 2 * worst_row(theirs, exact) + 2.0**-21


@pytest.mark.parametrize("p_type, z_type", [(F32, F32), (BF16, BF16), (F16, F16), (BF16, F32), (F32, F16)], ids=str)
@pytest.mark.parametrize("rows, width", [(1, 1), (1, 7), (3, 100), (37, 33)])
def test_loss_and_gradients(device, rows, width, p_type, z_type):
    check(random_inputs(rows, width, p_type, z_type, device), upstream=0.7)


@pytest.mark.parametrize("rows, width, kind", [(2, 2048, BF16), (1, 3000, F32)], ids=str)
def test_wide_rows(device, rows, width, kind):
    check(random_inputs(rows, width, kind, kind, device))


@pytest.mark.parametrize("kind", [F32, BF16], ids=str)
def test_zero_and_tiny_vectors(device, kind):
    """As in F.cosine_similarity: norms are clamped to 1e-8, but their gradient is not."""
    p1, p2, z1, z2 = random_inputs(9, 12, kind, kind, device, seed=1)
    p1[0], z2[1], p1[2], z2[2] = 0, 0, 0, 0  # p, z, both
    for row, scale in enumerate((1e-9, 2e-9, 1e-20, 1e-30), start=3):
        p1[row] *= scale
        p2[row] *= scale
        z1[row] *= scale
    p1[7] *= 1e-9
    z2[7] *= 1e-12
    check([p1, p2, z1, z2])
    zeros = [torch.zeros(2, 3, dtype=kind, device=device) for _ in range(4)]
    loss, *grads = gradients(negative_cosine_similarity, zeros)
    assert loss == 0 and not any(grad.any() for grad in grads)


def test_norms_beyond_the_range_of_float32(device):
    """Where |p|^2 overflows, PyTorch's norm is infinite, the cosine and the gradient are 0."""
    inputs = random_inputs(3, 8, device=device)
    inputs[0][1] *= 1e25
    inputs[3][2] *= 1e25
    ours = gradients(negative_cosine_similarity, inputs)
    eager = gradients(reference.negative_cosine_similarity, inputs)
    for mine, theirs in zip(ours, eager, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert not ours[1][1:].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_stays_in_its_row(device, bad):
    inputs = random_inputs(4, 8, device=device)
    clean = gradients(negative_cosine_similarity, inputs)
    inputs[0][1, 3] = bad
    loss, grad1, grad2 = gradients(negative_cosine_similarity, inputs)
    assert loss.isnan() and grad1[1].isnan().any()
    keep = [0, 2, 3]
    assert torch.equal(grad1[keep], clean[1][keep]) and torch.equal(grad2, clean[2])


def test_strided_inputs(device):
    """Rows with a gap between them are read where they are; columns with a gap are copied."""
    p1, p2, z1, z2 = random_inputs(5, 24, device=device)
    transposed = p2[:, :16].T.contiguous().T
    inputs = [p1[:, 3:19], transposed, z1[0, :16].expand(5, 16), z2[:, ::2][:, :8].repeat(1, 2)]
    assert inputs[0].stride() == (24, 1) and transposed.stride() == (1, 5) and inputs[2].stride() == (0, 1)
    ours = gradients(negative_cosine_similarity, inputs)
    same = gradients(negative_cosine_similarity, [x.contiguous() for x in inputs])
    assert all(torch.equal(a, b) for a, b in zip(ours, same, strict=True))
    check(inputs)


def test_many_rows_give_the_same_bits_twice(device):
    """8,198 parts: nine pieces of the final sum, the last one short."""
    inputs = random_inputs(4099, 2, device=device)
    with tuning.forced(cosine.OP, cosine.shape_class(2, 32), Config({"ROWS": 512}, num_warps=16)):
        check(inputs)
        first, second = (gradients(negative_cosine_similarity, inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_float16_gradients_survive_until_the_loss_scale(device):
    """The unit gradient, about 1e-9, rounds to zero in float16, whose least number is 6e-8. Scaled it does not."""
    inputs = random_inputs(256, 16, F16, F16, device, seed=2)
    inputs[:2] = [(x * 3e4).clamp(-6e4, 6e4) for x in inputs[:2]]
    unit = gradients(reference.negative_cosine_similarity, inputs, dtype=torch.float64)[1]
    assert unit.any() and not unit.half().any()
    check(inputs, upstream=65536.0)


def test_nothing_is_spent_on_gradients_that_nobody_wants(device, monkeypatch):
    made = []
    real = cosine._empty
    monkeypatch.setattr(cosine, "_empty", lambda *shape, **kw: made.append(shape) or real(*shape, **kw))
    inputs = random_inputs(3, 8, device=device)
    expected = reference.negative_cosine_similarity(*inputs)
    plain = negative_cosine_similarity(*inputs)
    inputs[0].requires_grad_()
    with torch.no_grad():
        frozen = negative_cosine_similarity(*inputs)
    with torch.inference_mode():
        inferred = negative_cosine_similarity(*inputs)
    for loss in (plain, frozen, inferred):
        torch.testing.assert_close(loss, expected)
    assert (3, 8) not in made
    negative_cosine_similarity(*inputs)
    assert (3, 8) in made


def test_z_is_constant_and_one_p_may_be(device):
    p1, p2, z1, z2 = (x.requires_grad_() for x in random_inputs(3, 8, device=device))
    negative_cosine_similarity(p1, p2.detach(), z1, z2).backward()
    assert z1.grad is None and z2.grad is None and p2.grad is None
    expected = gradients(reference.negative_cosine_similarity, (p1, p2, z1, z2))[1]
    torch.testing.assert_close(p1.grad, expected)
    assert not negative_cosine_similarity(p1.detach(), p2.detach(), z1, z2).requires_grad


def test_types_may_differ_within_a_pair(device):
    p1, p2, z1, z2 = random_inputs(3, 8, device=device)
    inputs = [p1.bfloat16(), p2, z1, z2.half()]
    check(inputs)
    assert gradients(negative_cosine_similarity, inputs)[1].dtype == BF16


def test_no_second_derivative_in_silence(device):
    inputs = [x.requires_grad_() for x in random_inputs(2, 4, device=device)]
    loss = negative_cosine_similarity(*inputs)
    with pytest.raises(RuntimeError, match="no second derivative; essl_fast.kernels.reference has one"):
        torch.autograd.grad(loss, inputs[0], create_graph=True)


@pytest.mark.parametrize("kind", [F32, F16], ids=str)
def test_opcheck(device, kind, monkeypatch):
    monkeypatch.undo()  # opcheck compares two runs: no poison
    if device == "cpu":
        monkeypatch.setattr(tuning, "CPU_TOO", True)
    inputs = random_inputs(3, 5, kind, device=device)
    torch.library.opcheck(cosine._op, (*inputs, False))
    torch.library.opcheck(cosine._op, (*(x.requires_grad_() for x in inputs[:2]), *inputs[2:], True))
    _, *units = cosine._op(*inputs, True)
    torch.library.opcheck(cosine._backward_op, (*units, torch.tensor(0.3, device=device), kind))
    with pytest.raises(RuntimeError, match="gradient=True"):
        cosine._op(*inputs, False)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(device, dynamic):
    compiled = torch.compile(negative_cosine_similarity, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (3, 4, 6):
        inputs = random_inputs(rows, 10, BF16, F32, device)
        expected = gradients(negative_cosine_similarity, inputs, upstream=3.0)
        found = gradients(compiled, inputs, upstream=3.0)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_autocast_changes_nothing(device):
    inputs = random_inputs(3, 16, device=device)
    expected = gradients(negative_cosine_similarity, inputs)
    with torch.autocast(device, BF16):
        found = gradients(negative_cosine_similarity, inputs)
    assert all(a.dtype == F32 and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_where_no_kernel_runs_the_reference_does(monkeypatch):
    """A CPU without the interpreter, float64, rows too wide for a program, and nothing at all."""
    monkeypatch.setattr(cosine, "_op", None)
    monkeypatch.setattr(cosine, "MAX_WIDTH", 15)
    cases = [random_inputs(2, 4), random_inputs(2, 4, F32, torch.float64), random_inputs(2, 16)]
    for too, inputs in zip((False, True, True), cases, strict=True):
        monkeypatch.setattr(tuning, "CPU_TOO", too)
        assert torch.equal(negative_cosine_similarity(*inputs), reference.negative_cosine_similarity(*inputs))
    assert negative_cosine_similarity(*random_inputs(0, 4)).isnan()


def test_bad_input_is_named():
    p1, p2, z1, z2 = random_inputs(3, 4)
    with pytest.raises(ValueError, match=r"similarity: p1, .* one shape \(B, D\), got .*\(3, 4\), \(2, 4\)"):
        negative_cosine_similarity(p1, p2, z1, z2[:2])
    with pytest.raises(ValueError, match=r"one shape \(B, D\)"):
        negative_cosine_similarity(*(x[None] for x in (p1, p2, z1, z2)))
    with pytest.raises(ValueError, match="floating point and on one device, got .* torch.int64 on cpu"):
        negative_cosine_similarity(p1, p2, z1, z2.long())
    with pytest.raises(ValueError, match="one device, got .* on meta"):
        negative_cosine_similarity(p1, p2, z1, z2.to("meta"))


def test_candidates_are_few_and_fit():
    for width in (1, 5, 128, 2048, 4096, 16384):
        for kind in (16, 32):
            found = cosine.candidates(cosine.shape_class(width, kind))
            assert 1 <= len(found) <= 3 and all(c.num_warps in (1, 2, 4, 8, 16) for c in found)
            assert all(c.blocks["ROWS"] & (c.blocks["ROWS"] - 1) == 0 for c in found)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("rows", [64, 256, 4096])
@pytest.mark.parametrize("kind", [BF16, F16, F32], ids=str)
def test_real_sizes_on_a_gpu(rows, kind):
    inputs = random_inputs(rows, 2048, kind, kind, "cuda")
    check(inputs)
    first = gradients(negative_cosine_similarity, inputs)
    for _ in range(20):  # a race between the parts and their sum would show here
        again = gradients(negative_cosine_similarity, inputs)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
