"""The fused L_S against the reference in float64: interpreted on a CPU, compiled and at real sizes on a GPU."""

import contextlib
import math

import pytest
import torch

from essl_fast.kernels import pixel_bce, pixel_bce_kernels, pixel_bce_op, reference, tuning
from essl_fast.kernels.tuning import Config

# NumPy, which interprets the kernels, warns where a GPU just computes an infinity or a NaN that is then masked.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
FLOOR = 2.0**-23  # what the product of a tile's factors may round by, a pixel; see the kernel's header


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def device(request, monkeypatch):
    """Where kernels run; all their outputs and workspaces start as NaN."""

    def poisoned(*shape, device):
        return torch.full(shape, float("nan"), device=device)

    monkeypatch.setattr(pixel_bce_op, "_empty", poisoned)
    if request.param == "cpu":
        request.getfixturevalue("triton_on_cpu")
    return request.param


def random_inputs(batch, h, w, size, boxes=2, device="cpu", seed=0):
    """A map in [0, 1], boxes of any order inside and outside the grid, all samples labelled."""
    generator = torch.Generator().manual_seed(seed)
    attention = torch.rand(batch, h, w, generator=generator)
    corners = torch.randint(-size // 4, size + size // 4 + 1, (batch, boxes, 4), generator=generator, dtype=torch.int32)
    return [x.to(device) for x in (attention, corners, torch.ones(batch, dtype=torch.bool))]


def gradients(op, attention, boxes, labelled, *args, upstream=1.0, dtype=None):
    """Loss, and the map's gradient, of an op on the map's values in dtype."""
    leaf = attention.detach().to(dtype or attention.dtype).requires_grad_()
    loss = op(leaf, boxes, labelled, *args)
    (loss * upstream).backward()
    return loss.detach(), leaf.grad


def wide_programs(h, w, size, consensus):
    """Fewer, larger programs: the interpreter pays by the program."""
    name = pixel_bce_kernels.shape_class(h, w, size, consensus)
    return tuning.forced(pixel_bce_op.OP, name, Config({"LANES": 1024}, num_warps=32))


def check(attention, boxes, labelled, consensus, size, upstream=1.0):
    """Ours is at most twice as far from float64 as eager PyTorch in the map's type."""
    args = (attention, boxes, labelled, consensus, size)
    loss, grad = gradients(pixel_bce, *args, upstream=upstream)
    eager_loss, eager_grad = gradients(reference.pixel_bce, *args, upstream=upstream)
    true_loss, true_grad = gradients(reference.pixel_bce, *args, upstream=upstream, dtype=torch.float64)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert (loss - true_loss).abs() <= 2 * (eager_loss - true_loss).abs() + FLOOR * true_loss.clamp(min=1)
    assert grad.dtype == attention.dtype and grad.shape == attention.shape
    scale = true_grad.abs().amax()
    error, eager_error = ((g.double() - true_grad).abs().amax() for g in (grad, eager_grad))
    assert error <= 2 * eager_error + 2.0**-21 * scale
    return loss, grad


SHAPES = [  # h, w, size
    (3, 3, 24),  # whole tiles of 4 x 4
    (2, 1, 48),  # two and three tiles in a half-cell
    (5, 7, 16),  # half-cells of one and two pixels
    (4, 5, 50),  # tiles that differ, in two pieces along x
    (1, 1, 9),  # one node: a constant map
    (1, 4, 21),
    (9, 5, 4),  # fewer pixels than nodes
    (3, 2, 1),
]


@pytest.mark.parametrize("consensus", [1, 2])
@pytest.mark.parametrize("h, w, size", SHAPES)
def test_loss_and_gradient(device, h, w, size, consensus):
    check(*random_inputs(2, h, w, size, boxes=3, device=device), consensus, size, upstream=0.7)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_maps(device, kind):
    attention, boxes, labelled = random_inputs(3, 4, 4, 32, device=device)
    check(attention.to(kind), boxes, labelled, 1, 32, upstream=300.0)


@pytest.mark.slow
def test_the_size_of_training(device):
    """14 x 14 to 224: two samples, so that the second one's offsets count, the first one without a label."""
    attention, boxes, labelled = random_inputs(2, 14, 14, 224, device=device, seed=3)
    labelled[0] = False
    _, grad = check(attention, boxes, labelled, 1, 224)
    assert not grad[0].any() and grad[1].all()


def test_the_largest_map(device):
    with wide_programs(32, 32, 64, 1):
        check(*random_inputs(1, 32, 32, 64, device=device), 1, 64)


@pytest.mark.parametrize("nodes", range(1, 33))
def test_every_pixel_is_in_its_half_cell(nodes):
    """The first pixel of a half-cell is the first whose centre is not before it, for every size up to 512."""
    for size in range(1, 513):
        halves = torch.arange(2 * nodes + 1)
        first = pixel_bce_kernels._first_pixel.fn(halves, nodes, size)
        of_pixel = (2 * torch.arange(size) + 1) * nodes // size  # floor((x + 1/2) 2 nodes / size)
        assert torch.equal(first, torch.searchsorted(of_pixel, halves))
        tiles, pixels, whole = pixel_bce_kernels.tiling(nodes, size)
        longest = first.diff().max()
        assert 1 <= pixels <= 8 and tiles * pixels >= longest > (tiles - 1) * pixels
        assert whole == bool((first.diff() == tiles * pixels).all())


@pytest.mark.parametrize("boxes", [0, 1, 7])
def test_any_number_of_boxes(device, boxes):
    check(*random_inputs(2, 3, 3, 24, boxes=boxes, device=device), 1, 24)


@pytest.mark.parametrize("consensus", [3, 4, 5])
def test_more_annotators(device, consensus, monkeypatch):
    """Up to 4 in the kernel, above in the reference; 6 boxes overlap by up to 6."""
    if consensus > pixel_bce_op.MAX_CONSENSUS:
        monkeypatch.setattr(pixel_bce_op, "_op", None)
    attention, _, labelled = random_inputs(1, 3, 3, 24, device=device)
    boxes = torch.tensor([[[0, 0, 22 - 2 * k, 20 - 3 * k] for k in range(6)]], dtype=torch.int32, device=device)
    weights = reference.box_weights(boxes, 24, consensus).unique()
    assert len(weights) == consensus + 1
    check(attention, boxes, labelled, consensus, 24)


@pytest.mark.slow
def test_boxes_of_any_kind(device):
    """Inverted, outside, beyond int32, of other integer types, expanded over the batch: as box_weights sees them."""
    attention, _, labelled = random_inputs(2, 3, 3, 24, device=device)
    rows = [[20, 3, 4, 18], [30, 2, 40, 20], [-9, -9, 0, 30], [3, 3, 3, 9], [-5, 4, 15, 20]]
    rows += [[-(2**40), 5, 2**40, 11], [2, 2**33, 9, 2**34]]
    huge = torch.tensor(rows, device=device).expand(2, -1, -1)
    check(attention, huge, labelled, 1, 24)
    small = huge[:, :5]
    expected = gradients(pixel_bce, attention, small, labelled, 1, 24)
    for kind in (torch.int32, torch.int16, torch.int8):
        found = gradients(pixel_bce, attention, small.to(kind), labelled, 1, 24)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
def test_strided_inputs(device):
    """A transposed view, one view of a stack, and a broadcast map are read where they are."""
    wide, boxes, labelled = random_inputs(4, 4, 3, 12, device=device)
    for attention in (wide.transpose(1, 2), wide[::2], wide[:2, 1:3, ::2], wide[:1].expand(4, 4, 3)):
        batch = len(attention)
        args = (boxes[:batch], labelled[:batch], 1, 12)
        expected = gradients(pixel_bce, attention.contiguous(), *args)
        loss, grad = gradients(pixel_bce, attention, *args)
        assert torch.equal(loss, expected[0]) and torch.equal(grad, expected[1])
    every_other = torch.tensor([True, False] * 4, device=device)[::2]
    assert torch.equal(pixel_bce(wide, boxes, every_other, 1, 12), pixel_bce(wide, boxes, labelled, 1, 12))


def test_unlabelled_samples_stay_out(device):
    attention, boxes, labelled = random_inputs(4, 3, 4, 24, device=device)
    labelled[1] = labelled[2] = False
    expected = check(attention, boxes, labelled, 1, 24)
    attention[1], attention[2] = float("nan"), float("inf")
    found = gradients(pixel_bce, attention, boxes, labelled, 1, 24)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not found[1][1:3].any()
    loss, grad = gradients(pixel_bce, attention, boxes, torch.zeros_like(labelled), 1, 24)
    assert loss == 0 and not grad.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_in_a_labelled_map_shows(device, bad):
    """In the loss. The other samples' gradients are as without it; where the resized map is NaN there is none."""
    attention, boxes, labelled = random_inputs(2, 4, 4, 24, device=device)
    clean = gradients(pixel_bce, attention, boxes, labelled, 1, 24)
    attention[0, 3, 3] = bad
    loss, grad = gradients(pixel_bce, attention, boxes, labelled, 1, 24)
    assert loss.isnan()
    assert torch.equal(grad[1], clean[1][1]) and torch.equal(grad[0, :2, :2], clean[1][0, :2, :2])
    assert grad.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 1.0, 0.25, 1e-6, 1 - 1e-6, 5e-7, -3.0, 1.5])
