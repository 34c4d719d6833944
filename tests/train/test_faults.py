"""Steps that are not finite stop a run or are passed over, and are kept for a replay; a collapse is reported."""

import math

import pytest
import torch
from torch import nn

from essl_fast import checkpoints, config, models, replay
from essl_fast.common.commands import command
from essl_fast.common.errors import InputError
from essl_fast.data.shards import Manifest
from essl_fast.models import heads, localizer
from essl_fast.runtime.runlog import read_log
from essl_fast.train import Observer, Trainer, collapse, guard, replaying, train_epoch
from essl_fast.train import __main__ as train_door
from essl_fast.train.state import faulty_state

SETTINGS = [
    "--config",
    "demo",
    "--data.batch_size",
    "5",
    "--device",
    "cpu",
    "--epochs",
    "1",
    "--overlays",
    "0",
    "--baselines",
    "false",
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A small head: the same code in a fraction of the time."""
    head = heads.SimSiamHead
    monkeypatch.setattr(heads, "SimSiamHead", lambda channels: head(channels, 64, 16))


def trainer_of(prepared, *more):
    settings = config.load("demo", [*SETTINGS, "--data.root", str(prepared), *more])
    return Trainer(settings, Manifest.load(prepared), torch.device("cpu"))


def spoil(trainer, at):
    """The gradient of step ``at``, counted from 0, is infinite; what the model was before each step is kept."""
    before = []
    parameter = trainer.model.head.predictor[0].weight

    def hook(gradient):
        before.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        return gradient * math.inf if len(before) == at + 1 else gradient

    parameter.register_hook(hook)
    return before


class Listener(Observer):
    """Keeps the faults that are reported to it."""

    def __init__(self):
        self.faults = []

    def on_not_finite(self, fault, file, passed):
        self.faults.append(fault)


def run_epoch(trainer):
    with trainer.loader:
        return train_epoch(trainer)


def parameters(trainer, state):
    """Those of a state that were not moved by the forward pass that came before it was taken."""
    return {name: state[name] for name, _ in trainer.model.named_parameters()}


@pytest.mark.parametrize("read_every", [1, 20])
def test_a_run_stops_with_the_weights_that_the_bad_step_began_with(tiny, read_every):
    """Also where losses are read only after further steps, as on a GPU."""
    trainer = trainer_of(tiny[1])
    trainer.losses.every, before, listener = read_every, spoil(trainer, 1), Listener()
    trainer.observers.add(listener)
    with pytest.raises(FloatingPointError, match="a gradient is not finite in epoch 1, step 2; lower the learning ra"):
        run_epoch(trainer)
    assert len(before) == (2 if read_every == 1 else len(trainer.loader))
    expected, now = parameters(trainer, before[1]), parameters(trainer, trainer.model.state_dict())
    assert all(torch.equal(now[name], value) for name, value in expected.items())
    assert any(not torch.equal(before[0][name], value) for name, value in expected.items())
    (fault,) = listener.faults
    assert (fault.epoch, fault.step, fault.later, len(fault.keys)) == (0, 1, 0, 5)
    assert math.isfinite(fault.losses["loss"]) and fault.keys == [trainer.manifest.key(row) for row in fault.rows]


@pytest.mark.slow
def test_a_step_may_be_passed_over(tiny):
    trainer = trainer_of(tiny[1], "--on_nonfinite", "skip")
    spoil(trainer, 1)
    losses = []

    class Losses(Observer):
        def on_step(self, epoch, reading):
            losses.append(reading.loss)

    trainer.observers.add(Losses())
    entry = run_epoch(trainer)
    assert entry["not_finite"] == 1 and entry["pairs"] == trainer.loader.pairs == 19
    sizes = [5, 5, 5, 4]
    kept = [(loss, size) for number, (loss, size) in enumerate(zip(losses, sizes, strict=False)) if number != 1]
    assert entry["losses"]["loss"] == pytest.approx(sum(a * b for a, b in kept) / sum(b for _, b in kept))
    assert 0.5 < entry["projection_std"] <= 1 < entry["projection_rank"] < 5
    assert not set(collapse.SPREAD) & set(entry["losses"])

    trainer = trainer_of(tiny[1], "--on_nonfinite", "skip")
    trainer.model.head.predictor[0].weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(FloatingPointError, match="step 2, and max_nonfinite allows 1 such step an epoch"):
        run_epoch(trainer)


def test_gradients_are_clipped_as_they_are_without_a_loss_scale(tiny):
    """AdamW's step does not tell: it divides by the gradients' size. Its moments do."""
    moments = []
    for scaler in (torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu", init_scale=256.0)):
        trainer = trainer_of(tiny[1], "--optim.clip_norm", "0.01")
        trainer.step.scaler = scaler
        with trainer.loader:
            trainer.train_step(next(iter(trainer.batches())))
        held = trainer.step.optimizer.state.values()
        moments.append(torch.cat([each["exp_avg"].flatten() for each in held]))
    plain, scaled = moments
    assert plain.norm() == pytest.approx(0.1 * 0.01, rel=1e-4)  # of the gradient, whose norm is the limit
    torch.testing.assert_close(scaled, plain, rtol=1e-3, atol=1e-8)


def test_fp16_that_overflows_at_every_scale_stops(tiny):
    trainer = trainer_of(tiny[1])
    trainer.step.scaler = torch.amp.GradScaler("cpu", init_scale=guard.LEAST_SCALE)
    trainer.read_losses()
    trainer.step.scaler = torch.amp.GradScaler("cpu", init_scale=guard.LEAST_SCALE / 2)
    with pytest.raises(FloatingPointError, match="overflow at every loss scale.*use --precision bf16 or fp32"):
        trainer.read_losses()
    trainer.loader.close()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_kept_and_replayed(tiny, tmp_path, capsys):
    out = tmp_path / "hot"
    arguments = [*SETTINGS, "--data.root", str(tiny[1]), "--out", str(out), "--optim.lr_trunk", "1e30"]
    assert command(lambda: train_door.main(arguments), train_door.PROG) == 1
    error = capsys.readouterr().err
    (file,) = out.glob("nonfinite-*.pt")
    assert f"python -m essl_fast.replay {file}" in error and "lower the learning rates" in error
    (event,) = [e for e in read_log(out / "log.jsonl") if e["event"] == "not_finite"]
    assert event["file"] == file.name and event["keys"][0] in error
    assert checkpoints.load(out / "last.pt")["step"] == 0  # from before it

    assert replay.main([str(file), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"5 pairs, {', '.join(event['keys'])}" in said
    assert "first not finite: output trunk." in said, said  # the weights are 1e30: huge, and finite

    state = checkpoints.load(file)
    name = (
        "audio.features.0.weight"
        if "audio.features.0.weight" in state["model"]
        else next(name for name in state["model"] if name.startswith("audio.") and name.endswith("weight"))
    )
    state["model"][name].view(-1)[3] = math.nan
    report = replaying.replay(state, tiny[1], torch.device("cpu"))
    assert report.places[0] == replaying.Place("weight", name, f"1 nan of {state['model'][name].numel()} values")


@pytest.mark.slow
def test_a_replay_of_what_is_finite_says_so(tiny, tmp_path, capsys):
    trainer = trainer_of(tiny[1])
    spoil(trainer, 0)
    trainer.faults.keep_in(tmp_path, lambda: faulty_state(trainer) | {"runs_on": "cuda in bfloat16"})
    with pytest.raises(FloatingPointError, match="essl_fast.replay"):
        run_epoch(trainer)
    (file,) = tmp_path.glob("nonfinite-1-1.pt")
    assert replay.main([str(file), "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "ran on cuda in bfloat16, this is cpu in float32" in said and "everything is finite this time" in said
    with pytest.raises(InputError, match="is no step to replay"):
        checkpoints.save(tmp_path / "last.pt", {"kind": "last"})
        replay.main([str(tmp_path / "last.pt"), "--device", "cpu"])


def test_pairs_that_alone_are_not_finite_are_named():
    watch = replaying.Watch(nn.Identity(), ["a", "b", "c"])
    value = torch.zeros(6, 4)
    value[4, 0] = math.nan  # the second view of b
    assert watch._pairs(value) == ("b",)
    assert watch._pairs(torch.full((6, 4), math.nan)) == () and watch._pairs(torch.zeros(5)) == ()
    assert replaying.nonfinite(value) == "1 nan of 24 values" and replaying.nonfinite(torch.zeros(3)) is None
    assert replaying.nonfinite(torch.tensor([math.inf, math.nan, 0, -math.inf])) == "1 nan and 2 inf of 4 values"


@pytest.mark.slow
def test_a_run_that_collapses_gets_a_warning(tiny, tmp_path, capsys, monkeypatch):
    build = localizer.build

    def collapsed(settings):
        model = build(settings)
        with torch.no_grad():
            model.head.projector[6].weight.zero_()
        model.head.projector[6].weight.requires_grad_(False)
        return model

    monkeypatch.setattr(models, "build", collapsed)
    out = tmp_path / "run"
    assert train_door.main([*SETTINGS, "--data.root", str(tiny[1]), "--out", str(out), "--epochs", "2"]) == 0
    assert capsys.readouterr().out.count("warning: the projections have collapsed") == 1
    events = read_log(out / "log.jsonl")
    assert [e["epoch"] for e in events if e["event"] == "warning"] == [1]
    assert all(e["projection_std"] < collapse.COLLAPSED_BELOW for e in events if e["event"] == "epoch")
