"""The project's own launchers: from the op down to the launch, which alone is kept back.

In a traced step the ops' fakes stand for their bodies. Here the bodies run: Triton specialises and compiles each kernel
for the arguments that a step gives it. The compiled module's CUDA entries get the arguments that native.py makes for
them, and must fail for want of a driver, not for the number or kind of an argument.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor

from essl_fast.kernels import at_rest, attention, cosine, image_convolution, native, norm_gelu, pixel_bce_op
from tests.phantom.chip import GPU, pretend
from tests.phantom.chips import CHIPS, Chip
from tests.phantom.cubins import SPILL, needs
from tests.phantom.entering import noted

DRIVER = ("driver", "no CUDA-capable device", "cudaErrorNoDevice", "initialization")  # what is missing here


class Launcher:
    """Stands for Triton's launcher: it keeps the grid of each launch."""

    launches: list[tuple[str, tuple[int, int, int]]] = []

    def __init__(self, source: Any, metadata: Any) -> None:
        self._name = metadata.name

    def __call__(self, x: int, y: int, z: int, *_: Any) -> None:
        self.launches.append((self._name, (x, y, z)))


def _utils(chip: Chip, codes: dict[tuple[str, bytes], int]) -> Any:
    """Stands for Triton's driver utilities: cubins are kept instead of loaded."""

    class Utils:
        @staticmethod
        def get_device_properties(device: int) -> dict[str, int]:
            return {
                "max_shared_mem": chip.shared << 10,
                "max_num_regs": 65536,
                "multiprocessor_count": chip.multiprocessors,
                "warpSize": 32,
            }

        @staticmethod
        def load_binary(name: str, code: bytes, shared: int, device: int) -> tuple:
            codes[name, code] = shared
            return None, 1, 0, 0, 1024

    return Utils()


def _body(op: Any) -> Any:
    """The function that a custom op runs on real tensors."""
    return op._init_fn


def _gpu(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, device=GPU, dtype=dtype)


