"""Averaged weights and early stopping: off by default, on as documented, and resumed to the bit."""

import json
import shutil

import pytest
import torch
from torch import nn

from essl_fast import checkpoints, config, train
from essl_fast.common.errors import InputError
from essl_fast.evaluate import evaluate_checkpoint
from essl_fast.models import heads
from essl_fast.runtime.runlog import read_log
from essl_fast.train import Trainer
from essl_fast.train import __main__ as train_door
from essl_fast.train.averaging import AveragedWeights

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = "--config demo --data.batch_size 4 --device cpu --overlays 0 --baselines false --eval_every 1".split()
WORDS += ["--optim.warmup", "0.5"]
EMA = ["--optim.ema", "0.7", "--optim.accumulate", "2", "--data.last_batch", "keep"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A small head: the same code in a fraction of the time."""
    head = heads.SimSiamHead
    monkeypatch.setattr(heads, "SimSiamHead", lambda channels: head(channels, 64, 16))


def run(tiny, out, *more):
    """The exit code of a run."""
    return train_door.main([*WORDS, "--data.root", str(tiny[1]), "--out", str(out), *more])


def test_the_average_follows_the_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[2].requires_grad_(False)
    average = AveragedWeights(model, 0.5)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    assert average.state_dict().keys() == {
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
    }
    for step in range(20):
        with torch.no_grad():
            for value in average._live:
                value.add_(torch.randn_like(value))
        closed = float(step == 3)  # an update that changed nothing
        average.update(step, torch.tensor(closed))
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in average.state_dict().items():
            if not closed:
                expected[name] = decay * expected[name] + (1 - decay) * model.state_dict()[name]
            torch.testing.assert_close(value, expected[name])
    now = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), average.applied():
        for name, value in average.state_dict().items():
            assert torch.equal(model.state_dict()[name], value)
        raise ZeroDivisionError
    assert all(torch.equal(value, now[name]) for name, value in model.state_dict().items())
    again = AveragedWeights(model, 0.5)
    again.load_state_dict(average.state_dict())
    assert all(torch.equal(value, average.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run with averaged weights and added gradients, undisturbed."""
    torch.set_num_threads(1)
    out, head = tmp_path_factory.mktemp("habits") / "whole", heads.SimSiamHead
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "SimSiamHead", lambda channels: head(channels, 64, 16))
        assert run(tiny, out, *EMA, "--epochs", "2") == 0
    return out


@pytest.mark.slow
def test_averaged_weights_are_evaluated_and_kept_beside(whole, tiny, capsys):
    summary = json.loads((whole / "summary.json").read_text())
    assert {"test", "test_ema", "selected", "selected_ema"} <= summary.keys() and summary["epochs"] == 2
    entries = [event for event in read_log(whole / "log.jsonl") if event["event"] == "epoch"]
    assert all({"selection", "selection_ema"} <= entry.keys() for entry in entries)
    found = evaluate_checkpoint(whole / "best-ema.pt", device="cpu")
    assert {key: found[key] for key in ("success_at_half", "auc", "curve")} == {
        key: summary["test_ema"][key] for key in ("success_at_half", "auc", "curve")
    }
    best, average = (checkpoints.load(whole / name)["model"] for name in ("best.pt", "best-ema.pt"))
    assert best.keys() == average.keys() and any(not torch.equal(best[name], average[name]) for name in best)
    assert "trained, averaged weights" in (whole / "report.html").read_text()


@pytest.mark.slow
def test_without_them_a_run_is_as_it_was(finished):
    out, _ = finished
    assert not (out / "best-ema.pt").exists()
    state, summary = checkpoints.load(out / "last.pt"), json.loads((out / "summary.json").read_text())
    assert not {"ema", "best_average"} & state.keys() and not {"test_ema", "selected_ema"} & summary.keys()
    assert summary["ended_early"] is False


class Stop(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_run_that_goes_on_ends_with_the_same_bits(whole, tiny, tmp_path, monkeypatch, at):
    """Ended after an update in the middle of an epoch, or between two; three updates are an epoch."""
    out, own = tmp_path / "run", Trainer.take_step

    def take_step(self, raw):
        if self.steps == at:
            raise Stop
        own(self, raw)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", take_step)
        with pytest.raises(Stop):
            run(tiny, out, *EMA, "--epochs", "2", "--checkpoint_steps", "1")
    assert checkpoints.load(out / "last.pt")["step"] == at
    assert train_door.main(["--resume", str(out)]) == 0
    for name in ("last.pt", "best.pt", "best-ema.pt"):
        mine, theirs = checkpoints.load(out / name), checkpoints.load(whole / name)
        for part in ("model", "ema"):
            assert (part in mine) == (part in theirs)
            for key, value in theirs.get(part, {}).items():
                assert torch.equal(mine[part][key], value), (name, key)
        assert [mine.get(key) for key in ("best", "best_average")] == [
            theirs.get(key) for key in ("best", "best_average")
        ]
    mine, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (out, whole))
    assert (mine["test"], mine["test_ema"]) == (theirs["test"], theirs["test_ema"])


