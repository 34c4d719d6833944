"""The ops of csrc: checks tensors, allocates outputs, and passes addresses to the module ``_essl_fast_native``.

No other file calls that module. Every function here does its work with compiled code or raises an error;
``essl_fast.kernels`` chooses between this file and the reference. Each op is a ``torch.library`` custom op with a fake,
so that ``torch.compile(fullgraph=True)`` passes.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from essl_fast.kernels import recycling
from essl_fast.kernels.reference import IMAGENET_MEAN, IMAGENET_STD

MAX_SIZE = 4064  # kMaxWindow in csrc/two_views.h
MIN_SAMPLES = 400 + 95 * 160  # samples of one log-mel example

_INTERFACE = 2  # kInterface in csrc/bindings.cpp: a module built from other sources must not be called
_REMEDY = "run `pip install .` (or `python setup.py build_ext --inplace`) in the source folder"
_PCM_TYPES = {torch.int16: 0, torch.float32: 1}  # PcmType in csrc/log_mel.h
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # OutType in csrc/two_views.h
_MAP_TYPES = {**_TYPES, torch.float64: 3}  # MapType in csrc/localization_counts.h
MAX_SIDE = 1024  # kMaxSide in the same file
MAX_CONSENSUS = 1024  # kMaxConsensus in the same file


def left_out(unsaid: str = "") -> str:
    """What setup.py wrote when it built without CUDA, or nothing: the reason, in a few words; else ``unsaid``."""
    path = Path(__file__).with_name("left_out.txt")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else unsaid


def _load() -> tuple[ModuleType | None, str | None]:
    """The compiled module, or why there is none."""
    try:
        import _essl_fast_native as module
    except ModuleNotFoundError:
        return None, f"the compiled module was not built ({left_out('no C++ compiler at install time?')}): {_REMEDY}"
    except ImportError as error:
        return None, f"the compiled module does not load ({error}): {_REMEDY}"
    built = module.build_info()["interface"]
    if built != _INTERFACE:
        return None, f"the compiled module is of another version (interface {built}, wanted {_INTERFACE}): {_REMEDY}"
    return module, None


_module, _why_unavailable = _load()


def available() -> bool:
    """Whether there is a compiled module, with at least the functions for the CPU."""
    return _module is not None


def why_unavailable() -> str | None:
    """Why ``available()`` is False, and what to do about it; None if it is True."""
    return _why_unavailable


def has_cuda() -> bool:
    """Whether the compiled module has the CUDA kernels. (It does not say whether there is a GPU.)"""
    return _module is not None and bool(_module.build_info()["cuda"])


def why_no_cuda() -> str:
    """Why the compiled module has no CUDA kernels, with the remedy; "" if it has them, or there is no such module."""
    if _module is None or has_cuda():
        return ""
    why = f" ({reason})" if (reason := left_out()) else ""
    return f"the compiled module has no CUDA part{why}: {_REMEDY} with ESSL_CUDA=1 set"


def build_info() -> dict[str, Any]:
    """What the module was built with: interface, cuda (bool), cuda_version, archs ("sm_80 sm_86 ..."), compiler.

    Raises:
        RuntimeError: there is no compiled module.
    """
    return dict(_need("build_info").build_info())


def _need(op: str, device: torch.device | None = None) -> ModuleType:
    """The compiled module, which can run on ``device``; RuntimeError if there is none."""
    if _module is None:
        raise RuntimeError(f"{op}: {_why_unavailable}")
    if device is not None and device.type == "cuda" and not has_cuda():
        raise RuntimeError(f"{op}: {why_no_cuda()}")
    return _module


def _expect(op: str, name: str, tensor: Tensor, shape: tuple[int | str, ...], types: tuple[torch.dtype, ...]) -> None:
    """Raise ValueError unless the tensor has one of the dtypes and the shape, in which a str stands for any size."""
    fits = tensor.dim() == len(shape) and all(
        isinstance(want, str) or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits or tensor.dtype not in types:
        want_types = " or ".join(str(t).removeprefix("torch.") for t in types)
        want_shape = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
        have_type = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{op}: {name} must be {want_types} {want_shape}, not {have_type} {tuple(tensor.shape)}")


def _one_device(op: str, *tensors: Tensor) -> torch.device:
    """The one device of all the tensors; ValueError if they are on several, or on neither a CPU nor a CUDA GPU."""
    devices = {t.device for t in tensors}
    if len(devices) > 1 or tensors[0].device.type not in ("cpu", "cuda"):
        found = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"{op}: all tensors must be on one CPU or CUDA device, not {found}")
    return tensors[0].device


def _run(op: str, device: torch.device, *arguments: Any, **more: Any) -> None:
    """Call the compiled ``op``: on the CPU with torch's number of threads, on a GPU on torch's current stream."""
    module = _need(op, device)
    if device.type == "cpu":
        getattr(module, f"{op}_host")(*arguments, torch.get_num_threads(), **more)
    else:
        stream = torch.cuda.current_stream(device).cuda_stream
        getattr(module, f"{op}_cuda")(*arguments, device.index, stream, **more)


def _check_two_views(
    frames: Tensor,
    rows: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    size: int,
    dtype: torch.dtype,
    op: str = "two_views",
) -> tuple[int, int]:
    """Check what shapes, dtypes and devices tell, also of fake tensors. Returns (V, B)."""
    _expect(op, "frames", frames, ("N", "S", "S", 3), (torch.uint8,))
    _expect(op, "rows", rows, ("B",), (torch.int64,))
    _expect(op, "top", top, ("V", rows.shape[0]), (torch.int32,))
    _expect(op, "left", left, tuple(top.shape), (torch.int32,))
    _expect(op, "flip", flip, tuple(top.shape), (torch.bool, torch.uint8))
    if frames.shape[1] != frames.shape[2]:
        raise ValueError(f"{op}: frames must be square, not {frames.shape[1]} x {frames.shape[2]}")
    if frames.shape[0] < 1 or top.shape[0] < 1:
        raise ValueError(f"{op}: needs a frame and a view, not {frames.shape[0]} frames and {top.shape[0]} views")
    if not 1 <= size <= min(frames.shape[1], MAX_SIZE):
        limit = f"the frames' side {frames.shape[1]} (at most {MAX_SIZE})"
        raise ValueError(f"{op}: size {size} is not between 1 and {limit}")
    if dtype not in _TYPES:
        raise ValueError(f"{op}: dtype {dtype} is not one of {', '.join(map(str, _TYPES))}")
    _one_device(op, frames, rows, top, left, flip)
    if not frames.is_contiguous():
        raise ValueError(f"{op}: frames must be contiguous (N, S, S, 3), not with strides {frames.stride()}")
    return top.shape[0], rows.shape[0]


def _check_bounds(op: str, name: str, values: Tensor, limit: int) -> None:
    """Raise IndexError unless 0 <= values <= limit."""
    low, high = (int(v) for v in values.aminmax())
    if low < 0 or high > limit:
        raise IndexError(f"{op}: {name} holds {low if low < 0 else high}, outside 0..{limit}")


def _empty_views(frames: Tensor, views: int, batch: int, size: int, dtype: torch.dtype) -> Tensor:
    """An output for views: (V, B, 3, size, size), every view channels_last."""
    shape = (views, batch, size, size, 3)
    if type(frames) is Tensor and frames.device.type == "cpu":  # not a fake one
        return recycling.empty(shape, dtype).permute(0, 1, 4, 2, 3)
    return torch.empty(shape, dtype=dtype, device=frames.device).permute(0, 1, 4, 2, 3)


@torch.library.custom_op("essl_fast::two_views", mutates_args=())
def _two_views(
    frames: Tensor, rows: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: int, dtype: torch.dtype
) -> Tensor:
    _need("two_views", frames.device)
    views, batch = _check_two_views(frames, rows, top, left, flip, size, dtype)
    stored, side = frames.shape[:2]
    if batch and frames.device.type == "cpu":  # on a GPU this would wait; its kernel clamps indices
        _check_bounds("two_views", "rows", rows, stored - 1)
        _check_bounds("two_views", "top", top, side - size)
        _check_bounds("two_views", "left", left, side - size)
    out = _empty_views(frames, views, batch, size, dtype)
    _run_two_views(out, frames, *(t.contiguous() for t in (rows, top, left, flip)))
    return out


def _run_two_views(out: Tensor, frames: Tensor, rows: Tensor, *params: Tensor, **draw: int) -> None:
    """Write the views. params: top, left, flip; if ``draw`` has index (an address), seed and epoch, they are drawn."""
    addresses = [t.data_ptr() for t in (frames, rows, *params)]
    (stored, side), (views, batch), size = frames.shape[:2], out.shape[:2], out.shape[-1]
    sizes = (stored, side, views, batch, size, IMAGENET_MEAN, IMAGENET_STD)
    _run("two_views", frames.device, out.data_ptr(), _TYPES[out.dtype], *addresses, *sizes, **draw)


@_two_views.register_fake
def _(frames: Tensor, rows: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    views, batch = _check_two_views(frames, rows, top, left, flip, size, dtype)
    return _empty_views(frames, views, batch, size, dtype)


def two_views(
    frames: Tensor,
    rows: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    size: int = 224,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Crop, mirror and normalise the views of a batch in one pass.

    Equal to the bit to ``x.float().div(255).sub(mean).div(std).to(dtype)`` on the CPU, with ImageNet's mean and std.

    Args:
        frames: (N, S, S, 3) uint8, contiguous.
        rows: (B,) int64, the frame of each sample, 0 <= rows < N; a frame may occur several times.
        top: (V, B) int32, first pixel row of each crop, 0 <= top <= S - size.
        left: (V, B) int32, first pixel column of each crop, 0 <= left <= S - size.
        flip: (V, B) bool or uint8; true mirrors the crop left to right.
        size: side of the crops, pixels, at most S.
        dtype: float32, bfloat16 or float16; by default bfloat16 on CUDA and float32 on the CPU.

    Returns:
        (V, B, 3, size, size), each view channels_last. On a CPU its memory is used again after the tensor is freed.

    Raises:
        ValueError: wrong shape, dtype, device or layout.
        IndexError: an index out of its range (on a CPU; CUDA kernels use the nearest index in range instead).
        RuntimeError: no compiled module, or none with CUDA for CUDA tensors; or CUDA refused the launch.
    """
    if dtype is None:
        dtype = torch.bfloat16 if frames.device.type == "cuda" else torch.float32
    return torch.ops.essl_fast.two_views(frames, rows, top, left, flip, size, dtype)


