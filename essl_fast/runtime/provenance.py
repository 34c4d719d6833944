"""What a run ran on: package versions, the machine, and the revision of the source."""

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from essl_fast.common.files import PACKAGE

PACKAGES = ("torch", "torchaudio", "triton", "nvidia-dali-cuda130", "numpy", "av", "soxr")


def source_revision() -> dict:
    """The source as {"commit", "sha256"}.

    commit is the Git commit, with "-dirty" if files differ from it, or None if this is no clone; sha256 is a digest of
    the package's Python files.
    """
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes())
    commit = None
    if (PACKAGE.parent / ".git").exists():
        command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
            commit = done.stdout.strip() or None
        except (OSError, subprocess.TimeoutExpired):
            commit = None  # there is no git: the digest still identifies the source
    return {"commit": commit, "sha256": digest.hexdigest()}


def environment(device: torch.device) -> dict:
    """Versions, machine and source, as plain values for a log."""
    from essl_fast.kernels import native

    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    machine = {"system": platform.platform(), "cpu": _cpu_name(), "cores": len(os.sched_getaffinity(0))}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
    return {
        "python": platform.python_version(),
        "packages": versions,
        "csrc": native.build_info() if native.available() else {"missing": native.why_unavailable()},
        "machine": machine,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "source": source_revision(),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor()
    return platform.processor()
