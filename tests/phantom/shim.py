"""Lets autograd's engine run on fake CUDA tensors without a driver. Import it before torch.

Before a backward pass the engine asks which device has a context, also where every tensor is fake, and PyTorch 2.11
then fails without a driver ("hasPrimaryContext expects a valid device index"). A small library, loaded before PyTorch's
own, answers that there is no accelerator: CUDA tensors are then treated as those of any other device.
"""

import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = """
/* std::optional<c10::DeviceType> at::accelerator::getAccelerator(bool checked): none */
unsigned short _ZN2at11accelerator14getAcceleratorEb(_Bool checked) { (void)checked; return 0; }
/* bool at::accelerator::isAccelerator(c10::DeviceType): no */
_Bool _ZN2at11accelerator13isAcceleratorEN3c1010DeviceTypeE(signed char type) { (void)type; return 0; }
"""

if "torch" in sys.modules:
    raise ImportError("tests.phantom must be imported before torch: run it as python -m tests.phantom")

with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "shim.c").write_text(SOURCE)
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", f"{folder}/shim.so", f"{folder}/shim.c"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", "") or error
        sys.exit(f"tests.phantom: needs a C compiler named cc (Debian: gcc): {why}")
    ctypes.CDLL(f"{folder}/shim.so", mode=ctypes.RTLD_GLOBAL)  # stays loaded when the file is gone
