"""What a step is predicted to take follows from its launches."""

import pytest

from benchmarks import phantom
from benchmarks.prediction import LEAST, Prediction, Rates
from essl_fast.common.errors import InputError
from essl_fast.kernels import native
from tests.phantom.chips import CHIPS
from tests.phantom.launches import Launch

H200 = CHIPS["h200"]
STEP = [
    Launch("call", "aten.convolution.default", "forward", 1e9, 79e12, ((128, 3, 224, 224), (64, 3, 3, 3))),
    Launch("triton", "triton_poi_fused_relu_0", "forward", 4.3e9, 0.0),
    Launch("call", "essl_fast.two_views.default", "views", 8.6e9, 0.0),
    Launch("call", "aten.add.Tensor", "backward", 8.0, 0.0),
]


def test_the_h200_is_the_one_that_was_measured():
    assert Rates.of(H200) == Rates(pytest.approx(790e12), pytest.approx(4.3e12))
    assert Rates.of(CHIPS["a100"]).flop < Rates.of(CHIPS["h100"]).flop < Rates.of(CHIPS["b200"]).flop


def test_a_step_is_the_sum_of_its_launches():
    found = Prediction.of("step", STEP, H200, 128)
    assert found.whole.count == 4 and found.whole.flop == 79e12
    seconds = 0.1 / 0.7 + 1e-3 + 2e-3 + LEAST  # FLOPs at 70%; bytes at the copy's rate, twice; the least of a launch
    assert found.whole.expected == pytest.approx(seconds)
    assert found.whole.floor == pytest.approx(0.1 + 2e-3)  # a pass over a map need not be
    assert found.whole.goal == pytest.approx(0.1 / 0.75 + 2e-3 / 0.9)
    assert found.pairs_per_second == pytest.approx(128 / seconds)
    assert found.mfu == pytest.approx(0.1 / seconds)
    assert [part.name.partition(" ")[0] for part in found.worst] == [
        "aten.convolution.default",
        "triton_poi_fused_relu_0",
        "aten.add.Tensor",
        "essl_fast.two_views.default",
    ]
    assert {part.name for part in found.parts} == {
        "forward: convolutions, products",
        "forward: generated kernels",
        "views: own ops, optimizer",
        "backward: PyTorch's kernels",
    }
    record = found.record(2)
    assert len(record["worst"]) == 2 and record["whole"]["expected"] == found.whole.expected


def test_a_step_without_the_compiled_module_is_not_predicted(monkeypatch):
    monkeypatch.setattr(native, "_why_unavailable", "the compiled module was not built (no compiler): install it")
    with pytest.raises(InputError, match=r"launches PyTorch's, .*: the compiled module was not built"):
        phantom.check_module()
