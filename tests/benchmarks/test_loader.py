"""The loader's benchmark: every way delivers the same pairs, is timed, and the ratios are those of the times."""

import ctypes
import json
import os
import subprocess
import sys
import time
import types

import pytest
import torch

pytest.importorskip("h5py")

from benchmarks import loader as benchmark  # noqa: E402
from benchmarks.baselines.published_data import export  # noqa: E402
from benchmarks.engines import EngineSampler  # noqa: E402
from essl_fast.data.shards import Manifest  # noqa: E402
from essl_fast.prepare import prepare  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory) -> benchmark.Folders:
    """The tiny world in all three layouts."""
    place, world = tmp_path_factory.mktemp("layouts"), tiny[0]
    for visual in ("jpeg", "clip"):
        prepare(world.videos, world.annotations, place / visual, visual=visual, validation=0.15, progress=False)
    export(Manifest.load(place / "jpeg"), place / "published", {"train": ("train",)}, batch=5)
    return benchmark.Folders(place / "jpeg", place / "clip", place / "published")


@pytest.mark.slow
def test_every_way_delivers_the_same_pairs(folders):
    said = benchmark.check(folders, 5, CPU)
    pairs = Manifest.load(folders.jpeg).pairs("train")
    assert said.startswith(f"{pairs} pairs: resident as streamed, to the bit; clips ")
    with pytest.raises(RuntimeError, match="row 0: the published files hold another pair"):
        benchmark.check(folders._replace(published=other(folders)), 5, CPU)


def other(folders: benchmark.Folders):
    """The published files with the sound of pair 0 changed."""
    import h5py

    copy = folders.published.with_name("changed")
    if not copy.exists():
        export(Manifest.load(folders.jpeg), copy, {"train": ("train",)}, batch=5)
        with h5py.File(next(copy.rglob("*spects.h5")), "r+") as file:
            file["train_spects"][0] += 1
    return copy


@pytest.mark.parametrize("way", benchmark.WAYS)
def test_a_way_is_timed(folders, way):
    found = benchmark.measure(way, folders, 5, CPU, seconds=0.0)
    assert found.pairs == Manifest.load(folders.jpeg).pairs("train") and len(found.seconds) == 2
    assert found.rate > 0 and found.cpu_seconds > 0 and 10 < found.kilobytes < 3000


def test_ratios_and_table():
    ways = [
        benchmark.Way("published", 100, [2.0, 1.0, 4.0], 7.0, 860.0),
        benchmark.Way("jpeg", 100, [0.5], 0.5, 150.0),
        benchmark.Way("clips", note="failed: why"),
        benchmark.Way("resident", 100, [0.1, 0.1], 0.2, 150.0),
    ]
    assert benchmark.ratios(ways) == {"jpeg": 4.0, "resident": pytest.approx(20.0)}
    assert ways[0].cpu_per_pair == pytest.approx(1e3 * 7 / 300)
    assert benchmark.headline(ways) == "jpeg 4.0x (wanted 2x), resident 20.0x (wanted 10x)"
    assert benchmark.results_table(ways, "title").row_count == 4
    assert benchmark.ratios(ways[1:]) == {} and benchmark.headline(ways[1:]) == "nothing to compare"


def test_cpu_time_of_less_than_a_tick_is_counted():
    before = benchmark.cpu_seconds()
    begin = time.process_time()
    while time.process_time() - begin < 1e-3:
        pass
    assert benchmark.cpu_seconds() - before >= 1e-3


def test_cpu_time_counts_children():
    burn = "import time\nbegin = time.process_time()\nwhile time.process_time() - begin < 0.5: pass\ninput()"
    before = benchmark.cpu_seconds()
    process = subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE)
    try:
        while benchmark.cpu_seconds(process.pid) < 0.4:  # its two modes may each lose a tick, so 0.5 may never come
            assert process.poll() is None
            time.sleep(0.01)
        assert benchmark.cpu_seconds() - before >= 0.4  # it lives still
    finally:
        process.communicate(b"\n")


@pytest.mark.nightly  # the whole benchmark, in a process of its own
def test_the_command(tmp_path, folders, monkeypatch):
    """One way and round, in a process of its own, on one core."""
    monkeypatch.setattr(benchmark, "prepared", lambda *_: folders)
    before = os.sched_getaffinity(0)
    arguments = ["--ways", "resident", "--cores", "1", "--seconds", "0", "--rounds", "1", "--device", "cpu"]
    arguments += ["--batch", "5", "--json", str(tmp_path / "found.json")]
    try:
        assert benchmark.main(arguments) == 0
    finally:
        os.sched_setaffinity(0, before)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ways"][0]["way"] == "resident" and found["ways"][0]["rate"] > 0
    assert found["environment"]["machine"]["cores"] == 1 and "to the bit" in found["checked"]
    with pytest.raises(SystemExit, match="--ways: hdf5 is none of"):
        benchmark.main(["--ways", "hdf5"])
    with pytest.raises(SystemExit, match="--cores: 9999 were asked for"):
        benchmark.main(["--cores", "9999"])


def test_engines_are_sampled_or_the_reason_is_told(monkeypatch):
    with EngineSampler(CPU) as engines:
        pass
    assert engines.why == "no GPU" and engines.means == {}

    def utilization(handle, rates):
        rates._obj.gpu, rates._obj.memory = 80, 30
        return 0

    def decoder(handle, share, period):
        share._obj.value = 40
        return 0

    nvml = types.SimpleNamespace(
        nvmlInit_v2=lambda: 0,
        nvmlDeviceGetHandleByUUID=lambda uuid, handle: 0 if uuid.value == b"GPU-abc" else 6,
        nvmlDeviceGetUtilizationRates=utilization,
        nvmlDeviceGetDecoderUtilization=decoder,
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(uuid="abc"))
    with EngineSampler(torch.device("cuda"), every=0.01, library=nvml) as engines:
        pass
    assert engines.means == {"gpu": 80, "memory": 30, "nvdec": 40}
    assert engines.why == "this driver does not report nvjpeg"
    nvml.nvmlInit_v2 = lambda: 9
    with EngineSampler(torch.device("cuda"), library=nvml) as engines:
        pass
    assert engines.why == "NVML refused (status 9)" and engines.means == {}

    def missing(_):
        raise OSError("libnvidia-ml.so.1: not there")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert EngineSampler(torch.device("cuda")).why.startswith("no NVML (libnvidia-ml")
