"""Asking for NVDEC: the driver's libraries are played by two small C files, since most machines have none."""

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from essl_fast.common.subprocesses import with_package
from essl_fast.data import media
from essl_fast.data.media import nvdec
from tests.tools.media import make_video

CUDA = """
#include <string.h>
int cuInit(unsigned flags) { return %(init)s; }
int cuDeviceGetCount(int* count) { *count = %(gpus)d; return 0; }
int cuDeviceGet(int* device, int number) { *device = number; return 0; }
static int at;
int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = (void*)(long)(0x7f0000000000 + device);
  return 0;
}
int cuCtxSetCurrent(void* context) { at = (long)context & 0xff; return 0; }
static int pushed;
int cuCtxPushCurrent_v2(void* context) { pushed++; return cuCtxSetCurrent(context); }
int cuCtxPopCurrent_v2(void** context) { pushed--; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return pushed; }
int cuDeviceGetName(char* name, int length, int device) { strncpy(name, "%(name)s", length); return 0; }
int fake_current(void) { return at; }
"""
# The structure as NVIDIA's header declares it; here the compiler lays it out.
CUVID = """
#include <stdio.h>
typedef struct {
  int codec; int chroma; unsigned depth; unsigned reserved1[3];
  unsigned char supported, engines; unsigned short formats;
  unsigned max_width, max_height, max_blocks;
  unsigned short min_width, min_height;
  unsigned char histogram, counter_depth; unsigned short bins;
  unsigned reserved3[10];
} Caps;
int fake_current(void);
int cuvidGetDecoderCaps(Caps* caps) {
  printf("a library may print\\n");
  if (caps->chroma != 1 || caps->depth != 0) return 1;
  caps->supported = caps->codec == 4 || (caps->codec == 11 && fake_current() == 0) || caps->codec == 10;
  caps->engines = %(engines)d;
  caps->min_width = 48; caps->min_height = 16 + fake_current();
  caps->max_width = caps->max_height = caps->codec == 10 ? 8192 >> fake_current() : 4096;
  return 0;
}
"""


def driver(folder, **play):
    """Libraries of a driver with `gpus` GPUs; cuInit returns `init`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("there is no C compiler to make a driver of")
    play = {"init": "0", "gpus": 1, "name": "NVIDIA H200", "engines": 0, **play}
    (folder / "cuda.c").write_text(CUDA % play)
    (folder / "cuvid.c").write_text(CUVID.replace("%(engines)d", str(play["engines"])))
    for source, library, more in [("cuda", "libcuda.so.1", []), ("cuvid", "libnvcuvid.so.1", ["-l:libcuda.so.1"])]:
        command = [compiler, "-shared", "-fPIC", "-o", str(folder / library), str(folder / f"{source}.c")]
        subprocess.run([*command, f"-L{folder}", *more], check=True)
    return str(folder)


def test_what_one_gpu_decodes(tmp_path, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", driver(tmp_path))
    assert nvdec.detect() == ({"h264": [48, 16, 4096, 4096], "vp9": [48, 16, 8192, 8192]}, "")


def test_two_gpus_decode_what_both_do(tmp_path, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", driver(tmp_path, gpus=2))
    assert nvdec.detect() == ({"h264": [48, 17, 4096, 4096], "vp9": [48, 17, 4096, 4096]}, "")


@pytest.mark.parametrize("play", [{"init": 100}, {"gpus": 0}])
def test_a_driver_without_a_gpu(tmp_path, monkeypatch, play):
    monkeypatch.setenv("LD_LIBRARY_PATH", driver(tmp_path, **play))
    assert nvdec.detect() == ({}, "there is no NVIDIA GPU that this process may use")


def test_a_driver_that_crashes(tmp_path, monkeypatch):
    place = driver(tmp_path, init="*(volatile int*)0")
    monkeypatch.setenv("LD_LIBRARY_PATH", place)
    assert nvdec.detect() == ({}, "asking for NVDEC ended with status -11")


@pytest.mark.parametrize(
    "play, engines",
    [({"engines": 3}, 3), ({}, 7), ({"name": "NVIDIA A100-SXM4-80GB"}, 5), ({"name": "T1000"}, 2), ({"init": 100}, 2)],
)
def test_engines_are_counted(tmp_path, play, engines):
    """The driver's own count, or the table by name, or a small number."""
    code = "from essl_fast.data.media import nvdec; print('engines:', nvdec.engines(0))"
    where = {"LD_LIBRARY_PATH": driver(tmp_path, **play)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=with_package() | where)
    assert f"engines: {engines}" in done.stdout.splitlines(), done.stderr  # the driver prints, before or after it


