"""The profile of training steps: a trace, and a table of the stages."""

import json
import time

import pytest
import torch

from essl_fast.profiling import StepProfile
from essl_fast.runtime.stages import STAGES, stage

CPU = torch.device("cpu")


def run_steps(profile, steps):
    """[of each step: {stage: milliseconds (at least, at most)}], by another clock than the profiler's."""
    found = []
    for _ in range(steps):
        found.append({})
        for name, seconds in (("forward", 0.004), ("optimizer", 0.001)):
            begin = time.perf_counter()
            with stage(name):
                entered = time.perf_counter()
                time.sleep(seconds)
                slept = time.perf_counter()
            found[-1][name] = 1e3 * (slept - entered), 1e3 * (time.perf_counter() - begin)
        profile.step()
    return found


def test_stages_and_their_shares(tmp_path):
    profile = StepProfile(tmp_path / "profile", CPU, steps=4, skip=2)
    traced = run_steps(profile, 5)
    assert not profile.finished and not (tmp_path / "profile").exists()
    traced = (traced + run_steps(profile, 5))[2:6]  # those after the last are not traced
    assert profile.finished and profile.done == 10
    trace = json.loads((tmp_path / "profile/trace.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum(name == "essl_fast: forward" for name in names) == 4
    stages, host, share = (list(column.cells) for column in profile.table.columns)
    assert stages == ["forward", "optimizer"] and set(stages) <= set(STAGES)
    for name, mean, part in zip(stages, map(float, host), map(float, share), strict=True):
        least, most = (sum(step[name][side] for step in traced) / 4 for side in (0, 1))
        assert least - 0.05 <= mean <= most + 0.05 and part == pytest.approx(100 * mean / profile.step_ms, abs=0.5)
    assert 0 < sum(map(float, share)) <= 100.5
    record = profile.record()  # of the steps that were traced, not of all
    assert list(record["stages"]) == stages and record["step_ms"] == pytest.approx(1e3 * profile.seconds / 4)
    assert sum(spent["device_ms"] for spent in record["stages"].values()) <= record["step_ms"]
    assert all(spent >= 0 for _, spent in record["operators"]) and len(record["operators"]) <= 10
    assert not any(name.startswith("essl_fast") for name, _ in record["operators"])


def test_a_run_that_ends_early_still_has_its_trace(tmp_path):
    profile = StepProfile(tmp_path, CPU, steps=50, skip=1)
    run_steps(profile, 3)
    profile.close()
    assert profile.finished and "over 2 steps" in profile.table.title
    short = StepProfile(tmp_path / "short", CPU, steps=5, skip=5)
    run_steps(short, 2)
    short.close()
    assert not short.finished and not (tmp_path / "short").exists()


def test_a_replayed_step_says_how_to_see_its_stages(tmp_path):
    profile = StepProfile(tmp_path, CPU, steps=1, skip=1)
    for _ in range(2):
        with stage("step"):
            time.sleep(0.001)
        profile.step()
    assert "step is a CUDA graph: --cuda_graphs off shows the stages in it" in profile.table.caption
