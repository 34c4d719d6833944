"""view_params, view_boxes and random_views: the reference's integers, whoever computes them."""

import pytest
import torch
from torch import Tensor

from essl_fast.kernels import native, reference

pytestmark = pytest.mark.skipif(not native.available(), reason=str(native.why_unavailable()))
needs_gpu = pytest.mark.skipif(
    not (native.has_cuda() and torch.cuda.is_available()), reason="needs an NVIDIA GPU and the CUDA kernels"
)
KEYS = [(0, 0), (1234, 7), (-1, -1), (2**31, 2**32 - 1), (2**63 - 1, 2**33 + 5), (2**64 + 9, -(2**31))]  # seed, epoch


def make_index(count: int) -> Tensor:
    """(count,) int64: small ones, as in a manifest, and any."""
    generator = torch.Generator().manual_seed(count)
    index = torch.randint(0, 2**20, (count,), generator=generator)
    index[::3] = torch.randint(-(2**63), 2**63 - 1, (len(index[::3]),), generator=generator)
    return index


def make_frames(stored: int, side: int, batch: int) -> tuple[Tensor, Tensor]:
    """frames (stored, side, side, 3) uint8 and rows (batch,) int64."""
    generator = torch.Generator().manual_seed(side)
    frames = torch.randint(0, 256, (stored, side, side, 3), dtype=torch.uint8, generator=generator)
    return frames, torch.randint(0, stored, (batch,), generator=generator)


def make_boxes(batch: int, each: int, size: int) -> Tensor:
    """(batch, each, 4) int32 on the size x size grid, some beyond it, the first of each image without area."""
    generator = torch.Generator().manual_seed(each)
    boxes = torch.randint(-9, size + 9, (batch, each, 2, 2), generator=generator).sort(dim=2).values
    boxes[:, 0] = 0
    return boxes.flatten(2).int()