def _int64(value: int) -> int:
    """The low 64 bits of any integer, as an int64."""
    if -(2**63) <= value < 2**63:
        return value
    return (value + 2**63) % 2**64 - 2**63


def _empty_params(index: Tensor, views: int) -> tuple[Tensor, Tensor, Tensor]:
    """top, left (V, B) int32 and flip (V, B) bool."""
    shape = (views, index.shape[0])
    types = (torch.int32, torch.int32, torch.bool)
    top, left, flip = (torch.empty(shape, dtype=t, device=index.device) for t in types)
    return top, left, flip


def _check_random_views(
    frames: Tensor, rows: Tensor, index: Tensor, size: int, dtype: torch.dtype, views: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check the arguments; the empty results: views, top, left, flip."""
    _expect("random_views", "rows", rows, ("B",), (torch.int64,))
    _expect("random_views", "index", index, tuple(rows.shape), (torch.int64,))
    params = _empty_params(index, views)
    _check_two_views(frames, rows, *params, size, dtype, "random_views")
    return (_empty_views(frames, views, rows.shape[0], size, dtype), *params)


@torch.library.custom_op("essl_fast::random_views", mutates_args=())
def _random_views(
    frames: Tensor, rows: Tensor, index: Tensor, seed: int, epoch: int, size: int, dtype: torch.dtype, views: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _need("random_views", frames.device)
    out, top, left, flip = _check_random_views(frames, rows, index, size, dtype, views)
    if rows.shape[0] and frames.device.type == "cpu":
        _check_bounds("random_views", "rows", rows, frames.shape[0] - 1)
    if rows.shape[0]:  # an empty tensor has no address, which would mean that the crops are given
        index = index.contiguous()
        draw = {"index": index.data_ptr(), "seed": seed, "epoch": epoch}
        _run_two_views(out, frames, rows.contiguous(), top, left, flip, **draw)
    return out, top, left, flip


@_random_views.register_fake
def _(
    frames: Tensor, rows: Tensor, index: Tensor, seed: int, epoch: int, size: int, dtype: torch.dtype, views: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _check_random_views(frames, rows, index, size, dtype, views)


def random_views(
    frames: Tensor,
    rows: Tensor,
    index: Tensor,
    seed: int,
    epoch: int,
    size: int = 224,
    dtype: torch.dtype | None = None,
    views: int = 2,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``view_params`` and ``two_views`` in one pass, equal to them bit by bit.

    Args:
        frames, rows, size, dtype: as for ``two_views``.
        index, seed, epoch, views: as for ``view_params``, with a margin of S - size.

    Returns:
        views, top, left, flip.

    Raises:
        ValueError, IndexError, RuntimeError: as ``two_views``.
    """
    if dtype is None:
        dtype = torch.bfloat16 if frames.device.type == "cuda" else torch.float32
    return torch.ops.essl_fast.random_views(frames, rows, index, _int64(seed), _int64(epoch), size, dtype, views)


def _check_view_params(index: Tensor, margin: int, views: int) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arguments; the empty results."""
    _expect("view_params", "index", index, ("B",), (torch.int64,))
    _one_device("view_params", index)
    if not 0 <= margin < 2**31 or views < 1:
        raise ValueError(f"view_params: needs a margin from 0 and a view, not margin {margin} and {views} views")
    return _empty_params(index, views)


@torch.library.custom_op("essl_fast::view_params", mutates_args=())
def _view_params(index: Tensor, seed: int, epoch: int, margin: int, views: int) -> tuple[Tensor, Tensor, Tensor]:
    out = _check_view_params(index, margin, views)
    index = index.contiguous()
    addresses = [t.data_ptr() for t in (*out, index)]
    _run("view_params", index.device, *addresses, index.shape[0], views, margin, seed, epoch)
    return out


@_view_params.register_fake
def _(index: Tensor, seed: int, epoch: int, margin: int, views: int) -> tuple[Tensor, Tensor, Tensor]:
    return _check_view_params(index, margin, views)


def view_params(seed: int, epoch: int, index: Tensor, margin: int, views: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the crop offsets and flips of each pair's views in one launch, equal to ``reference.view_params``.

    Args:
        seed, epoch: of the run. They are launch arguments, so a captured CUDA graph draws the same views each time.
        index: (B,) int64, the pair's row in the manifest.
        margin: the largest offset, S - size; at least 0.
        views: V, at least 1.

    Returns:
        top, left (V, B) int32 in [0, margin] and flip (V, B) bool.

    Raises:
        ValueError: wrong shape, dtype or device.
        RuntimeError: as ``two_views``.
    """
    return torch.ops.essl_fast.view_params(index, _int64(seed), _int64(epoch), margin, views)


def _check_view_boxes(boxes: Tensor, top: Tensor, left: Tensor, flip: Tensor, side: int, size: int) -> Tensor:
    """Check the arguments; the empty result."""
    op = "view_boxes"
    _expect(op, "boxes", boxes, ("B", "K", 4), (torch.int32,))
    _expect(op, "top", top, ("V", boxes.shape[0]), (torch.int32,))
    _expect(op, "left", left, tuple(top.shape), (torch.int32,))
    _expect(op, "flip", flip, tuple(top.shape), (torch.bool, torch.uint8))
    if not (1 <= side < 2**31 and 1 <= size < 2**31 and top.shape[0] >= 1):
        raise ValueError(f"{op}: needs sides from 1 and a view, not side {side}, size {size}, {top.shape[0]} views")
    device = _one_device(op, boxes, top, left, flip)
    return torch.empty((top.shape[0], *boxes.shape), dtype=torch.int32, device=device)


@torch.library.custom_op("essl_fast::view_boxes", mutates_args=())
def _view_boxes(boxes: Tensor, top: Tensor, left: Tensor, flip: Tensor, side: int, size: int) -> Tensor:
    out = _check_view_boxes(boxes, top, left, flip, side, size)
    inputs = [t.contiguous() for t in (boxes, top, left, flip)]
    sizes = (boxes.shape[0], boxes.shape[1], top.shape[0], side, size)
    _run("view_boxes", boxes.device, out.data_ptr(), *(t.data_ptr() for t in inputs), *sizes)
    return out


@_view_boxes.register_fake
def _(boxes: Tensor, top: Tensor, left: Tensor, flip: Tensor, side: int, size: int) -> Tensor:
    return _check_view_boxes(boxes, top, left, flip, side, size)


def view_boxes(boxes: Tensor, top: Tensor, left: Tensor, flip: Tensor, side: int = 246, size: int = 224) -> Tensor:
    """Move boxes with the views in one launch, equal to ``reference.view_boxes``.

    Args:
        boxes: (B, K, 4) int32 xyxy on the size x size grid.
        top, left, flip: (V, B), as ``view_params`` draws them; flip may be uint8.
        side: of the stored frames, pixels.
        size: side of the views, pixels.

    Returns:
        (V, B, K, 4) int32, clamped to the view; a box outside it has no area.

    Raises:
        ValueError: wrong shape, dtype or device.
        RuntimeError: as ``two_views``.
    """
    return torch.ops.essl_fast.view_boxes(boxes, top, left, flip, side, size)


def _check_localization_counts(similarity: Tensor, boxes: Tensor, consensus: int, size: int) -> tuple[Tensor, Tensor]:
    """Check the arguments; the empty results."""
    op = "localization_counts"
    _expect(op, "similarity", similarity, ("B", "h", "w"), tuple(_MAP_TYPES))
    _expect(op, "boxes", boxes, (similarity.shape[0], "K", 4), (torch.int32,))
    device = _one_device(op, similarity, boxes)
    for name, side in (("h", similarity.shape[1]), ("w", similarity.shape[2]), ("size", size)):
        if not 1 <= side <= MAX_SIDE:
            raise ValueError(f"{op}: {name} {side} is not between 1 and {MAX_SIDE}")
    if not 1 <= consensus <= MAX_CONSENSUS:
        raise ValueError(f"{op}: consensus {consensus} is not between 1 and {MAX_CONSENSUS}")
    empty = (torch.empty(similarity.shape[0], dtype=torch.float64, device=device) for _ in range(2))
    return next(empty), next(empty)


@torch.library.custom_op("essl_fast::localization_counts", mutates_args=())
def _localization_counts(
    similarity: Tensor, boxes: Tensor, consensus: int, size: int, threshold: float
) -> tuple[Tensor, Tensor]:
    out = _check_localization_counts(similarity, boxes, consensus, size)
    similarity, boxes = similarity.contiguous(), boxes.contiguous()
    addresses = [*(t.data_ptr() for t in (*out, similarity)), _MAP_TYPES[similarity.dtype], boxes.data_ptr()]
    sizes = (boxes.shape[0], boxes.shape[1], *similarity.shape[1:], size, consensus, threshold)
    _run("localization_counts", similarity.device, *addresses, *sizes)
    return out


@_localization_counts.register_fake
def _(similarity: Tensor, boxes: Tensor, consensus: int, size: int, threshold: float) -> tuple[Tensor, Tensor]:
    return _check_localization_counts(similarity, boxes, consensus, size)


def localization_counts(
    similarity: Tensor, boxes: Tensor, consensus: int = 1, size: int = 224, threshold: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Intersection and union of each thresholded map with the box weights; cIoU is intersection / union.

    The map is resized to size x size (bilinear, half-pixel centres) and scaled so that its minimum there is 0 and its
    maximum 1. Pixels >= threshold are inferred. A pixel weighs g = min(1, boxes that cover it / consensus).

    Args:
        similarity: (B, h, w) float32, bfloat16, float16 or float64; h and w from 1 to 1024.
        boxes: (B, K, 4) int32 or int64 xyxy, half-open, on the size x size grid; a box without area covers nothing.
        consensus: how many boxes must cover a pixel for the weight 1; 1 to 1024.
        size: side of the grid, pixels, 1 to 1024.
        threshold: of the scaled map, 0 to 1.

    Returns:
        intersection (B,) float64, the sum of g over the inferred pixels; and union (B,) float64, the sum of g plus the
        number of inferred pixels with g = 0. A map that is constant, or in which a NaN or an infinity
        reaches a pixel, infers nothing.

    Raises:
        ValueError: wrong shape, dtype, size or device.
        RuntimeError: as ``two_views``.
    """
    if boxes.dtype == torch.int64:
        boxes = boxes.clamp(0, size).int()
    return torch.ops.essl_fast.localization_counts(similarity.detach(), boxes, consensus, size, threshold)


def _check_log_mel(pcm: Tensor) -> Tensor:
    """Check the arguments; the empty result."""
    _expect("log_mel", "pcm", pcm, ("B", "T"), tuple(_PCM_TYPES))
    if pcm.shape[1] < MIN_SAMPLES:
        raise ValueError(f"log_mel: pcm must be (B, T) with T >= {MIN_SAMPLES}, got {tuple(pcm.shape)}")
    examples = (1 + (pcm.shape[1] - 400) // 160) // 96
    return torch.empty((pcm.shape[0], examples, 96, 64), device=_one_device("log_mel", pcm), dtype=torch.float32)


@torch.library.custom_op("essl_fast::log_mel", mutates_args=())
def _log_mel(pcm: Tensor, normalize: bool) -> Tensor:
    out = _check_log_mel(pcm)
    pcm = pcm.contiguous()
    _run("log_mel", pcm.device, out.data_ptr(), pcm.data_ptr(), _PCM_TYPES[pcm.dtype], *pcm.shape, normalize)
    return out


@_log_mel.register_fake
def _(pcm: Tensor, normalize: bool) -> Tensor:
    return _check_log_mel(pcm)


def log_mel(pcm: Tensor, normalize: bool = True) -> Tensor:
    """VGGish's log-mel examples of sound at 16 kHz: 96 frames of 64 mel bands each.

    Frames of 400 samples every 160, no padding, periodic Hann window, magnitudes of a 512-point FFT, 64 bands of
    125-7500 Hz with slopes linear in mel, log(band + 0.01). The FFT is in float32: the result differs from that in
    float64 by at most 2e-3 (1e-3 measured) in silent bands beside loud ones, and by about 1e-5 elsewhere.

    Args:
        pcm: (B, T) int16, or float32 in [-1, 1]; T >= 15600. Copied first if it is not contiguous.
        normalize: bring each clip's minimum to -1 and its maximum to just under 1 first. A NaN then spoils its clip.

    Returns:
        (B, E, 96, 64) float32, E = (1 + (T - 400) // 160) // 96: 3 for 3 s. Equal for any number of threads.

    Raises:
        ValueError: wrong shape, dtype or device.
        RuntimeError: no compiled module, or none with CUDA for CUDA tensors; or CUDA refused the launch.
    """
    return torch.ops.essl_fast.log_mel(pcm, normalize)
