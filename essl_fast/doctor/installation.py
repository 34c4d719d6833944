"""Checks of what is installed: Python, PyTorch, the compiled module, Triton, a C compiler, DALI, modules of the user's.

Everything that may be missing or broken is imported inside the check that needs it, so that it spoils no other check.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator

from essl_fast.doctor import machine
from essl_fast.doctor.findings import INSTALL, NOTE, OK, SLOWER, STOPS, Case, Finding


def package_version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_python(case: Case) -> Iterator[Finding]:
    """The interpreter and the system."""
    yield Finding("Python", OK, f"Python {platform.python_version()} ({sys.executable}) on {platform.platform()}")


def check_torch(case: Case) -> Iterator[Finding]:
    """PyTorch and the CUDA that it was built for."""
    torch = importlib.import_module("torch")
    values = {"torch": str(torch.__version__), "cuda": torch.version.cuda, "torchaudio": package_version("torchaudio")}
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield Finding("torch", OK, f"PyTorch {torch.__version__}, {built}", "", values)


def check_modules(case: Case) -> Iterator[Finding]:
    """The user's modules that --import names, and whether the parts that the settings name exist and go together."""
    from essl_fast import models
    from essl_fast.common.errors import InputError

    try:
        models.check(case.settings)
    except InputError as error:
        yield Finding("modules", STOPS, str(error))
        return
    if case.settings.imports:
        yield Finding("modules", OK, f"imported: {', '.join(case.settings.imports)}")


def check_csrc(case: Case) -> Iterator[Finding]:
    """The compiled module, and whether it was built for this machine's GPUs."""
    from essl_fast.kernels import native

    if not native.available():
        yield Finding("csrc", SLOWER, f"PyTorch alone makes views and log-mels: {native.why_unavailable()}")
        return
    about = native.build_info()
    archs = about.get("archs", "").split()
    cuda = f"with CUDA {about['cuda_version']} for {' '.join(archs)}" if about["cuda"] else "without CUDA"
    what = f"compiled module {cuda}, by {about['compiler']}"
    chips = machine.gpu_chips()
    missing = sorted({chip for chip in chips if not runs_on(chip, archs)})
    if not about["cuda"]:
        why = f" ({reason})" if (reason := native.left_out()) else ""
        remedy = "run `ESSL_CUDA=1 pip install .` in the source folder, which says what is missing"
        status, where = (SLOWER, "on the GPU") if chips else (NOTE, "on a GPU")
        yield Finding("csrc", status, f"{what}{why}: PyTorch alone makes the views {where}", remedy, about)
    elif missing:
        remedy = "build it for this chip: add it to ARCHS in setup.py, then `ESSL_CUDA=1 pip install .`"
        yield Finding("csrc", STOPS, f"{what}: not for this machine's {', '.join(missing)}", remedy, about)
    else:
        yield Finding("csrc", OK, what + (", this machine's among them" if chips else ""), "", about)


def runs_on(chip: str, archs: list[str]) -> bool:
    """Whether code that was built for ``archs`` (such as sm_90) runs on ``chip``.

    It does if there is a binary for the same major version and no later minor one, or PTX for an older chip, which the
    driver translates. There is PTX for the newest of ``archs``.
    """
    numbers = [int(arch.removeprefix("sm_")) for arch in archs]
    want = int(chip.removeprefix("sm_"))
    return any(have // 10 == want // 10 and have <= want for have in numbers) or (bool(numbers) and want > max(numbers))


def check_triton(case: Case) -> Iterator[Finding]:
    """Triton, which the GPU's kernels need."""
    gpu = bool(machine.gpu_chips())
    try:
        triton = importlib.import_module("triton")
    except Exception as error:  # a broken installation raises what it likes
        status = STOPS if gpu or package_version("triton") else NOTE  # where it is installed, the kernels import it
        yield Finding("Triton", status, f"cannot be imported ({error})", INSTALL)
        return
    use = "its kernels run on the GPU" if gpu else "not used on a CPU, which runs PyTorch's attention and losses"
    yield Finding("Triton", OK, f"Triton {triton.__version__}: {use}", "", {"triton": triton.__version__})


def check_compile(case: Case) -> Iterator[Finding]:
    """Whether the step would be compiled, and a C compiler for that."""
    from essl_fast.common.errors import InputError
    from essl_fast.runtime.compiling import wants_compile

    if case.device is None:
        return
    try:
        compiled = wants_compile(case.settings.compile, case.device)
    except InputError as error:
        yield Finding("torch.compile", STOPS, str(error))
        return
    paths = (shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang"))
    compiler = next((path for path in paths if path), "")
    if compiled:
        yield Finding("torch.compile", OK, f"the step is compiled, with {compiler}", "", {"compiler": compiler})
    elif case.device.type == "cuda" and case.settings.compile == "auto":
        what = f"the step would run uncompiled: {'Python.h is missing' if compiler else 'there is no C compiler'}"
        yield Finding("torch.compile", SLOWER, what, "install gcc and python3-dev (Debian's names)")
    else:
        why = "off by the settings" if case.settings.compile == "off" else "auto compiles on a GPU alone"
        yield Finding("torch.compile", NOTE, f"the step is not compiled: {why}")


def check_dali(case: Case) -> Iterator[Finding]:
    """DALI, which decodes the frames of prepared data."""
    importlib.import_module("nvidia.dali")
    from essl_fast.data.loading import FrameDecoder  # noqa: F401 (importing it is the check)

    names = ("nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13", "nvidia-nvjpeg")
    values = {name: found for name in names if (found := package_version(name))}
    where = "on the GPU (nvJPEG)" if machine.gpu_chips() else "on the CPU"
    name = f"DALI {values.get(names[0], 'of unknown version')}"
    yield Finding("DALI", OK, f"{name} decodes JPEG frames {where}", "", values)