class Driver:
    """A driver's library in which some functions fail."""

    def __init__(self, *fails: str, engines: int = 5):
        self.fails, self.engines, self.released = fails, engines, 0

    def __getattr__(self, name: str):
        if name == "cuvidGetDecoderCaps" and "no such function" in self.fails:
            raise AttributeError(name)
        return lambda *given: self.called(name, *given)

    def called(self, name: str, *given):
        if name in self.fails:
            return 1
        if name == "cuDeviceGetCount":
            given[0]._obj.value = 1
        if name == "cuDeviceGetName":
            given[0].value = b"NVIDIA H200"
        if name == "cuvidGetDecoderCaps":
            given[0]._obj.supported, given[0]._obj.engines = 1, self.engines
        self.released += name == "cuDevicePrimaryCtxRelease_v2"
        return 0


@pytest.mark.parametrize(
    ("fails", "engines", "released"),
    [
        ((), 5, 1),
        (("cuDevicePrimaryCtxRetain",), 7, 0),  # by its name
        (("cuCtxPushCurrent_v2",), 7, 1),
        (("no such function",), 7, 1),
        (("cuvidGetDecoderCaps",), 7, 1),
        (("cuDeviceGetName", "cuvidGetDecoderCaps"), 2, 1),
        (("cuDeviceGet",), 2, 0),
        (("no library",), 2, 0),
    ],
)
def test_engines_of_a_driver_that_fails(monkeypatch, fails, engines, released):
    """A context that was taken is given back."""
    made = Driver(*fails)

    def library(name):
        if "no library" in fails:
            raise OSError(f"{name}: cannot open shared object file")
        return made

    monkeypatch.setattr(nvdec.ctypes, "CDLL", library)
    nvdec.engines.cache_clear()
    try:
        assert nvdec.engines(0) == engines and made.released == released
    finally:
        nvdec.engines.cache_clear()


@pytest.mark.parametrize(
    ("fails", "why"),
    [
        ((), ""),
        (("cuDeviceGet",), "GPU 0 cannot be opened"),
        (("cuDevicePrimaryCtxRetain",), "GPU 0 cannot be used"),
        (("cuCtxSetCurrent",), "GPU 0 cannot be used"),
        (("cuvidGetDecoderCaps",), "its GPU has no video decoder"),
        (("cuDeviceGetCount",), "there is no NVIDIA GPU that this process may use"),
    ],
)
def test_why_a_driver_decodes_nothing(monkeypatch, fails, why):
    monkeypatch.setattr(nvdec.ctypes, "CDLL", lambda name: Driver(*fails))
    decoders, said = nvdec._ask_driver()
    assert said == why and bool(decoders) == (not why)


def test_a_question_that_nobody_answers(monkeypatch):
    def late(*_, **__):
        raise subprocess.TimeoutExpired("python", 60)

    monkeypatch.setattr(nvdec.subprocess, "run", late)
    decoders, why = nvdec.detect()
    assert decoders == {} and why.startswith("asking for NVDEC failed (") and "timed out after 60 seconds" in why


@pytest.mark.parametrize(
    "name, engines",
    [("NVIDIA H100 80GB HBM3", 7), ("NVIDIA GH200 480GB", 7), ("NVIDIA L40S", 3), ("NVIDIA L4", 4), ("", 2)],
)
def test_engines_by_name(name, engines):
    assert nvdec.engines_by_name(name) == engines


@pytest.mark.parametrize(
    "size, coded",
    [((1280, 720), ""), ((320, 240), ""), ((1920, 1080), "1920x1088"), ((854, 480), "864x480"), ((640, 360), "640x368")]
    + [((320, 180), "320x192")],
)
def test_which_sizes_use_a_decoder_again(tmp_path, size, coded):
    found = media.probe(make_video(tmp_path / "a.mp4", seconds=1))
    told = nvdec.not_reused(replace(found, width=size[0], height=size[1]))
    assert told.endswith(f"coded as {coded}") if coded else told == ""


@pytest.mark.parametrize(
    "change, told",
    [
        ({}, ""),
        ({"codec": "mpeg4"}, "mpeg4 is not decoded by this machine's GPU"),
        ({"pixels": "yuv444p"}, "h264 in yuv444p is not decoded by every GPU"),
        ({"width": 32}, "h264 of 32x90 pixels is not decoded by this machine's GPU (48x16 to 4096x4096 is)"),
        ({"width": 161}, "h264 of 161x90 pixels, an odd size, is not decoded by DALI on a GPU"),
        ({"height": 4320}, "h264 of 160x4320 pixels is not decoded by this machine's GPU (48x16 to 4096x4096 is)"),
    ],
)
def test_refusal(tmp_path, change, told):
    found = media.probe(make_video(tmp_path / "a.mp4", seconds=1))
    assert nvdec.refusal({"h264": [48, 16, 4096, 4096]}, replace(found, **change)) == told
