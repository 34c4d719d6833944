"""localization_counts against the published numbers, the reference and its own formula in NumPy, digit by digit."""

import numpy as np
import pytest
import torch
from torch import Tensor

from essl_fast.kernels import native, reference
from tests.golden.store import golden
from tests.golden.test_ops_golden import boxes_of_map

pytestmark = pytest.mark.skipif(not native.available(), reason=str(native.why_unavailable()))
needs_gpu = pytest.mark.skipif(
    not (native.has_cuda() and torch.cuda.is_available()), reason="needs an NVIDIA GPU and the CUDA kernels"
)
NAN, INF = float("nan"), float("inf")
SHAPES = [  # maps, h, w, size, K, consensus
    (600, 14, 14, 224, 1, 1),
    (150, 14, 14, 224, 6, 2),
    (100, 7, 28, 224, 3, 3),
    (2000, 14, 14, 56, 2, 1),
    (2000, 8, 4, 32, 5, 4),
    (150, 64, 64, 64, 4, 2),
    (1000, 14, 14, 63, 3, 2),
    (1500, 13, 11, 37, 4, 1),
    (1500, 7, 9, 50, 2, 5),
    (500, 33, 20, 20, 9, 7),
    (500, 1, 17, 41, 0, 1),
]


def make_boxes(rng: np.random.Generator, maps: int, each: int, size: int) -> Tensor:
    """(maps, each, 4) int32: most inside, some beyond the grid, some inverted or without area."""
    corners = rng.integers(-size // 8, size + size // 8 + 1, (maps, each, 2, 2))
    boxes = np.where(rng.random((maps, each, 1, 1)) < 0.9, np.sort(corners, axis=2), corners)
    boxes[rng.random((maps, each)) < 0.05] = 0
    return torch.from_numpy(boxes.reshape(maps, each, 4).astype(np.int32))


def make_maps(rng: np.random.Generator, maps: int, h: int, w: int) -> Tensor:
    """(maps, h, w) float32: normal; a quarter of few values, so that some tie; one in 20 holds a NaN or is constant."""
    out = rng.standard_normal((maps, h, w), dtype=np.float32)
    few = rng.random(maps) < 0.25
    out[few] = rng.integers(-2, 3, (few.sum(), h, w)) / np.float32(4)
    out[::40] = out[::40, :1, :1]
    out[1::80, h // 2, w // 2] = NAN
    out[2::80] = NAN
    return torch.from_numpy(out)


def by_formula(maps: Tensor, boxes: Tensor, consensus: int, size: int, threshold: float) -> np.ndarray:
    """(2, B): csrc/localization_counts.h in NumPy, whose every operation rounds by itself."""

    def places(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position = np.maximum(length / size * (np.arange(size) + 0.5) - 0.5, 0)
        low = np.minimum(position.astype(int), length - 1)
        return low, np.minimum(low + 1, length - 1), position - low

    out = np.zeros((2, len(maps)))
    for b, m in enumerate(maps.double().numpy()):
        i, j, u = places(m.shape[1])
        rows = m[:, i] + u * (m[:, j] - m[:, i])
        i, j, v = places(m.shape[0])
        heat = rows[i] + v[:, None] * (rows[j] - rows[i])
        with np.errstate(invalid="ignore", divide="ignore"):
            infer = (heat - heat.min()) / (heat.max() - heat.min()) >= threshold
        covering = np.zeros((size, size), np.int32)
        for x1, y1, x2, y2 in boxes[b].clamp(0, size).tolist():
            covering[y1:y2, x1:x2] += 1
        g = np.minimum(covering / np.float32(consensus), np.float32(1)).astype(np.float32).astype(np.float64)
        out[:, b] = g[infer].sum(), g.sum() + (infer & (g == 0)).sum()
    return out


def same(have: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> bool:
    return all(a.dtype == torch.float64 and torch.equal(a.cpu(), b.cpu()) for a, b in zip(have, want, strict=True))


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh outputs hold NaN, so that an element that is not written shows."""
    make = native._check_localization_counts
    monkeypatch.setattr(native, "_check_localization_counts", lambda *a: tuple(t.fill_(NAN) for t in make(*a)))


def test_published_scores() -> None:
    data = golden("ciou")
    each = [boxes_of_map(weights)[0] for weights in data["gt2x"]]
    boxes = torch.zeros((len(each), max(map(len, each)), 4), dtype=torch.int32)
    for row, found in zip(boxes, each, strict=True):
        row[: len(found)] = found
    intersection, union = native.localization_counts(torch.from_numpy(data["heat"]), boxes, consensus=2)
    np.testing.assert_array_equal(intersection.numpy(), data["thr05"][:, 1])
    np.testing.assert_array_equal(union.numpy(), data["thr05"][:, 2])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ten_thousand_maps_equal_the_reference(shape: tuple) -> None:
    assert sum(s[0] for s in SHAPES) == 10_000
    count, h, w, size, each, consensus = shape
    rng = np.random.default_rng(sum(shape))
    maps, boxes = make_maps(rng, count, h, w), make_boxes(rng, count, each, size)
    have = native.localization_counts(maps, boxes, consensus, size)
    parts = zip(maps.split(50), boxes.split(50), strict=True)
    want = [reference.localization_counts(*part, consensus, size) for part in parts]
    assert same(have, tuple(map(torch.cat, zip(*want, strict=True))))
    if each:
        assert 0 < (have[0] > 0).double().mean() < 1


ODD = [(13, 11, 37), (7, 9, 50), (1, 5, 33), (20, 33, 20), (60, 60, 16), (3, 2, 3)]  # h, w, size


@pytest.mark.parametrize("threshold", [0.5, 0.0, 1.0, 0.3, 1.5, -1.0, NAN])
@pytest.mark.parametrize("shape", ODD, ids=str)
def test_ties_at_any_scale_equal_the_formula(shape: tuple[int, ...], threshold: float) -> None:
    """Also at thresholds that a constant map's 0 / 0 or no pixel at all would meet."""
    h, w, size = shape
    rng = np.random.default_rng(size)
    maps = torch.from_numpy(rng.integers(-2, 3, (20, h, w)) / np.float32(7))
    maps[0, 0, 0] = NAN
    boxes = make_boxes(rng, 20, 4, size)
    have = torch.stack(native.localization_counts(maps, boxes, 3, size, threshold)).numpy()
    np.testing.assert_array_equal(have, by_formula(maps, boxes, 3, size, threshold))


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.7])
def test_a_quotient_that_rounds_to_the_threshold_counts(threshold: float) -> None:
    """x / range is the threshold, although x is less than threshold * range, both as they are rounded."""
    spans = np.random.default_rng(0).random(2000) + 0.5
    below = np.nextafter(threshold * spans, 0)
    spans, below = (each[below / spans >= threshold] for each in (spans, below))
    assert len(spans) > 20
    maps = torch.from_numpy(np.stack([0 * spans, below, spans, spans], axis=1)).view(-1, 2, 2)
    boxes = torch.tensor([[[1, 0, 2, 1]]], dtype=torch.int32).repeat(len(maps), 1, 1)  # the pixel of `below`
    have = torch.stack(native.localization_counts(maps, boxes, 1, 2, threshold)).numpy()
    assert have[0].all()
    np.testing.assert_array_equal(have, by_formula(maps, boxes, 1, 2, threshold))


@pytest.mark.parametrize("side", [1, 7, 13, 14, 224])
def test_a_map_without_contrast_or_meaning_infers_nothing(side: int) -> None:
    values = [0.3, 1 / 3, -0.7, 1e-30, NAN, INF, -INF]
    maps = torch.tensor(values, dtype=torch.float64)[:, None, None].repeat(1, side, side)
    boxes = torch.tensor([[10, 10, 30, 40]], dtype=torch.int32).repeat(len(values), 1, 1)
    intersection, union = native.localization_counts(maps, boxes)
    assert intersection.tolist() == [0] * len(values) and union.tolist() == [600] * len(values)


def test_infinities_and_ranges_beyond_double_infer_nothing() -> None:
    maps = torch.zeros((3, 8, 8), dtype=torch.float64)
    maps[0, 3, 4], maps[1, 0, 0], maps[2] = INF, -INF, 1.5e308
    maps[2, :4] *= -1
    assert native.localization_counts(maps, torch.zeros((3, 1, 4), dtype=torch.int32))[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_types_strides_and_int64_boxes(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    maps = torch.from_numpy(rng.standard_normal((40, 14, 14))).to(dtype)
    maps[1::3] *= 1e-6  # subnormal in float16
    boxes = make_boxes(rng, 40, 3, 224).long()
    boxes[5, 0] = torch.tensor([-(2**40), -(2**40), 2**40, 2**40])
    want = reference.localization_counts(maps.double(), boxes, 2)
    assert same(native.localization_counts(maps, boxes, 2), want)
    spread = torch.stack([maps, maps + 1], dim=-1)[..., 0].transpose(1, 2).contiguous().transpose(1, 2)
    turned = boxes.transpose(0, 1).contiguous().transpose(0, 1)
    assert not spread.is_contiguous() and not turned.is_contiguous()
    assert same(native.localization_counts(spread, turned, 2), want)


@pytest.mark.parametrize("consensus", [1, 2, 3, 5, 7, 10, 41, 1000, 1024])
def test_every_level_of_consensus(consensus: int) -> None:
    levels = min(consensus, 48) + 1
    at = torch.arange(levels, dtype=torch.int32)
    boxes = torch.stack([at, at * 0, at * 0 + 64, at * 0 + 50], dim=1)[None]  # column x lies in x + 1 boxes
    maps = torch.randn((1, 16, 16), generator=torch.Generator().manual_seed(consensus))
    have = native.localization_counts(maps, boxes, consensus, size=64)
    assert same(have, reference.localization_counts(maps, boxes, consensus, size=64))


def test_large_maps_of_boxes_as_the_priors_use_them() -> None:
    guess = reference.box_weights(torch.tensor([[[30, 40, 150, 160]], [[0, 0, 224, 1]]]))
    boxes = torch.tensor([[[100, 100, 200, 200]], [[5, 5, 9, 9]]], dtype=torch.int32)
    assert same(native.localization_counts(guess, boxes), reference.localization_counts(guess, boxes))


def test_threads_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    maps, boxes = make_maps(rng, 37, 14, 14), make_boxes(rng, 37, 5, 224)
    before, outs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7, 64):
            torch.set_num_threads(threads)
            outs.append(native.localization_counts(maps, boxes))
    finally:
        torch.set_num_threads(before)
    assert all(same(out, outs[0]) for out in outs[1:])


def test_empty_batches_and_no_boxes() -> None:
    none = native.localization_counts(torch.zeros((0, 14, 14)), torch.zeros((0, 3, 4), dtype=torch.int32))
    assert [t.shape for t in none] == [(0,), (0,)]
    ramp = torch.arange(4.0).expand(1, 4, 4)
    counts = native.localization_counts(ramp, torch.zeros((1, 0, 4), dtype=torch.int32), size=4)
    assert [t.item() for t in counts] == [0, 8]


BAD = [  # what changes, words of the message
    ({"similarity": torch.zeros((2, 14))}, r"similarity must be float32 or .* \(B, h, w\), not float32 \(2, 14\)"),
    ({"similarity": torch.zeros((2, 14, 14), dtype=torch.int32)}, r"not int32 \(2, 14, 14\)"),
    ({"similarity": torch.zeros((2, 1025, 3))}, "h 1025 is not between 1 and 1024"),
    ({"similarity": torch.zeros((2, 3, 0))}, "w 0 is not between 1 and 1024"),
    ({"boxes": torch.zeros((2, 1, 4))}, r"boxes must be int32 \(2, K, 4\), not float32 \(2, 1, 4\)"),
    ({"boxes": torch.zeros((3, 1, 4), dtype=torch.int32)}, r"boxes must be int32 \(2, K, 4\), not int32 \(3, 1, 4\)"),
    ({"boxes": torch.zeros((2, 1, 4), dtype=torch.int32, device="meta")}, "one CPU or CUDA device, not cpu, meta"),
    ({"size": 1025}, "size 1025 is not between 1 and 1024"),
    ({"consensus": 0}, "consensus 0 is not between 1 and 1024"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[b[1][:30] for b in BAD])
def test_bad_input_is_named(change: dict, message: str) -> None:
    good = {"similarity": torch.zeros((2, 14, 14)), "boxes": torch.zeros((2, 1, 4), dtype=torch.int32)}
    with pytest.raises(ValueError, match=f"localization_counts: .*{message}"):
        native._localization_counts._init_fn(**({"consensus": 1, "size": 224, "threshold": 0.5} | good | change))


def test_the_module_itself_refuses_impossible_sizes() -> None:
    host = native._module.localization_counts_host
    with pytest.raises(ValueError, match=r"similarity \(1, 14, 14\) float32, .*size 0: impossible sizes"):
        host(64, 64, 64, 0, 64, 1, 1, 14, 14, 0, 1, 0.5, 1)
    with pytest.raises(ValueError, match="a buffer has no address"):
        host(64, 0, 64, 0, 64, 1, 1, 14, 14, 224, 1, 0.5, 1)
    with pytest.raises(ValueError, match="unknown similarity type 4"):
        host(64, 64, 64, 4, 64, 1, 1, 14, 14, 224, 1, 0.5, 1)
    if native.has_cuda() and not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"localization_counts: similarity \(1, 14, 14\) float32.*: CUDA error"):
            native._module.localization_counts_cuda(64, 64, 64, 0, 64, 1, 1, 14, 14, 224, 1, 0.5, 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    inputs = (make_maps(rng, 3, 5, 6)[:1].to(dtype), make_boxes(rng, 1, 2, 24), 2, 24, 0.5)
    torch.library.opcheck(torch.ops.essl_fast.localization_counts.default, inputs)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic: bool) -> None:
    def score(maps: Tensor, boxes: Tensor) -> Tensor:
        intersection, union = native.localization_counts(maps.tanh(), boxes, size=32)
        return intersection / union

    compiled = torch.compile(score, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (3, 5):
        rng = np.random.default_rng(batch)
        maps, boxes = make_maps(rng, batch, 7, 7)[[0, 0, 0]], make_boxes(rng, 3, 2, 32)
        torch.testing.assert_close(compiled(maps, boxes), score(maps, boxes), rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (9, 224, 224, 224, 2, 1, True), (5, 3, 2, 1024, 40, 3, False)], ids=str)
def test_cuda_equals_host(shape: tuple, dtype: torch.dtype) -> None:
    count, h, w, size, each, consensus = shape
    rng = np.random.default_rng(sum(shape))
    maps, boxes = make_maps(rng, count, h, w).to(dtype), make_boxes(rng, count, each, size)
    for threshold in (0.5, 0.0, 0.9):
        want = native.localization_counts(maps, boxes, consensus, size, threshold)
        assert same(native.localization_counts(maps.cuda(), boxes.cuda(), consensus, size, threshold), want)
