"""Which video this machine's GPUs decode: asks the driver's NVDEC library, in a process of its own.

`prepare --visual auto` needs to know, and must neither import torch for it (seconds, gigabytes) nor hold a CUDA context
for hours, nor die with a broken driver.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

from essl_fast.common.subprocesses import with_package
from essl_fast.data.media.video import Probe

# FFmpeg's name of the format: NVDEC's number of it. Those that `auto` makes clips of. Not AV1, though newer GPUs decode
# it: an AV1 packet may show an earlier picture again and bring no new one, and DALI counts decoded pictures.
CODECS = {"h264": 4, "hevc": 8, "vp9": 10}
PIXELS = ("yuv420p", "yuvj420p")  # 8-bit 4:2:0, the one layout that every NVDEC and DALI's decoder have in common
FAILED = "the GPU's video decoder failed"  # MediaError.reason: at a frame that PyAV decodes
Decoders = dict[str, list[int]]  # format: smallest width and height, largest width and height, pixels

_PATIENCE = 60  # seconds; the first use of a GPU after it was idle takes a few


class _Caps(ctypes.Structure):
    """CUVIDDECODECAPS of NVIDIA's Video Codec SDK."""

    _fields_ = [
        ("codec", ctypes.c_int),
        ("chroma", ctypes.c_int),
        ("depth_minus_8", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 3),
        ("supported", ctypes.c_ubyte),
        ("engines", ctypes.c_ubyte),
        ("formats", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_blocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("reserved2", ctypes.c_ubyte * 4),
        ("reserved3", ctypes.c_uint * 10),
    ]


def detect() -> tuple[Decoders, str]:
    """What every GPU that this process may use decodes, of 8-bit 4:2:0 video; empty without a GPU, and then why."""
    command = [sys.executable, "-m", "essl_fast.data.media.nvdec"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, env=with_package())
        told = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return {}, f"asking for NVDEC failed ({error})"
    if told is None:
        return {}, f"asking for NVDEC ended with status {done.returncode}"
    return told["decoders"], told["why"]


def refusal(decoders: Decoders, found: Probe) -> str:
    """ "" if `decoders` can decode the video, else why not, in words."""
    codec, pixels, width, height = found.codec, found.pixels, found.width, found.height
    if codec not in decoders:
        return f"{codec} is not decoded by this machine's GPU"
    if pixels not in PIXELS:
        return f"{codec} in {pixels} is not decoded by every GPU"
    least_width, least_height, most_width, most_height = decoders[codec]
    if not (least_width <= width <= most_width and least_height <= height <= most_height):
        limits = f"{least_width}x{least_height} to {most_width}x{most_height}"
        return f"{codec} of {width}x{height} pixels is not decoded by this machine's GPU ({limits} is)"
    return ""


def _ask() -> tuple[Decoders, str]:
    try:
        cuda, cuvid = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return {}, "there is no NVIDIA driver with NVDEC"
    count, common = ctypes.c_int(), None
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return {}, "there is no NVIDIA GPU that this process may use"
    for number in range(count.value):
        device, context = ctypes.c_int(), ctypes.c_void_p()
        if cuda.cuDeviceGet(ctypes.byref(device), number):
            return {}, f"GPU {number} cannot be opened"
        if cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) or cuda.cuCtxSetCurrent(context):
            return {}, f"GPU {number} cannot be used"
        found = {name: limits for name, codec in CODECS.items() if (limits := _limits(cuvid, codec))}
        common = found if common is None else _both(common, found)
    return common or {}, "" if common else "its GPU has no video decoder"


def _limits(cuvid, codec: int) -> list[int] | None:
    caps = _Caps(codec=codec, chroma=1)  # 4:2:0
    if cuvid.cuvidGetDecoderCaps(ctypes.byref(caps)) or not caps.supported:
        return None
    return [caps.min_width, caps.min_height, caps.max_width, caps.max_height]


def _both(one: Decoders, other: Decoders) -> Decoders:
    return {
        name: [*map(max, one[name][:2], other[name][:2]), *map(min, one[name][2:], other[name][2:])]
        for name in one
        if name in other
    }


def main() -> None:
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # whatever a driver prints must not look like the answer
        decoders, why = _ask()
        json.dump({"decoders": decoders, "why": why}, answer)


if __name__ == "__main__":
    main()
