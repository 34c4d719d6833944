"""Compiles every Triton kernel of essl_fast/kernels to machine code, on a machine without a GPU, and reads the result.

A module with kernels offers ``aot_cases() -> list[AotCase]`` (AotCase: essl_fast/kernels/tuning.py). Each case is
compiled for each architecture. A failure is: a spilled register or a local stack; more registers than the case allows;
more shared memory than a block may have; global loads or stores narrower than the case asks for; a @triton.jit function
that no case compiles, directly or as a part of another.

    python .ci/compile_triton.py [--arch 80 90 100] [--only TEXT] [--max-registers N] [--package NAME] [--triton FOLDER]

Another version of Triton needs no second PyTorch, only a folder of its own:

    pip install --target FOLDER --no-deps triton==3.9.0; python .ci/compile_triton.py --triton FOLDER

The table: registers a thread; bytes spilled, of stack, of shared memory; warps that fit a multiprocessor; the widest
global load and store of a thread in bytes, and how many such instructions the code holds (not how often they run);
instructions in all, up to the last exit, and how many of them are barriers.
"""

import argparse
import functools
import importlib
import math
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ARCHS = (80, 90, 100)
# Shared memory of a block and of a multiprocessor, bytes; compute capabilities 8.0, 9.0 and 10.0.
BLOCK_SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
MULTIPROCESSOR_SHARED = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}


@dataclass(frozen=True)
class Compiled:
    """What the machine code of one case for one architecture needs."""

    registers: int
    spills: int  # bytes stored and loaded
    stack: int  # bytes
    shared: int  # bytes
    warps: int  # that a multiprocessor holds
    widest_load: int  # bytes a thread, global memory
    widest_store: int
    loads: int  # instructions
    stores: int
    code: int = 0  # instructions up to the last exit
    barriers: int = 0


