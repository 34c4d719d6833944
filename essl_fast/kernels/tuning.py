"""How the Triton kernels are launched: a few candidates for each class of shapes, the best pinned for each GPU type.

Nothing is tuned at run time. Each op lists its candidates, the default first. A launch uses the first of these that
exists: what `benchmarks/kernels.py --tune` measured on this machine (a file in the user's cache); the pin for this
GPU type in pinned.json; the pin for the nearest older type; the default.
"""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from essl_fast.common.places import any_folder

# With TRITON_INTERPRET=1, kernels are Python functions that run on the CPU, very slowly. Tests set CPU_TOO to use that.
INTERPRETED = bool(triton.knobs.runtime.interpret)
CPU_TOO = False

# Launch option of every kernel: a * b + c is one instruction with one rounding. The kernels' counts of instructions and
# bounds of errors assume it, and Triton's default changes with version 3.10.
FUSED = {"enable_fp_fusion": True}


@dataclass(frozen=True)
class Config:
    """One way to launch a kernel: its constexpr block sizes, warps per program, software pipeline stages."""

    blocks: Mapping[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2

    def arguments(self) -> dict[str, int]:
        """Keyword arguments of the launch."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages, **FUSED}


def runs_here(tensor: Tensor) -> bool:
    """Whether a Triton kernel can take this tensor: it is on a GPU, or on the CPU while tests interpret kernels."""
    return tensor.is_cuda or (CPU_TOO and INTERPRETED and tensor.device.type == "cpu")


@functools.lru_cache
def chip_of(device: torch.device) -> str:
    """The GPU's type, such as "sm_90"; "cpu" for the interpreter."""
    if device.type != "cuda":
        return "cpu"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@functools.lru_cache
def processors_of(device: torch.device) -> int:
    """Multiprocessors of the GPU; 132, an H200's, for the interpreter, so that tests split work as it does."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def measured_file(chip: str) -> Path:
    """Where `benchmarks/kernels.py --tune` leaves what it measured on this machine."""
    return any_folder() / "kernels" / f"{chip}.json"


@functools.lru_cache
def _table(source: Path | None) -> dict[str, Any]:
    """{chip: {op: {shape class: config}}}: the pins (source None), or a measured file ({} if there is none)."""
    if source is None:
        return json.loads(files("essl_fast.kernels").joinpath("pinned.json").read_text())
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise RuntimeError(f"{source}: not a readable table of kernel settings ({error}); delete it") from error


def _number(chip: str) -> int:
    return int(chip.removeprefix("sm_"))


_forced: dict[tuple[str, str], Config] = {}
_picked: dict[tuple[str, str, torch.device], Config] = {}


def pick(op: str, shape_class: str, device: torch.device, default: Callable[[str], Config]) -> Config:
    """The config of a launch.

    Args:
        op: its name.
        shape_class: as the op's ``shape_class`` makes it from the sizes.
        device: where it runs.
        default: gives the config of a shape class for which nothing is pinned or measured.
    """
    found = _forced.get((op, shape_class)) or _picked.get((op, shape_class, device))
    if found is None:
        found = _recorded(op, shape_class, chip_of(device)) or default(shape_class)
        _picked[op, shape_class, device] = found
    return found


def _recorded(op: str, shape_class: str, chip: str) -> Config | None:
    """What was measured on this machine or is pinned, for this chip, else for the nearest older one."""
    if chip == "cpu":
        return None
    measured, pinned = _table(measured_file(chip)), _table(None)
    older = sorted((c for c in pinned if _number(c) <= _number(chip)), key=_number, reverse=True)
    for table in (measured.get(chip, {}), *(pinned[c] for c in older)):
        found = table.get(op, {}).get(shape_class)
        if found is not None:
            return Config(**found)
    return None


def picked() -> list[tuple[str, str]]:
    """(op, shape class) of every launch so far, sorted, each once."""
    return sorted({(op, shape_class) for op, shape_class, _ in _picked})


@contextlib.contextmanager
def forced(op: str, shape_class: str, config: Config) -> Iterator[None]:
    """While the block runs, ``pick`` returns this config: for measuring candidates."""
    _forced[op, shape_class] = config
    try:
        yield
    finally:
        del _forced[op, shape_class]


def remember(chip: str, op: str, shape_class: str, config: Config) -> Path:
    """Write a measured config into this machine's file, and return the file's path."""
    path = measured_file(chip)
    table = dict(_table(path))
    table.setdefault(chip, {}).setdefault(op, {})[shape_class] = asdict(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(f".{os.getpid()}")
    whole.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    whole.replace(path)
    _table.cache_clear()
    _picked.clear()
    return path


@dataclass(frozen=True)
class AotCase:
    """One specialisation of a kernel that training launches; `.ci/compile_triton.py` compiles it without a GPU.

    A module with @triton.jit kernels has a function ``aot_cases() -> list[AotCase]``.
    """

    name: str  # in the printed table, such as "forward 512x14x14 bf16 channels_last"
    kernel: Any  # the @triton.jit function
    signature: Mapping[str, str]  # run-time arguments: "*bf16", "*fp32", "*i1", "i32", "i64", "fp32", ...
    constexprs: Mapping[str, Any]  # the other arguments; also a run-time integer that is 1, as a launch specialises it
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int = 255  # per thread; more is a failure. Set it to what the intended occupancy allows
    maxnreg: int | None = None  # the launch's own limit of registers per thread
    multiples_of_16: tuple[str, ...] = ()  # integer arguments; pointers are always taken as aligned to 16 bytes
    min_load_bytes: int = 0  # bytes per thread that the widest global load must have at least
    min_store_bytes: int = 0  # the same for the widest global store
    options: Mapping[str, Any] = field(default_factory=lambda: FUSED)  # the launch's others
