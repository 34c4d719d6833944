"""How busy a GPU's engines are, from NVML: the driver's own library, so that nothing has to be installed."""

import ctypes
import threading
from typing import Any

import torch

ENGINES = ("gpu", "memory", "nvdec", "nvjpeg")  # per cent of the time that each had work


class _Rates(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class EngineSampler:
    """Samples a CUDA device's engines from a thread while its block runs; ``means`` has their average then.

    ``why`` says why there is nothing, "" if there is: no GPU, no NVML, or an engine that this driver does not report.
    """

    def __init__(self, device: torch.device, every: float = 0.1, library: Any = None) -> None:
        self.means: dict[str, float] = {}
        self.why, self.every = "", every
        self._samples: dict[str, list[int]] = {name: [] for name in ENGINES}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if device.type != "cuda":
            self.why = "no GPU"
            return
        try:
            self._nvml = library or ctypes.CDLL("libnvidia-ml.so.1")
        except OSError as error:
            self.why = f"no NVML ({error})"
            return
        self._gpu = ctypes.c_void_p()
        # By UUID: NVML counts all GPUs, CUDA those that CUDA_VISIBLE_DEVICES leaves.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        code = self._nvml.nvmlInit_v2()
        code = code or self._nvml.nvmlDeviceGetHandleByUUID(ctypes.c_char_p(uuid), ctypes.byref(self._gpu))
        if code:
            self.why = f"NVML refused (status {code})"

    def __enter__(self) -> "EngineSampler":
        if not self.why:
            self._thread = threading.Thread(target=self._run, name="engines", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.means = {name: sum(values) / len(values) for name, values in self._samples.items() if values}
        if missing := [name for name in ENGINES if name not in self.means]:
            self.why = self.why or f"this driver does not report {', '.join(missing)}"

    def _run(self) -> None:
        while True:
            self._sample()
            if self._stop.wait(self.every):
                return

    def _sample(self) -> None:
        rates, share, period = _Rates(), ctypes.c_uint(), ctypes.c_uint()
        if not self._nvml.nvmlDeviceGetUtilizationRates(self._gpu, ctypes.byref(rates)):
            self._samples["gpu"].append(rates.gpu)
            self._samples["memory"].append(rates.memory)
        for name, function in (("nvdec", "nvmlDeviceGetDecoderUtilization"), ("nvjpeg", "nvmlDeviceGetJpgUtilization")):
            ask = getattr(self._nvml, function, None)  # older drivers lack the latter
            if ask is not None and not ask(self._gpu, ctypes.byref(share), ctypes.byref(period)):
                self._samples[name].append(share.value)
