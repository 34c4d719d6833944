"""two_views against a computation of its own in NumPy, bit for bit; its errors; its behaviour as a torch op."""

import ctypes
import mmap
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from essl_fast.kernels import native

needs_native = pytest.mark.skipif(not native.available(), reason=str(native.why_unavailable()))
needs_gpu = pytest.mark.skipif(
    not (native.has_cuda() and torch.cuda.is_available()), reason="needs an NVIDIA GPU and the CUDA kernels"
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make_inputs(seed: int, stored: int, side: int, views: int, batch: int, size: int) -> tuple[Tensor, ...]:
    """frames, rows, top, left, flip as two_views takes them; every window lies inside, the extreme ones included."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (stored, side, side, 3), dtype=np.uint8)
    rows = rng.integers(0, stored, batch)
    top = rng.integers(0, side - size + 1, (views, batch), dtype=np.int32)
    left = rng.integers(0, side - size + 1, (views, batch), dtype=np.int32)
    flip = rng.random((views, batch)) < 0.5
    rows[0], top[0, 0], left[0, 0] = 0, 0, 0
    rows[-1], top[-1, -1], left[-1, -1] = stored - 1, side - size, side - size
    return tuple(torch.from_numpy(a) for a in (frames, rows, top, left, flip))


def expected(frames: Tensor, rows: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: int) -> np.ndarray:
    """(V, B, 3, size, size) float32, window by window; float32 arithmetic, each operation rounded by itself."""
    mean = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
    std = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
    out = np.empty((*top.shape, 3, size, size), np.float32)
    for v in range(top.shape[0]):
        for b in range(top.shape[1]):
            y, x = int(top[v, b]), int(left[v, b])
            window = frames.numpy()[int(rows[b]), y : y + size, x : x + size]
            if flip[v, b]:
                window = window[:, ::-1]
            out[v, b] = (window.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - mean) / std
    return out


def same_bits(have: Tensor, want: Tensor) -> bool:
    """Equality of every bit: NaN equals itself, -0 does not equal 0."""
    ints = torch.int32 if have.dtype == torch.float32 else torch.int16
    return have.dtype == want.dtype and torch.equal(have.contiguous().view(ints), want.contiguous().view(ints))


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh outputs hold NaN, so that an element that is not written shows."""
    make = native._empty_views
    monkeypatch.setattr(native, "_empty_views", lambda *args: make(*args).fill_(float("nan")))


SHAPES = [  # stored, side, views, batch, size
    (3, 246, 2, 2, 224),
    (2, 225, 2, 3, 224),
    (2, 224, 1, 1, 224),
    (1, 301, 2, 1, 224),
    (4, 37, 3, 7, 33),
    (2, 64, 2, 5, 64),
    (1, 1, 1, 1, 1),
    (5, 19, 1, 9, 8),
]


@needs_native
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_numpy_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = make_inputs(sum(shape), *shape)
    out = native.two_views(*inputs, size=shape[-1], dtype=dtype)
    assert same_bits(out, torch.from_numpy(expected(*inputs, shape[-1])).to(dtype))


def fenced(size: int, at_begin: bool) -> Tensor:
    """(size,) uint8 between two pages that must not be touched: whoever reads beside it ends the process."""
    page, pages = mmap.PAGESIZE, -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 2) * page)
    address = np.frombuffer(memory, np.uint8).ctypes.data
    for fence in (address, address + (pages + 1) * page):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) == 0
    return torch.frombuffer(
        memory, dtype=torch.uint8, count=size, offset=page if at_begin else (pages + 1) * page - size
    )


@needs_native
@pytest.mark.parametrize("at_begin", [True, False], ids=["at the begin", "at the end"])
@pytest.mark.parametrize("size", [5, 6, 7, 10, 64, 220])
def test_no_byte_beside_the_frames_is_read(size: int, at_begin: bool) -> None:
    frames = fenced(size * size * 3, at_begin).view(1, size, size, 3)
    frames.random_(0, 256)
    flip, zero = torch.tensor([[False], [True]]), torch.zeros(2, 1, dtype=torch.int32)
    inputs = frames, torch.zeros(1, dtype=torch.int64), zero, zero, flip
    out = native.two_views(*inputs, size=size, dtype=torch.float32)
    assert same_bits(out, torch.from_numpy(expected(*inputs, size)))


@needs_native
def test_every_byte_of_every_channel() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    zero = torch.zeros((1, 1), dtype=torch.int32)
    for dtype in DTYPES:
        out = native.two_views(frames, torch.zeros(1, dtype=torch.int64), zero, zero, zero.bool(), size=16, dtype=dtype)
        byte = torch.arange(256).reshape(16, 16)
        for c, (mean, std) in enumerate(zip(native.IMAGENET_MEAN, native.IMAGENET_STD, strict=True)):
            want = byte.float().div(255).sub(torch.tensor(mean)).div(torch.tensor(std)).to(dtype)
            assert same_bits(out[0, 0, c], want)


