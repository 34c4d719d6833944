"""Every kernel compiles to machine code without spills; and the check that says so can say no."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys

import pytest

from essl_fast.kernels.tuning import AotCase
from tests import ROOT

SCRIPT = ROOT / ".ci" / "compile_triton.py"


@pytest.fixture(scope="module")
def script():
    """The script as a module. It takes TRITON_INTERPRET out of the environment; the tests here need it back."""
    before = os.environ.get("TRITON_INTERPRET")
    spec = importlib.util.spec_from_file_location("compile_triton", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["compile_triton"] = module
    spec.loader.exec_module(module)
    if before is not None:
        os.environ["TRITON_INTERPRET"] = before
    yield module
    del sys.modules["compile_triton"]


def run(*arguments, **environment):
    command = [sys.executable, str(SCRIPT), *arguments]
    # The kernels are not to be interpreted, whatever the tests around this one do.
    env = {**os.environ, "TRITON_INTERPRET": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd="/")


def launched_kernels():
    """module.name of every kernel that a module launches: name[grid](...)."""
    texts = {path.stem: path.read_text() for path in (ROOT / "essl_fast" / "kernels").glob("*.py")}
    found = set()
    for module, text in texts.items():
        for name in re.findall(r"@triton\.jit\ndef (\w+)", text):
            places = [text] if name.startswith("_") else texts.values()  # a public kernel may have its launch elsewhere
            found |= {f"{module}.{name}" for place in places if re.search(rf"\b{name}\[", place)}
    return found


@pytest.mark.nightly  # CI runs the script itself, for every generation of GPUs
def test_every_kernel_compiles_without_spills():
    done = run("--arch", "90")
    assert done.returncode == 0, done.stdout + done.stderr
    version, head, *rows = done.stdout.splitlines()
    assert version == f"Triton {importlib.metadata.version('triton')}"
    assert head.split() == ["kernel", "and", "case", "arch", *head.split()[4:]]
    named = set()
    for row in rows:
        where, numbers = row.split(" sm_90 ")
        registers, spills, stack, *rest = map(int, numbers.split())
        assert 0 < registers <= 255 and spills == 0 and stack == 0 and len(rest) == 8
        named.add(where.split()[0])
    kernels = launched_kernels()
    assert len(kernels) >= 4 and kernels <= named, kernels - named


@pytest.mark.slow
def test_too_many_registers_fail():
    done = run("--arch", "90", "--only", "cosine._scale_kernel bf16", "--max-registers", "8")
    assert done.returncode == 1
    assert re.search(r"_scale_kernel bf16 to bf16 on sm_90: \d+ registers, at most 8 allowed", done.stderr)


FORGOTTEN = """
import triton

@triton.jit
def forgotten(x):
    pass
"""
WRONG = """
import triton
import triton.language as tl
from essl_fast.kernels.tuning import AotCase

@triton.jit
def helper(x):
    return x * 2.0

