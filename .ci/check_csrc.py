"""Checks csrc on a machine without a GPU.

1. nvcc compiles each csrc/*.cu to machine code for each arch of setup.py. A warning, a register spill or a local stack
   is a failure, and so are more instructions a row of two_views than LIMITS allows. Prints registers, spills, stack and
   static shared memory per kernel and arch.
2. The C++ compiler builds each csrc/*.cpp with -Wall -Wextra -Werror, as a host-only and as a CUDA build.
3. Each csrc/test/check_*.cpp is built with the address and undefined-behaviour sanitizers and run. These run the host
   code, and the CUDA kernels on host threads (csrc/test/emulated).

    python .ci/check_csrc.py        needs g++ or clang++, nvcc 12.8 or newer, pybind11
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import sass

ROOT = Path(__file__).resolve().parent.parent
SANITIZE = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-strict-aliasing"]
# The most instructions that a row of two_views may take: as it is stored, and mirrored.
LIMITS = {"80": (103, 117), "86": (103, 118), "89": (103, 118), "90": (103, 117), "100": (92, 107), "120": (104, 118)}
EMULATE = ["-Icsrc/test/emulated", "-Icsrc", "-Wno-unknown-pragmas"]


def load_setup() -> ModuleType:
    """setup.py as a module: its flags, archs and compilers are the ones to check."""
    spec = importlib.util.spec_from_file_location("essl_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None  # of a path that ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules["essl_setup"] = module
    spec.loader.exec_module(module)
    return module


def must(command: list[str], what: str) -> str:
    """Runs a command and returns what it printed; ends the program, showing all of it, if it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        print(done.stdout + done.stderr)
        sys.exit(f"check_csrc: {what} failed (exit status {done.returncode})")
    return done.stdout + done.stderr


def kernel_name(mangled: str) -> str:
    """A kernel's readable name, without its arguments."""
    tool = shutil.which("c++filt")
    name = must([tool, mangled], "c++filt").strip() if tool else mangled
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ").replace("essl::", "")
    return re.sub(r"\(.*\)$", "", name)


def resources(ptxas: str) -> dict[str, tuple[int, int, int, int]]:
    """{mangled kernel: (registers, spilled bytes, stack bytes, static shared bytes)} out of ptxas -v."""
    found = {}
    for block in re.split(r"Compiling entry function ", ptxas)[1:]:

        def number(pattern: str, block: str = block) -> int:
            hit = re.search(pattern, block)
            return int(hit[1]) if hit else 0

        spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
        stack, shared = number(r"(\d+) bytes stack frame"), number(r"(\d+) bytes smem")
        found[block.split("'")[1]] = (number(r"Used (\d+) registers"), spills, stack, shared)
    if any(registers == 0 for registers, *_ in found.values()):
        sys.exit("check_csrc: ptxas says no number of registers; has its output changed?")
    return found


def too_long(folder: Path) -> list[str]:
    """What takes more instructions than LIMITS allows; a kernel that is not found is a fault too."""
    faults = []
    for arch, limits in LIMITS.items():
        kernels = sass.disassembled(folder / f"two_views.{arch}.cubin")
        rows = {kernel_name(name): code for name, code in kernels.items() if "rows_kernel" in name}
        if len(rows) != 2:
            faults.append(f"two_views on sm_{arch}: rows_kernel was to be found for two types, not {len(rows)}")
        for name, code in rows.items():
            # A warp makes 8 rows of 3 pieces a lane; a piece takes 3 words, mirrored 4.
            for words, way, most in zip((3, 4), ("as it is", "mirrored"), limits, strict=True):
                found = sass.fewest(code, {r"STG\.E\.128": 24, r"LDG\.E\.CONSTANT": 24 * words})
                row = None if found is None else found / 8
                print(f"{name} on sm_{arch}: {row} instructions a row, {way}")
                if row is None or row > most:
                    faults.append(f"{name} on sm_{arch}: {row} instructions a row, {way}; at most {most} allowed")
    return faults


