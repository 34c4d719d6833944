"""What `python -m essl_fast.doctor` looks at. Each check gives findings; a part that is missing or broken is one.

No check imports anything of ours or of others but inside itself, so that one broken package spoils no other check.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OK, NOTE, SLOWER, STOPS = "ok", "note", "slower", "stops"
INSTALL = "run `pip install .` in the source folder"
DRIVER = "580"  # the first driver branch for CUDA 13, which torch here is built for


@dataclass
class Finding:
    """One thing that was looked at.

    Args:
        topic: what it is about, a word or two.
        status: ok; note (worth knowing); slower (training runs, but not as it could); stops (it could not start).
        what: what was found.
        remedy: what to do about it, where there is something.
        values: the numbers in it.
    """

    topic: str
    status: str
    what: str
    remedy: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict:
        return asdict(self)


@dataclass
class Case:
    """What is to be examined; checks leave here what later ones need, None where it could not be had."""

    settings: Any = None  # config.Config
    probe: bool = False
    device: Any = None  # torch.device that training would take
    dtype: Any = None
    manifest: Any = None


Check = Callable[[Case], Iterator[Finding]]


def guarded(topic: str, check: Check, case: Case) -> list[Finding]:
    """A check's findings; whatever goes wrong in it is one more, which says that training could not start."""
    found = []
    try:
        for each in check(case):
            found.append(each)
    except Exception as error:  # anything at all may be broken here: that is what a doctor is for
        what = " ".join(f"{type(error).__name__}: {error}".split())
        remedy = f"mend what it names, or {INSTALL}"
        found.append(Finding(topic, STOPS, f"could not be examined: {what}", remedy, {"error": what}))
    return found


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_python(case: Case) -> Iterator[Finding]:
    yield Finding("Python", OK, f"Python {platform.python_version()} ({sys.executable}) on {platform.platform()}")


def check_torch(case: Case) -> Iterator[Finding]:
    torch = importlib.import_module("torch")
    values = {"torch": str(torch.__version__), "cuda": torch.version.cuda, "torchaudio": version("torchaudio")}
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield Finding("torch", OK, f"PyTorch {torch.__version__}, {built}", "", values)


def check_gpu(case: Case) -> Iterator[Finding]:
    torch = importlib.import_module("torch")
    driver = driver_version()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        about = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        chip = f"sm_{about.major}{about.minor}"
        yield Finding(
            f"GPU {number}",
            OK,
            f"{about.name} ({chip}), {free / 1e9:.1f} of {total / 1e9:.1f} GB free, driver {driver or 'unknown'}",
            "",
            {"name": about.name, "chip": chip, "free_bytes": free, "total_bytes": total, "driver": driver},
        )
    if count:
        return
    if driver or list(Path("/dev").glob("nvidia[0-9]*")):
        yield Finding(
            "GPU",
            SLOWER,
            f"there is an NVIDIA driver ({driver or 'version unknown'}), but PyTorch sees no GPU",
            f"install driver {DRIVER} or newer; give the container the GPU (--gpus all); unset CUDA_VISIBLE_DEVICES",
            {"driver": driver},
        )
    else:
        yield Finding("GPU", NOTE, "no NVIDIA GPU: training runs on the CPU, slowly")


