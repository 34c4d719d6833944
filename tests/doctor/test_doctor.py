"""The doctor tells what training would use; whatever is broken is a finding, never a traceback."""

import json
import os
import subprocess
import sys
import urllib.error
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from essl_fast import config
from essl_fast.common.errors import InputError
from essl_fast.data.shards import Manifest
from essl_fast.doctor import __main__ as doctor_door
from essl_fast.doctor import installation, machine, media_files, prepared_data, speed, weight_files
from essl_fast.doctor.findings import NOTE, OK, SLOWER, STOPS, Case, guarded
from essl_fast.doctor.options import read_options, read_settings
from essl_fast.models import weights
from tests import ROOT

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in {names}:
            raise ImportError("broken on purpose: " + name)

sys.meta_path.insert(0, Blocker())
"""


def broken(place, *packages):
    """The environment of a process in which these packages raise when they are imported."""
    (place / "sitecustomize.py").write_text(BLOCKER.replace("{names}", repr(set(packages))))
    return {**os.environ, "PYTHONPATH": f"{place}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


def ask(environment, *arguments):
    """Exit code and findings by topic, in a process of its own."""
    command = [sys.executable, "-m", "essl_fast.doctor", "--json", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, cwd=ROOT)
    assert "Traceback" not in done.stderr, done.stderr
    answer = json.loads(done.stdout)
    topics = {}
    for finding in answer["findings"]:
        topics.setdefault(finding["topic"], []).append(finding)
    assert answer["could_start"] == (done.returncode == 0)
    return done.returncode, topics


def test_without_torch(tmp_path):
    code, topics = ask(broken(tmp_path, "torch"))
    assert code == 1 and topics["Python"][0]["status"] == OK
    assert topics["torch"][0]["status"] == STOPS and "broken on purpose" in topics["torch"][0]["what"]
    assert topics["torch"][0]["remedy"] and "same reason as torch" in topics["GPU"][0]["what"]
    assert set(topics) >= {"settings", "Python", "device", "csrc", "DALI", "NVDEC", "weights", "data", "disk"}


@pytest.mark.slow
def test_without_dali_triton_and_the_compiled_module(tmp_path, tiny):
    code, topics = ask(
        broken(tmp_path, "nvidia.dali", "triton", "_essl_fast_native"), "--data", tiny[1], "--data.batch_size", "4"
    )
    assert code == 1 and topics["DALI"][0]["status"] == STOPS and "broken on purpose" in topics["DALI"][0]["what"]
    assert topics["torch"][0]["status"] == OK and topics["host"][0]["values"]["cores"] >= 1
    assert "broken on purpose" in topics["Triton"][0]["what"]
    assert topics["NVDEC"][0]["status"] in (NOTE, OK)  # and the rest went on


@pytest.fixture
def on_cpu():
    return Case(device=torch.device("cpu"), dtype=torch.float32)


def examined(check, case, **more):
    for name, value in more.items():
        setattr(case, name, value)
    return guarded("it", check, case)


@pytest.mark.slow
def test_this_machine_can_train_the_demo(tiny, capsys):
    assert doctor_door.main(["--device", "cpu", "--data", str(tiny[1])]) == 0
    said = capsys.readouterr().out
    pairs = Manifest.load(tiny[1]).pairs("train")
    assert "training can start" in said and f"{pairs} train" in said and "GFLOP" in said and "STOPS" not in said
    assert doctor_door.main(["--device", "cuda:99", "--config", "demo"]) == 1
    assert "STOPS  device" in capsys.readouterr().out
    with pytest.raises(InputError, match="nonsense"):
        doctor_door.main(["--config", "nonsense"])
    with pytest.raises(SystemExit) as done:
        doctor_door.main(["--help"])
    assert done.value.code == 0 and "--probe" in capsys.readouterr().out


def test_weights(tmp_path, monkeypatch, on_cpu):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    case = Case(settings=config.load("sspl", ["--model.vggish_weights", str(tmp_path / "nowhere")]))

    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(weight_files.urllib.request, "urlopen", refuse)
    vgg16, vggish = guarded("weights", weight_files.check_weights, case)
    assert vgg16.status == vggish.status == STOPS
    assert "vgg16-397923af.pth" in vgg16.what and "--model.vgg16_weights PATH" in vgg16.remedy
    assert "nowhere" in vggish.what

    class Answer:
        headers = {"Content-Length": "528000000"}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(weight_files.urllib.request, "urlopen", lambda *_, **__: Answer())
    case.settings.model.vggish_weights = "none"
    vgg16, vggish = guarded("weights", weight_files.check_weights, case)
    assert (vgg16.status, vggish.status) == (NOTE, NOTE) and "528 MB" in vgg16.what and "random" in vggish.what
    place = tmp_path / "checkpoints" / Path(weights.SOURCES["vgg16"]).name
    place.parent.mkdir()
    place.write_bytes(b"damaged")
    assert "SHA-256" in guarded("weights", weight_files.check_weights, case)[0].what


def test_modules_and_the_parts_they_register(tmp_path, monkeypatch):
    part = "from essl_fast import register_trunk\nregister_trunk('doctors_trunk')(lambda config: None)\n"
    (tmp_path / "essl_fast_doctors_part.py").write_text(part)
    monkeypatch.syspath_prepend(tmp_path)
    _, arguments = read_options("doctor", "", ["--import", "essl_fast_doctors_part", "--model.trunk", "doctors_trunk"])
    settings, _ = read_settings("doctor", arguments)
    (found,) = guarded("modules", installation.check_modules, Case(settings=settings))
    assert found.status == OK and "essl_fast_doctors_part" in found.what
    settings.imports, settings.model.trunk = [], "no_such_trunk"
    (found,) = guarded("modules", installation.check_modules, Case(settings=settings))
    assert found.status == STOPS and "no_such_trunk" in found.what
    assert not guarded("modules", installation.check_modules, Case(settings=config.load("demo")))


def test_data_and_pool(tmp_path, tiny, on_cpu):
    settings = config.load("demo", ["--data.root", str(tiny[1]), "--data.batch_size", "4"])
    (found,) = examined(prepared_data.check_data, on_cpu, settings=settings)
    assert found.status == OK and found.values["train"] == Manifest.load(tiny[1]).pairs("train")
    size = sum(
        found.values[split] * (side**2 * 3 + 3 * 96 * 64 * 4)
        for split, side in (("train", 246), ("val", 224), ("test", 224))
    )
    (pool,) = examined(prepared_data.check_pool, on_cpu)
    assert pool.status == OK and pool.values["need_bytes"] == size <= pool.values["budget_bytes"]
    settings.data.resident_budget_gb = 0.9 * size / 1e9
    (pool,) = examined(prepared_data.check_pool, on_cpu)
    assert pool.status == SLOWER and "data.resident_budget_gb" in pool.remedy
    settings.data.resident = "always"
    assert examined(prepared_data.check_pool, on_cpu)[0].status == STOPS

    settings.data.batch_size, settings.data.last_batch = 500, "drop"
    assert [f.status for f in examined(prepared_data.check_data, on_cpu)] == [OK, STOPS]
    settings.data.root = str(tmp_path)
    assert [f.status for f in examined(prepared_data.check_data, on_cpu)] == [STOPS]


def test_disk(tmp_path, monkeypatch):
    settings = config.load("demo", ["--out", str(tmp_path / "runs" / "a")])
    case = Case(settings=settings)
    (found,) = guarded("disk", machine.check_disk, case)
    assert found.status == OK and found.values["checkpoint_bytes"] > 12 * found.values["trained_parameters"]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(1, 1, 10**6))
    assert guarded("disk", machine.check_disk, case)[0].status == STOPS


def test_which_chips_the_compiled_module_runs_on():
    archs = "sm_80 sm_86 sm_90 sm_100 sm_120".split()
    runs = {chip: installation.runs_on(f"sm_{chip}", archs) for chip in (75, 80, 87, 90, 103, 110, 121)}
    assert runs == {75: False, 80: True, 87: True, 90: True, 103: True, 110: False, 121: True}
    assert not installation.runs_on("sm_90", []) and installation.runs_on("sm_130", archs)


@pytest.mark.parametrize(
    ("info", "status", "word"),
    [
        ({"cuda": True, "cuda_version": "13.0", "archs": "sm_80 sm_90", "compiler": "c++"}, OK, "among them"),
        ({"cuda": True, "cuda_version": "13.0", "archs": "sm_80", "compiler": "c++"}, OK, "among them"),
        ({"cuda": True, "cuda_version": "13.0", "archs": "sm_100", "compiler": "c++"}, STOPS, "not for this machine's"),
        ({"cuda": False, "cuda_version": "", "archs": "", "compiler": "c++"}, SLOWER, "without CUDA"),
    ],
)
def test_csrc_against_the_gpu(monkeypatch, on_cpu, info, status, word):
    from essl_fast.kernels import native

    monkeypatch.setattr(machine, "gpu_chips", lambda: ["sm_90"])
    monkeypatch.setattr(native, "available", lambda: True)
    monkeypatch.setattr(native, "build_info", lambda: info)
    (found,) = guarded("csrc", installation.check_csrc, on_cpu)
    if info["archs"] == "sm_80":
        status, word = OK, "among them"  # its PTX is the newest
    assert found.status == status and word in found.what


def test_a_part_of_csrc_that_was_left_out_says_why(monkeypatch, on_cpu):
    """pip hides what a build prints: here the user reads it."""
    from essl_fast.kernels import native

    info = {"cuda": False, "cuda_version": "", "archs": "", "compiler": "c++"}
    monkeypatch.setattr(native, "available", lambda: True)
    monkeypatch.setattr(native, "build_info", lambda: info)
    monkeypatch.setattr(native, "left_out", lambda: "no nvcc works (nvcc: g++ 99 is too new)")
    for chips, status in (([], NOTE), (["sm_90"], SLOWER)):
        monkeypatch.setattr(machine, "gpu_chips", lambda chips=chips: chips)
        (found,) = guarded("csrc", installation.check_csrc, on_cpu)
        assert found.status == status and "g++ 99 is too new" in found.what and "ESSL_CUDA=1" in found.remedy


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raises", "TypeError: unexpected keyword"),
        ("no frame", "decodes to nothing"),
        ("another picture", "grey levels apart"),
        ("another tone", "a tone of 1000 Hz came back"),
    ],
)
def test_a_pyav_that_cannot_read_what_it_wrote_stops(monkeypatch, on_cpu, fault, said):
    from essl_fast.data import media

    (fine,) = guarded("media", media_files.check_media, on_cpu)
    assert fine.status == OK and fine.values["av"] and "wrote and read" in fine.what
    decode, listen = media.decode_frames, media.audio.decode_sound

    def frames(path, requests):
        if fault == "raises":
            raise TypeError("unexpected keyword")
        for index, picture in decode(path, requests):
            yield index, media.MediaError("x", "decodes to nothing") if fault == "no frame" else 255 - picture

    def sound(path):
        heard = listen(path)
        heard.mono[:] = heard.mono[::-1].cumsum()
        return heard

    if fault == "another tone":
        monkeypatch.setattr(media.audio, "decode_sound", sound)
    else:
        monkeypatch.setattr(media, "decode_frames", frames)
    (found,) = guarded("media", media_files.check_media, on_cpu)
    assert found.status == STOPS and said in found.what and found.remedy


def test_a_gpu_that_pytorch_does_not_see(monkeypatch, on_cpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "driver_version", lambda: "535.1")
    (found,) = guarded("GPU", machine.check_gpu, on_cpu)
    assert found.status == SLOWER and "535.1" in found.what and "580" in found.remedy


@pytest.mark.slow
def test_the_probe_trains(tiny, monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 0.2)
    settings = config.load("demo", ["--data.root", str(tiny[1]), "--data.batch_size", "4", "--device", "cpu"])
    case = Case(settings, True, torch.device("cpu"), torch.float32, Manifest.load(tiny[1]))
    bound, found = guarded("speed", speed.check_speed, case)
    assert found.topic == "probe" and found.values["pairs_per_second"] > 0, found
    assert found.values["share"] == pytest.approx(
        found.values["pairs_per_second"] / bound.values["most_pairs_per_second"]
    )
    settings.epochs, settings.data.batch_size = 1, 10  # a few steps: too few
    (_, short) = guarded("speed", speed.check_speed, case)
    assert short.status == STOPS and "too few" in short.what
