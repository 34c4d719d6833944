"""benchmarks.native at a tiny size: it runs, it records, and it does not time what is wrong."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import common
from benchmarks import native as benchmark
from benchmarks.common import OURS, Comparison, Mismatch
from essl_fast.kernels import native, reference

CPU = torch.device("cpu")
TINY = ["--device", "cpu", "--batch", "2", "--evaluated", "3", "--repeats", "3", "--seconds", "0.1", "--threads", "2"]


@pytest.mark.nightly  # the whole benchmark, in a process of its own
@pytest.mark.skipif(not native.available(), reason=str(native.why_unavailable()))
def test_it_runs_and_records(tmp_path):
    command = [sys.executable, "-m", "benchmarks.native", *TINY, "--json", str(tmp_path / "native.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)  # alone, since it forks
    assert done.returncode == 0, done.stderr
    shown, found = done.stdout, json.loads((tmp_path / "native.json").read_text())
    names = [result["name"] for result in found["results"]]
    assert [name.split(",")[0] for name in names] == [
        "two_views",
        "random_views",
        "view_params + view_boxes",
        "log_mel",
        *["localization_counts"] * 2,
    ]
    for result in found["results"]:
        assert result["name"] in shown and result["checked"]
        assert len(result["times"]) > 1 and all(x > 0 for x in result["speedup"].values())
        assert all(len(times["each_ms"]) >= common.ROUNDS for times in result["times"].values())
        assert set(result["goals"]) <= set(result["speedup"])
    assert found["headline"].startswith("two_views ")
    assert ("torchaudio" in found["headline"]) == bool(benchmark.torchaudio)
    assert found["environment"]["machine"]["cpu"] and found["options"]["batch"] == 2
    assert 0 < found["results"][0]["copy_share"] < 2


def test_what_is_wrong_is_not_timed(monkeypatch):
    timed = []
    monkeypatch.setattr(common, "time_each", lambda *args, **more: timed.append(args))
    right = reference.localization_counts
    monkeypatch.setattr(native, "localization_counts", lambda *args: [count + 1e-9 for count in right(*args)])
    with pytest.raises(Mismatch, match="localization_counts: intersection: .* is not the reference's result"):
        common.measure(benchmark.counts_comparison(3, CPU, 1, smooth=True), CPU, 3, 0.1)
    assert not timed
    with pytest.raises(Mismatch, match="apart from the reference by nan, allowed 1"):
        common.close("x", torch.tensor([1.0, float("nan")]), torch.ones(2), 1.0)
    with pytest.raises(Mismatch):
        common.equal("x", torch.ones(2), torch.ones(2, dtype=torch.float64))


def test_everybody_is_timed_in_turns():
    order = []
    rivals = {"other": lambda: order.append("b")}
    each = Comparison("op", lambda: order.append("a"), rivals, lambda: "equal", 1, bytes=8)
    result = common.measure(each, CPU, repeats=6, seconds=1.0, copy_bytes=1e3)
    turn = "a" * 3 + "b" * 3  # a warm-up and two timed runs
    assert "".join(order) == turn * common.ROUNDS and len(result.times[OURS].all) == 6
    assert result.copy_share == pytest.approx(8 / (result.times[OURS].median / 1e3) / 1e3)


@pytest.mark.parametrize("with_opencv", [True, False])
def test_the_loop_counts_what_the_reference_counts(monkeypatch, with_opencv):
    if with_opencv:
        pytest.importorskip("cv2")
    else:
        monkeypatch.setattr(benchmark, "cv2", None)
    rng = np.random.default_rng(0)
    maps = torch.from_numpy(rng.standard_normal((4, 14, 14), dtype=np.float32))
    boxes = benchmark.make_boxes(4, 3, torch.Generator().manual_seed(0))
    looped = benchmark.loop_counts(maps.numpy(), boxes.numpy(), consensus=2)
    for have, want in zip(looped, reference.localization_counts(maps, boxes, consensus=2), strict=True):
        np.testing.assert_allclose(have, want.numpy(), atol=3)