def modules(package: str) -> list[Any]:
    """Every module of the package."""
    names = [found.name for found in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    return [importlib.import_module(f"{package}.{name}") for name in names]


@functools.lru_cache
def cases(package: str) -> list[tuple[str, Any]]:
    """(module name, case) of every module that offers cases."""
    offering = [module for module in modules(package) if hasattr(module, "aot_cases")]
    return [(module.__name__.rpartition(".")[2], case) for module in offering for case in module.aot_cases()]


def uncovered(package: str) -> list[str]:
    """The @triton.jit functions that no case compiles: neither a case's kernel nor named in another's source."""
    from triton.runtime.jit import JITFunction

    functions = {
        function.fn: (f"{module.__name__}.{name}", function)
        for module in modules(package)
        for name, function in vars(module).items()
        if isinstance(function, JITFunction)
    }
    compiled = {case.kernel.fn for _, case in cases(package)}
    sources = {fn: set(re.findall(r"\w+", function.src)) for fn, (_, function) in functions.items()}
    return [
        where
        for fn, (where, _) in functions.items()
        if fn not in compiled and not any(fn.__name__ in words for other, words in sources.items() if other is not fn)
    ]


def width(instruction: str) -> int:
    """Bytes a thread that a machine instruction moves, from its suffixes: LDG.E.128 16, LDG.E 4, LDG.E.U8 1."""
    for suffix in reversed(instruction.split(".")[1:]):
        if hit := re.fullmatch(r"[USF]?(8|16|32|64|128|256)", suffix):
            return int(hit[1]) // 8
    return 4


def instructions(assembly: str) -> list[str]:
    """The machine instructions' names, such as LDG.E.128."""
    found = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", assembly, flags=re.MULTILINE)
    if not found:
        sys.exit("compile_triton: no instruction found in what nvdisasm printed; has its output changed?")
    return found


def length(assembly: str) -> tuple[int, int]:
    """Instructions up to the last exit (subroutines and padding come after it), and the barriers among them."""
    found = instructions(assembly)
    last = max((at for at, name in enumerate(found) if name.startswith("EXIT")), default=len(found) - 1)
    return last + 1, sum(name.startswith("BAR.SYNC") for name in found[: last + 1])


def traffic(assembly: str) -> tuple[list[int], list[int], int]:
    """Widths in bytes of the global loads and of the global stores, and the number of accesses to local memory."""
    found = instructions(assembly)
    by_name = [(name.partition(".")[0], name) for name in found]
    loads = [width(name) for base, name in by_name if base in ("LDG", "LDGSTS")]
    stores = [width(name) for base, name in by_name if base == "STG"]
    return loads, stores, sum(base in ("LDL", "STL") for base, _ in by_name)


def resources(ptxas: str) -> tuple[int, int, int]:
    """Registers, spilled bytes and stack bytes out of what ptxas -v prints for one kernel."""

    def number(pattern: str) -> int:
        hit = re.search(pattern, ptxas)
        if hit is None:
            sys.exit(f"compile_triton: ptxas printed nothing like {pattern!r}; has its output changed?\n{ptxas}")
        return int(hit[1])

    spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    return number(r"Used (\d+) registers"), spills, number(r"(\d+) bytes stack frame")


def resident_warps(arch: int, registers: int, shared: int, num_warps: int) -> int:
    """Warps of a kernel that one multiprocessor holds: registers go out by 256 a warp, a block costs 1 KB shared."""
    by_registers = 65536 // (-(-32 * registers // 256) * 256) // num_warps
    by_shared = MULTIPROCESSOR_SHARED[arch] // (shared + 1024)
    return min(by_registers, by_shared, 32, 64 // num_warps) * num_warps


def reasons(error: BaseException | None) -> str:
    """An error and what caused it, a line in all: Triton puts the kernel's source before its message."""
    lines = []
    while error is not None:
        text = getattr(error, "error_message", None) or str(error)
        lines.append(f"{type(error).__name__}: {' '.join(text.split())[-300:]}")
        error = error.__cause__
    return "; from ".join(lines)


def use_triton(folder: str) -> None:
    """Take Triton from a folder that ``pip install --target`` has filled, also in the worker processes."""
    if not Path(folder, "triton", "__init__.py").is_file():
        sys.exit(f"compile_triton: no Triton in {folder}; pip install --target {folder} --no-deps triton puts it there")
    sys.path.insert(0, str(Path(folder).resolve()))  # a spawned worker gets its parent's path


def compile_case(package: str, index: int, arch: int) -> Compiled | str:
    """Compiles a case of a package. The error's text if Triton cannot."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
    from triton.compiler import ASTSource

    _, case = cases(package)[index]
    names = case.kernel.arg_names
    unknown = {*case.signature, *case.constexprs, *case.multiples_of_16} ^ set(names)
    if unknown:
        return f"the case and the kernel disagree about the arguments {', '.join(sorted(unknown))}"
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = [n for n in names if signature[n].startswith("*") or n in case.multiples_of_16]
    source = ASTSource(
        case.kernel, signature, dict(case.constexprs), {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "maxnreg": case.maxnreg, **case.options}
    try:
        kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    except Exception as error:  # of many kinds, and this reports any of them
        return f"does not compile: {reasons(error)}"
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        ptx.write_text(kernel.asm["ptx"])
        cubin.write_bytes(kernel.asm["cubin"])
        ptxas = [get_ptxas(arch).path, "-v", f"--gpu-name={sm_arch_from_capability(arch)}", str(ptx)]
        printed = subprocess.run([*ptxas, "-o", f"{folder}/again"], capture_output=True, text=True, check=True).stderr
        disassembler = triton.knobs.nvidia.nvdisasm.path
        assembly = subprocess.run([disassembler, "-c", cubin], capture_output=True, text=True, check=True).stdout
    registers, spills, stack = resources(printed)
    loads, stores, local = traffic(assembly)
    shared = kernel.metadata.shared
    return Compiled(
        registers,
        max(spills, 4 * local),
        stack,
        shared,
        resident_warps(arch, registers, shared, case.num_warps),
        max(loads, default=0),
        max(stores, default=0),
        len(loads),
        len(stores),
        *length(assembly),
    )


def faults(case: Any, arch: int, found: Compiled, max_registers: float = math.inf) -> list[str]:
    """What is wrong with a compiled case."""
    allowed = min(case.max_registers, max_registers)
    checks = [
        (found.spills or found.stack, f"{found.spills} bytes spilled, {found.stack} bytes of stack"),
        (found.registers > allowed, f"{found.registers} registers, at most {allowed} allowed"),
        (found.shared > BLOCK_SHARED[arch], f"{found.shared} bytes of shared memory, a block has {BLOCK_SHARED[arch]}"),
        (
            found.widest_load < case.min_load_bytes,
            f"the widest global load has {found.widest_load} bytes a thread, {case.min_load_bytes} wanted",
        ),
        (
            found.widest_store < case.min_store_bytes,
            f"the widest global store has {found.widest_store} bytes a thread, {case.min_store_bytes} wanted",
        ),
    ]
    return [text for wrong, text in checks if wrong]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHS, default=ARCHS)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose 'module.kernel case' has this in it")
    parser.add_argument("--max-registers", type=int, default=255, metavar="N", help="a lower limit for every case")
    parser.add_argument("--package", default="essl_fast.kernels", metavar="NAME", help="whose modules hold the kernels")
    parser.add_argument("--triton", metavar="FOLDER", help="compile with the Triton of this folder")
    options = parser.parse_args()
    if options.triton:
        use_triton(options.triton)
    package = options.package
    titles = [f"{module}.{case.kernel.fn.__name__} {case.name}" for module, case in cases(package)]
    wanted = [(index, arch) for index, title in enumerate(titles) if options.only in title for arch in options.arch]
    if not wanted:
        sys.exit(f"compile_triton: no case has {options.only!r} in its name: {'; '.join(titles)}")
    bad = [f"{where}: no case compiles it; add one to its module's aot_cases()" for where in uncovered(package)]

    # Processes of their own: Triton's compiler holds Python's lock for most of its time.
    with ProcessPoolExecutor(
        min(len(os.sched_getaffinity(0)), len(wanted)), multiprocessing.get_context("spawn")
    ) as pool:
        outcomes = list(pool.map(compile_case, [package] * len(wanted), *zip(*wanted, strict=True)))
    print(f"Triton {importlib.import_module('triton').__version__}")
    longest = max(len(titles[index]) for index, _ in wanted)
    heads = "registers,spills,stack,shared,warps,load B,store B,loads,stores,code,barriers".split(",")
    print(f"{'kernel and case':<{longest}} {'arch':>6} " + " ".join(f"{head:>9}" for head in heads))
    for (index, arch), outcome in zip(wanted, outcomes, strict=True):
        where = f"{titles[index]} on sm_{arch}"
        if isinstance(outcome, str):
            bad.append(f"{where}: {outcome}")
            continue
        row = " ".join(f"{getattr(outcome, field.name):>9}" for field in fields(outcome))
        print(f"{titles[index]:<{longest}} {f'sm_{arch}':>6} {row}")
        bad += [f"{where}: {text}" for text in faults(cases(package)[index][1], arch, outcome, options.max_registers)]
    if bad:
        sys.exit("compile_triton:\n  " + "\n  ".join(bad))


# In the workers too: with it, kernels are Python functions and there is nothing to compile.
os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    main()
