"""The words about a profile follow from its numbers; the floors from the network and the machine."""

import pytest
import torch

from essl_fast import config
from essl_fast.profiling import floors
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
    assert "20 GFLOP at 1 TFLOP/s" in found["forward"].why and "28 MB at 1 GB/s" in found["optimizer"].why
    measured = floors.measure_ceilings(torch.device("cpu"), torch.float32, seconds=0.02)
    assert measured.flop > 1e8 and measured.copy > 1e7 and measured.dtype == "float32"