def test_constant_maps_and_the_clamp(device, value):
    """The clamp lets its exact bounds pass and stops the gradient beyond them, inside the box and outside."""
    attention = torch.full((1, 3, 3), value, device=device)
    boxes = torch.tensor([[[0, 0, 24, 11]]], dtype=torch.int32, device=device)
    loss, grad = gradients(pixel_bce, attention, boxes, torch.tensor([True], device=device), 1, 24)
    heat, inside = attention[0, 0, 0].clamp(1e-6, 1 - 1e-6).item(), 11 / 24
    assert loss.item() == pytest.approx(-inside * math.log(heat) - (1 - inside) * math.log1p(-heat), rel=1e-6)
    passes = heat == attention[0, 0, 0]
    assert passes == (value in (0.25, 1e-6, 1 - 1e-6))
    expected = -inside / heat + (1 - inside) / (1 - heat) if passes else 0
    assert grad.sum().item() == pytest.approx(expected, rel=5e-6, abs=0)


def test_the_product_of_the_least_factors_does_not_vanish(device):
    """A map of zeros in a box that covers all: every factor is 1e-6, the loss 13.8."""
    attention = torch.zeros(1, 2, 2, device=device)
    boxes = torch.tensor([[[0, 0, 64, 64]] * 4], dtype=torch.int32, device=device)
    for consensus in (1, 4):
        loss = pixel_bce(attention, boxes, torch.tensor([True], device=device), consensus, 64)
        assert loss.item() == pytest.approx(13.815510557964274, rel=1e-6)


