"""torch.compile: whether and how the step is compiled, and where the compiled code is kept for the next run.

Inductor takes about a minute for a step with the predictive coding module; a later run reads the same step from the
cache. The cache is keyed by the code, the versions and the chip, so that it never has to be emptied.
"""

import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from essl_fast.common import places
from essl_fast.common.errors import InputError
from essl_fast.common.places import INDUCTOR, TRITON

Function = TypeVar("Function", bound=Callable)


def wants_compile(setting: str, device: torch.device) -> bool:
    """Whether the step is to be compiled, for the setting auto, on or off.

    Raises:
        InputError: the setting is on, and something that torch.compile needs is missing.
    """
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    has_compiler = any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang"))
    if setting == "off" or (setting == "auto" and device.type != "cuda"):
        return False
    if has_compiler and (device.type != "cuda" or headers.is_file()):
        return True
    missing = f"{headers} is missing" if has_compiler else "there is no C compiler"
    if setting == "on":
        raise InputError(f"compile: {missing}, and torch.compile needs it; install gcc and python3-dev, or use off")
    return False


def keep_cache(setting: str) -> Path | None:
    """Make Inductor and Triton keep compiled code in a folder.

    If the user has set TORCHINDUCTOR_CACHE_DIR or TRITON_CACHE_DIR, that variable stays as it is.

    Args:
        setting: a folder; "" for essl_fast/compile in the user's cache; "off" for PyTorch's own folder, which is
            temporary and may not survive a reboot.

    Returns:
        The folder, or None if nothing was set.

    Raises:
        InputError: the folder cannot be written.
    """
    free = [name for name in (INDUCTOR, TRITON) if not places.set_by_user(name)]
    if setting == "off" or not free:
        return None
    kept = places.cache_folder()
    folder = Path(setting).expanduser().resolve() if setting else kept and kept / "compile"
    if folder is None or not places.writable(folder):
        if setting:
            raise InputError(f"compile_cache: {folder} cannot be written; give another folder, or off")
        return None  # the default folder, which nobody asked for: a read-only home must not stop a run
    for name, part in ((INDUCTOR, "inductor"), (TRITON, "triton")):
        if name in free:
            os.environ[name] = str(folder / part)
    return folder


def compile_graph(function: Function) -> Function:
    """torch.compile of a function as one graph, without a break, for each set of shapes that it is called with.

    One pass of Inductor's is switched off: it merges two reductions of one tensor over different axes into one kernel.
    With PyTorch 2.11, on a GPU of 132 multiprocessors (H100, H200), it stops at the backward pass of the PCM at 128
    pairs ("AssertionError: 1024 v.s. 512"), and it was reported to give wrong sums (pytorch#195845).

    A value that comes from four places or more and is used twice is stored, not computed twice. By its own limit
    Inductor takes the PCM's max pools of 2 x 2 places twice, each out of a map that is four times as large: 0.19 GB a
    step at 128 pairs (counted, `python -m benchmarks.phantom`).
    """
    from torch._inductor import config

    config.realize_reads_threshold = min(3, config.realize_reads_threshold)  # more places than this
    if hasattr(config.triton, "mix_order_reduction"):  # PyTorch 2.9 and earlier have no such pass
        config.triton.mix_order_reduction = False
    return torch.compile(function, fullgraph=True, dynamic=False)  # type: ignore[return-value]  # same arguments


def compile_training(module: nn.Module) -> None:
    """Compile a module's forward pass as one graph, only for training: evaluation has other batch sizes."""
    plain = module.forward
    compiled = compile_graph(plain)
    module.forward = lambda *inputs: (compiled if module.training else plain)(*inputs)


def uncompile(module: nn.Module) -> None:
    """Undo :func:`compile_training`."""
    vars(module).pop("forward", None)


def root_reason(error: BaseException) -> str:
    """The error that a compiler's error began with, as a line: its kind, and the first line of what it says."""
    while (inner := getattr(error, "inner_exception", None) or error.__cause__) is not None:
        error = inner
    says = str(error).strip().splitlines()
    return f"{type(error).__name__}: {says[0][:200]}" if says else type(error).__name__


def cache_counts() -> dict[str, int]:
    """Graphs that this process has needed so far: "hits" came from the cache, "misses" were compiled."""
    from torch._dynamo.utils import counters

    whole, inductor = counters["aot_autograd"], counters["inductor"]
    # AOTAutograd's cache holds forward and backward together; if it hits, Inductor's is not asked.
    return {
        "hits": whole["autograd_cache_hit"] + inductor["fxgraph_cache_hit"],
        "misses": inductor["fxgraph_cache_miss"] + inductor["fxgraph_cache_bypass"],
    }
