"""What each check says of machines that are not this one: with GPUs, without packages, without rights."""

import builtins
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from essl_fast import config
from essl_fast.data.media import nvdec
from essl_fast.doctor import examination, installation, machine, prepared_data, speed, weight_files
from essl_fast.doctor.findings import NOTE, OK, SLOWER, STOPS, Case, Finding, guarded
from essl_fast.doctor.options import read_options, read_settings
from essl_fast.runtime import compiling, devices

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def only(check, case=None) -> Finding:
    """The one finding of a check."""
    (found,) = guarded("it", check, case or Case(device=CPU, dtype=torch.float32))
    return found


@pytest.fixture
def two_gpus(monkeypatch):
    """PyTorch says that there are two."""
    about = SimpleNamespace(name="H200", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: about)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (9, number))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (100 * 10**9, 141 * 10**9))
    monkeypatch.setattr(machine, "driver_version", lambda: "590.44")


def test_each_gpu_is_a_finding(two_gpus):
    found = guarded("GPU", machine.check_gpu, Case())
    assert [one.topic for one in found] == ["GPU 0", "GPU 1"] and all(one.status == OK for one in found)
    assert found[0].what == "H200 (sm_90), 100.0 of 141.0 GB free, driver 590.44"
    assert machine.gpu_chips() == ["sm_90", "sm_91"]


def test_no_gpu_and_no_driver_is_a_note(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "driver_version", lambda: None)
    monkeypatch.setattr(machine.Path, "glob", lambda *_: [])
    found = only(machine.check_gpu)
    assert found.status == NOTE and found.what.startswith("no NVIDIA GPU") and machine.gpu_chips() == []


VERSION = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  590.44.01  Release Build\nGCC version: 12.3.0\n"
SMI = "#!/bin/sh\n"


@pytest.mark.parametrize(
    ("kernel", "smi", "found"),
    [
        (VERSION, None, "590.44.01"),
        ("nothing of the kind", None, None),
        (None, SMI + "echo 580.65.06\necho 580.65.06\n", "580.65.06"),  # a line a GPU
        (None, SMI + "echo no devices\nexit 9\n", None),
        (None, SMI, None),
        (None, None, None),
    ],
)
def test_the_version_of_the_driver(tmp_path, monkeypatch, kernel, smi, found):
    if kernel is not None:
        (tmp_path / "version").write_text(kernel)
    if smi is not None:
        (tmp_path / "nvidia-smi").write_text(smi)
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "version")
    assert machine.driver_version() == found


def test_the_device_that_training_would_use(monkeypatch):
    case = Case(settings=config.load("demo", ["--device", "cpu"]))
    found = only(machine.check_device, case)
    assert (found.status, found.what) == (OK, "training would run on cpu (by the settings), in float32")
    assert (case.device, case.dtype) == (CPU, torch.float32)
    case = Case(settings=config.load("demo", ["--precision", "fp16", "--device", "cpu"]))
    found = only(machine.check_device, case)
    assert found.status == STOPS and "fp16" in found.what and case.dtype is None
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: False)
    found = only(machine.check_device, Case(settings=config.load("demo")))
    assert "training would run on cpu (what there is)" in found.what


@pytest.mark.parametrize("chips", [[], ["sm_90"]])
def test_nvdec(monkeypatch, chips):
    monkeypatch.setattr(machine, "gpu_chips", lambda: chips)
    monkeypatch.setattr(nvdec, "detect", lambda: ({}, "no such library"))
    found = only(machine.check_nvdec)
    assert found.status == (SLOWER if chips else NOTE) and found.what == "clips are decoded on the CPU: no such library"
    assert bool(found.remedy) == bool(chips)
    monkeypatch.setattr(nvdec, "detect", lambda: ({"h264": (48, 16, 4096, 4096), "av1": (1, 1, 8192, 8192)}, ""))
    found = only(machine.check_nvdec)
    assert found.status == OK and found.what.endswith("on the GPU: h264 to 4096x4096, av1 to 8192x8192")


def test_host():
    found = only(machine.check_host)
    assert found.status == OK and found.values["cores"] >= 1 and found.values["available_bytes"] > 10**8


def test_a_run_directory_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    found = only(machine.check_disk, Case(settings=config.load("demo", ["--out", str(tmp_path / "runs" / "a")])))
    assert found.status == STOPS and found.what == f"{tmp_path} cannot be written" and "--out" in found.remedy