def same(have: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu()) for a, b in zip(have, want, strict=True))


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh outputs hold nonsense, so that an element that is not written shows."""
    params, views, boxes = native._empty_params, native._empty_views, native._check_view_boxes
    monkeypatch.setattr(native, "_empty_params", lambda *a: tuple(t.fill_(99) for t in params(*a)))
    monkeypatch.setattr(native, "_empty_views", lambda *a: views(*a).fill_(float("nan")))
    monkeypatch.setattr(native, "_check_view_boxes", lambda *a: boxes(*a).fill_(-7))


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize(("seed", "epoch"), KEYS)
def test_params_equal_the_reference(seed: int, epoch: int, views: int) -> None:
    index = make_index(67)
    for margin in (22, 0, 1000):
        have = native.view_params(seed, epoch, index, margin, views)
        assert same(have, reference.view_params(seed, epoch, index, margin, views))


def test_params_reach_every_offset_and_depend_on_the_pair_alone() -> None:
    index = torch.arange(2000)
    top, left, flip = native.view_params(3, 1, index, 22)
    for drawn in (top, left):
        assert drawn.shape == (2, 2000) and drawn.unique().tolist() == list(range(23))
    assert 0.45 < flip.float().mean() < 0.55
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    assert same(native.view_params(3, 1, index[order], 22), (top[:, order], left[:, order], flip[:, order]))
    spread = torch.stack([index, index], dim=1)[:, 0]
    assert not spread.is_contiguous() and same(native.view_params(3, 1, spread, 22), (top, left, flip))


@pytest.mark.parametrize(("side", "size"), [(246, 224), (224, 224), (37, 11), (300, 7)])
def test_boxes_equal_the_reference(side: int, size: int) -> None:
    boxes = make_boxes(31, 5, size)
    params = reference.view_params(5, 6, make_index(31), side - size, 3)
    want = reference.view_boxes(boxes, *params, side, size)
    assert same((native.view_boxes(boxes, *params, side, size),), (want,))
    top, left, flip = params
    strided = (top.t().contiguous().t(), left, flip.to(torch.uint8) * 200)
    turned = boxes.transpose(0, 1).contiguous().transpose(0, 1)
    assert not turned.is_contiguous() and not strided[0].is_contiguous()
    assert same((native.view_boxes(turned, *strided, side, size),), (want,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("side", "size", "views"), [(246, 224, 2), (41, 32, 3), (19, 19, 1)])
def test_random_views_equal_params_and_views(side: int, size: int, views: int, dtype: torch.dtype) -> None:
    frames, rows = make_frames(3, side, 5)
    index = make_index(5)
    out, *params = native.random_views(frames, rows, index, -5, 2**32 + 8, size, dtype, views)
    assert same(tuple(params), reference.view_params(-5, 8, index, side - size, views))
    assert same((out,), (reference.two_views(frames, rows, *params, size, dtype),))
    assert out[0].is_contiguous(memory_format=torch.channels_last)


def test_empty_batches() -> None:
    none, frames = torch.zeros(0, dtype=torch.int64), torch.zeros((1, 8, 8, 3), dtype=torch.uint8)
    out, *params = native.random_views(frames, none, none, 1, 2, size=8)
    assert out.shape == (2, 0, 3, 8, 8) and [t.shape for t in params] == [(2, 0)] * 3
    assert same(native.view_params(1, 2, none, 22), tuple(params))
    assert native.view_boxes(torch.zeros((0, 3, 4), dtype=torch.int32), *params).shape == (2, 0, 3, 4)
    some = native.view_params(1, 2, torch.arange(4), 22)
    assert native.view_boxes(torch.zeros((4, 0, 4), dtype=torch.int32), *some).shape == (2, 4, 0, 4)


def test_bad_input_is_named() -> None:
    frames, rows = make_frames(2, 40, 3)
    index, boxes = make_index(3), make_boxes(3, 2, 32)
    params = native.view_params(0, 0, index, 8)
    with pytest.raises(ValueError, match=r"view_params: index must be int64 \(B,\), not int32 \(3,\)"):
        native.view_params(0, 0, index.int(), 8)
    with pytest.raises(ValueError, match="view_params: needs a margin from 0 and a view, not margin -1 and 2 views"):
        native.view_params(0, 0, index, -1)
    with pytest.raises(ValueError, match="not margin 3 and 0 views"):
        native.view_params(0, 0, index, 3, views=0)
    with pytest.raises(ValueError, match=r"random_views: index must be int64 \(3,\), not int64 \(2,\)"):
        native.random_views(frames, rows, index[:2], 0, 0, size=32)
    with pytest.raises(ValueError, match="random_views: size 41 is not between 1 and the frames' side 40"):
        native.random_views(frames, rows, index, 0, 0, size=41)
    with pytest.raises(IndexError, match=r"random_views: rows holds \d, outside 0..1"):
        native.random_views(frames, rows + 2, index, 0, 0, size=32)
    with pytest.raises(ValueError, match=r"view_boxes: boxes must be int32 \(B, K, 4\), not int64 \(3, 2, 4\)"):
        native.view_boxes(boxes.long(), *params)
    with pytest.raises(ValueError, match=r"view_boxes: top must be int32 \(V, 2\), not int32 \(2, 3\)"):
        native.view_boxes(boxes[:2], *params)
    with pytest.raises(ValueError, match="view_boxes: needs sides from 1 and a view, not side 0, size 224, 2 views"):
        native.view_boxes(boxes, *params, side=0)


def test_the_module_itself_refuses_impossible_sizes() -> None:
    module = native._module
    with pytest.raises(ValueError, match=r"view_params: index \(3,\) -> \(2, 3\), margin -1: impossible sizes"):
        module.view_params_host(64, 64, 64, 64, 3, 2, -1, 0, 0, 1)
    with pytest.raises(ValueError, match="view_params: .*a buffer has no address"):
        module.view_params_host(64, 0, 64, 64, 3, 2, 1, 0, 0, 1)
    shapes = r"view_boxes: boxes \(3, 4, 4\) -> \(2, 3, 4, 4\), side 246, size"
    with pytest.raises(ValueError, match=shapes + " 0: impossible sizes"):
        module.view_boxes_host(64, 64, 64, 64, 64, 3, 4, 2, 246, 0, 1)
    with pytest.raises(ValueError, match="view_boxes: .*a buffer has no address"):
        module.view_boxes_host(0, 64, 64, 64, 64, 3, 4, 2, 246, 224, 1)
    if native.has_cuda() and not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"view_params: index \(3,\) -> \(2, 3\), margin 1: CUDA error"):
            module.view_params_cuda(64, 64, 64, 64, 3, 2, 1, 0, 0, 0, 0)
        with pytest.raises(RuntimeError, match=shapes + " 224: CUDA error"):
            module.view_boxes_cuda(64, 64, 64, 64, 64, 3, 4, 2, 246, 224, 0, 0)


def test_opcheck() -> None:
    frames, rows = make_frames(2, 20, 3)
    index, ops = make_index(3), torch.ops.essl_fast
    torch.library.opcheck(ops.view_params.default, (index, 5, 6, 4, 2))
    torch.library.opcheck(ops.random_views.default, (frames, rows, index, 5, 6, 16, torch.bfloat16, 2))
    params = native.view_params(5, 6, index, 4)
    torch.library.opcheck(ops.view_boxes.default, (make_boxes(3, 2, 16), *params, 20, 16))


def test_compiles_as_one_graph_whatever_the_epoch() -> None:
    frames, rows = make_frames(2, 20, 3)
    boxes, index = make_boxes(3, 2, 16), make_index(3)

    def batch(seed: int, epoch: int) -> tuple[Tensor, ...]:
        views, *params = native.random_views(frames, rows, index, seed, epoch, size=16, dtype=torch.float32)
        given = native.view_params(seed, epoch, index, 4)
        return views * 2, native.view_boxes(boxes, *params, 20, 16), *given

    compiled = torch.compile(batch, fullgraph=True, backend="aot_eager")
    for epoch in range(4):
        assert same(compiled(7, epoch), batch(7, epoch))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("side", "size", "views"), [(246, 224, 2), (225, 224, 1), (41, 33, 3)])
def test_cuda_equals_host(side: int, size: int, views: int, dtype: torch.dtype) -> None:
    frames, rows = make_frames(3, side, 130)
    index, boxes = make_index(130), make_boxes(130, 5, size)
    for seed, epoch in KEYS:
        want = native.view_params(seed, epoch, index, side - size, views)
        assert same(native.view_params(seed, epoch, index.cuda(), side - size, views), want)
        shown = native.view_boxes(boxes.cuda(), *(t.cuda() for t in want), side, size)
        assert same((shown,), (native.view_boxes(boxes, *want, side, size),))
    have = native.random_views(frames.cuda(), rows.cuda(), index.cuda(), 5, 6, size, dtype, views)
    assert same(have, native.random_views(frames, rows, index, 5, 6, size, dtype, views))