@pytest.mark.slow
def test_a_lost_average_is_told_and_replaced(whole, tmp_path, capsys):
    mine = shutil.copytree(whole, tmp_path / "run")
    (mine / "best-ema.pt").unlink()
    assert train_door.main(["--resume", str(mine), "--epochs", "3"]) == 0
    said = capsys.readouterr().out
    assert "best-ema.pt (it is gone): the best of the epochs from here on" in said and "best.pt (" not in said
    assert checkpoints.load(mine / "best-ema.pt")["best"]["epoch"] == 3


@pytest.mark.parametrize("change", [["--optim.ema", "0.9"], ["--optim.ema", "0"], ["--optim.accumulate", "1"]])
def test_what_a_run_computes_stays_on_a_resume(whole, change):
    with pytest.raises(InputError, match=f"other settings: {change[0][2:]}: "):
        train_door.main(["--resume", str(whole), "--epochs", "3", *change])


def scripted(monkeypatch, scores):
    """Let the n-th evaluation on val find these success rates."""
    own, left = Trainer.evaluate, iter(scores)

    class Found:
        samples = ()

        def trusted_from(self, manifest):
            return None

        def __init__(self, score):
            self.score = score

        def result(self, manifest):
            return {"success_at_half": self.score, "auc": 0.5}

    def evaluate(self, split, *given, **named):
        return Found(next(left)) if split == "val" else own(self, split, *given, **named)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scores", "options", "ends"),
    [
        ([0.1, 0.2, 0.2, 0.2], ["--patience", "2"], 4),  # equal is no better
        ([0.3, 0.2, 0.1], ["--patience", "2"], 3),
        ([0.1, 0.0, 0.2, 0.1, 0.3, 0.2], ["--patience", "2"], 6),
        ([0.3, 0.2], ["--patience", "1"], 2),
        ([0.3, 0.2, 0.1], ["--patience", "3", "--eval_every", "2"], 6),  # looked at every second epoch
        ([0.3, 0.2, 0.1, 0.0, 0.0, 0.0], [], 6),
    ],
)
def test_a_run_without_a_better_result_ends(tiny, tmp_path, monkeypatch, capsys, scores, options, ends):
    scripted(monkeypatch, scores)
    out = tmp_path / "run"
    assert run(tiny, out, "--epochs", "6", *options) == 0
    summary, said = json.loads((out / "summary.json").read_text()), capsys.readouterr().out
    best = 1 + scores.index(max(scores))
    every = 2 if "--eval_every" in options else 1
    assert summary["epochs"] == ends and summary["selected"]["epoch"] == (best if every == 1 else 2)
    assert summary["ended_early"] == (ends < 6) == ("the run ends with epoch" in said)
    assert checkpoints.load(out / "last.pt")["epoch"] == ends


@pytest.mark.slow
def test_a_run_that_ended_early_has_ended_until_it_is_told_to_go_on(tiny, tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, [0.3, 0.2, 0.4])
    out = tmp_path / "run"
    assert run(tiny, out, "--epochs", "3", "--patience", "1") == 0
    assert train_door.main(["--resume", str(out)]) == 0
    assert "the run has ended early (patience 1): it is evaluated again" in capsys.readouterr().out
    assert checkpoints.load(out / "last.pt")["epoch"] == 2
    assert train_door.main(["--resume", str(out), "--patience", "0"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["epochs"], summary["selected"]["epoch"], summary["ended_early"]) == (3, 3, False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--patience", "3", "--eval_every", "0"], "patience: needs evaluations"),
        (["--patience", "-1"], "patience: must be at least 0"),
        (["--optim.ema", "1"], "optim.ema: must be from 0 to below 1"),
        (["--optim.ema", "nan"], "optim.ema"),
        (["--optim.accumulate", "0"], "optim.accumulate: must be at least 1"),
        (["--optim.accumulate", "1.5"], "optim.accumulate"),
    ],
)
def test_impossible_values_are_refused(words, said):
    with pytest.raises(InputError, match=said):
        config.load("demo", words)


def test_the_recipe_has_none_of_it():
    for name in config.shipped_names():
        settings = config.load(name)
        assert (settings.patience, settings.optim.accumulate, settings.optim.ema) == (0, 1, 0.0)
    assert train.Trainer is Trainer
