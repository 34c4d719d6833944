"""Which video this machine's GPUs can decode: asks the driver's NVDEC library, in a separate process.

`prepare --visual auto` needs to know. It must not import torch for that (seconds, gigabytes), hold a CUDA context for
hours, or crash with a broken driver.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import subprocess
import sys

from essl_fast.common.subprocesses import with_package
from essl_fast.data.media.probing import Probe

# FFmpeg's name of the format: its number in NVDEC. `auto` makes clips of these. AV1 is not among them, though newer
# GPUs decode it: an AV1 packet may show an earlier picture again without a new one, and DALI counts decoded pictures.
CODECS = {"h264": 4, "hevc": 8, "vp9": 10}
PIXELS = ("yuv420p", "yuvj420p")  # 8-bit 4:2:0, the one layout that every NVDEC and DALI's decoder know
FAILED = "the GPU's video decoder failed"  # a MediaError.reason, for a frame that PyAV can decode
Decoders = dict[str, list[int]]  # format: smallest width and height, largest width and height, in pixels

# NVDEC engines of NVIDIA's data-centre GPUs, by how the driver names them (NVIDIA's table "Video Encode and Decode GPU
# Support Matrix"; H100, H200 and B200: 7). Others: `_FEW`.
_ENGINES = {
    "B200": 7,
    "B300": 7,
    "GH200": 7,
    "H200": 7,
    "H100": 7,
    "H20": 7,
    "A100": 5,
    "A30": 4,
    "L4": 4,
    "L40": 3,
    "L40S": 3,
}
_FEW = 2
MOST_ENGINES = 8
_PATIENCE = 60  # seconds; the first use of an idle GPU takes a few


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
    """The 8-bit 4:2:0 video that every GPU of this process can decode; where there is none, {} and why."""
    command = [sys.executable, "-m", "essl_fast.data.media.nvdec"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, env=with_package())
        answer = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return {}, f"asking for NVDEC failed ({error})"
    if answer is None:
        return {}, f"asking for NVDEC ended with status {done.returncode}"
    return answer["decoders"], answer["why"]


@functools.cache
def engines(device: int = 0) -> int:
    """How many NVDEC engines a GPU has that this process is about to use: as the driver says, or by its name; 1 to
    MOST_ENGINES."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return _FEW
    handle, text = ctypes.c_int(), ctypes.create_string_buffer(128)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(handle), device):
        return _FEW
    name = text.value.decode(errors="replace") if not cuda.cuDeviceGetName(text, len(text), handle) else ""
    return min(MOST_ENGINES, _engines_by_driver(cuda, handle) or engines_by_name(name))


def engines_by_name(name: str) -> int:
    """How many NVDEC engines a GPU has, by what its driver calls it ("NVIDIA A100-SXM4-80GB")."""
    words = name.upper().replace("-", " ").split()
    return next((_ENGINES[word] for word in words if word in _ENGINES), _FEW)


def _engines_by_driver(cuda, handle: ctypes.c_int) -> int:
    """What NVDEC's library says; 0 if it says nothing."""
    context, caps = ctypes.c_void_p(), _Caps(codec=CODECS["h264"], chroma=1)
    if cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle):
        return 0
    try:
        cuvid = ctypes.CDLL("libnvcuvid.so.1")
        if cuda.cuCtxPushCurrent_v2(context):
            return 0
        failed = cuvid.cuvidGetDecoderCaps(ctypes.byref(caps))
        cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        return 0 if failed or not caps.supported else caps.engines
    except (OSError, AttributeError):
        return 0
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(handle)


def refusal(decoders: Decoders, found: Probe) -> str:
    """Why `decoders` cannot decode the video, in words; "" if they can."""
    codec, pixels, width, height = found.codec, found.pixels, found.width, found.height
    if codec not in decoders:
        return f"{codec} is not decoded by this machine's GPU"
    if pixels not in PIXELS:
        return f"{codec} in {pixels} is not decoded by every GPU"
    if width % 2 or height % 2:
        return f"{codec} of {width}x{height} pixels, an odd size, is not decoded by DALI on a GPU"
    least_width, least_height, most_width, most_height = decoders[codec]
    if not (least_width <= width <= most_width and least_height <= height <= most_height):
        limits = f"{least_width}x{least_height} to {most_width}x{most_height}"
        return f"{codec} of {width}x{height} pixels is not decoded by this machine's GPU ({limits} is)"
    return ""


def not_reused(found: Probe) -> str:
    """Why DALI would make a new decoder for each clip of the video, in words; "" if it uses one again.

    DALI 2.4 keeps decoders by the size that is shown, and looks for the size that is coded (`NVDECCache::GetDecoder` in
    dali/operators/video/frames_decoder_gpu.cc). The codecs code whole blocks of 16 pixels (HEVC and VP9: of 8 or more,
    and what the parser reports for those has not been seen on a GPU, so they are held to 16, too).
    """
    if found.width % 16 or found.height % 16:
        coded = f"{-(-found.width // 16) * 16}x{-(-found.height // 16) * 16}"
        return f"DALI makes a new decoder for each clip of {found.width}x{found.height} pixels, coded as {coded}"
    return ""


def _ask_driver() -> tuple[Decoders, str]:
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
    """The sizes that the current GPU decodes of a codec; None if it does not know the codec."""
    caps = _Caps(codec=codec, chroma=1)  # 4:2:0
    if cuvid.cuvidGetDecoderCaps(ctypes.byref(caps)) or not caps.supported:
        return None
    return [caps.min_width, caps.min_height, caps.max_width, caps.max_height]


def _both(one: Decoders, other: Decoders) -> Decoders:
    """What both decoders can decode."""
    return {
        name: [*map(max, one[name][:2], other[name][:2]), *map(min, one[name][2:], other[name][2:])]
        for name in one
        if name in other
    }


def main() -> None:
    """Print what `detect` returns as JSON: this file is run as a program by `detect`."""
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # what a driver prints must not be taken for the answer
        decoders, why = _ask_driver()
        json.dump({"decoders": decoders, "why": why}, answer)


if __name__ == "__main__":
    main()
