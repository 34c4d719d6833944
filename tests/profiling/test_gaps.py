"""The words about a profile follow from its numbers; the floors from the network and the machine."""

import json
from types import SimpleNamespace

import pytest
import torch

from essl_fast import config
from essl_fast.profiling import explain, floors
from essl_fast.profiling.gaps import Measured, Setting, find

GPU = Setting(True, False, False, "float32", 16, 2, 8, True)
FLOORS = {
    "data": floors.Floor(0.0, "none"),
    "views": floors.Floor(0.001, "MB"),
    "forward": floors.Floor(0.010, "TFLOP"),
    "backward": floors.Floor(0.020, "TFLOP"),
    "optimizer": floors.Floor(0.001, "MB"),
}
OPERATORS = [("conv", 9.0), ("mm", 2.0), ("add", 1.0), ("copy", 0.1)]


def test_the_largest_gaps_come_first_and_add_up():
    stages = {"data": Measured(7, 0.1), "views": Measured(1, 1.5), "forward": Measured(3, 14)}
    stages["backward"] = Measured(38, 40)
    found = find(70.0, stages, FLOORS, GPU, OPERATORS)
    assert [gap.stage for gap in found] == ["backward", "between the stages", "data"]
    assert [round(gap.above, 6) for gap in found] == [20.0, 70 - 7 - 1.5 - 14 - 40, 7.0]
    backward, between, data = (gap.words for gap in found)
    assert "40.00 ms, 20.00 ms above its floor of 20.00 ms (TFLOP): 50%" in backward and "29% of the step" in backward
    assert "cuda_graphs" in backward and "38.00 ms to launch" in backward
    assert "compile on" in backward and "precision bf16" in backward and "conv 9.00 ms, mm 2.00 ms" in backward
    assert "7.50 ms a step in no stage, 11%" in between and "data.batch_size (now 16)" in between
    assert "waits 7.00 ms" in data and "data.resident always" in data and "data.threads 8 (now 2)" in data


def test_other_numbers_give_other_words():
    tuned = Setting(True, True, True, "bfloat16", 128, 8, 8, False)
    stages = {"step": Measured(0.1, 50), "data": Measured(0.01, 0.0)}
    (step, rest, data) = find(51.0, stages, {**FLOORS, "step": floors.Floor(0.03, "all of it")}, tuned, OPERATORS)
    assert (step.stage, rest.stage, data.stage) == ("step", "between the stages", "data")
    for word in ("compile", "precision", "cuda_graphs"):
        assert word not in step.words
    assert "60% of what the machine does" in step.words and "data.threads" not in data.words
    cpu = Setting(False, False, False, "float32", 16, 2, 2, False)
    (only,) = find(10.0, {"forward": Measured(10, 10)}, {"forward": floors.Floor(0.005, "x")}, cpu, [])
    assert "cuda_graphs" not in only.words and "compile" not in only.words and "Try: the trace" in only.words
    assert find(10.0, {"forward": Measured(10, 10)}, {"forward": floors.Floor(0.02, "x")}, cpu, []) == []


@pytest.mark.parametrize(("name", "gflop"), [("sspl", 61), ("semipl", 125)])
def test_flop_of_the_papers_step(name, gflop):
    """VGG-16 forward on two views, PCM forward and backward; the trained parts of head and audio come to little."""
    settings = config.load(name)
    flop = floors.step_flop(settings, embedded=True)
    assert flop.step / 1e9 == pytest.approx(gflop, rel=0.02)
    whole = floors.step_flop(settings)
    assert whole.backward == flop.backward and 1e9 < whole.forward - flop.forward < 10e9  # VGGish on three examples


def test_floors_follow_from_counts_and_ceilings():
    ceilings = floors.Ceilings(1e12, 1e9, "float32")
    found = floors.stage_floors(floors.Flop(2e9, 3e9), 10, 1_000_000, ceilings, 4)
    assert found["forward"].seconds == pytest.approx(0.02) and found["backward"].seconds == pytest.approx(0.03)
    assert found["views"].seconds == pytest.approx(2 * 10 * 3 * 224 * 224 * 5 / 1e9)
    assert found["optimizer"].seconds == pytest.approx(0.028) and found["data"].seconds == 0
    assert found["step"].seconds == pytest.approx(sum(found[n].seconds for n in found if n != "step"))
    assert found["step"].why.endswith("and the bytes of views and optimizer")
    several = floors.stage_floors(floors.Flop(2e9, 3e9), 10, 1_000_000, ceilings, 4, ranks=2)
    assert several["step"].seconds == pytest.approx(found["step"].seconds - 0.028)
    assert several["step"].why.endswith("and the bytes of views") and several["optimizer"] == found["optimizer"]
    assert "20 GFLOP at 1 TFLOP/s" in found["forward"].why and "28 MB at 1 GB/s" in found["optimizer"].why
    measured = floors.measure_ceilings(torch.device("cpu"), torch.float32, seconds=0.02)
    assert measured.flop > 1e8 and measured.copy > 1e7 and measured.dtype == "float32"


@pytest.mark.parametrize("slow", [True, False])
def test_a_profile_is_explained_beside_its_trace(tmp_path, monkeypatch, slow):
    monkeypatch.setattr(explain, "measure_ceilings", lambda *_: floors.Ceilings(1e12, 1e10, "float32"))
    settings = config.load("demo", ["--data.batch_size", "16", "--optim.accumulate", "2"])
    run = explain.ProfiledRun(settings, torch.device("cpu"), torch.float32, 10**6, False, 2, True)
    spent = 1e4 if slow else 0.0
    profile = SimpleNamespace(
        step_ms=3 * spent,
        stages={"forward": (spent, spent), "optimizer": (spent, spent), "views": (spent / 2, spent / 2)},
        operators=OPERATORS,
        record=lambda: {"device": "cpu"},
    )
    said = explain.largest_gaps(run, profile, tmp_path / "gaps.json")
    held = json.loads((tmp_path / "gaps.json").read_text())
    assert held["device"] == "cpu" and held["ceilings"]["flop"] == 1e12 and held["gflop_a_pair"] > 0
    if not slow:
        assert said == ["every stage is at its floor"] and held["gaps"] == []
        return
    assert said[0] == "the largest gaps:" and [line[:3] for line in said[1:]] == ["1. ", "2. ", "3. "]
    assert [line[3:] for line in said[1:]] == held["gaps"] and len(held["gap_values"]) == 3
    assert [gap["ms"] for gap in held["gap_values"]] == [1e4, 1e4, 5e3]


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("optimizer", "a larger data.batch_size (now 16): the update costs the same for any"),
        ("views", "`python -m essl_fast.doctor`, which says whether the compiled module makes them"),
        ("forward", "the trace, which shows what runs in it"),
    ],
)
def test_what_to_try_about_each_stage(stage, said):
    cpu = Setting(False, False, False, "float32", 16, 2, 2, False)
    (gap,) = find(20.0, {stage: Measured(20, 20)}, {stage: floors.Floor(0.005, "x")}, cpu, [])
    assert gap.words.endswith(f"Try: {said}")
    assert find(20.0, {"loss": Measured(20, 20)}, {}, cpu, []) == []  # a stage without a floor
