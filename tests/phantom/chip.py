"""The pretended GPU: what PyTorch, Inductor and Triton ask about a device is answered from a table."""

import contextlib
import os
import tempfile
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from tests.phantom import shim  # noqa: F401 (before torch)
from tests.phantom.chips import Chip

CACHE = tempfile.TemporaryDirectory(prefix="phantom-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{CACHE.name}/inductor"
os.environ["TRITON_CACHE_DIR"] = f"{CACHE.name}/triton"
os.environ.pop("TRITON_INTERPRET", None)

import torch  # noqa: E402
import torch._dynamo.device_interface as interface  # noqa: E402
import triton  # noqa: E402
from torch._subclasses import fake_tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils import _foreach_utils  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from essl_fast.kernels import tuning  # noqa: E402
from tests.phantom.layout import strides  # noqa: E402

GPU = torch.device("cuda", 0)


class Touched(RuntimeError):
    """Something asked the pretended GPU for what only a real one can give."""


class Stream:
    """Stands for `torch.cuda.Stream`: nothing runs, so everything is in order."""

    cuda_stream = stream_id = device_index = 0
    device_type, device = 1, GPU

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def _nothing(self, other: Any = None) -> None:
        pass

    wait_stream = wait_event = synchronize = record_event = _nothing


def properties(chip: Chip) -> types.SimpleNamespace:
    """What `torch.cuda.get_device_properties` would return."""
    return types.SimpleNamespace(
        name=chip.name,
        major=chip.capability[0],
        minor=chip.capability[1],
        multi_processor_count=chip.multiprocessors,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
        total_memory=chip.memory << 30,
        L2_cache_size=chip.cache << 20,
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=chip.shared << 10,
        shared_memory_per_multiprocessor=(chip.shared + 1) << 10,
        gcnArchName="",
        is_integrated=0,
        is_multi_gpu_board=0,
    )


def _driver(chip: Chip) -> Any:
    """Triton's driver: it knows its target, and launches nothing."""

    def no_timing() -> None:
        raise Touched("the pretended GPU cannot time kernels")

    return types.SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", chip.arch, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device=None: 0,
        get_active_torch_device=lambda: GPU,
        get_device_interface=lambda: torch.cuda,
        is_active=lambda: True,
        get_benchmarker=no_timing,
        launcher_cls=None,
        utils=None,
    )


def _always(answer: Any) -> Callable[..., Any]:
    return lambda *_, **__: answer


def _torch_cuda(chip: Chip) -> dict[str, Any]:
    """The functions of `torch.cuda` that are answered from the table."""
    found = properties(chip)
    random = torch.zeros(16, dtype=torch.uint8)
    memory = chip.memory << 30
    # Dynamo sorts functions by their identity, so that each of these is one of its own.
    zeros = ("current_device", "_exchange_device", "_maybe_exchange_device", "memory_allocated")
    nothings = ("set_device", "_lazy_init", "init", "synchronize", "empty_cache", "set_rng_state", "manual_seed")
    return {
        **{name: _always(0) for name in zeros},
        **{name: _always(None) for name in nothings},
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "get_device_properties": lambda device=None: found,
        "get_device_capability": lambda device=None: chip.capability,
        "get_device_name": lambda device=None: chip.name,
        "mem_get_info": lambda device=None: (memory, memory),
        "is_bf16_supported": lambda including_emulation=True: True,
        "current_stream": lambda device=None: Stream(),
        "default_stream": lambda device=None: Stream(),
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda device=None: random,
    }


def _apply(self: torch.nn.Module, change: Any, recurse: bool = True) -> torch.nn.Module:
    """`nn.Module._apply` that makes new parameters: a fake one's contents cannot be swapped, as PyTorch does it."""
    for child in self.children() if recurse else ():
        child._apply(change)
    for held in (self._parameters, self._buffers):
        for key, value in held.items():
            if value is not None:
                with torch.no_grad():
                    new = change(value)
                held[key] = (
                    torch.nn.Parameter(new, value.requires_grad) if isinstance(value, torch.nn.Parameter) else new
                )
    return self