@triton.jit
def spills(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    value = tl.load(x + at)
    tl.store(y + at, helper(value) / tl.sum(value))

@triton.jit
def narrow(x, y, stride):
    at = tl.arange(0, 128)
    tl.store(y + at, tl.load(x + at * stride))

@triton.jit
def impossible(x):
    tl.store(x, tl.arange(0, 3))

def aot_cases():
    pointers = {"x": "*fp32", "y": "*fp32"}
    return [
        AotCase("big", spills, pointers, {"N": 8192}, num_warps=1),
        AotCase("step", narrow, {**pointers, "stride": "i32"}, {}, min_load_bytes=16, min_store_bytes=32),
        AotCase("odd", impossible, {"x": "*fp32"}, {}),
        AotCase("misnamed", narrow, pointers, {"step": 4}),
    ]
"""


@pytest.mark.slow
def test_what_is_wrong_with_a_kernel_is_said(tmp_path):
    """A package of kernels that spill, load by the element, do not compile, and are not compiled at all."""
    package = tmp_path / "broken_kernels"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "plain.py").write_text("answer = 42\n")
    (package / "forgotten.py").write_text(FORGOTTEN)
    (package / "wrong.py").write_text(WRONG)
    done = run("--arch", "90", "--package", "broken_kernels", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    for message in (
        r"broken_kernels\.forgotten\.forgotten: no case compiles it",
        r"wrong\.spills big on sm_90: [1-9]\d* bytes spilled, [1-9]\d* bytes of stack",
        r"wrong\.narrow step on sm_90: the widest global load has 4 bytes a thread, 16 wanted",
        r"wrong\.narrow step on sm_90: the widest global store has 4 bytes a thread, 32 wanted",
        r"wrong\.impossible odd on sm_90: does not compile: CompilationError: .*power of 2",
        r"wrong\.narrow misnamed on sm_90: the case and the kernel disagree about the arguments step, stride",
    ):
        assert re.search(message, done.stderr), (message, done.stdout, done.stderr)
    assert "helper: no case" not in done.stderr  # a part of a kernel that is compiled


@pytest.mark.slow
def test_a_case_that_does_not_exist_is_an_error():
    done = run("--arch", "90", "--only", "no such kernel")
    assert done.returncode == 1
    assert re.search(r"no case has 'no such kernel' in its name: .*cosine\._cosine_kernel d2048 bf16", done.stderr)


@pytest.mark.slow
def test_another_triton_is_taken_from_its_folder(tmp_path):
    """A folder without one is an error; the folder comes before the installed one, also in the worker processes."""
    done = run("--arch", "90", "--triton", str(tmp_path))
    assert done.returncode == 1 and f"no Triton in {tmp_path}" in done.stderr
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise SystemExit('the Triton of the folder')")
    done = run("--arch", "90", "--triton", str(tmp_path))
    assert done.returncode == 1 and "the Triton of the folder" in done.stderr


def test_reading_machine_code(script):
    assembly = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R8, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.U8 R2, desc[UR8][R2.64] ;
        /*0030*/               @P1 LDG.E.U16.CONSTANT R2, desc[UR8][R2.64] ;
        /*0040*/             @!UP0 LDGSTS.E.BYPASS.128 [R5], desc[UR8][R2.64] ;
        /*0050*/                   STG.E.64 desc[UR8][R2.64], R4 ;
        /*1060*/                   STG.E desc[UR8][R2.64], R4 ;
        /*1070*/                   STL [R1], R4 ;
        /*1080*/                   LDL.64 R4, [R1] ;
"""
    assert script.traffic(assembly) == ([16, 1, 2, 16], [8, 4], 2)
    assert script.length(assembly) == (9, 0)
    assert script.length(assembly + "        /*1090*/     BAR.SYNC 0x0 ;\n" * 3 + "    /*10a0*/  @P0  EXIT ;\n") == (
        13,
        3,
    )
    assert script.length("    /*0000*/  EXIT ;\n" + assembly) == (1, 0)
    with pytest.raises(SystemExit, match="has its output changed"):
        script.traffic("nothing")


def test_reading_ptxas(script):
    printed = "16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\nUsed 48 registers, used 1 barriers"
    assert script.resources(printed) == (48, 20, 16)
    with pytest.raises(SystemExit, match="has its output changed"):
        script.resources("Used 48 registers")


@pytest.mark.parametrize(
    "arch, registers, shared, num_warps, warps",
    [
        (90, 32, 0, 4, 64),  # full
        (90, 40, 0, 2, 50),  # 65,536 / (40 * 32) = 51 warps, in pairs
        (90, 33, 0, 4, 48),  # 33 registers are given out as 40
        (90, 16, 0, 1, 32),  # at most 32 blocks
        (90, 32, 100 << 10, 8, 16),  # two blocks of 100 KB in 228 KB
        (80, 32, 100 << 10, 8, 8),  # one in 164 KB
    ],
)
def test_resident_warps(script, arch, registers, shared, num_warps, warps):
    assert script.resident_warps(arch, registers, shared, num_warps) == warps


def test_faults(script):
    case = AotCase("case", None, {}, {}, max_registers=64, min_load_bytes=16, min_store_bytes=8)
    good = script.Compiled(64, 0, 0, 227 << 10, 8, 16, 8, 2, 2)
    assert script.faults(case, 90, good) == []
    assert "shared memory" in script.faults(case, 80, good)[0]
    assert "64 registers, at most 63" in script.faults(case, 90, good, max_registers=63)[0]
    bad = script.Compiled(65, 4, 8, 0, 8, 8, 4, 2, 2)
    assert [text.split(",")[0] for text in script.faults(case, 90, bad)] == [
        "4 bytes spilled",
        "65 registers",
        "the widest global load has 8 bytes a thread",
        "the widest global store has 4 bytes a thread",
    ]