@needs_native
def test_layout_defaults_and_repeated_rows() -> None:
    frames, _, top, left, flip = make_inputs(0, 3, 230, 2, 4, 224)
    rows = torch.tensor([2, 2, 0, 2])
    out = native.two_views(frames, rows, top, left, flip)
    assert out.shape == (2, 4, 3, 224, 224) and out.dtype == torch.float32
    assert out.stride() == (4 * 224 * 224 * 3, 224 * 224 * 3, 1, 224 * 3, 3)
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in out)
    assert same_bits(out, torch.from_numpy(expected(frames, rows, top, left, flip, 224)))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_matter(dtype: torch.dtype) -> None:
    inputs = make_inputs(5, 6, 120, 2, 9, 100)
    before = torch.get_num_threads()
    outs = []
    try:
        for threads in (1, 2, 7, 64):
            torch.set_num_threads(threads)
            outs.append(native.two_views(*inputs, size=100, dtype=dtype))
    finally:
        torch.set_num_threads(before)
    assert all(same_bits(out, outs[0]) for out in outs[1:])


@needs_native
def test_strided_indices_uint8_flips_and_an_offset_frame_tensor() -> None:
    frames, rows, top, left, flip = make_inputs(3, 5, 41, 2, 6, 32)
    want = native.two_views(frames[1:], rows.clamp(max=3), top, left, flip, size=32)
    assert frames[1:].data_ptr() % 16 != 0  # 41 * 41 * 3 bytes in
    strided = [t.t().contiguous().t() for t in (top, left, flip.to(torch.uint8) * 255)]
    spread = torch.stack([rows.clamp(max=3), rows], dim=1)[:, 0]
    assert not spread.is_contiguous() and not strided[0].is_contiguous()
    assert same_bits(native.two_views(frames[1:], spread, *strided, size=32), want)
    assert same_bits(want, torch.from_numpy(expected(frames[1:], rows.clamp(max=3), top, left, flip, 32)))


@needs_native
def test_an_empty_batch_gives_an_empty_result() -> None:
    none = torch.zeros((2, 0), dtype=torch.int32)
    frames = torch.zeros((1, 8, 8, 3), dtype=torch.uint8)
    out = native.two_views(frames, torch.zeros(0, dtype=torch.int64), none, none, none.bool(), size=8)
    assert out.shape == (2, 0, 3, 8, 8)


BAD = [  # which argument, what it becomes, the error, words of its message
    ("frames", lambda t: t.float(), ValueError, r"frames must be uint8 \(N, S, S, 3\), not float32 \(2, 40, 40, 3\)"),
    ("frames", lambda t: t[..., :2], ValueError, r"frames must be uint8 \(N, S, S, 3\)"),
    ("frames", lambda t: t[:, :-1].contiguous(), ValueError, "frames must be square, not 39 x 40"),
    ("frames", lambda t: t.transpose(1, 2), ValueError, "frames must be contiguous"),
    ("frames", lambda t: t[:0], ValueError, "needs a frame and a view, not 0 frames"),
    ("rows", lambda t: t.int(), ValueError, r"rows must be int64 \(B,\), not int32 \(3,\)"),
    ("rows", lambda t: t[:2], ValueError, r"top must be int32 \(V, 2\), not int32 \(2, 3\)"),
    ("rows", lambda t: t + 2, IndexError, r"rows holds \d, outside 0\.\.1"),
    ("rows", lambda t: t - 2, IndexError, r"rows holds -\d, outside 0\.\.1"),
    ("top", lambda t: t.long(), ValueError, "top must be int32"),
    ("top", lambda t: t + 9, IndexError, r"top holds \d+, outside 0\.\.8"),
    ("left", lambda t: t - 9, IndexError, r"left holds -\d, outside 0\.\.8"),
    ("left", lambda t: t[:1], ValueError, r"left must be int32 \(2, 3\), not int32 \(1, 3\)"),
    ("flip", lambda t: t.float(), ValueError, "flip must be bool or uint8"),
    ("flip", lambda t: t.to("meta"), ValueError, "one CPU or CUDA device, not cpu, meta"),
]


@needs_native
@pytest.mark.parametrize(("name", "change", "error", "message"), BAD, ids=[f"{b[0]}: {b[3][:30]}" for b in BAD])
def test_bad_input_is_named(name: str, change, error: type[Exception], message: str) -> None:
    inputs = dict(zip(("frames", "rows", "top", "left", "flip"), make_inputs(1, 2, 40, 2, 3, 32), strict=True))
    inputs[name] = change(inputs[name])
    with pytest.raises(error, match=message):
        native._two_views._init_fn(**inputs, size=32, dtype=torch.float32)


@needs_native
@pytest.mark.parametrize("size", [0, -1, 41])
def test_bad_size_and_type(size: int) -> None:
    inputs = make_inputs(1, 2, 40, 2, 3, 32)
    with pytest.raises(ValueError, match=f"size {size} is not between 1 and the frames' side 40"):
        native.two_views(*inputs, size=size)
    with pytest.raises(ValueError, match="dtype torch.float64 is not one of"):
        native.two_views(*inputs, size=32, dtype=torch.float64)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    inputs = make_inputs(2, 3, 20, 2, 3, 16)
    torch.library.opcheck(torch.ops.essl_fast.two_views.default, (*inputs, 16, dtype))


