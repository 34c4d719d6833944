"""How the Triton kernels are launched: few candidates a shape class, the best one pinned per chip; no run-time tuning.

Each op lists its candidates, the default first. What is used is, in this order: what `benchmarks/kernels.py --tune`
measured on this machine (a file in the user's cache), the pin of this chip in pinned.json, the pin of the nearest
older chip, the default.
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

# TRITON_INTERPRET=1: kernels are Python functions that run on the CPU, very slowly. Tests set CPU_TOO to use them so.
INTERPRETED = bool(triton.knobs.runtime.interpret)
CPU_TOO = False


@dataclass(frozen=True)
class Config:
    """One way to launch a kernel: its constexpr block sizes, warps a program, software pipeline stages."""

    blocks: Mapping[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2

    def arguments(self) -> dict[str, int]:
        """Keyword arguments of the launch."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}


def runs_here(tensor: Tensor) -> bool:
    """Whether a Triton kernel is to take this tensor: it is on a GPU, or on the CPU where tests interpret kernels."""
    return tensor.is_cuda or (CPU_TOO and INTERPRETED and tensor.device.type == "cpu")


@functools.lru_cache
def chip_of(device: torch.device) -> str:
    """ "sm_90" and the like; "cpu" for the interpreter."""
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
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "essl_fast" / "kernels" / f"{chip}.json"


@functools.lru_cache
def _table(source: Path | None) -> dict[str, Any]:
    """{chip: {op: {shape class: config}}}: the repo's pins, or one chip's measured file ({} if there is none)."""
    if source is None:
        return json.loads(files("essl_fast.kernels").joinpath("pinned.json").read_text())
    try:
        return json.loads(source.read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise RuntimeError(f"{source}: not a readable table of kernel settings ({error}); delete it") from error


def _number(chip: str) -> int:
    return int(chip.removeprefix("sm_"))


_forced: dict[tuple[str, str], Config] = {}
_picked: dict[tuple[str, str, torch.device], Config] = {}


def pick(op: str, shape_class: str, device: torch.device, default: Callable[[str], Config]) -> Config:
    """The config for an op's shape class on a device. ``default`` gives it where nothing is pinned or measured."""
    found = _forced.get((op, shape_class)) or _picked.get((op, shape_class, device))
    if found is None:
        found = _recorded(op, shape_class, chip_of(device)) or default(shape_class)
        _picked[op, shape_class, device] = found
    return found


def _recorded(op: str, shape_class: str, chip: str) -> Config | None:
    """What was measured here or is pinned, for this chip or else the nearest older one."""
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
    """(op, shape class) of every launch so far."""
    return sorted({(op, shape_class) for op, shape_class, _ in _picked})


@contextlib.contextmanager
def forced(op: str, shape_class: str, config: Config) -> Iterator[None]:
    """While the block runs, ``pick`` answers with this config: for measuring candidates."""
    _forced[op, shape_class] = config
    try:
        yield
    finally:
        del _forced[op, shape_class]


def remember(chip: str, op: str, shape_class: str, config: Config) -> Path:
    """Writes a measured config into this machine's file and returns its path."""
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
    """One specialisation of a kernel that training launches, for `.ci/compile_triton.py` to compile without a GPU.

    A module with @triton.jit kernels offers ``aot_cases() -> list[AotCase]``.
    """

    name: str  # what the table calls it, "forward 512x14x14 bf16 channels_last"
    kernel: Any  # the @triton.jit function
    signature: Mapping[str, str]  # run-time arguments: "*bf16", "*fp32", "*i1", "i32", "i64", "fp32", ...
    constexprs: Mapping[str, Any]  # the rest; a run-time integer that is 1 too: a launch specialises it
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int = 255  # a thread; more fails. Set it to what the occupancy argued for allows
    maxnreg: int | None = None  # what the launch itself bounds a thread's registers to
    multiples_of_16: tuple[str, ...] = ()  # integer arguments. Pointers are always taken as aligned to 16 bytes
    min_load_bytes: int = 0  # the widest global load must have at least this many bytes a thread
    min_store_bytes: int = 0  # and the widest global store
