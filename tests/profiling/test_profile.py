"""The profile of training steps: a trace, and a table of the stages."""

import json
import time

import pytest
import torch

from essl_fast.profiling import StepProfile
from essl_fast.runtime.stages import STAGES, stage

CPU = torch.device("cpu")


def run_steps(profile, steps):
    for _ in range(steps):
        with stage("forward"):
            time.sleep(0.004)
        with stage("optimizer"):
            time.sleep(0.001)
        profile.step()


def test_stages_and_their_shares(tmp_path):
    profile = StepProfile(tmp_path / "profile", CPU, steps=4, skip=2)
    run_steps(profile, 5)
    assert not profile.finished and not (tmp_path / "profile").exists()
    run_steps(profile, 5)  # those after the last are not traced
    assert profile.finished and profile.done == 10
    trace = json.loads((tmp_path / "profile/trace.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum(name == "essl_fast: forward" for name in names) == 4
    stages, host, share = (list(column.cells) for column in profile.table.columns)
    assert stages == ["forward", "optimizer"] and set(stages) <= set(STAGES)
    assert 4 <= float(host[0]) < 40 and float(share[0]) > float(share[1]) > 0
    assert sum(map(float, share)) <= 100.5
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
    assert "--cuda_graphs off shows its stages" in profile.table.caption
