"""What a replay says of the step that it ran again, and what is said where the step cannot be kept."""

import errno
import math
import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from essl_fast import checkpoints, config, models, replay
from essl_fast.common.errors import InputError
from essl_fast.data.shards import Manifest
from essl_fast.train import replaying
from essl_fast.train.events import Fault
from essl_fast.train.faults import KEPT, Faults
from essl_fast.train.replaying import Place, Report, report_lines

FAULT = Fault(1, 4, [3, 5], ["a_000003", "b_000005"], {"loss": math.nan}, 0, 1)


def lines(places=(), operation="", later=0, then="cuda in bfloat16", now="cuda in bfloat16") -> list[str]:
    fault = FAULT._replace(later=later)
    return list(report_lines(Report(fault, list(places), {"loss": 0.25}, operation, then, now)))


def test_the_lines_of_a_replay():
    assert lines() == [
        "epoch 2, step 5: 2 pairs, a_000003, b_000005",
        "losses: loss 0.25",
        "everything is finite this time",
    ]
    found = lines(now="cpu in float32", later=3)
    assert found[1] == "the step ran on cuda in bfloat16, this is cpu in float32"
    assert found[2] == "the weights are those of 3 steps later: they were read from the GPU only then"
    assert found[-1].endswith("; replay it on what it ran on, with --device and --precision")
    places = [Place("output", f"part {number}", "1 nan of 4 values", ("a",) * (number == 0)) for number in range(12)]
    found = lines(places, operation="Function 'MulBackward0' returned nan values in its 0th output.")
    assert found[2] == "first not finite: output part 0: 1 nan of 4 values; only of a"
    assert found[3] == "then: output part 1: 1 nan of 4 values" and found[12] == "and 2 more"
    assert found[13:] == ["backward: Function 'MulBackward0' returned nan values in its 0th output."]


class Two(nn.Module):
    """An output of a tensor and of two more in a tuple; the gradient of the square root of 0 is infinite."""

    def forward(self, x):
        return x.sqrt(), (x * 2, "words", [x / x])


def test_outputs_within_outputs_and_their_gradients_are_watched():
    model = nn.Sequential(Two())
    watch = replaying.Watch(model, ["a", "b"])
    x = torch.tensor([[0.0], [4.0]], requires_grad=True)
    root, (double, _, _) = model(x)
    assert watch.outputs == [Place("output", "0 (Two)", "1 nan of 2 values", ("a",))]  # 0 / 0
    (root * torch.tensor([[math.inf], [1.0]]) + double).sum().backward()
    assert watch.gradients == [Place("gradient", "of the output of 0 (Two)", "1 inf of 2 values", ("a",))]
    watch.close()


def test_a_replay_on_other_data_is_refused(tiny, tmp_path):
    settings = config.to_dict(config.load("demo"))
    state = {"config": settings, "data": {"pairs": 1}, "kind": "nonfinite", "fault": FAULT._asdict(), "model": {}}
    with pytest.raises(InputError, match="is not the data set that the step was of; give its folder with --data"):
        replaying.replay(state, tiny[1], torch.device("cpu"))
    checkpoints.save(tmp_path / "nonfinite-2-5.pt", state | {"data_root": str(tmp_path / "gone")})
    with pytest.raises(InputError, match="there is no folder .*gone, which .*nonfinite-2-5.pt was trained on"):
        replay.main([str(tmp_path / "nonfinite-2-5.pt"), "--device", "cpu"])
    checkpoints.save(tmp_path / "best.pt", {"config": settings})
    with pytest.raises(InputError, match="best.pt is no step to replay: give a nonfinite-EPOCH-STEP.pt"):
        replay.main([str(tmp_path / "best.pt"), "--device", "cpu"])


def test_pairs_that_another_order_gives_are_refused(tiny):
    """The same data set, and a step whose pairs are not the ones that its seed and epoch give."""
    settings = config.load("demo", ["--data.root", str(tiny[1]), "--data.batch_size", "4", "--data.threads", "1"])
    state = {"config": config.to_dict(settings), "data": Manifest.load(tiny[1]).header}
    state["model"] = checkpoints.trained_state(models.build(settings.model))
    with pytest.raises(InputError, match="does not give the pairs that the step had: is it the same data"):
        replaying.replay(state | {"fault": FAULT._replace(epoch=0, step=0)._asdict()}, tiny[1], torch.device("cpu"))


def faults(said: list, on_nonfinite="skip", leads=True) -> Faults:
    observers = SimpleNamespace(on_message=said.append, on_not_finite=lambda *facts: said.append(facts[1:]))
    settings = config.load("demo", ["--on_nonfinite", on_nonfinite, "--max_nonfinite", "0.1"])
    return Faults(settings, SimpleNamespace(), SimpleNamespace(leads=leads), observers)


def test_a_step_that_cannot_be_kept_is_reported_all_the_same(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints, "save", full)
    mine = faults(said := [])
    mine.keep_in(tmp_path, dict)
    mine.pass_over(FAULT, 100, latched=False)
    file = tmp_path / "nonfinite-2-5.pt"
    assert said == [f"cannot write {file}: No space left on device", (None, True)]
    with pytest.raises(FloatingPointError):
        faults([], "stop").pass_over(FAULT, 100, latched=True)


def test_the_first_few_are_kept_by_the_first_rank_until_an_epoch_has_too_many(tmp_path):
    mine, other = faults(said := []), faults([], leads=False)
    for each in (mine, other):
        each.keep_in(tmp_path / str(each is mine), dict)
        (tmp_path / str(each is mine)).mkdir()
    for step in range(10):
        for each in (mine, other):
            each.pass_over(FAULT._replace(step=step), 100, latched=False)
    assert len(list((tmp_path / "True").iterdir())) == KEPT and not list((tmp_path / "False").iterdir())
    assert [file is not None for file, _ in said] == [True] * KEPT + [False] * (10 - KEPT)
    with pytest.raises(FloatingPointError, match="10"):
        mine.pass_over(FAULT._replace(step=10), 100, latched=False)
