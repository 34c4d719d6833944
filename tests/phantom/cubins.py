"""Each kernel that Inductor generated, through Triton and ptxas to machine code, and what that code needs."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import triton
from torch._inductor.runtime import triton_helpers, triton_heuristics

from tests.phantom.chip import pretend
from tests.phantom.chips import CHIPS

SPILL = 64  # bytes of local memory a thread that a kernel may have; one of the PCM's has 16
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Cubin(NamedTuple):
    """What the machine code of a kernel needs."""

    name: str
    registers: int
    local: int  # bytes of stack and local memory a thread: what was spilled is there
    shared: int  # bytes


def needs(name: str, code: bytes, shared: int) -> Cubin:
    """What a cubin needs, as cuobjdump tells it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        told = subprocess.run([TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{word}:(\d+)", told)[1]) for word in ("REG", "STACK", "LOCAL"))
    return Cubin(name, registers, stack + local, shared)


def compile_kernels(kernels: dict[str, Any], chip: str, every_form: bool = False) -> Iterator[Cubin]:
    """The machine code of generated kernels.

    Args:
        kernels: Inductor's CachingAutotuner by name.
        chip: a key of CHIPS.
        every_form: each configuration that Inductor would time on a GPU, not only the first.
    """
    about = CHIPS[chip]
    with ExitStack() as stack:
        stack.enter_context(pretend(about))
        for owner, name, value in (
            (triton_helpers, "set_driver_to_gpu", lambda: None),
            (triton_heuristics.TritonBundler, "put", lambda *_, **__: None),
            (triton_heuristics.StaticTritonCompileResult, "can_statically_launch", lambda *_, **__: None),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        for name, kernel in kernels.items():
            kernel.device_props = kernel.device_props._replace(
                cc=about.arch, major=about.capability[0], multi_processor_count=about.multiprocessors
            )
            for form in kernel.configs if every_form else kernel.configs[:1]:
                made = kernel._precompile_config(form).kernel
                yield needs(name, made.asm["cubin"], made.metadata.shared)


def faults(cubins: list[Cubin], chip: str) -> list[str]:
    """A line for each kernel that spills too much, or asks for more shared memory than a block may have."""
    limit = CHIPS[chip].shared << 10
    found = [f"{c.name} spills {c.local} bytes a thread, over {SPILL}" for c in cubins if c.local > SPILL]
    return found + [f"{c.name} needs {c.shared} bytes of shared memory" for c in cubins if c.shared > limit]
