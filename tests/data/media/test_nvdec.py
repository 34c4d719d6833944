"""Asking for NVDEC: the driver's libraries are played by two small C files, since most machines have none."""

import shutil
import subprocess
from dataclasses import replace

import pytest

from essl_fast.data import media
from essl_fast.data.media import nvdec
from tests.tools.media import make_video

CUDA = """
int cuInit(unsigned flags) { return %(init)s; }
int cuDeviceGetCount(int* count) { *count = %(gpus)d; return 0; }
int cuDeviceGet(int* device, int number) { *device = number; return 0; }
static int at;
int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = (void*)(long)(0x7f0000000000 + device);
  return 0;
}
int cuCtxSetCurrent(void* context) { at = (long)context & 0xff; return 0; }
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
    (folder / "cuda.c").write_text(CUDA % {"init": "0", "gpus": 1, **play})
    (folder / "cuvid.c").write_text(CUVID)
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
    "change, told",
    [
        ({}, ""),
        ({"codec": "mpeg4"}, "mpeg4 is not decoded by this machine's GPU"),
        ({"pixels": "yuv444p"}, "h264 in yuv444p is not decoded by every GPU"),
        ({"width": 32}, "h264 of 32x90 pixels is not decoded by this machine's GPU (48x16 to 4096x4096 is)"),
        ({"height": 4320}, "h264 of 160x4320 pixels is not decoded by this machine's GPU (48x16 to 4096x4096 is)"),
    ],
)
def test_refusal(tmp_path, change, told):
    found = media.probe(make_video(tmp_path / "a.mp4", seconds=1))
    assert nvdec.refusal({"h264": [48, 16, 4096, 4096]}, replace(found, **change)) == told