@needs_native
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic: bool) -> None:
    def mean_view(*inputs: Tensor) -> Tensor:
        return native.two_views(*inputs, size=16, dtype=torch.float32).mean(dim=0) * 2

    compiled = torch.compile(mean_view, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (3, 5):
        inputs = make_inputs(batch, 3, 20, 2, batch, 16)
        assert torch.equal(compiled(*inputs), mean_view(*inputs))


def test_without_the_module_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(1, 2, 40, 2, 3, 32)
    monkeypatch.setitem(sys.modules, "_essl_fast_native", None)  # makes its import fail
    module, why = native._load()
    assert module is None and "pip install ." in why
    monkeypatch.setattr(native, "_module", None)
    monkeypatch.setattr(native, "_why_unavailable", why)
    assert not native.available() and not native.has_cuda() and native.why_unavailable() == why
    with pytest.raises(RuntimeError, match="two_views: the compiled module"):
        native.two_views(*inputs, size=32)
    with pytest.raises(RuntimeError, match="build_info: the compiled module"):
        native.build_info()


def test_a_module_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        @staticmethod
        def build_info() -> dict[str, int]:
            return {"interface": -1}

    monkeypatch.setitem(sys.modules, "_essl_fast_native", Old)
    module, why = native._load()
    assert module is None and "another version" in why and "pip install ." in why


@needs_native
def test_build_info_and_the_error_of_a_launch_that_cannot_be() -> None:
    info = native.build_info()
    assert info["cuda"] is native.has_cuda() and info["compiler"]
    assert bool(info["archs"]) == info["cuda"] == bool(info["cuda_version"])
    if info["cuda"] and not torch.cuda.is_available():
        shapes = r"two_views: frames \(1, 8, 8, 3\) -> \(1, 1, 3, 8, 8\) bfloat16"
        with pytest.raises(RuntimeError, match=shapes + ": CUDA error"):
            native._module.two_views_cuda(64, 1, *[64] * 5, 1, 8, 1, 1, 8, (0, 0, 0), (1, 1, 1), 0, 0)


@needs_native
def test_the_module_itself_refuses_impossible_sizes() -> None:
    host = native._module.two_views_host
    shapes = r"two_views: frames \(1, 8, 8, 3\) -> \(1, 1, 3, 9, 9\) float32"
    with pytest.raises(ValueError, match=shapes + ": impossible sizes"):
        host(64, 0, 64, 64, 64, 64, 64, 1, 8, 1, 1, 9, (0, 0, 0), (1, 1, 1), 1)
    with pytest.raises(ValueError, match="a buffer has no address"):
        host(0, 0, 64, 64, 64, 64, 64, 1, 8, 1, 1, 8, (0, 0, 0), (1, 1, 1), 1)
    with pytest.raises(ValueError, match="unknown output type 3"):
        host(64, 3, 64, 64, 64, 64, 64, 1, 8, 1, 1, 8, (0, 0, 0), (1, 1, 1), 1)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cuda_equals_host(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = make_inputs(sum(shape), *shape)
    want = native.two_views(*inputs, size=shape[-1], dtype=dtype)
    out = native.two_views(*(t.cuda() for t in inputs), size=shape[-1], dtype=dtype)
    assert out.stride() == want.stride()
    assert same_bits(out.cpu(), want)


@pytest.mark.gpu
@needs_gpu
def test_cuda_default_type_side_stream_and_wild_indices() -> None:
    frames, rows, top, left, flip = (t.cuda() for t in make_inputs(9, 4, 246, 2, 8, 224))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = native.two_views(frames, rows, top, left, flip)
    stream.synchronize()
    assert out.dtype == torch.bfloat16
    host = [t.cpu() for t in (frames, rows, top, left, flip)]
    assert same_bits(out.cpu(), native.two_views(*host, dtype=torch.bfloat16))
    wild = native.two_views(frames, rows + 100, top - 100, left + 100, flip)
    near = native.two_views(frames, rows * 0 + 3, top * 0, left * 0 + 22, flip)
    assert same_bits(wild, near)


def test_without_the_cuda_part_a_cuda_tensor_is_an_error(monkeypatch):
    monkeypatch.setattr(native, "has_cuda", lambda: False)
    with pytest.raises(RuntimeError, match="two_views: the compiled module has no CUDA part"):
        native._need("two_views", torch.device("cuda", 0))


def test_kernels_are_launched_on_the_current_stream(monkeypatch):
    launched = []
    module = SimpleNamespace(op_cuda=lambda *given: launched.append(given))
    monkeypatch.setattr(native, "_need", lambda op, device: module)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: SimpleNamespace(cuda_stream=0))
    native._run("op", torch.device("cuda", 3), 1, 2)
    assert launched == [(1, 2, 3, 7)]