def driver_version() -> str | None:
    """The NVIDIA driver's version, of the kernel module or of nvidia-smi; None without either."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
        return next((word for word in words if word[:1].isdigit() and word.count(".") >= 1), None)
    except OSError:
        pass  # no kernel module in sight, as in some containers: nvidia-smi may still know
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else None


def check_device(case: Case) -> Iterator[Finding]:
    """The device and precision that the settings come to."""
    from essl_fast.common.errors import InputError
    from essl_fast.runtime.devices import pick_device, pick_precision

    try:
        case.device = pick_device(case.settings.device)
        case.dtype = pick_precision(case.settings.precision, case.device)
    except InputError as error:
        yield Finding("device", STOPS, str(error), "choose another device or precision")
        return
    dtype = str(case.dtype).removeprefix("torch.")
    why = "by the settings" if case.settings.device != "auto" else "what there is"
    values = {"device": str(case.device), "precision": dtype}
    yield Finding("device", OK, f"training would run on {case.device} ({why}), in {dtype}", "", values)


def check_csrc(case: Case) -> Iterator[Finding]:
    from essl_fast.kernels import native

    if not native.available():
        yield Finding("csrc", SLOWER, f"PyTorch alone makes views and log-mels: {native.why_unavailable()}")
        return
    about = native.build_info()
    archs = about.get("archs", "").split()
    cuda = f"with CUDA {about['cuda_version']} for {' '.join(archs)}" if about["cuda"] else "without CUDA"
    what = f"compiled module {cuda}, by {about['compiler']}"
    chips = gpu_chips()
    missing = sorted({chip for chip in chips if not runs_on(chip, archs)})
    if chips and not about["cuda"]:
        remedy = "run `ESSL_CUDA=1 pip install .` in the source folder, which says what is missing"
        yield Finding("csrc", SLOWER, f"{what}: PyTorch alone makes the views on the GPU", remedy, about)
    elif missing:
        remedy = "build it for this chip: add it to ARCHS in setup.py, then `ESSL_CUDA=1 pip install .`"
        yield Finding("csrc", STOPS, f"{what}: not for this machine's {', '.join(missing)}", remedy, about)
    else:
        yield Finding("csrc", OK, what + (", this machine's among them" if chips else ""), "", about)


def gpu_chips() -> list[str]:
    """The compute capability of each GPU that PyTorch sees, as sm_90."""
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return []
    chips = (torch.cuda.get_device_capability(number) for number in range(torch.cuda.device_count()))
    return [f"sm_{major}{minor}" for major, minor in chips]


def runs_on(chip: str, archs: list[str]) -> bool:
    """Whether code for ``archs`` runs on ``chip``: a binary for the same major version and no later minor one, or the
    PTX of the newest, which the driver translates for chips that came later."""
    numbers = [int(arch.removeprefix("sm_")) for arch in archs]
    want = int(chip.removeprefix("sm_"))
    return any(have // 10 == want // 10 and have <= want for have in numbers) or (bool(numbers) and want > max(numbers))


def check_triton(case: Case) -> Iterator[Finding]:
    gpu = bool(gpu_chips())
    try:
        triton = importlib.import_module("triton")
    except Exception as error:  # a broken installation raises what it likes
        status = STOPS if gpu or version("triton") else NOTE  # where it is installed, the kernels import it
        yield Finding("Triton", status, f"cannot be imported ({error})", INSTALL)
        return
    use = "its kernels run on the GPU" if gpu else "not used on a CPU, which runs PyTorch's attention and losses"
    yield Finding("Triton", OK, f"Triton {triton.__version__}: {use}", "", {"triton": triton.__version__})


def check_compile(case: Case) -> Iterator[Finding]:
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
    importlib.import_module("nvidia.dali")
    importlib.import_module("essl_fast.data.loading.pipeline")
    names = ("nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13", "nvidia-nvjpeg")
    values = {name: found for name in names if (found := version(name))}
    where = "on the GPU (nvJPEG)" if gpu_chips() else "on the CPU"
    name = f"DALI {values.get(names[0], 'of unknown version')}"
    yield Finding("DALI", OK, f"{name} decodes JPEG frames {where}", "", values)


def check_nvdec(case: Case) -> Iterator[Finding]:
    from essl_fast.data.media import nvdec

    decoders, why = nvdec.detect()
    if decoders:
        each = ", ".join(f"{name} to {limits[2]}x{limits[3]}" for name, limits in decoders.items())
        yield Finding("NVDEC", OK, f"clips are decoded on the GPU: {each}", "", {"codecs": decoders})
    else:
        gpu = bool(gpu_chips())
        remedy = "give the container the driver's video capability (NVIDIA_DRIVER_CAPABILITIES=all)" if gpu else ""
        yield Finding("NVDEC", SLOWER if gpu else NOTE, f"clips are decoded on the CPU: {why}", remedy, {"codecs": {}})


def check_weights(case: Case) -> Iterator[Finding]:
    from essl_fast.models import weights

    model = case.settings.model
    for name, on in (("vgg16", model.trunk == "vgg16"), ("vggish", model.audio == "vggish")):
        given = getattr(model, f"{name}_weights")
        if not on:
            continue
        if given == "none":
            yield Finding("weights", NOTE, f"{name} keeps random weights, by the settings: no published result does")
            continue
        cached = weights_place(name)
        if given == "auto" and not cached.is_file():
            yield downloadable(name, weights.SOURCES[name], cached)
            continue
        try:
            path = weights.find(name, given)
        except weights.WeightsError as error:
            yield Finding("weights", STOPS, str(error))
            continue
        yield Finding("weights", OK, f"{name} from {path}, its hash is right", "", {name: str(path)})


def weights_place(name: str) -> Path:
    """Where `auto` looks for a weight file."""
    torch = importlib.import_module("torch")
    from essl_fast.models import weights

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.SOURCES[name]).name


def downloadable(name: str, source: str, place: Path) -> Finding:
    """Whether a file that is not there could be fetched; it is not."""
    remedy = f"put the file there, or give --model.{name}_weights PATH"
    try:
        with urllib.request.urlopen(urllib.request.Request(source, method="HEAD"), timeout=10) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
    except (urllib.error.URLError, OSError, ValueError) as error:
        return Finding("weights", STOPS, f"{name} is not at {place}, and {source} does not answer ({error})", remedy)
    text = f"{name} is not at {place}; train will fetch it from {source} ({size / 1e6:.0f} MB)"
    return Finding("weights", NOTE, text, "", {"bytes": size})
