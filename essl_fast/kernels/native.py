"""The only door to csrc: checks tensors, allocates outputs, hands addresses to the module ``_essl_fast_native``.

Every function here does the work with compiled code or raises; ``essl_fast.kernels`` chooses between this and the
reference. Each op is a ``torch.library`` custom op with a fake, so that ``torch.compile(fullgraph=True)`` passes.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_SIZE = 4064  # kMaxWindow in csrc/two_views.h

_INTERFACE = 1  # kInterface in csrc/bindings.cpp: a module of other sources must not be called
_REMEDY = "run `pip install .` (or `python setup.py build_ext --inplace`) in the source folder"
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # OutType in csrc/two_views.h


def _load() -> tuple[ModuleType | None, str | None]:
    """The compiled module, or why there is none."""
    try:
        import _essl_fast_native as module
    except ModuleNotFoundError:
        return None, f"the compiled module was not built (no C++ compiler at install time?): {_REMEDY}"
    except ImportError as error:
        return None, f"the compiled module does not load ({error}): {_REMEDY}"
    built = module.build_info()["interface"]
    if built != _INTERFACE:
        return None, f"the compiled module is of another version (interface {built}, wanted {_INTERFACE}): {_REMEDY}"
    return module, None


_module, _why_unavailable = _load()


def available() -> bool:
    """Whether the compiled module is here, with its host functions at least."""
    return _module is not None


def why_unavailable() -> str | None:
    """Why ``available()`` is False and what to do about it; None if it is True."""
    return _why_unavailable


def has_cuda() -> bool:
    """Whether the compiled module holds the CUDA kernels. (It does not say that there is a GPU.)"""
    return _module is not None and bool(_module.build_info()["cuda"])


def build_info() -> dict[str, Any]:
    """What the module was built with: interface, cuda (bool), cuda_version, archs ("sm_80 sm_86 ..."), compiler.

    Raises:
        RuntimeError: there is no compiled module.
    """
    return dict(_need("build_info").build_info())


def _need(op: str, device: torch.device | None = None) -> ModuleType:
    """The compiled module, which can run on ``device``; or RuntimeError."""
    if _module is None:
        raise RuntimeError(f"{op}: {_why_unavailable}")
    if device is not None and device.type == "cuda" and not has_cuda():
        raise RuntimeError(f"{op}: the compiled module has no CUDA part: set ESSL_CUDA=1 and {_REMEDY}")
    return _module


def _expect(op: str, name: str, tensor: Tensor, shape: tuple[int | str, ...], types: tuple[torch.dtype, ...]) -> None:
    """Raises ValueError unless the tensor has one of the types, and the shape (a str stands for any size)."""
    fits = tensor.dim() == len(shape) and all(
        isinstance(want, str) or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits or tensor.dtype not in types:
        want_types = " or ".join(str(t).removeprefix("torch.") for t in types)
        want_shape = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
        have_type = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{op}: {name} must be {want_types} {want_shape}, not {have_type} {tuple(tensor.shape)}")


def _check_two_views(
    frames: Tensor, rows: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: int, dtype: torch.dtype
) -> tuple[int, int]:
    """Everything that can be told from shapes, types and devices. Returns (V, B)."""
    op = "two_views"
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
    devices = {t.device for t in (frames, rows, top, left, flip)}
    if len(devices) > 1 or frames.device.type not in ("cpu", "cuda"):
        found = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"{op}: all tensors must be on one CPU or CUDA device, not {found}")
    if not frames.is_contiguous():
        raise ValueError(f"{op}: frames must be contiguous (N, S, S, 3), not with strides {frames.stride()}")
    return top.shape[0], rows.shape[0]


def _check_bounds(name: str, values: Tensor, limit: int) -> None:
    """Raises IndexError unless 0 <= values <= limit."""
    low, high = (int(v) for v in values.aminmax())
    if low < 0 or high > limit:
        raise IndexError(f"two_views: {name} holds {low if low < 0 else high}, outside 0..{limit}")


def _empty_views(frames: Tensor, views: int, batch: int, size: int, dtype: torch.dtype) -> Tensor:
    """(V, B, 3, size, size), every view channels_last."""
    return torch.empty((views, batch, size, size, 3), dtype=dtype, device=frames.device).permute(0, 1, 4, 2, 3)


@torch.library.custom_op("essl_fast::two_views", mutates_args=())
def _two_views(
    frames: Tensor, rows: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: int, dtype: torch.dtype
) -> Tensor:
    module = _need("two_views", frames.device)
    views, batch = _check_two_views(frames, rows, top, left, flip, size, dtype)
    stored, side = frames.shape[:2]
    if batch and frames.device.type == "cpu":  # on a GPU this would wait for it; the kernel brings indices into range
        _check_bounds("rows", rows, stored - 1)
        _check_bounds("top", top, side - size)
        _check_bounds("left", left, side - size)
    rows, top, left, flip = (t.contiguous() for t in (rows, top, left, flip))
    out = _empty_views(frames, views, batch, size, dtype)
    addresses = [t.data_ptr() for t in (frames, rows, top, left, flip)]
    arguments = [*addresses, stored, side, views, batch, size, IMAGENET_MEAN, IMAGENET_STD]
    if frames.device.type == "cpu":
        module.two_views_host(out.data_ptr(), _TYPES[dtype], *arguments, torch.get_num_threads())
    else:
        stream = torch.cuda.current_stream(frames.device).cuda_stream
        module.two_views_cuda(out.data_ptr(), _TYPES[dtype], *arguments, frames.device.index, stream)
    return out


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
    """Cuts, mirrors and normalises the views of a batch in one pass.

    Bit-equal to ``x.float().div(255).sub(mean).div(std).to(dtype)`` on the CPU, with ImageNet's mean and std.

    Args:
        frames: (N, S, S, 3) uint8, contiguous.
        rows: (B,) int64, the frame of each sample, 0 <= rows < N; a frame may come more than once.
        top: (V, B) int32, first pixel row of each window, 0 <= top <= S - size.
        left: (V, B) int32, first pixel column, 0 <= left <= S - size.
        flip: (V, B) bool or uint8; true mirrors the window left to right.
        size: side of the windows in pixels, at most S.
        dtype: float32, bfloat16 or float16; by default bfloat16 on CUDA and float32 on the CPU.

    Returns:
        (V, B, 3, size, size), each (B, 3, size, size) channels_last. The next call does not reuse its memory.

    Raises:
        ValueError: wrong shape, type, device or layout.
        IndexError: an index out of its range (CPU tensors; CUDA kernels use the nearest one in range, without waiting).
        RuntimeError: no compiled module, or none with CUDA for CUDA tensors; or CUDA refused the launch.
    """
    if dtype is None:
        dtype = torch.bfloat16 if frames.device.type == "cuda" else torch.float32
    return torch.ops.essl_fast.two_views(frames, rows, top, left, flip, size, dtype)