def check_kernels(build: ModuleType, nvcc, cxx: str, folder: Path) -> None:
    """Step 1."""
    missing = [arch for arch in build.ARCHS if arch not in nvcc.archs]
    if missing:
        sys.exit(f"check_csrc: nvcc {nvcc.version} does not know sm_{', sm_'.join(missing)}: install a newer one")
    jobs = [(source, arch) for source in sorted((ROOT / "csrc").glob("*.cu")) for arch in build.ARCHS]

    def compile_one(job: tuple[Path, str]) -> str:
        source, arch = job
        flags = [*build.NVCC_FLAGS, "-ccbin", cxx, "-Werror", "all-warnings", "-Xptxas", "-v", f"-arch=sm_{arch}"]
        out = folder / f"{source.stem}.{arch}.cubin"
        command = [nvcc.path, *flags, "-Icsrc", "-cubin", str(source), "-o", str(out)]
        return must(command, f"nvcc for sm_{arch} on {source.name}")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outputs = list(pool.map(compile_one, jobs))
    bad = []
    print(f"{'kernel':<64} {'arch':>6} {'registers':>9} {'spills':>7} {'stack':>6} {'smem':>6}")
    for (source, arch), output in zip(jobs, outputs, strict=True):
        found = resources(output)
        if not found:
            sys.exit(f"check_csrc: {source.name} holds no kernel for sm_{arch}, or ptxas changed how it prints")
        for mangled, (registers, spills, stack, shared) in sorted(found.items()):
            name = kernel_name(mangled)
            print(f"{name:<64} {'sm_' + arch:>6} {registers:>9} {spills:>7} {stack:>6} {shared:>6}")
            if spills or stack:
                bad.append(f"{name} on sm_{arch}: {spills} bytes spilled, {stack} bytes of stack")
    bad += too_long(folder)
    if bad:
        sys.exit("check_csrc: registers or instructions:\n  " + "\n  ".join(bad))


def check_host(build: ModuleType, nvcc, cxx: str, folder: Path) -> None:
    """Step 2."""
    for plan in (build.Plan(cxx, None, ()), build.Plan(cxx, nvcc, ())):
        for source in sorted((ROOT / "csrc").glob("*.cpp")):
            command = [cxx, *build.host_flags(plan), "-Werror", "-c", str(source), "-o", str(folder / "host.o")]
            must(command, f"{Path(cxx).name} -Wall -Wextra -Werror on {source.name}")
            print(f"{source.name}: no warnings ({'with' if plan.nvcc else 'without'} CUDA)")


def check_sanitized(build: ModuleType, cxx: str, folder: Path) -> None:
    """Step 3."""
    checks = sorted((ROOT / "csrc" / "test").glob("check_*.cpp"))
    if not checks:
        sys.exit("check_csrc: csrc/test holds no check_*.cpp")
    sources = [str(path) for path in sorted((ROOT / "csrc").glob("*_host.cpp"))]
    for check in checks:
        program = str(folder / check.stem)
        flags = [flag for flag in build.CXX_FLAGS if flag not in ("-O3", "-fPIC")]
        command = [cxx, *flags, *SANITIZE, "-Werror", *EMULATE, str(check), *sources, "-o", program]
        must(command, f"building {check.name} with sanitizers")
        print(must([program], check.stem).strip())


def main() -> None:
    build = load_setup()
    plan = build.make_plan({**os.environ, "ESSL_CUDA": "1"}, sys.path)
    print(f"check_csrc: {plan.cxx}; {plan.notes[0]}")
    with tempfile.TemporaryDirectory() as folder:
        check_kernels(build, plan.nvcc, plan.cxx, Path(folder))
        check_host(build, plan.nvcc, plan.cxx, Path(folder))
        check_sanitized(build, plan.cxx, Path(folder))


if __name__ == "__main__":
    main()
