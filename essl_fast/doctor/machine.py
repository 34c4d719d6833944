"""Checks of the machine: GPUs and their driver, the device that training would use, NVDEC, CPU, memory, disk."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from essl_fast.doctor.findings import NOTE, OK, SLOWER, STOPS, Case, Finding

DRIVER = "580"  # the first driver branch for CUDA 13, which torch here is built for


def check_gpu(case: Case) -> Iterator[Finding]:
    """The GPUs that PyTorch sees, and the driver."""
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
    """The NVIDIA driver's version, from the kernel module or from nvidia-smi; None if neither tells."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
        return next((word for word in words if word[:1].isdigit() and word.count(".") >= 1), None)
    except OSError:
        pass  # some containers do not show the kernel module: nvidia-smi may still know
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else None


def gpu_chips() -> list[str]:
    """The compute capability of each GPU that PyTorch sees, as sm_90."""
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return []
    chips = (torch.cuda.get_device_capability(number) for number in range(torch.cuda.device_count()))
    return [f"sm_{major}{minor}" for major, minor in chips]


def check_device(case: Case) -> Iterator[Finding]:
    """The device and precision that training would use."""
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


def check_nvdec(case: Case) -> Iterator[Finding]:
    """NVDEC, the GPU's video decoder."""
    from essl_fast.data.media import nvdec

    decoders, why = nvdec.detect()
    if decoders:
        each = ", ".join(f"{name} to {limits[2]}x{limits[3]}" for name, limits in decoders.items())
        yield Finding("NVDEC", OK, f"clips are decoded on the GPU: {each}", "", {"codecs": decoders})
    else:
        gpu = bool(gpu_chips())
        remedy = "give the container the driver's video capability (NVIDIA_DRIVER_CAPABILITIES=all)" if gpu else ""
        yield Finding("NVDEC", SLOWER if gpu else NOTE, f"clips are decoded on the CPU: {why}", remedy, {"codecs": {}})


def check_host(case: Case) -> Iterator[Finding]:
    """CPU cores and memory."""
    from essl_fast.data.loading import host_memory

    cores, memory = len(os.sched_getaffinity(0)), host_memory()
    values = {"cores": cores, "available_bytes": memory}
    yield Finding("host", OK, f"{cores} CPU cores, {memory / 1e9:.1f} GB of memory available", "", values)


def check_disk(case: Case) -> Iterator[Finding]:
    """Space for the checkpoints, and whether the run directory can be written."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from essl_fast import models

    settings = case.settings
    with FakeTensorMode():
        parameters = [(p.numel(), p.requires_grad) for p in models.build(settings.model).parameters()]
    trained = sum(count for count, on in parameters if on)
    # float32: weights in best.pt; weights and two moments in each last.pt, and one more exists while one is written
    need = 4 * trained + 12 * trained * (settings.checkpoint_keep + 1)
    values = {"trained_parameters": trained, "total_parameters": sum(count for count, _ in parameters)}
    place = Path(settings.out or "runs").absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    values |= {"checkpoint_bytes": need, "free_bytes": free}
    text = f"checkpoints take {need / 1e9:.2f} GB, {free / 1e9:.1f} GB are free at {place}"
    if not os.access(place, os.W_OK):
        yield Finding("disk", STOPS, f"{place} cannot be written", "give another run directory with --out DIR", values)
    elif free < need:
        yield Finding("disk", STOPS, text, "free some space, or give another run directory with --out DIR", values)
    else:
        yield Finding("disk", OK, text, "", values)