@pytest.mark.parametrize(
    ("setting", "device", "compiler", "header", "status", "words"),
    [
        ("auto", CPU, True, True, NOTE, "auto compiles on a GPU alone"),
        ("off", GPU, True, True, NOTE, "off by the settings"),
        ("auto", GPU, True, True, OK, "the step is compiled, with /usr/bin/cc"),
        ("on", CPU, True, False, OK, "the step is compiled, with /usr/bin/cc"),
        ("auto", GPU, True, False, SLOWER, "Python.h is missing"),
        ("auto", GPU, False, True, SLOWER, "there is no C compiler"),
        ("on", GPU, True, False, STOPS, "Python.h is missing, and torch.compile needs it"),
        ("on", CPU, False, True, STOPS, "there is no C compiler, and torch.compile needs it"),
    ],
)
def test_whether_the_step_is_compiled(tmp_path, monkeypatch, setting, device, compiler, header, status, words):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}" if compiler else None)
    monkeypatch.setattr(compiling.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.delenv("CC", raising=False)
    if header:
        (tmp_path / "Python.h").touch()
    found = only(installation.check_compile, Case(settings=config.load("demo", ["--compile", setting]), device=device))
    assert found.status == status and words in found.what
    assert not guarded("it", installation.check_compile, Case())  # no device: told already


def test_packages_that_are_not_there(monkeypatch):
    assert installation.package_version("no-such-package") is None and installation.package_version("torch")
    monkeypatch.setitem(sys.modules, "triton", None)
    found = only(installation.check_triton)
    assert found.status == STOPS and "cannot be imported" in found.what  # it is installed: the kernels import it
    monkeypatch.setattr(installation, "package_version", lambda _: None)
    assert only(installation.check_triton).status == NOTE
    monkeypatch.setattr(machine, "gpu_chips", lambda: ["sm_90"])
    assert only(installation.check_triton).status == STOPS


def test_what_is_installed():
    assert str(torch.__version__) in only(installation.check_torch).what
    assert "Python 3." in only(installation.check_python).what
    found = only(installation.check_dali)
    assert found.status == OK and found.values["nvidia-dali-cuda130"] in found.what
    assert only(installation.check_triton).status == OK


def test_a_pool_that_is_switched_off(tiny):
    from essl_fast.data.shards import Manifest

    settings = config.load("demo", ["--data.resident", "never"])
    found = only(prepared_data.check_pool, Case(settings, False, CPU, torch.float32, Manifest.load(tiny[1])))
    assert found.status == NOTE and "every epoch decodes again" in found.what


def test_speed_without_a_device_or_data(monkeypatch):
    import essl_fast.profiling

    settings = config.load("demo", ["--data.batch_size", "4"])
    assert not guarded("speed", speed.check_speed, Case(settings))
    ceilings = SimpleNamespace(flop=2e12, copy=1e11, dtype="float32")
    monkeypatch.setattr(essl_fast.profiling, "measure_ceilings", lambda *_: ceilings)
    monkeypatch.setattr(essl_fast.profiling, "step_flop", lambda *_: SimpleNamespace(step=4e9))
    found = guarded("speed", speed.check_speed, Case(settings, True, CPU, torch.float32))
    assert [one.topic for one in found] == ["speed", "probe"] and "give --data DIR" in found[1].what
    assert found[0].values["most_pairs_per_second"] == 500 and found[0].what.startswith("500 pairs/s if the whole step")
    (bound,) = guarded("speed", speed.check_speed, Case(settings, False, CPU, torch.float32))
    assert bound.what.endswith("which --probe measures")


def test_a_global_batch_that_one_process_cannot_hold_is_probed_without():
    settings = config.load("demo", ["--data.batch_size", "4", "--data.global_batch", "64"])
    assert speed.as_alone(settings).data.global_batch == 0 and settings.data.global_batch == 64
    settings = config.load("demo", ["--data.batch_size", "64", "--data.global_batch", "64"])
    assert speed.as_alone(settings) is settings


def test_small_weights_by_the_settings(tmp_path):
    found = weight_files.made("none")
    assert found.status == NOTE and "keep random weights" in found.what
    found = weight_files.made(str(tmp_path / "none.pt"))
    assert found.status == STOPS and "none.pt" in found.what


def test_what_is_told_of_the_same_reason_once(monkeypatch):
    def broken(case):
        raise ImportError("libcudart.so is missing")
        yield

    def fine(case):
        yield Finding("fine", OK, "as it should be " * 20)

    def slow(case):
        yield Finding("slow", SLOWER, "PyTorch alone", "install it")

    checks = {"one": broken, "fine": fine, "two": broken, "slow": slow}
    monkeypatch.setattr(examination, "CHECKS", checks)
    found = examination.examine(None)
    assert [one.status for one in found] == [STOPS, OK, STOPS, SLOWER]
    assert found[2].what == "could not be examined, for the same reason as one" and not found[2].remedy
    text = examination.show(found)
    assert text.endswith("\n\ntraining could not start")  # for one reason
    assert max(map(len, text.splitlines())) <= examination.WIDTH and "Remedy: install it" in text
    assert examination.show(found[3:]).endswith("training can start; 1 things make it slower than it could be")
    assert examination.show(found[1:2]).endswith("training can start")


def test_help_names_both_kinds_of_options(capsys):
    with pytest.raises(SystemExit) as done:
        read_options("doctor", "What it does.", ["--help"])
    said = capsys.readouterr().out
    assert done.value.code == 0 and said.startswith("What it does.") and "--probe" in said and "train --help" in said


def test_options_are_read_where_a_package_is_missing(monkeypatch):
    """What the parser needs cannot be imported: the doctor says it, and examines the default settings."""
    real = builtins.__import__

    def without(name, globals=None, locals=None, fromlist=(), level=0):
        if name == "essl_fast" and "config" in (fromlist or ()) and globals["__name__"] == "essl_fast.doctor.options":
            raise ImportError("no yaml")
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without)
    options, others = read_options("doctor", "", ["--data", "prepared", "--epochs", "3"])
    assert options.data == Path("prepared") and others == ["--epochs", "3", "--data.root", "prepared"]
    monkeypatch.undo()

    def fails(*_):
        raise ImportError("no yaml")

    monkeypatch.setattr(config, "parse", fails)
    settings, (found,) = read_settings("doctor", [])
    assert settings == config.Config() and found.status == STOPS and "no yaml" in found.what


def test_a_global_batch_names_the_processes_that_it_needs():
    words = "--data.global_batch 509 --data.batch_size 16".split()  # a prime number: no batches of one size
    _, (settings, found) = read_settings("doctor", words)
    assert settings.status == OK and "batches of 509 over all processes" in settings.what
    assert found.status == NOTE and "509 pairs at once are for 32 processes or more" in found.what
    assert "--data.batch_size" in found.remedy
    assert len(read_settings("doctor", [*words, "--data.global_batch", "512"])[1]) == 1  # train cuts it