def _fused_adamw(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps, **given) -> None:
    """What the CUDA kernel demands of its tensors (ATen/native/cuda/FusedAdamWKernel.cu, ForeachUtils.h)."""
    home = params[0].device
    scalars = {name: given[name] for name in ("lr", "grad_scale", "found_inf") if torch.is_tensor(given.get(name))}
    scalars |= {f"step counter {number}": step for number, step in enumerate(state_steps)}
    for name, scalar in scalars.items():
        if scalar.device != home or scalar.dtype != torch.float32:
            raise RuntimeError(f"fused AdamW: {name} is {scalar.dtype} on {scalar.device}, parameters are on {home}")
    for each in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        kinds = {(t.dtype, t.device, tuple(t.shape), strides(t)) for t in each}
        if len(kinds) > 1:
            raise RuntimeError(f"fused AdamW: parameter, gradient and moments differ: {sorted(map(str, kinds))}")


_select_conv_backend = torch._C._select_conv_backend


def _conv_backend(input: torch.Tensor, weight: torch.Tensor, *given: Any, **more: Any) -> Any:
    """cuDNN for every convolution.

    Without a driver PyTorch thinks that bf16 has no cuDNN, and its own convolutions, unlike cuDNN's, forget
    channels_last: every map after them would have another layout than on a GPU.
    """
    kinds = torch._C._ConvBackend
    found = _select_conv_backend(input, weight, *given, **more)
    if not input.is_cuda:
        return found
    ours = {kinds.Slow2d: kinds.Cudnn, kinds.SlowDilated2d: kinds.Cudnn, kinds.SlowTranspose2d: kinds.CudnnTranspose}
    return ours.get(found, found)


_library = torch.library.Library("aten", "IMPL", "Meta")
_library.impl("_fused_adamw_.tensor_lr", _fused_adamw)  # PyTorch has no fake of it


@contextlib.contextmanager
def pretend(chip: Chip) -> Iterator[FakeTensorMode]:
    """Within the context there is this GPU, and every tensor that is made is a fake one."""
    torch._C._ensureCUDADeviceGuardSet()  # a guard that does nothing
    zero = staticmethod(lambda device=None: 0)
    with contextlib.ExitStack() as stack:

        def patch(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        for name, function in _torch_cuda(chip).items():
            patch(torch.cuda, name, function)
            if hasattr(interface.CudaInterface, name):
                patch(interface.CudaInterface, name, staticmethod(function))
        for name in ("exchange_device", "maybe_exchange_device", "get_raw_stream"):
            patch(interface.CudaInterface, name, zero)
        patch(torch.cuda, "Stream", Stream)
        patch(torch.nn.Module, "_apply", _apply)
        patch(torch._C, "_select_conv_backend", _conv_backend)
        patch(fake_tensor, "init_gpu_context", lambda *_: None)
        patch(FakeTensorMode, "avoid_device_init", property(lambda self: True))
        known = [*_foreach_utils._foreach_supported_types, fake_tensor.FakeTensor]  # else the plain loops would run
        patch(_foreach_utils, "_foreach_supported_types", known)
        for cache, value in (
            (interface.caching_worker_device_properties, [properties(chip)]),
            (interface.caching_worker_current_devices, 0),
        ):
            stack.enter_context(mock.patch.dict(cache, {"cuda": value}))
        for answer in (tuning.chip_of, tuning.processors_of, tuning._picked):  # of another chip
            stack.callback(getattr(answer, "cache_clear", None) or answer.clear)
        before = triton.runtime.driver._active
        triton.runtime.driver.set_active(_driver(chip))
        stack.callback(setattr, triton.runtime.driver, "_active", before)
        yield stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False))