def launch_all(size: int, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Everything that a step of ``size`` pairs launches, both views at once."""
    maps = _gpu(2 * size, 512, 14, 14, dtype=dtype).to(memory_format=layout)
    sound = _gpu(2 * size, 512, dtype=dtype)
    many = 8 * size  # more than the programs that a chip holds: they take several samples
    _body(attention._attend)(
        _gpu(many, 512, 14, 14, dtype=dtype).to(memory_format=layout), _gpu(many, 512, dtype=dtype)
    )
    pooled, similarity, weights, sums, extremes = _body(attention._attend)(maps, sound)
    for given in ((pooled, None, None), (pooled, None, weights), (None, similarity, None)):
        _body(attention._attend_backward)(maps, sound, similarity, pooled, sums, extremes, *given, True, True)
    p = _gpu(size, 2048, dtype=dtype)
    loss, *units = _body(cosine._op)(p, p, p, p, True)
    _body(cosine._backward_op)(*units, loss, dtype)
    launch_chains(maps)
    launch_at_rest(maps)
    if dtype != torch.float32:
        images = _gpu(2 * size, 3, 224, 224, dtype=dtype).to(memory_format=layout)
        image_convolution.image_conv_relu(images, _gpu(64, 3, 3, 3, dtype=dtype), _gpu(64, dtype=dtype))
    boxes = _gpu(2 * size, 4, 4, dtype=torch.int32)
    for consensus in (1, 2):
        _body(pixel_bce_op._op)(weights, boxes, _gpu(2 * size, dtype=torch.bool), consensus, 224, True)


def launch_at_rest(maps: Tensor) -> None:
    """What an evaluated batch launches of the PCM and of pools."""
    table, eps = _gpu(maps.shape[1]), 1e-5
    tables, shared = (table, table, table, table, eps), maps[:, :, :1, :1]
    for y, rate, top, less in (
        (None, None, None, None),
        (maps, table, None, None),
        (shared, None, None, maps),
        (maps, None, maps, None),
    ):
        top_rate = None if top is None else table
        _body(at_rest._chain)(maps, y, rate, *tables, top, top_rate, less, y is not None)
    _body(at_rest._pool)(maps)


def launch_chains(maps: Tensor) -> None:
    """The chains of the PCM's cycles: sum with the next cycle's mix, mix below, first prediction, error of a sum."""
    rate, eps = _gpu(maps.shape[1]), 1e-5
    chains = ((maps, None, maps, None), (maps, rate, None, None), (None, None, None, None), (maps, None, None, maps))
    for y, blend, top, less in chains:
        u, partial = _body(norm_gelu._blend)(maps, y, blend, 2)
        u, top_rate = maps if y is None else u, None if top is None else rate
        again = None if y is None else maps
        _, _, moments = _body(norm_gelu._norm)(u, partial, rate, rate, top, top_rate, less, 2, eps, less is None)
        mixed = (None, None) if blend is None else (maps, y)
        sums = _body(norm_gelu._sums)(maps, again, u, moments, rate, rate, *mixed, top, top_rate, eps)
        given = (maps, again, u, moments, rate, rate, sums, blend, top, top_rate, eps)
        _body(norm_gelu._gradients)(*given, False)


def triton_faults(chip: str, everything: bool) -> list[str]:
    """A line for each of our Triton kernels whose machine code spills, as a step launches it."""
    about, codes = CHIPS[chip], {}
    dtypes = (torch.bfloat16, torch.float16, torch.float32) if everything else (torch.bfloat16,)
    layouts = (torch.channels_last, torch.contiguous_format) if everything else (torch.channels_last,)
    with pretend(about):
        driver = triton.runtime.driver.active
        driver.launcher_cls, driver.utils = Launcher, _utils(about, codes)
        before = len(Launcher.launches)
        for size in (128, 59, 16) if everything else (128,):
            for dtype in dtypes:
                for layout in layouts:
                    launch_all(size, dtype, layout)
        if len(Launcher.launches) == before:
            return ["no Triton kernel of ours was launched"]
    cubins = [needs(name, code, shared) for (name, code), shared in codes.items()]
    return [f"{cubin.name} spills {cubin.local} bytes a thread" for cubin in cubins if cubin.local > SPILL]


def native_calls() -> Iterator[Any]:
    """Functions that call each entry of the compiled module, with tensors on the host."""
    frames, rows = torch.zeros(3, 246, 246, 3, dtype=torch.uint8), torch.tensor([0, 1, 2, 1])
    params = native.view_params(0, 0, rows, 22)
    boxes = torch.zeros(4, 2, 4, dtype=torch.int32)
    yield lambda: native.view_params(0, 0, rows, 22)
    yield lambda: native.two_views(frames, rows, *params)
    yield lambda: native.random_views(frames, rows, rows, 0, 0)
    yield lambda: native.view_boxes(boxes, *params)
    yield lambda: native.log_mel(torch.zeros(2, 48000, dtype=torch.int16))
    yield lambda: native.localization_counts(torch.rand(4, 14, 14), boxes)


def native_faults() -> list[str]:
    """A line for each CUDA entry that does not take the arguments that native.py makes for it."""
    if not native.has_cuda() or torch.cuda.is_available():
        return []  # without the CUDA part there is none; a real GPU would be given addresses of the host
    found, tried = [], []

    def on_gpu(op: str, device: torch.device, *given: Any, **named: Any) -> None:
        with mock.patch.object(native, "_run", run):
            run(op, torch.device("cpu"), *given, **named)  # so that what follows has its results
        tried.append(op)
        try:
            run(op, GPU, *given, **named)
            found.append(f"{op}_cuda ran without a GPU")
        except RuntimeError as error:
            if not any(word in str(error) for word in DRIVER):
                found.append(f"{op}_cuda: {error}")
        except TypeError as error:
            found.append(f"{op}_cuda does not take what native.py gives it: {error}")

    run = native._run
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(native, "_run", on_gpu))
        still = type("Still", (), {"cuda_stream": 0})
        stack.enter_context(mock.patch.object(torch.cuda, "current_stream", lambda device=None: still))
        for call in native_calls():
            call()
    untried = {"view_params", "two_views", "view_boxes", "log_mel", "localization_counts"} - set(tried)
    return found + [f"{op}_cuda was not tried" for op in sorted(untried)]


def check(everything: bool) -> list[str]:
    """All faults."""
    chips = ("a100", "h200", "b200") if everything else ("h200",)
    with noted():
        return [f"{chip}: {fault}" for chip in chips for fault in triton_faults(chip, everything)] + native_faults()