@pytest.mark.parametrize("level", [1e-5, 1e-3, 0.03])
def test_a_small_loss(device, level):
    """A map near its target: what the product's rounding costs stays below the floor, a pixel and in the mean."""
    attention = torch.full((1, 4, 4), level, device=device)
    boxes = torch.zeros(1, 1, 4, dtype=torch.int32, device=device)
    loss, grad = check(attention, boxes, torch.tensor([True], device=device), 1, 32)
    assert loss.item() == pytest.approx(level + level**2 / 2, abs=FLOOR + level**3)
    torch.testing.assert_close(grad.sum().item(), 1 / (1 - level), rtol=1e-6, atol=0)


def test_two_runs_give_the_same_bits(device):
    args = (*random_inputs(2, 5, 6, 12, device=device), 2, 12)
    first, second = (gradients(pixel_bce, *args) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_more_losses_than_one_piece_of_the_final_sum(device):
    """2,051 samples: three pieces of 1,024 partial losses, two of 2,048 labels, the last ones short."""
    attention, boxes, labelled = random_inputs(2051, 1, 1, 4, boxes=1, device=device)
    labelled[:] = False
    labelled[[0, 1, 1023, 1024, 1600, 2047, 2048, 2050]] = True
    with torch.no_grad():
        loss = pixel_bce(attention, boxes, labelled, 1, 4)
        expected = reference.pixel_bce(attention.double(), boxes, labelled, 1, 4)
    assert abs(loss.item() - expected.item()) < 4 * FLOOR


def test_nothing_is_spent_on_gradients_that_nobody_wants(device, monkeypatch):
    made = []
    real = pixel_bce_op._empty
    monkeypatch.setattr(pixel_bce_op, "_empty", lambda *shape, **kw: made.append(shape) or real(*shape, **kw))
    attention, boxes, labelled = random_inputs(2, 3, 3, 24, device=device)
    expected = reference.pixel_bce(attention, boxes, labelled, 1, 24)
    for context, needs in ((contextlib.nullcontext, False), (torch.no_grad, True), (torch.inference_mode, True)):
        with context():
            loss = pixel_bce(attention.detach().requires_grad_(needs), boxes, labelled, 1, 24)
        torch.testing.assert_close(loss, expected)
    assert made and (2, 3, 3) not in made and all(len(shape) < 3 for shape in made)
    pixel_bce(attention.requires_grad_(), boxes, labelled, 1, 24)
    assert (2, 3, 3) in made


def test_no_second_derivative_in_silence(device):
    attention, boxes, labelled = random_inputs(1, 2, 2, 8, device=device)
    loss = pixel_bce(attention.requires_grad_(), boxes, labelled, 1, 8)
    with pytest.raises(RuntimeError, match="no second derivative; essl_fast.kernels.reference has one"):
        torch.autograd.grad(loss, attention, create_graph=True)


@pytest.mark.slow
def test_opcheck(device, monkeypatch):
    monkeypatch.undo()  # opcheck compares two runs: no poison
    if device == "cpu":
        monkeypatch.setattr(tuning, "CPU_TOO", True)
    attention, boxes, labelled = random_inputs(2, 3, 3, 12, device=device)
    torch.library.opcheck(pixel_bce_op._op, (attention, boxes, labelled, 2, 12, False))
    wanting = [attention.clone().requires_grad_(), attention.bfloat16().requires_grad_()]
    for leaf in wanting:
        torch.library.opcheck(pixel_bce_op._op, (leaf, boxes, labelled, 1, 12, True))
    with pytest.raises(RuntimeError, match="gradient=True"):
        pixel_bce_op._op(wanting[0], boxes, labelled, 1, 12, False)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(device, dynamic):
    compiled = torch.compile(pixel_bce, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (2, 3, 5):
        args = (*random_inputs(batch, 2, 3, 6, boxes=batch, device=device), 1, 6)
        expected = gradients(pixel_bce, *args, upstream=3.0)
        found = gradients(compiled, *args, upstream=3.0)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_autocast_changes_nothing(device):
    args = (*random_inputs(2, 3, 3, 12, device=device), 1, 12)
    expected = gradients(pixel_bce, *args)
    with torch.autocast(device, torch.bfloat16):
        found = gradients(pixel_bce, *args)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_where_no_kernel_runs_the_reference_does(monkeypatch):
    """A CPU without the interpreter, float64, no samples."""
    monkeypatch.setattr(pixel_bce_op, "_op", None)
    attention, boxes, labelled = random_inputs(2, 3, 3, 12)
    for too, values in ((False, attention), (True, attention.double())):
        monkeypatch.setattr(tuning, "CPU_TOO", too)
        assert torch.equal(
            pixel_bce(values, boxes, labelled, 1, 12), reference.pixel_bce(values, boxes, labelled, 1, 12)
        )
    assert pixel_bce(attention[:0], boxes[:0], labelled[:0]) == 0


def test_bad_input_is_named():
    attention, boxes, labelled = random_inputs(2, 3, 3, 12)
    for wrong in (
        (attention[0], boxes, labelled),
        (attention, boxes[:1], labelled),
        (attention, boxes[..., :3], labelled),
        (attention, boxes[0], labelled),
        (attention, boxes, labelled[:1]),
    ):
        with pytest.raises(ValueError, match=r"pixel_bce: needs attention \(B, h, w\), boxes \(B, K, 4\) .*, got \("):
            pixel_bce(*wrong)
    for wrong in (
        (attention.long(), boxes, labelled),
        (attention, boxes.float(), labelled),
        (attention, boxes, boxes[:, 0, 0]),
    ):
        with pytest.raises(ValueError, match="needs a floating-point map, integer boxes and bool labelled, got torch."):
            pixel_bce(*wrong)
    with pytest.raises(ValueError, match="must be on one device, got cpu, meta and cpu"):
        pixel_bce(attention, boxes.to("meta"), labelled)
    for wrong in ({"consensus": 0}, {"size": 0}):
        with pytest.raises(ValueError, match="consensus and size must be at least 1, got"):
            pixel_bce(attention, boxes, labelled, **wrong)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("batch, nodes, size, consensus", [(256, 14, 224, 1), (64, 7, 224, 2), (16, 32, 512, 1)])
def test_real_sizes_on_a_gpu(batch, nodes, size, consensus):
    attention, boxes, labelled = random_inputs(batch, nodes, nodes, size, boxes=5, device="cuda")
    labelled[::3] = False
    expected = check(attention, boxes, labelled, consensus, size)
    for _ in range(20):
        again = gradients(pixel_bce, attention, boxes, labelled, consensus, size)
        assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
